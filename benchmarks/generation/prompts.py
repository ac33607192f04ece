"""The prompts of both sides. Nothing here imports anything but numpy: workers of other interpreters use it too."""

import numpy as np


def random_prompts(vocab_size: int, rows: int, tokens: int) -> list[list[int]]:
  """Random ids, the same at each call."""
  draw = np.random.default_rng(0)
  return [[int(id) for id in row] for row in draw.integers(5, vocab_size, (rows, tokens))]
