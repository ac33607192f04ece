"""Text to ids and back: sentencepiece, WordPiece, byte-level BPE, characters, bytes, and Hugging Face's own files."""
