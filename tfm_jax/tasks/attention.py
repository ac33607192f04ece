"""Looks into a model while it reads a text: python -m tfm_jax.tasks.attention --workdir=RUN --text="..."

--workdir=RUN          the run directory
--text="..."           the text. A masked language model fills its [MASK]s; a decoder continues it; a classifier gives
                       its class, a tagger its tags; for question answering it is the question
--pair="..."           the second text of a pair, or the context of a question
--target="..."         of an encoder-decoder: what the decoder writes; default: what it writes by itself
--out=attention.html   the page: prediction, saliency, ablation of heads, and every head's attention
--layers=0,5,11        the layers whose maps the page shows, from 0; default: all
--step=N               which checkpoint; default: the last
"""

import sys
from pathlib import Path

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command

FLAGS = ("workdir", "text", "pair", "target", "out", "layers", "step")


def attention(flags: Flags) -> None:
  """The command."""
  if flags.overrides:
    raise UserError(f"--config.{next(iter(flags.overrides))} does not apply here: the run has its configuration")
  workdir, text, values = flags.require("workdir"), flags.require("text"), flags.values
  step, layers = _integers("step", values.get("step", "")), _integers("layers", values.get("layers", ""))
  out = Path(values.get("out", "attention.html"))
  if out.is_dir() or not out.parent.is_dir():
    raise UserError(f"--out={out}: {'is a folder' if out.is_dir() else f'{out.parent} is no folder'}; name a file")
  from tfm_jax.tasks.looking.look import look
  from tfm_jax.training.load import load_run

  run = load_run(workdir, step[0] if step else None)
  result = look(run, text, values.get("pair", ""), values.get("target", ""), layers or None)
  page = result.html()
  out.write_text(page, encoding="utf-8")
  if result.prediction:
    print(result.prediction)
  print(f"written: {out} ({len(page.encode()) / 1e6:.1f} MB)")


def _integers(name: str, value: str) -> list[int]:
  """The integers of a flag, separated by commas."""
  parts = value.split(",") if value else []
  if not all(part.strip().isdecimal() for part in parts) or (name == "step" and len(parts) > 1):
    raise UserError(f"--{name}={value}: must be {'an integer' if name == 'step' else 'integers such as 0,5,11'}")
  return [int(part) for part in parts]


def main() -> int:
  """Runs the command and returns its exit status."""
  return run_command(attention, __doc__, FLAGS)


if __name__ == "__main__":
  sys.exit(main())
