"""Studies of several runs: comparisons of runtimes and engines, reproductions of papers."""
