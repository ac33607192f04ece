"""Sharding strategies side by side: python -m tfm_jax.compare --config=FILE.py --strategies=A,B --out=DIR.

--config=FILE.py[:VARIANT]   what is trained, as for train.py; no corpus is read
--strategies=dp,fsdp,tp      names; NAME:AXIS=SIZE:... for another mesh than the preset, as fsdp_tp:model=8
--devices=N                  measured on N devices: real ones, or emulated on the CPU if there are fewer; default: all
--topology=v5e:16x16         instead, forecast for TPUs that are not here: v4, v5e, v5p, v6e, tpu7x; two slices of them
                             are 2*v5e:16x16
--steps=10                   steps that are timed
--parameter=PATH             the parameter whose layout the report draws; default: the largest of the blocks
--out=DIR                    takes comparison.json, comparison.csv and report.html
--config.KEY=VALUE           replaces a key of the config
"""

import shlex
import sys
from pathlib import Path

from tfm_jax.training.command import Flags, run_command


def main(flags: Flags) -> None:
  """Compares what the flags say and reports it."""
  from tfm_jax.compare.compare import compare
  from tfm_jax.compare.report import terminal_table, write_report
  from tfm_jax.errors import UserError
  from tfm_jax.training.config import load

  path, out = flags.require("config"), Path(flags.require("out"))
  strategies = [name.strip() for name in flags.require("strategies").split(",") if name.strip()]
  for name in ("devices", "steps"):
    if not flags.values.get(name, "1").isdigit():
      raise UserError(f"--{name}={flags.values[name]}: a whole number is wanted")
  topology = flags.values.get("topology", "")
  if topology and "devices" in flags.values:
    raise UserError("--devices and --topology exclude each other: measure here, or forecast elsewhere")
  if out.exists() and not out.is_dir():
    raise UserError(f"--out={out} is a file, not a folder")
  comparison = compare(
    load(path, flags.overrides), strategies, int(flags.values.get("devices", "0")), topology,
    int(flags.values.get("steps", "10")), flags.values.get("parameter", ""), name=path,
    overrides=flags.overrides, command=shlex.join(["python", "-m", "tfm_jax.compare", *sys.argv[1:]]),
  )  # fmt: skip
  write_report(comparison, out)
  print(terminal_table(comparison))
  print(f"\nwritten: {out / 'report.html'}, comparison.json, comparison.csv")


if __name__ == "__main__":
  FLAGS = ("config", "strategies", "devices", "topology", "steps", "parameter", "out")
  sys.exit(run_command(main, __doc__, flags=FLAGS))
