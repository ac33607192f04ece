"""Weights in and out: python -m tfm_jax.hf import|export.

python -m tfm_jax.hf import --source=HF_DIR --workdir=DIR
                             a Hugging Face model directory (config.json, *.safetensors, tokenizer files) becomes a run
                             directory, for load_run, --config.init_from=DIR and --config=DIR
--architecture=NAME          read it as this architecture, e.g. BertForSequenceClassification; default: its own
--strategy=NAME              shard the parameters over all devices by this strategy; default: one device

python -m tfm_jax.hf export --workdir=DIR --out=HF_DIR
                             a run becomes a model directory that transformers loads
--step=N                     which checkpoint; default: the last
--dtype=float32              of the weights in the files: float32, bfloat16 or float16
"""

import sys
from collections.abc import Callable

from tfm_jax.runtime.command import Flags, run_command

FLAGS = {"import": ("source", "workdir", "architecture", "strategy"), "export": ("workdir", "out", "step", "dtype")}


def import_(flags: Flags) -> None:
  """The command import."""
  source, workdir = flags.require("source"), flags.require("workdir")
  from tfm_jax.hf.importing import import_checkpoint

  import_checkpoint(source, workdir, flags.values.get("strategy"), flags.values.get("architecture"))


def export(flags: Flags) -> None:
  """The command export."""
  from tfm_jax.errors import UserError

  workdir, out, step = flags.require("workdir"), flags.require("out"), flags.values.get("step")
  if step is not None and not step.isdigit():
    raise UserError(f"--step={step}: must be an integer")
  from tfm_jax.hf.exporting import export_checkpoint

  export_checkpoint(workdir, out, None if step is None else int(step), flags.values.get("dtype", "float32"))


COMMANDS = {"import": import_, "export": export}


def main() -> int:
  """Runs the command named by the first argument and returns its exit status."""
  first = sys.argv[1] if len(sys.argv) > 1 else ""
  if first in ("--help", "-h") or set(sys.argv) & {"--help", "-h"}:
    print(__doc__)
    return 0
  if first not in COMMANDS:
    subject = f"{first!r} is no command: " if first else ""
    print(f"error: {subject}say {' or '.join(COMMANDS)} (--help says more)", file=sys.stderr)
    return 2
  del sys.argv[1]
  return run_command(_without_overrides(COMMANDS[first]), __doc__, FLAGS[first])


def _without_overrides(command: Callable[[Flags], None]) -> Callable[[Flags], None]:
  """The command, which refuses --config.KEY because the checkpoint has its own configuration."""

  def checked(flags: Flags) -> None:
    for key in flags.overrides:
      from tfm_jax.errors import UserError

      raise UserError(f"--config.{key} does not apply here: the configuration comes with the checkpoint")
    command(flags)

  return checked


if __name__ == "__main__":
  sys.exit(main())
