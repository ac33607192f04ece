"""The worker of this package: `decode.generate` on random prompts, without an end symbol."""

import time
from types import SimpleNamespace
from typing import Any

from benchmarks.generation.shared import Side, random_prompts, serve_side


class Ours(Side):
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
    import numpy as np

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

    return self.ready(generate, new, begin)


if __name__ == "__main__":
  serve_side(Ours())
