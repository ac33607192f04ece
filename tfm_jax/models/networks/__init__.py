"""The shapes of networks: how embeddings, stacks of blocks and a head make a model."""
