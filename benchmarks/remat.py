"""Memory and time of a training step by remat policy: python -m benchmarks.remat --config=FILE.py --out=DIR.

Each policy is compiled and timed in a process of its own, with random batches, scanned and unrolled.

--config=FILE.py         the experiment; default: configs/gpt2_small.py, with 8 layers of 512 and 4 rows of 512 tokens
--policies=none,dots,full
--scan=true,false        scanned and unrolled layers
--seconds=5              time per policy
--out=runs/remat         the folder for remat.json and remat.html
--config.KEY=VALUE       replaces a key of the config
"""

import sys
from typing import Any

from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

FLAGS = ("config", "policies", "scan", "seconds", "out")
COLUMNS = ["policy", "layers", "peak of the process", "by the compiler", "temporaries", "step", "compile"]
SMALL: dict[str, Any] = {
  "model.num_layers": 8,
  "model.embed_dim": 512,
  "model.num_heads": 8,
  "model.mlp_dim": 2048,
  "tokenizer.vocab_size": 8192,
  "data.seq_len": 512,
  "train.batch_size": 4,
  "sharding.strategy": "dp",
}


def main(flags: Flags) -> None:
  """Measures each policy and prints a table."""
  from benchmarks import output
  from benchmarks.point import measure
  from tfm_jax.models.config import CHOICES
  from tfm_jax.runtime.reporting import page

  policies = output.names_of(flags, "policies", "none,dots,full", CHOICES["remat"])
  scans = output.names_of(flags, "scan", "true,false", ("true", "false"))
  seconds = output.count_of(flags, "seconds", 5, 1)
  out = output.folder_of(flags, "runs/remat")
  config, own = flags.values.get("config", ""), {} if "config" in flags.values else SMALL
  points = []
  for scan in scans:
    for policy in policies:
      overrides = own | {"model.remat": policy, "model.scan": scan == "true"} | flags.overrides
      point = measure(config or "configs/gpt2_small.py", overrides, seconds, out / "logs")
      points.append({"policy": policy, "scan": scan == "true", **point})
      print("  ".join(_row(points[-1])), flush=True)
  rows = [_row(point) for point in points]
  print(f"\n{output.text_table(COLUMNS, rows)}")
  results = {"command": output.command("benchmarks.remat"), "points": points}
  intro = "What the backward pass keeps: everything (none), outputs of linears (dots), inputs of blocks (full)."
  body = page.section("By policy", "", page.table(COLUMNS, rows, text_columns=2))
  output.write(out, "remat", "Memory by remat policy", intro, results, body)


def _row(point: dict[str, Any]) -> list[str]:
  from benchmarks.point import peak
  from tfm_jax.runtime.reporting.units import human_bytes

  return [
    point["policy"],
    "scanned" if point["scan"] else "unrolled",
    human_bytes(peak(point)),
    human_bytes(point["compiler_peak_bytes"]),
    human_bytes(point["compiler_temporary_bytes"]),
    f"{point['step_seconds']['median'] * 1e3:.4g} ms",
    f"{point['compile_seconds']:.1f} s",
  ]


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
