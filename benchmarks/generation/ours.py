"""The worker of this package: `decode.generate` on random prompts, without an end symbol."""

import time
from types import SimpleNamespace
from typing import Any

from benchmarks.train.serve import peak_bytes, reset_peak, serve


class Ours:
  """A model, its parameters made ready, and the prompts."""

  def prepare(
    self,
    config: str,
    overrides: dict[str, Any],
    dtype: str,
    rows: int,
    prompt: int,
    new: int,
    beams: int,
    **options: Any,
  ) -> dict[str, Any]:
    """Builds the model with its initial weights, and generates once, which compiles.

    Args:
      config, overrides: the experiment file and keys that differ from it.
      dtype: the compute dtype.
      rows, prompt, new, beams: prompts, their tokens, the tokens that follow, beams.
      options: more fields of `decode.options.Options`.
    """
    import jax
    import numpy as np

    from benchmarks.generation.prompts import random_prompts
    from tfm_jax.compare.program import build_program
    from tfm_jax.decode.generate import continued
    from tfm_jax.decode.options import Options
    from tfm_jax.decode.prompts import Prompt
    from tfm_jax.decode.start import prepared
    from tfm_jax.training.config import load

    begin = time.perf_counter()
    program = build_program(load(config, overrides | {"model.dtype": dtype}))
    model, params = program.model, program.init().params
    self.params = prepared(model, params)
    del params
    none, first = np.zeros(0, np.int32), np.zeros(1, np.int32)
    ids = np.array(random_prompts(model.vocab_size, rows, prompt), np.int32)
    sides = [(first, row) if model.encoder_decoder else (row, none) for row in ids]
    read = [Prompt(i, "", *both) for i, both in enumerate(sides)]
    tokenizer: Any = SimpleNamespace(vocab_size=model.vocab_size, eos_id=-1, pad_id=0, decode=lambda ids: "")

    def generate(count: int) -> list[list[int]]:
      chosen = Options(max_new_tokens=count, beams=beams, batch_size=rows, **options)
      return [list(one[0].ids) for one in continued(model, self.params, tokenizer, read, chosen)]

    self.generate, self.new = generate, new
    compile_begin = time.perf_counter()
    texts = generate(new)
    compile_seconds = time.perf_counter() - compile_begin
    generate(1)
    jax.block_until_ready(self.params)
    reset_peak()
    return {"seconds": time.perf_counter() - begin, "compile_seconds": compile_seconds, "texts": texts}

  def run(self, steps: int) -> dict[str, Any]:
    """Generates `steps` times; the seconds of each."""
    return {"seconds": [_timed(lambda: self.generate(self.new)) for _ in range(steps)]}

  def first(self, steps: int) -> dict[str, Any]:
    """The seconds to the first token, `steps` times."""
    return {"seconds": [_timed(lambda: self.generate(1)) for _ in range(steps)]}

  def memory(self) -> dict[str, Any]:
    """Peak memory of the process since it was ready."""
    return {"peak_bytes": peak_bytes()}


def _timed(call: Any) -> float:
  begin = time.perf_counter()
  call()
  return time.perf_counter() - begin


if __name__ == "__main__":
  ours = Ours()
  serve({"prepare": ours.prepare, "run": ours.run, "first": ours.first, "memory": ours.memory})
