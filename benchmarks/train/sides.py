"""Who is measured: this package and its peers, one entry each, and the interpreter that runs a peer."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfm_jax.errors import UserError

ROOT = Path(__file__).parents[2]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"


class Side(NamedTuple):
  """One implementation, trained in one way.

  Attributes:
    about: what it is, for the report.
    group: what `--against` calls it.
    module: the worker that runs it.
    options: arguments of the worker.
    families: the families that it has.
    dtypes: compute dtypes on a CPU; the faster one is measured. An accelerator adds bfloat16 where it is missing.
  """

  about: str
  group: str
  module: str
  options: dict[str, Any]
  families: tuple[str, ...] = ("bert", "gpt", "t5")
  dtypes: tuple[str, ...] = ("float32", "bfloat16")

  @property
  def is_peer(self) -> bool:
    """Whether it needs the peers' interpreter."""
    return self.module == "benchmarks.train.peer"


SIDES: dict[str, Side] = {
  "ours": Side("this package, as train.py runs it", "", "benchmarks.train.ours", {}),
  "ours-again": Side(
    "this package a second time: how much two equal sides differ", "ours", "benchmarks.train.ours", {}
  ),
  "transformers": Side(
    "transformers as its documentation trains: eager PyTorch, AdamW, the model's own loss",
    "transformers",
    "benchmarks.train.peer",
    {"model": "transformers", "tuned": False},
    dtypes=("float32",),
  ),
  "transformers-tuned": Side(
    "transformers with torch.compile, fused AdamW, fused attention, the head on masked positions alone",
    "transformers",
    "benchmarks.train.peer",
    {"model": "transformers", "tuned": True},
  ),
  "pytorch": Side(
    "a minimal GPT in PyTorch with torch.compile, fused AdamW and fused attention",
    "pytorch",
    "benchmarks.train.peer",
    {"model": "minimal", "tuned": True},
    families=("gpt",),
  ),
  "pytorch-eager": Side(
    "the same minimal GPT in eager PyTorch with plain AdamW",
    "pytorch",
    "benchmarks.train.peer",
    {"model": "minimal", "tuned": False},
    families=("gpt",),
    dtypes=("float32",),
  ),
}


def choose_sides(against: Sequence[str], peers: Sequence[str]) -> list[str]:
  """The names of the sides, ours first.

  Args:
    against: groups of `SIDES`, or "none".
    peers: names of sides in these groups; empty: all of them.

  Raises:
    UserError: an unknown group or name.
  """
  groups = list(dict.fromkeys(side.group for side in SIDES.values() if side.group))
  for group in against:
    if group not in (*groups, "none"):
      raise UserError(f"--against={group} is not one of {', '.join(groups)}, none")
  names = [name for name, side in SIDES.items() if side.group in against]
  for name in peers:
    if name not in names:
      raise UserError(f"--peers: {name!r} is not one of {', '.join(names) or 'none'} (--against={','.join(against)})")
  return ["ours", *(name for name in names if not peers or name in peers)]


def peer_python() -> str:
  """The interpreter with torch and transformers. Raises UserError."""
  named = os.environ.get("TFM_PEERS_PYTHON", "")
  if named and not shutil.which(named):
    raise UserError(
      f"TFM_PEERS_PYTHON={named} is not an interpreter: `make .venv-peers/.installed` makes one, "
      f"TFM_PEERS_PYTHON={PEERS_PYTHON.relative_to(ROOT)}"
    )
  if named:
    return os.path.abspath(named) if os.sep in named else named
  if PEERS_PYTHON.exists():
    return str(PEERS_PYTHON)
  if all(map(importlib.util.find_spec, ("torch", "transformers"))):
    return sys.executable
  raise UserError(
    "the peers need an interpreter with torch and transformers: run `make .venv-peers/.installed`, or name one in "
    "TFM_PEERS_PYTHON; --against=none measures this package alone"
  )
