"""Tokenizers and corpora: from files to documents to ids. Never imports jax."""
