"""Generation of text against transformers: the same weights and prompts, in turns."""
