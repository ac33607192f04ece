"""Tokens per second of `Dataset.batch(step)` on one core, from a prepared token file.

  python benchmarks/data_throughput.py [--rows=256] [--seq_len=512] [--seconds=2] [--out=FILE.json]

The text is random, in documents of 250 tokens on average. Padding is not counted.

Measured in million tokens/s with rows of 512, batches of 256 and one x86 core (busy machine - quiet machine): MLM
19-34, causal 28-48, span corruption 10-14, seq2seq 27-37 (continuation) and 69-108 (pairs, both sides counted).
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np

from tfm_jax.data.dataset import Dataset
from tfm_jax.objectives.objective import ObjectiveConfig, Vocabulary
from tfm_jax.objectives.plan import Side, Split
from tfm_jax.objectives.table import OBJECTIVES, make_objective

_VOCABULARY = 32_128


def main() -> None:
  """Prints one line per objective, and writes the figures to --out."""
  parser = argparse.ArgumentParser(description="Tokens per second of Dataset.batch(step) on one core.")
  parser.add_argument("--rows", type=int, default=256, help="rows per batch")
  parser.add_argument("--seq_len", type=int, default=512)
  parser.add_argument("--tokens", type=int, default=20_000_000, help="tokens in the token file")
  parser.add_argument("--seconds", type=float, default=2.0, help="time per objective")
  parser.add_argument("--out", type=Path)
  args = parser.parse_args()
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  sentinels = tuple(range(_VOCABULARY - 1, _VOCABULARY - 101, -1))
  vocabulary = Vocabulary(_VOCABULARY, sentinel_ids=sentinels, special_ids=(0, 1, 2, 3, 4, *sentinels))
  results = {}
  with tempfile.TemporaryDirectory() as folder:
    side = _random_side(Path(folder), args.tokens)
    cases = {name: Split("train", (side,)) for name in OBJECTIVES if name != "sequence_classification"} | {
      "seq2seq pairs": Split("train", (side, side))
    }
    for name, split in cases.items():
      objective = make_objective(ObjectiveConfig(name=name.split()[0]), vocabulary, args.seq_len)
      dataset = Dataset(split, objective, args.rows, seed=0, packing=True, shuffle=True)
      results[name] = _measure(dataset, args.seconds)
      print(f"{name:16} {results[name] / 1e6:7.1f} M tokens/s")
  if args.out:
    versions = {"numpy": np.__version__, "python": platform.python_version(), "machine": platform.machine()}
    args.out.write_text(
      json.dumps({"tokens_per_second": results, "arguments": vars(args), **versions}, default=str, indent=2)
    )


def _random_side(folder: Path, tokens: int) -> Side:
  """A token file of random ids, with documents of random length."""
  rng = np.random.default_rng(0)
  path = folder / "tokens"
  rng.integers(5, _VOCABULARY - 100, tokens).astype(np.uint16).tofile(path)
  cuts = np.unique(rng.integers(1, tokens, tokens // 250))
  offsets = np.concatenate([[0], cuts, [tokens]])
  return Side(np.memmap(path, np.uint16, mode="r").view(np.ndarray), offsets, offsets)


def _measure(dataset: Dataset, seconds: float) -> float:
  """Tokens per second, without padding."""
  useful = dataset.num_tokens / dataset.num_rows * dataset.batch_size
  dataset.batch(0)
  begin, step = time.perf_counter(), 0
  while time.perf_counter() - begin < seconds:
    step += 1
    dataset.batch(step)
  return useful * step / (time.perf_counter() - begin)


if __name__ == "__main__":
  main()
