"""Generation against transformers.generate with its cache: python -m benchmarks.generation --out=DIR.

Both have the same random weights and prompts, and generate greedily, or with beams, as many tokens.

--cases=gpt2,gpt2_8,t5_beams    shapes, see CASES
--sides=ours,transformers,transformers-compiled
--dtype=bfloat16                of weights and computation, on both sides
--blocks=3                      blocks of each side, in turns
--seconds=8                     time per block
--out=runs/generation           the folder for generation.json and generation.html
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tfm_jax.runtime.command import Flags, run_command

FLAGS = ("cases", "sides", "dtype", "blocks", "seconds", "out")
COLUMNS = [
  *("case", "side", "tokens/s", "range", "ours is faster by", "ms to the first token", "peak GiB", "first call s"),
  "same text",
]


class Case(NamedTuple):
  """One shape: the config, keys that differ from it, the family, rows, tokens of a prompt, new ones, beams."""

  config: str
  overrides: dict[str, Any]
  family: str
  rows: int
  prompt: int
  new: int
  beams: int = 1

  @property
  def shape(self) -> dict[str, int]:
    """Rows and tokens."""
    return {"rows": self.rows, "prompt": self.prompt, "new": self.new, "beams": self.beams}


_SHARED: dict[str, Any] = {"tokenizer.kind": "byte", "sharding.strategy": "dp"}
_GPT2 = _SHARED | {"model.vocab_size": 50_257}
_T5 = _SHARED | {"model.vocab_size": 32_128, "tokenizer.sentinels": 100}
CASES = {
  "gpt2": Case("configs/gpt2_small.py", _GPT2, "gpt", 1, 32, 128),
  "gpt2_8": Case("configs/gpt2_small.py", _GPT2, "gpt", 8, 32, 128),
  "t5_beams": Case("configs/t5_small.py", _T5, "t5", 4, 64, 64, 4),
}
SIDES = ("ours", "transformers", "transformers-compiled")


def main(flags: Flags) -> None:
  """Runs the sides of each case in turns and prints a table."""
  from benchmarks import output
  from tfm_jax.runtime.reporting import page

  cases = output.names_of(flags, "cases", ",".join(CASES), tuple(CASES))
  sides = output.names_of(flags, "sides", ",".join(SIDES), SIDES)
  blocks, seconds = output.count_of(flags, "blocks", 3, 1), output.count_of(flags, "seconds", 8, 1)
  dtype, out = flags.values.get("dtype", "bfloat16"), output.folder_of(flags, "runs/generation")
  results: dict[str, Any] = {"command": output.command("benchmarks.generation"), "cases": {}}
  rows: list[list[str]] = []
  for case in cases:
    found = _measure(CASES[case], case, sides, dtype, blocks, seconds, out)
    results["cases"][case] = found
    new = _rows(case, found)
    rows += new
    print(f"\n{output.text_table(COLUMNS, new)}\n", flush=True)
  intro = "Tokens are those generated, of all rows. Both sides have the same weights, prompts and number of tokens."
  body = page.section("Generation", "", page.table(COLUMNS, rows, text_columns=2))
  output.write(out, "generation", "Generation against transformers", intro, results, body)


def _measure(
  case: Case, name: str, sides: list[str], dtype: str, rounds: int, seconds: int, out: Path
) -> dict[str, Any]:
  """The figures of each side."""
  from benchmarks.train.load import others_share, snapshot
  from benchmarks.train.results import block_json, ratio
  from benchmarks.train.rounds import kept, run_rounds
  from benchmarks.train.sides import peer_python
  from benchmarks.train.worker import SHARED_DEVICE, Worker

  workers: dict[str, Worker] = {}
  found: dict[str, Any] = {}
  with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}-") as folder:
    try:
      for side in sides:
        log = out / "logs" / f"{name}-{side}.log"
        if side == "ours":
          workers[side] = Worker("benchmarks.generation.ours", log, environment=SHARED_DEVICE)
          found[side] = workers[side].ask(
            "prepare", config=case.config, overrides=case.overrides, dtype=dtype, **case.shape
          )
          continue
        if not (Path(folder) / "model").exists():
          with Worker("benchmarks.train.inputs", out / "logs" / f"{name}-inputs.log") as inputs:
            inputs.ask("write_model", config=case.config, overrides=case.overrides, steps=1, folder=folder)
        workers[side] = Worker("benchmarks.generation.peer", log, python=peer_python())
        settings = {"folder": folder, "family": case.family, "dtype": dtype, "compiled": side.endswith("compiled")}
        found[side] = workers[side].ask("prepare", **settings, **case.shape)
      calls = {side: max(1, round(seconds / workers[side].ask("run", steps=1)["seconds"][0])) for side in sides}

      def measure(side: str) -> tuple[list[float], float | None]:
        before = snapshot(workers[side].pid)
        taken = workers[side].ask("run", steps=calls[side])["seconds"]
        return taken, others_share(before, snapshot(workers[side].pid))

      def tell(block: Any) -> None:
        print(f"{name}: {block.side} {case.rows * case.new / block.step_seconds:,.4g} tokens/s", flush=True)

      blocks = run_rounds(sides, rounds, measure, tell)
      for side in sides:
        own = [block.step_seconds for block in kept(blocks, side).values()]
        rates = sorted(case.rows * case.new / taken for taken in own)
        found[side] |= {
          "tokens_per_second": {"median": statistics.median(rates), "low": rates[0], "high": rates[-1]},
          "first_token_seconds": statistics.median(workers[side].ask("first", steps=5)["seconds"]),
          "peak_bytes": workers[side].ask("memory")["peak_bytes"],
          "ours_is_faster_by": ratio(blocks, side, "ours") if side != "ours" and "ours" in sides else None,
        }
    finally:
      for worker in workers.values():
        worker.close()
  return {"sides": found, "blocks": [block_json(block) for block in blocks], "dtype": dtype, **case.shape}


def _rows(name: str, found: dict[str, Any]) -> list[list[str]]:
  """The lines of a case."""
  rows = []
  reference = found["sides"].get("ours", {}).get("texts")
  for side, own in found["sides"].items():
    rate, gain = own["tokens_per_second"], own["ours_is_faster_by"]
    faster = f"{gain['median']:.2f} ({gain['low']:.2f} - {gain['high']:.2f})" if gain else "-"
    same = "-" if side == "ours" or reference is None else f"{_same(reference, own['texts']):.0%}"
    rows.append(
      [
        *(name, side, f"{rate['median']:,.4g}", f"{rate['low']:,.4g} - {rate['high']:,.4g}", faster),
        *(f"{own['first_token_seconds'] * 1e3:,.4g}", f"{own['peak_bytes'] / 2**30:.2f}"),
        *(f"{own['compile_seconds']:.1f}", same),
      ]
    )
  return rows


def _same(ours: list[list[int]], theirs: list[list[int]]) -> float:
  """The share of tokens up to the first difference of each text."""
  lengths = [
    next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    for one, other in zip(ours, theirs, strict=True)
  ]
  return sum(lengths) / sum(map(len, ours))


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS))
