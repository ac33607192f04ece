"""What a model gets wrong: pages of errors and of two runs side by side, and a short text for the terminal."""
