"""Layers, the block stack and one file a family: the only package that imports flax."""
