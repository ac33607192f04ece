"""Pictures: files, their decoded copy in the cache, augmentation, batches, palettes."""
