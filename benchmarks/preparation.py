"""Memory and time of preparing a large text: python benchmarks/preparation.py [--megabytes=200] [--duplicates=near].

  python benchmarks/preparation.py --megabytes=200
  python benchmarks/preparation.py --megabytes=2000

The text is made of words of the embedded corpus, in paragraphs of 300 words, of which 5 % are copies of an earlier one
and 5 % differ from an earlier one in one word. `python -m tfm_jax.data` prepares it, in a cache of its own. Memory is
the largest sum, over the process and its workers, of what is not backed by files (Linux only).
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tfm_jax.text.corpora.table import embedded_corpus

ROOT = Path(__file__).parents[1]


def main() -> None:
  """Writes the text, prepares it, and prints the figures."""
  parser = argparse.ArgumentParser(description="Memory and time of preparing a large text.")
  parser.add_argument("--megabytes", type=int, default=200, help="size of the text")
  parser.add_argument("--duplicates", default="near", choices=("keep", "exact", "near"))
  parser.add_argument("--kind", default="sentencepiece", help="tokenizer.kind, with 16,000 pieces")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    text = Path(folder) / "text.txt"
    write_text(text, args.megabytes * 10**6)
    command = [
      sys.executable, "-m", "tfm_jax.data", "--config=configs/gpt2_small.py", f"--config.data.path={text}",
      "--config.data.eval_fraction=0.01", f"--config.data.duplicates={args.duplicates}", "--config.tokenizer.path=",
      f"--config.tokenizer.kind={args.kind}", "--config.tokenizer.vocab_size=16000",
    ]  # fmt: skip
    begin = time.monotonic()
    peak = peak_of(command, os.environ | {"TFM_CACHE_DIR": str(Path(folder) / "cache")})
    seconds = time.monotonic() - begin
  print(f"{args.megabytes:,} MB: {seconds:,.0f} s, largest memory {peak / 1e6:,.0f} MB")


def write_text(path: Path, size: int) -> None:
  """Paragraphs of `size` bytes in all, see the head of this file."""
  words = " ".join(text for (text,) in embedded_corpus().train()).split()
  draw = random.Random(0)
  earlier: list[str] = []
  number = written = 0
  with path.open("w", encoding="utf-8") as file:
    while written < size:
      number += 1
      if earlier and number % 20 == 0:
        paragraph = draw.choice(earlier)
      elif earlier and number % 20 == 10:
        changed = draw.choice(earlier).split()
        changed[draw.randrange(len(changed))] = "changed"
        paragraph = " ".join(changed)
      else:
        starts = [draw.randrange(len(words) - 25) for _ in range(12)]
        paragraph = " ".join(" ".join(words[start : start + 25]) for start in starts)
        if number % 50 == 1:
          earlier.append(paragraph)
      written += file.write(f"{paragraph}\n\n")


def peak_of(command: list[str], environment: dict[str, str]) -> int:
  """Runs a command; the most bytes that it and its children held at once, looked at ten times a second."""
  process = subprocess.Popen(command, cwd=ROOT, env=environment)
  peak = 0
  while process.poll() is None:
    peak = max(peak, sum(map(_anonymous, _family(process.pid))))
    time.sleep(0.1)
  if process.returncode:
    sys.exit(process.returncode)
  return peak


def _family(pid: int) -> list[int]:
  """The process and those below it."""
  try:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
  except OSError:  # it has ended
    return [pid]
  return [pid, *(one for child in children for one in _family(int(child)))]


def _anonymous(pid: int) -> int:
  """Bytes of memory of a process that no file backs."""
  try:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
  except OSError:
    return 0
  return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


if __name__ == "__main__":
  main()
