"""What the commands share: the flags of numbers and folders, tables for the terminal, and the files of results."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags
from tfm_jax.runtime.reporting import page
from tfm_jax.runtime.reporting.units import human_bytes


def names_of(flags: Flags, name: str, default: str = "", known: Sequence[str] = ()) -> list[str]:
  """A flag with names separated by commas. Raises UserError for one that is not known, if any are."""
  names = [part.strip() for part in flags.values.get(name, default).split(",") if part.strip()]
  for one in names:
    if known and one not in known:
      raise UserError(f"--{name}: {one!r} is not one of {', '.join(known)}")
  return names


def count_of(flags: Flags, name: str, default: int, low: int = 0) -> int:
  """A flag with a whole number. Raises UserError."""
  text = flags.values.get(name, str(default))
  if not text.isdigit() or int(text) < low:
    raise UserError(f"--{name}={text} must be a whole number of at least {low}")
  return int(text)


def folder_of(flags: Flags, default: str) -> Path:
  """The folder that --out names, created. Raises UserError."""
  out = Path(flags.values.get("out") or default).absolute()
  try:
    out.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError):
    raise UserError(f"--out={out} is not a folder") from None
  return out


def command(module: str) -> str:
  """The command line of this process, as a user would write it."""
  return shlex.join(["python", "-m", module, *sys.argv[1:]])


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table in columns; all but the first stand to the right."""
  every = [list(columns), *map(list, rows)]
  widths = [max(len(row[i]) for row in every) for i in range(len(columns))]
  line = lambda row: "  ".join(
    x.rjust(w) if i else x.ljust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))
  )
  return "\n".join(line(row).rstrip() for row in every)


def facts(about: Mapping[str, Any], command: str) -> dict[str, Any]:
  """What stands at the head of a page. `about`: from `machine.describe`, where known with the `backend`."""
  shown = ("revision", "processor", "cores", "backend", "time")
  memory = {"memory": human_bytes(about["memory_bytes"])}
  return {name: about[name] for name in shown if name in about} | memory | {"command": command}


def write(out: Path, name: str, title: str, intro: str, results: dict[str, Any], body: str) -> None:
  """Writes `name`.json and `name`.html, the page with the machine above its body."""
  about = machine.describe()
  (out / f"{name}.json").write_text(json.dumps(results | {"machine": about}, indent=1))
  header = page.header(title, intro, facts(about, results["command"]))
  (out / f"{name}.html").write_text(page.page(title, header + body), encoding="utf-8")
  print(f"\nReport: {out / f'{name}.html'} (figures: {name}.json)")
