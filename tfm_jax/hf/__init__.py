"""Weights and tokenizers to and from Hugging Face: one table a family, no torch."""
