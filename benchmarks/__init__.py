"""Speed and memory, measured: see README.md in this folder."""
