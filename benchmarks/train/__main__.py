"""Measures training steps of this package against peers: python -m benchmarks.train --against=transformers.

All sides have the same weights, tokens and optimizer. First the losses of 100 steps in float32 must agree; then each
side runs blocks of steps in turns, in the dtype in which it is faster. A block in which other processes used more than
5 % of the cores is discarded and run again. Writes results.json and report.html.

--against=transformers   groups of peers, separated by commas: transformers, pytorch (a minimal GPT), ours (this
                         package again: what equal sides differ by), or none
--peers=transformers-tuned
                         only these of their sides: transformers (as documented), transformers-tuned, pytorch,
                         pytorch-eager
--cases=bert,gpt2,t5     shapes, see benchmarks/train/cases.py; default: the small ones on a CPU, else the base models
--blocks=5               blocks of each side
--steps=0                steps of a block; 0: as many as take 10 seconds
--check=100              steps whose losses are compared
--wait=60                most seconds to wait for a quiet machine before a block is run again
--dtype=bfloat16         of all sides, or float32; default: the faster one of each side
--out=runs/benchmark     the folder for the results
--config.KEY=VALUE       replaces a key of the configs of all cases

The peers have an environment of their own, which `make .venv-peers/.installed` sets up; TFM_PEERS_PYTHON names another.
"""

import json
import sys
from typing import Any

from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

FLAGS = ("against", "peers", "cases", "blocks", "steps", "check", "wait", "dtype", "out")


def main(flags: Flags) -> None:
  """Runs the cases, prints a table for each, and writes the results after each."""
  from benchmarks import machine, output
  from benchmarks.train.cases import default_cases, find_case
  from benchmarks.train.compare import Settings, compare_case
  from benchmarks.train.report import page, terminal_table
  from benchmarks.train.sides import SIDES, choose_sides, peer_python
  from tfm_jax.errors import UserError

  sides = choose_sides(output.names_of(flags, "against", "transformers"), output.names_of(flags, "peers"))
  cases = {name: find_case(name) for name in output.names_of(flags, "cases")}
  numbers = {"blocks": (5, 1), "steps": (0, 0), "check": (100, 2), "wait": (60, 0)}  # default, smallest value
  counts = {name: output.count_of(flags, name, *values) for name, values in numbers.items()}
  dtype = flags.values.get("dtype", "")
  if dtype not in ("", "float32", "bfloat16"):
    raise UserError(f"--dtype={dtype} is not float32 or bfloat16")
  if any(SIDES[name].is_peer for name in sides):
    peer_python()
  backend = machine.backend()
  cases = cases or {name: find_case(name) for name in default_cases(backend != "cpu")}
  out = output.folder_of(flags, "runs/benchmark")
  settings = Settings(**counts, dtype=dtype, accelerator=backend != "cpu", overrides=flags.overrides)
  results: dict[str, Any] = {
    "command": output.command("benchmarks.train"),
    "machine": machine.describe() | {"backend": backend},
    "settings": {**counts, "dtype": dtype or "the faster one of each side"},
    "cases": [],
  }
  for name, case in cases.items():
    family = _family(case.config, flags)
    names = [side for side in sides if family in SIDES[side].families]
    results["cases"].append(compare_case(name, case, names, settings, out))
    (out / "results.json").write_text(json.dumps(results, indent=1))
    (out / "report.html").write_text(page(results), encoding="utf-8")
    print(f"\n{terminal_table(results['cases'][-1])}\n", flush=True)
  print(f"Report: {out / 'report.html'} (figures: results.json)")
  failed = [f"{c['case']}: {s}" for c in results["cases"] for s, check in c["agreement"].items() if not check["agrees"]]
  if failed:
    raise UserError(f"not timed, as the losses differ from ours: {', '.join(failed)}")


def _family(config: str, flags: Flags) -> str:
  from tfm_jax.training.config import load

  return load(config, flags.overrides).family


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
