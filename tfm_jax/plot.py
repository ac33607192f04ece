"""The curves of several runs over one another: python -m tfm_jax.plot RUN... --out=FILE.

RUN...        run directories, local or gs://
--out=FILE    FILE.html: a page that needs no other file, and has a button that saves it as PNG;
              FILE.png: the same as a picture, for which a browser must be installed here
"""

import sys
from pathlib import Path

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import check_installation


def main(arguments: list[str]) -> int:
  """Writes the page or the picture; 2 and one line on stderr for a mistake of the user."""
  if "--help" in arguments or "-h" in arguments:
    print(__doc__)
    return 0
  out = next((argument.removeprefix("--out=") for argument in arguments if argument.startswith("--out=")), "")
  paths = [argument for argument in arguments if not argument.startswith("--")]
  try:
    check_installation()
    from tfm_jax.runtime.reporting.overlay import overlay_page, read_run, short_names
    from tfm_jax.runtime.reporting.picture import with_button, write_picture

    if not out or not paths or len(paths) + 1 != len(arguments):
      raise UserError("usage: python -m tfm_jax.plot RUN... --out=FILE")
    if Path(out).suffix not in (".html", ".png"):
      raise UserError(f"--out={out}: write a page, as FILE.html, or a picture, as FILE.png")
    runs = {name: read_run(path) for name, path in zip(short_names(paths), paths, strict=True)}
    if empty := [path for path, run in runs.items() if not run.records]:
      raise UserError(f"{', '.join(empty)}: no metrics.jsonl there, or nothing in it")
    page = overlay_page(runs)
    if Path(out).suffix == ".png":
      write_picture(page, Path(out))
    else:
      Path(out).write_text(with_button(page), encoding="utf-8")
  except (UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"written: {out}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
