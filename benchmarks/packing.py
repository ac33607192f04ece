"""Packed rows against padded rows of real text, in useful tokens per second: python -m benchmarks.packing --out=DIR.

Both train on the same text. A packed row holds several documents, which do not see each other; a padded row holds one.

--cases=bert,gpt2        shapes, see benchmarks/train/cases.py
--blocks=3               blocks of each, in turns
--seconds=5              time per block
--out=runs/packing       the folder for packing.json and packing.html
--config.KEY=VALUE       replaces a key of the configs
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

FLAGS = ("cases", "blocks", "seconds", "out")
BATCHES = 50
COLUMNS = [
  "case",
  "rows are",
  "text in a row",
  "ms per step",
  "range",
  "useful tokens/s",
  "range",
  "packed is faster by",
]


def main(flags: Flags) -> None:
  """Runs both forms of each case in turns and prints a table."""
  from benchmarks import output
  from benchmarks.train.cases import CASES
  from tfm_jax.runtime.reporting import page

  cases = output.names_of(flags, "cases", "bert,gpt2", tuple(CASES))
  blocks, seconds = output.count_of(flags, "blocks", 3, 1), output.count_of(flags, "seconds", 5, 1)
  out = output.folder_of(flags, "runs/packing")
  results: dict[str, Any] = {"command": output.command("benchmarks.packing"), "cases": {}}
  rows = []
  for case in cases:
    results["cases"][case] = found = _measure(case, blocks, seconds, flags.overrides, out)
    rows += _rows(case, found)
    print(f"\n{output.text_table(COLUMNS, rows[-2:])}\n", flush=True)
  intro = "Useful tokens are those of the text: padding does not count."
  body = page.section("Packed and padded", "", page.table(COLUMNS, rows, text_columns=2))
  output.write(out, "packing", "Packed rows against padded rows", intro, results, body)


def _measure(case: str, rounds: int, seconds: int, changes: dict[str, str], out: Path) -> dict[str, Any]:
  """The figures of both forms."""
  from benchmarks.train.cases import CASES
  from benchmarks.train.load import others_share, snapshot
  from benchmarks.train.results import block_json, ratio, summary
  from benchmarks.train.rounds import run_rounds
  from benchmarks.train.worker import SHARED_DEVICE, Worker

  forms = {"packed": True, "padded": False}
  config, base = CASES[case].config, {**CASES[case].overrides, **changes}
  with tempfile.TemporaryDirectory(dir=out, prefix=f".{case}-") as folder:
    workers: dict[str, Worker] = {}
    data: dict[str, dict[str, Any]] = {}
    try:
      for form, packing in forms.items():
        overrides = base | {"data.packing": packing}
        place = Path(folder) / form
        place.mkdir()
        with Worker("benchmarks.train.inputs", out / "logs" / f"{case}-inputs.log") as inputs:
          data[form] = inputs.ask(
            "write_batches", config=config, overrides=overrides, count=BATCHES, folder=str(place), joined=False
          )
        log = out / "logs" / f"{case}-{form}.log"
        workers[form] = Worker("benchmarks.train.ours", log, environment=SHARED_DEVICE)
        batches = str(place / "batches.npz")
        workers[form].ask("prepare", config=config, overrides=overrides, dtype="", batches=batches)
      first = max(min(worker.ask("run", steps=2)["seconds"]) for worker in workers.values())
      steps = max(3, round(seconds / first))

      def measure(form: str) -> tuple[list[float], float | None]:
        before = snapshot(workers[form].pid)
        taken = workers[form].ask("run", steps=steps)["seconds"]
        return taken, others_share(before, snapshot(workers[form].pid))

      blocks = run_rounds(list(forms), rounds, measure, lambda b: print(_progress(case, b), flush=True))
    finally:
      for worker in workers.values():
        worker.close()
  found = {form: data[form] | summary(blocks, form, data[form]["useful_tokens_per_step"]) for form in forms}
  slower = ratio(blocks, "padded", "packed")
  text = data["packed"]["useful_tokens_per_step"] / data["padded"]["useful_tokens_per_step"]
  gain = {key: value * text for key, value in slower.items()} if slower else None
  return found | {"packed_is_faster_by": gain, "blocks": [block_json(block) for block in blocks]}


def _progress(case: str, block: Any) -> str:
  state = "" if block.clean else ", disturbed" if block.kept else ", disturbed: discarded"
  return f"{case}: {block.side} {block.step_seconds * 1e3:.4g} ms per step{state}"


def _rows(case: str, found: dict[str, Any]) -> list[list[str]]:
  rows = []
  for form in ("packed", "padded"):
    own = found[form]
    step, tokens, gain = own["step_seconds"], own["useful_tokens_per_second"], found["packed_is_faster_by"]
    share = own["useful_tokens_per_step"] / (own["rows"] * own["row_tokens"])
    faster = f"{gain['median']:.2f} ({gain['low']:.2f} - {gain['high']:.2f})" if gain and form == "packed" else ""
    rows.append([case, form, f"{share:.0%}", f"{step['median'] * 1e3:.4g}", _range(step, 1e3, ".4g")])
    rows[-1] += [f"{tokens['median']:,.0f}", _range(tokens, 1, ",.0f"), faster]
  return rows


def _range(spread: dict[str, float], factor: float, form: str) -> str:
  return f"{spread['low'] * factor:{form}} - {spread['high'] * factor:{form}}"


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
