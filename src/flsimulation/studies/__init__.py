"""What is made of many runs: comparisons of runtimes and engines, published figures."""
