"""Optimizers and what surrounds them: rates by depth, LoRA, norms."""
