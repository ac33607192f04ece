"""The curves of several runs in one page: python -m tfm_jax.plot RUN... --out=FILE.

RUN...        run directories, local or gs://
--out=FILE    the HTML page, which needs no other file
"""

import sys
from pathlib import Path

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import check_installation


def main(arguments: list[str]) -> int:
  """Writes the page; 2 and one line on stderr for a mistake of the user."""
  if "--help" in arguments or "-h" in arguments:
    print(__doc__)
    return 0
  out = next((argument.removeprefix("--out=") for argument in arguments if argument.startswith("--out=")), "")
  paths = [argument for argument in arguments if not argument.startswith("--")]
  try:
    check_installation()
    from tfm_jax.runtime.reporting.curves import curves_page
    from tfm_jax.runtime.run_directory import RunDirectory

    if not out or not paths or len(paths) + 1 != len(arguments):
      raise UserError("usage: python -m tfm_jax.plot RUN... --out=FILE")
    runs = {path: RunDirectory(path).read_metrics() for path in paths}
    if empty := [path for path, records in runs.items() if not records]:
      raise UserError(f"{', '.join(empty)}: no metrics.jsonl there, or nothing in it")
    Path(out).write_text(curves_page(runs), encoding="utf-8")
  except (UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"written: {out}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
