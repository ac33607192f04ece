"""What both sides share: prompts and timing. Nothing here imports jax or torch: each side has its interpreter."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.train.serve import peak_bytes, reset_peak, serve

Generate = Callable[[int], list[list[int]]]  # number of new tokens -> the new ids of each row


def random_prompts(vocab_size: int, rows: int, tokens: int) -> list[list[int]]:
  """Random ids, the same at each call."""
  draw = np.random.default_rng(0)
  return [[int(id) for id in row] for row in draw.integers(5, vocab_size, (rows, tokens))]


class Side:
  """A side that generates. Subclasses have `prepare`, which calls `ready`."""

  generate: Generate
  new: int

  def ready(self, generate: Generate, new: int, begin: float) -> dict[str, Any]:
    """Generates once, which compiles. `begin`: when the preparation began. Returns what `prepare` answers."""
    self.generate, self.new = generate, new
    compile_seconds, texts = _timed(generate, new)
    generate(1)
    reset_peak()
    return {"seconds": time.perf_counter() - begin, "compile_seconds": compile_seconds, "texts": texts}

  def run(self, steps: int) -> dict[str, Any]:
    """Generates `steps` times; the seconds of each."""
    return {"seconds": [_timed(self.generate, self.new)[0] for _ in range(steps)]}

  def first(self, steps: int) -> dict[str, Any]:
    """The seconds to the first token, `steps` times."""
    return {"seconds": [_timed(self.generate, 1)[0] for _ in range(steps)]}

  def memory(self) -> dict[str, Any]:
    """Peak memory of the process since it was ready."""
    return {"peak_bytes": peak_bytes()}


def serve_side(side: Any) -> None:
  """Answers requests for a side."""
  serve({"prepare": side.prepare, "run": side.run, "first": side.first, "memory": side.memory})


def _timed(generate: Generate, count: int) -> tuple[float, list[list[int]]]:
  begin = time.perf_counter()
  texts = generate(count)
  return time.perf_counter() - begin, texts
