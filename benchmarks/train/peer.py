"""The worker of the peers: the same weights, tokens and optimizer in PyTorch. Runs under the peers' interpreter."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch

from benchmarks.train.peer_models import build
from benchmarks.train.serve import Clock, peak_bytes, reset_peak, serve


class Peer:
  """A model, its optimizer, and batches that are used in turn."""

  def prepare(self, folder: str, model: str, tuned: bool, dtype: str, first_step: bool = True) -> dict[str, Any]:
    """Loads the weights and takes a first step, which compiles where that is asked for; then loads them anew.

    Args:
      folder: what `inputs` wrote.
      model: "transformers" or "minimal".
      tuned: whether to use torch.compile, fused AdamW and the cheapest form of the loss.
      dtype: float32, or bfloat16 for autocast.
      first_step: whether a step is taken, as a warm-up, before the state is made.
    """
    begin = time.perf_counter()
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    if tuned:
      torch.set_float32_matmul_precision("high" if self.device.type == "cuda" else "highest")
    settings = json.loads((Path(folder) / "training.json").read_text())
    self.family, self.rates = settings["family"], settings["rates"]
    with np.load(Path(folder) / "batches.npz") as file:
      arrays = {name: file[name] for name in file.files}
    built = build(model, self.family, Path(folder) / "model", tuned, arrays)
    self.batches = built.batches
    self.network = built.network.to(self.device).train()
    network, kind = self.network, self.device.type

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
      with torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16"):
        return built.loss(network, batch)

    self.loss = torch.compile(loss, dynamic=False) if tuned else loss
    self.clip = settings["optimizer"]["grad_clip"]
    self.optimizer = _optimizer(self.network, settings["optimizer"], tuned)
    self.step, compile_seconds = 0, 0.0
    if first_step:
      start = {name: x.detach().clone() for name, x in self.network.state_dict().items()}
      seconds = self.run(3)["seconds"]
      compile_seconds = max(seconds[0] - seconds[-1], 0.0)
      self.network.load_state_dict(start)
      self.optimizer.state.clear()
      self.step = 0
    reset_peak()
    if self.device.type == "cuda":
      torch.cuda.reset_peak_memory_stats()
    return {
      "seconds": time.perf_counter() - begin,
      "compile_seconds": compile_seconds,
      "parameters": sum(x.numel() for x in self.network.parameters()),
      "flags": {
        "dtype": dtype,
        "compile": tuned,
        "fused_adamw": tuned,
        "attention": built.attention,
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
      },
      "versions": _versions(),
    }

  def run(self, steps: int) -> dict[str, Any]:
    """Takes steps. Returns the loss and the seconds of each."""
    clock = Clock()
    for _ in range(steps):
      batch = self.batches[self.step % len(self.batches)]
      batch = {name: x.to(self.device, non_blocking=True) for name, x in batch.items()}
      rate = self.rates[min(self.step, len(self.rates) - 1)]
      for group in self.optimizer.param_groups:
        group["lr"] = rate
      loss = self.loss(batch)
      loss.backward()
      if self.clip:
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
      self.optimizer.step()
      self.optimizer.zero_grad(set_to_none=True)
      self.step += 1
      clock.dispatched(loss.detach())
    return clock.finish()

  def memory(self) -> dict[str, Any]:
    """Peak memory since the weights were loaded: of the process, and of the device where it is another."""
    on_device = torch.cuda.max_memory_reserved() if self.device.type == "cuda" else 0
    return {"peak_bytes": peak_bytes(), "device_peak_bytes": on_device}


def _optimizer(network: torch.nn.Module, settings: dict[str, Any], fused: bool) -> torch.optim.Optimizer:
  """AdamW that decays what this package decays: matrices, but not the table of relative positions."""
  named = [(name, x) for name, x in network.named_parameters() if x.requires_grad]
  decayed = [x for name, x in named if x.ndim > 1 and "relative_attention_bias" not in name]
  others = [x for name, x in named if not (x.ndim > 1 and "relative_attention_bias" not in name)]
  groups = [
    {"params": decayed, "weight_decay": settings["weight_decay"]},
    {"params": others, "weight_decay": 0.0},
  ]
  betas = (settings["beta1"], settings["beta2"])
  return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=settings["epsilon"], fused=fused or None)


def _versions() -> dict[str, str]:
  import transformers

  device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
  own = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
  return own | {"numpy": np.__version__, "device": device}


if __name__ == "__main__":
  peer = Peer()
  serve({"prepare": peer.prepare, "run": peer.run, "memory": peer.memory})
