"""A page as a PNG, drawn by a browser that is installed."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tfm_jax.errors import UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH = 1240  # of the picture; the page is as wide as it may become
# Prints the height of the page, for which a script is added to a copy of it.
_HEIGHT = "<script>document.title = `height ${document.documentElement.scrollHeight}`</script>"
_SECONDS = 120


def write_picture(page: str, out: Path) -> None:
  """Writes the whole of a page as a PNG.

  Args:
    page: an HTML document.
    out: the file.

  Raises:
    UserError: no browser is installed, or it fails.
  """
  browser = next(filter(None, map(shutil.which, BROWSERS)), None)
  if browser is None:
    raise UserError(
      f"--out={out}: a PNG is drawn by a browser, and none of {', '.join(BROWSERS)} is installed: "
      f"write an .html, or install one"
    )
  with tempfile.TemporaryDirectory() as folder:
    file, picture = Path(folder) / "page.html", Path(folder) / "page.png"
    command = [browser, "--headless", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []  # it has none for root; the page is our own
    command += [f"--user-data-dir={folder}/profile"]

    def run(*flags: str) -> str:
      done = subprocess.run([*command, *flags, file.as_uri()], capture_output=True, text=True, timeout=_SECONDS)
      return done.stdout

    file.write_text(page.replace("</body>", f"{_HEIGHT}</body>"), encoding="utf-8")
    try:
      height = re.search(r"<title>height (\d+)", run(f"--window-size={WIDTH},800", "--dump-dom"))
      if height:
        file.write_text(page, encoding="utf-8")
        run(f"--window-size={WIDTH},{height[1]}", "--force-device-scale-factor=2", f"--screenshot={picture}")
    except subprocess.TimeoutExpired:
      raise UserError(f"--out={out}: {browser} gave no picture within {_SECONDS} seconds: write an .html") from None
    if not picture.exists():
      raise UserError(f"--out={out}: {browser} gave no picture: write an .html")
    shutil.move(picture, out)
