"""From sources to the token file, its row plan, and batch(step)."""
