"""The worker of transformers: `generate` with its cache on the same weights. Runs under the peers' interpreter."""

import os
import time
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from benchmarks.generation.shared import Side, random_prompts, serve_side

MODELS = {"gpt": transformers.GPT2LMHeadModel, "t5": transformers.T5ForConditionalGeneration}


class Peer(Side):
  """A model and the prompts."""

  def prepare(
    self, folder: str, family: str, dtype: str, compiled: bool, rows: int, prompt: int, new: int, beams: int
  ) -> dict[str, Any]:
    """Loads the weights and generates once, which compiles where that is asked for.

    Args:
      folder: with `model`, as transformers loads it.
      family: gpt or t5.
      dtype: of weights and computation.
      compiled: whether the forward pass is compiled, on a cache of fixed size.
      rows, prompt, new, beams: see `ours`.
    """
    begin = time.perf_counter()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = MODELS[family].from_pretrained(f"{folder}/model", dtype=getattr(torch, dtype)).eval().to(device)
    ids = torch.tensor(random_prompts(model.config.vocab_size, rows, prompt), device=device)
    options: dict[str, Any] = {"do_sample": False, "num_beams": beams, "eos_token_id": None, "pad_token_id": 0}
    if compiled:
      options["cache_implementation"] = "static"
      model.forward = torch.compile(model.forward, dynamic=False)
    mask = torch.ones_like(ids)

    @torch.inference_mode()
    def generate(count: int) -> list[list[int]]:
      out = model.generate(ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, **options)
      return out[:, -count:].tolist()

    return self.ready(generate, new, begin)


if __name__ == "__main__":
  serve_side(Peer())
