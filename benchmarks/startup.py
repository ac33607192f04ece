"""How long a user waits: python -m benchmarks.startup --out=DIR.

Imports and --help, each in new processes; then train.py from the shell to the end of the first step, with compiled
programs in the cache (warm) and without (cold), for layers scanned and unrolled. Text and tokenizer are cached before.

--config=FILE.py         the experiment; default: configs/gpt2_small.py with 256 columns and 4 rows of 128 tokens
--layers=12,24
--scan=true,false        scanned and unrolled layers
--repeats=5              starts of each import, and of each warm run (3 at most)
--out=runs/startup       the folder for startup.json and startup.html
--config.KEY=VALUE       replaces a key of the config
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

FLAGS = ("config", "layers", "scan", "repeats", "out")
SMALL: dict[str, str] = {
  "model.embed_dim": "256",
  "model.num_heads": "4",
  "model.mlp_dim": "1024",
  "tokenizer.vocab_size": "4096",
  "data.seq_len": "128",
  "train.batch_size": "4",
  "sharding.strategy": "dp",
}
SHORT = {"train.steps": "2", "train.log_every": "1", "eval.batches": "1"}
# What is started, by name: arguments of the interpreter.
IMPORTS = {
  "python, nothing imported": ["-c", "pass"],
  "import tfm_jax": ["-c", "import tfm_jax"],
  "import jax": ["-c", "import jax"],
  "tfm_jax.load": ["-c", "import tfm_jax; tfm_jax.load"],
  "the training loop": ["-c", "import tfm_jax.training.loop"],
  "train.py --help": ["train.py", "--help"],
  "python -m tfm_jax.compare --help": ["-m", "tfm_jax.compare", "--help"],
  "python -m tfm_jax.hf --help": ["-m", "tfm_jax.hf", "--help"],
}
COLUMNS = ["layers", "", "programs cached", "first step after", "range", "step compiled in"]


def main(flags: Flags) -> None:
  """Measures imports and starts, and prints a table of each."""
  from benchmarks import output
  from tfm_jax.runtime.reporting import page

  layers = [int(n) for n in output.names_of(flags, "layers", "12,24", list(map(str, range(1, 200))))]
  scans = output.names_of(flags, "scan", "true,false", ("true", "false"))
  repeats = output.count_of(flags, "repeats", 5, 1)
  out = output.folder_of(flags, "runs/startup")
  imports = {name: [_seconds(arguments) for _ in range(repeats)] for name, arguments in IMPORTS.items()}
  import_rows = [[name, f"{statistics.median(x):.2f} s", f"{min(x):.2f} - {max(x):.2f}"] for name, x in imports.items()]
  print(output.text_table(["process", "median", "range"], import_rows), flush=True)
  own = {} if "config" in flags.values else SMALL
  config = flags.values.get("config", "configs/gpt2_small.py")
  starts, rows = [], []
  with tempfile.TemporaryDirectory(dir=out, prefix=".startup-") as folder:
    _start(config, own | flags.overrides | {"model.num_layers": "1"}, Path(folder), {})  # text and tokenizer
    for count in layers:
      for scan in scans:
        overrides = own | flags.overrides | {"model.num_layers": str(count), "model.scan": scan}
        cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "cache")}
        shutil.rmtree(cache["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
        for cached, times in (("no", 1), ("yes", min(repeats, 3))):
          measured = [_start(config, overrides, Path(folder), cache) for _ in range(times)]
          starts.append({"layers": count, "scan": scan == "true", "cached": cached == "yes", "starts": measured})
          rows.append(_row(starts[-1]))
          print("  ".join(rows[-1]), flush=True)
  print(f"\n{output.text_table(COLUMNS, rows)}")
  results = {"command": output.command("benchmarks.startup"), "imports": imports, "starts": starts}
  body = page.section("Imports and help", "", page.table(["process", "median", "range"], import_rows))
  body += page.section("From the shell to the end of the first step", "", page.table(COLUMNS, rows, text_columns=3))
  output.write(out, "startup", "Start-up", f"{config}, in new processes.", results, body)


def _row(entry: Mapping[str, Any]) -> list[str]:
  first = [start["first_step_seconds"] for start in entry["starts"]]
  compiled = statistics.median(start["compile_seconds"] for start in entry["starts"])
  form, cached = "scanned" if entry["scan"] else "unrolled", "yes" if entry["cached"] else "no"
  spread = f"{min(first):.1f} - {max(first):.1f}"
  return [str(entry["layers"]), form, cached, f"{statistics.median(first):.1f} s", spread, f"{compiled:.1f} s"]


def _seconds(arguments: list[str]) -> float:
  """The seconds of a process of this interpreter."""
  from benchmarks.machine import ROOT

  begin = time.perf_counter()
  subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
  return time.perf_counter() - begin


def _start(config: str, overrides: Mapping[str, str], folder: Path, environment: Mapping[str, str]) -> dict[str, float]:
  """Starts train.py for two steps. Returns the seconds until the first was recorded, and those of its compilation.

  Raises:
    UserError: the run failed.
  """
  from benchmarks.machine import ROOT
  from tfm_jax.errors import UserError

  workdir = folder / "run"
  shutil.rmtree(workdir, ignore_errors=True)
  values = {**overrides, **SHORT}
  command = [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}"]
  command += [f"--config.{key}={value}" for key, value in values.items()]
  first = 0.0
  with (folder / "log").open("w+") as log:
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stderr=log)
    try:
      while process.poll() is None:
        time.sleep(0.02)
        first = first or (time.perf_counter() - begin if _has_step(folder / "log") else 0.0)
    finally:
      process.kill()
      process.wait()
    log.seek(0)
    text = log.read()
  if process.returncode:
    raise UserError(f"{' '.join(command)} ended with status {process.returncode}: {text.strip().splitlines()[-1:]}")
  match = re.search(r"train step: compiled in ([\d.]+) s", text)
  return {"first_step_seconds": first, "compile_seconds": float(match[1]) if match else 0.0}


def _has_step(path: Path) -> bool:
  """Whether the log tells the first training step."""
  return "train step 1/" in path.read_text(errors="replace")


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
