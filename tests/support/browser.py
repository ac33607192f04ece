"""A headless browser, where one is installed."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


def headless(profile: Path) -> Callable[..., str]:
  """A function of (page, width, *flags) that returns the browser's output; skips the test if there is no browser.

  Args:
    profile: an empty folder for the browser.
  """
  path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
  if path is None:
    pytest.skip("no chromium, chromium-browser or google-chrome on PATH")

  def run(page: Path, width: int, *flags: str) -> str:
    command = [path, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={profile}", f"--window-size={width},2400", "--virtual-time-budget=2000", *flags]
    return subprocess.run([*command, page.as_uri()], check=True, capture_output=True, text=True, timeout=120).stdout

  return run
