"""Tasks that learn from files of pictures."""
