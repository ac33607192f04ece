"""Using a trained model on text: generation with a key-value cache, filled masks, perplexity, samples."""
