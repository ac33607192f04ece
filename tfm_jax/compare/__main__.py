"""Compares sharding strategies: python -m tfm_jax.compare --config=FILE.py --strategies=A,B --out=DIR.

--config=FILE.py[:VARIANT]   the run to compare, as for train.py; no corpus is read
--strategies=dp,fsdp,tp      names, or several joined by + (fsdp+ep); NAME:AXIS=SIZE:... for another mesh than the
                             preset, as fsdp+tp:model=8
--devices=N                  measure on N devices: real ones, or emulated on the CPU if there are fewer; default: all
--topology=v5e:16x16         instead, forecast for devices that are not here: v4, v5e, v5p, v6e or tpu7x; 2*v5e:16x16
                             for two slices; a100, h100, h200, b200 or gb200 as h100:8, 4*h100:8 for four hosts of eight
--steps=10                   number of timed steps
--parameter=PATH             the parameter that the report draws by device; default: the largest of the blocks
--out=DIR                    the folder for report.html, comparison.json and comparison.csv; of forecasts the ledger too
--config.KEY=VALUE           replaces a key of the config
"""

import shlex
import sys
from pathlib import Path

from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys


def main(flags: Flags) -> None:
  """Compares the strategies, prints the result and writes the report."""
  from tfm_jax.compare.compare import compare
  from tfm_jax.compare.forecast.ledger import entry
  from tfm_jax.compare.report.write import terminal_table, write_report
  from tfm_jax.errors import UserError
  from tfm_jax.runtime import ledger
  from tfm_jax.training.config import load

  path, out = flags.require("config"), Path(flags.require("out"))
  strategies = [name.strip() for name in flags.require("strategies").split(",") if name.strip()]
  for name in ("devices", "steps"):
    if not flags.values.get(name, "1").isdigit():
      raise UserError(f"--{name}={flags.values[name]} must be a whole number")
  topology = flags.values.get("topology", "")
  if topology and "devices" in flags.values:
    raise UserError("--devices and --topology exclude each other: measure here, or forecast elsewhere")
  if out.exists() and not out.is_dir():
    raise UserError(f"--out={out} is a file, not a folder")
  config = load(path, flags.overrides)
  comparison = compare(
    config,
    strategies,
    devices=int(flags.values.get("devices", "0")),
    topology=topology,
    steps=int(flags.values.get("steps", "10")),
    parameter=flags.values.get("parameter", ""),
    name=path,
    overrides=flags.overrides,
    command=shlex.join(["python", "-m", "tfm_jax.compare", *sys.argv[1:]]),
  )
  write_report(comparison, out)
  if topology:
    ledger.append([entry(config, path, topology, result) for result in comparison.strategies if result.mesh], out)
  print(terminal_table(comparison))
  print(f"\nReport: {out / 'report.html'} (figures: comparison.json, comparison.csv)")


if __name__ == "__main__":
  FLAGS = ("config", "strategies", "devices", "topology", "steps", "parameter", "out")
  sys.exit(run_command(main, __doc__, flags=FLAGS, keys=config_keys))
