"""A page as a PNG: drawn by a browser that is installed, or by the one that shows it."""

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
# A button that draws the page on a canvas, as a picture inside an SVG, and saves that.
_BUTTON = """<script>
const button = document.createElement("button")
button.textContent = "save as PNG"
button.style.cssText = "position: absolute; top: 16px; right: 16px"
document.body.append(button)
button.onclick = () => {
  const body = document.body.cloneNode(true), ns = document.querySelector("svg").namespaceURI
  body.querySelectorAll("script, button").forEach(element => element.remove())
  body.prepend(document.querySelector("style").cloneNode(true))
  const width = document.documentElement.clientWidth, height = document.documentElement.scrollHeight
  const svg = document.createElementNS(ns, "svg"), inside = document.createElementNS(ns, "foreignObject")
  for (const element of [svg, inside]) {
    element.setAttribute("width", width)
    element.setAttribute("height", height)
  }
  svg.style.fontSize = "16px"  // the size of rem, as the SVG is the root
  svg.append(inside)
  inside.append(body)
  const picture = new Image(), canvas = document.createElement("canvas")
  picture.onload = () => {
    const scale = Math.min(2, 16000 / height)  // browsers have a largest canvas
    canvas.width = width * scale
    canvas.height = height * scale
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height)
    canvas.toBlob(blob => {
      const link = document.createElement("a")
      link.href = URL.createObjectURL(blob)
      link.download = `${document.title}.png`
      link.click()
    })
  }
  picture.src = "data:image/svg+xml," + encodeURIComponent(new XMLSerializer().serializeToString(svg))
}
</script>
"""


def with_button(page: str) -> str:
  """The page with a button that saves it as a PNG, if it has a plot."""
  return page.replace("</body>", f"{_BUTTON}</body>") if "<svg" in page else page


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
