"""What to rent, and how to lay a run out: python -m tfm_jax.compare.plan --config=F.py --topologies=A --out=DIR.

--config=FILE.py[:VARIANT]   the run to plan, as for train.py; no corpus is read
--topologies=v5e:4x4,...     slices to choose from: v4, v5e, v5p, v6e or tpu7x; 2*v5e:16x16 for two slices
--tokens=20B                 length of the run in tokens, with K, M, B or T; default: train.steps of the config
--days=7                     the run must end within so many days: of the rows that do, the cheapest comes first, by
                             cost, or by chip-hours without prices. Without --days the fastest comes first
--prices=FILE                JSON {"v5e": 1.2} or lines "v5e,1.2": the price of a chip-hour by generation
--strategies=fsdp,...        strategies to consider, as for compare (fsdp_tp:model=8 fixes a size); default: all
--minutes=30                 time for compiling. The same command goes on from where it stopped
--jobs=2                     programs that are compiled at a time
--out=DIR                    the folder for plan.json, plan.html, compiled.jsonl and forecasts.jsonl
--config.KEY=VALUE           replaces a key of the config
"""

import contextlib
import os
import shlex
import sys
from pathlib import Path

from tfm_jax.compare.plan.goal import parse_count, parse_positive, parse_topologies, read_prices
from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

FLAGS = ("config", "topologies", "tokens", "days", "prices", "strategies", "minutes", "jobs", "out")


def main(flags: Flags) -> None:
  """Plans the run that the flags describe, prints the best rows and writes the folder."""
  path, out = flags.require("config"), Path(flags.require("out"))
  values = flags.values
  topologies = parse_topologies(flags.require("topologies"))
  tokens = parse_count("tokens", values["tokens"]) if "tokens" in values else None
  days = parse_positive("days", values["days"]) if "days" in values else None
  minutes = parse_positive("minutes", values.get("minutes", "30"))
  jobs = int(parse_positive("jobs", values.get("jobs", "2"), whole=True))
  prices = read_prices(values["prices"], topologies) if "prices" in values else {}
  strategies = [name.strip() for name in values.get("strategies", "").split(",") if name.strip()]
  if out.exists() and not out.is_dir():
    raise UserError(f"--out={out} is a file, not a folder")
  os.environ["JAX_PLATFORMS"] = "cpu"  # this process only looks at shapes: a TPU stays free for others

  from tfm_jax.compare.plan.page import plan_page, terminal_table
  from tfm_jax.compare.plan.plan import plan, write_json
  from tfm_jax.runtime.reporting.picture import write_picture
  from tfm_jax.training.config import load

  command = shlex.join(["python", "-m", "tfm_jax.compare.plan", *sys.argv[1:]])
  try:
    answer = plan(
      load(path, flags.overrides),
      topologies,
      out,
      tokens=tokens,
      days=days,
      prices=prices,
      strategies=strategies,
      minutes=minutes,
      jobs=jobs,
      name=path,
      overrides=flags.overrides,
      command=command,
    )
  except KeyboardInterrupt:
    print(f"stopped; what was compiled is in {out}, and the same command goes on from there:\n{command}")
    raise
  write_json(answer, out)
  document = plan_page(answer)
  (out / "plan.html").write_text(document, encoding="utf-8")
  with contextlib.suppress(UserError):  # a browser draws the picture, where one is installed
    write_picture(document, out / "plan.png")
  print(terminal_table(answer))
  print(f"\nReport: {out / 'plan.html'} (figures: plan.json)")


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
