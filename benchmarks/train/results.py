"""The figures of a case, from its blocks and the losses of its check."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.train.rounds import Block, kept

# Largest relative difference of a loss, in float32, over the steps of the check. Both sides round differently, and
# training multiplies the difference.
TOLERANCE = 2e-4
# Where training multiplies it by more: how many times as far as our own losses with other rounding.
TIMES_ROUNDING = 3.0


def agreement(ours: Sequence[float], theirs: Sequence[float], rounded: Sequence[float] = ()) -> dict[str, Any]:
  """How far the losses of a peer are from ours, step by step, and how far they may be.

  rounded: our losses with other rounding. At each step a peer may differ `TIMES_ROUNDING` times as much as they did up
    to there; empty: `TOLERANCE` alone.
  """
  limits = [TOLERANCE] * len(ours)
  if rounded:
    limits = [max(TOLERANCE, TIMES_ROUNDING * x) for x in itertools.accumulate(_differences(ours, rounded), max)]
  differences = _differences(ours, theirs)
  return {
    "losses": list(theirs),
    "differences": differences,
    "limits": limits,
    "largest": max(differences),
    "agrees": all(x <= limit for x, limit in zip(differences, limits, strict=True)),
  }


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
  """Relative differences."""
  return [abs(b - a) / abs(a) for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
  """Median and range."""
  return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summary(blocks: Sequence[Block], side: str, tokens: float) -> dict[str, Any]:
  """The figures of a side. `tokens`: per step, without padding."""
  own, chosen = [block for block in blocks if block.side == side], kept(blocks, side)
  seconds = [block.step_seconds for block in chosen.values()]
  return {
    "step_seconds": spread(seconds),
    "useful_tokens_per_second": spread([tokens / x for x in seconds]),
    "blocks": len(chosen),
    "discarded_blocks": sum(not block.kept for block in own),
    "disturbed_blocks": sum(block.kept and not block.clean for block in own),
  }


def ratio(blocks: Sequence[Block], side: str, ours: str = "ours") -> dict[str, float] | None:
  """How many times as fast as a peer ours is: median and range over the rounds of both.

  If no round was clean for both, all rounds count; the summaries tell how many blocks were disturbed.
  """
  mine, theirs = kept(blocks, ours), kept(blocks, side)
  if not mine.keys() & theirs.keys():
    mine, theirs = ({b.round: b for b in blocks if b.side == name and b.kept} for name in (ours, side))
  pairs = [theirs[number].step_seconds / mine[number].step_seconds for number in sorted(mine.keys() & theirs.keys())]
  return spread(pairs) if pairs else None


def block_json(block: Block) -> dict[str, Any]:
  """A block as it is stored."""
  return {
    "side": block.side,
    "round": block.round,
    "attempt": block.attempt,
    "kept": block.kept,
    "others": block.others,
    "step_seconds": block.step_seconds,
    "seconds": block.seconds,
  }


def table(case: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  """(columns, rows) of a case's result, as text."""
  columns = ["", "dtype", "ms per step", "range", "useful tokens/s", "ours is faster by", "range"]
  columns += ["loss difference", "compile s", "peak GiB", "blocks (discarded)"]
  rows = []
  for name, side in case["sides"].items():
    check = case["agreement"].get(name)
    difference = f"{check['largest']:.1e}" if check else "-"
    if "step_seconds" not in side:
      rows.append([name, side.get("dtype", "-"), *["-"] * 5, f"{difference} TOO LARGE", *["-"] * 3])
      continue
    step, faster = side["step_seconds"], side.get("ours_is_faster_by")
    memory = max(side["memory"]["device_peak_bytes"] or side["memory"]["peak_bytes"], 0)
    rows.append(
      [
        name,
        side["dtype"],
        f"{step['median'] * 1e3:.4g}",
        f"{step['low'] * 1e3:.4g} - {step['high'] * 1e3:.4g}",
        f"{side['useful_tokens_per_second']['median']:,.0f}",
        f"{faster['median']:.2f} x" if faster else "-",
        f"{faster['low']:.2f} - {faster['high']:.2f}" if faster else "-",
        difference,
        f"{side['compile_seconds']:.1f}",
        f"{memory / 2**30:.2f}",
        f"{side['blocks']} ({side['discarded_blocks']})" + (" DISTURBED" if side["disturbed_blocks"] else ""),
      ]
    )
  return columns, rows
