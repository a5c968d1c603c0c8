"""The machine under a run: files, processes, memory, and what libraries print."""
