"""What the commands share: flags, logging, and mistakes told in one line."""

import dataclasses
import difflib
import logging
import sys
import traceback
from collections.abc import Callable, Sequence

from tfm_jax.errors import UserError, disk_is_full
from tfm_jax.training.agreement import FailedTogether, give_up, process_count, process_index


@dataclasses.dataclass(frozen=True)
class Flags:
  """A parsed command line: `--name=value` flags, and `--config.KEY=VALUE` overrides as text."""

  values: dict[str, str]
  overrides: dict[str, str]

  def require(self, name: str) -> str:
    """The value of a flag that must be given. Raises UserError."""
    if not self.values.get(name):
      raise UserError(f"--{name}=... is missing (--help says what there is)")
    return self.values[name]


def parse(arguments: Sequence[str], names: Sequence[str]) -> Flags:
  """Flags of a command line; `--name value` serves as well as `--name=value`.

  Raises:
    UserError: an unknown flag, a flag twice, or one without a value.
  """
  flags = Flags({}, {})
  rest = list(arguments)
  while rest:
    argument = rest.pop(0)
    if not argument.startswith("--"):
      raise UserError(f"unexpected argument {argument!r}: flags are written --name=value")
    name, equals, value = argument[2:].partition("=")
    key = name.removeprefix("config.")
    if key == name and name not in names:
      raise UserError(_unknown(name, names))
    if not equals:
      if not rest or rest[0].startswith("--"):
        raise UserError(f"--{name} needs a value: --{name}=...")
      value = rest.pop(0)
    place = flags.values if key == name else flags.overrides
    if key in place:
      raise UserError(f"--{name} is given twice")
    place[key] = value
  return flags


def _unknown(name: str, names: Sequence[str]) -> str:
  from tfm_jax.training.config import all_keys

  keys = all_keys()
  full = [key for key in keys if key == name or key.rsplit(".", 1)[-1] == name]
  if full:
    return f"--{name} is no flag; to replace a key of the config write --config.{full[0]}=..."
  near = difflib.get_close_matches(name, [*names, *(f"config.{key}" for key in keys)], n=1)
  return f"--{name} is no flag" + (f"; did you mean --{near[0]}?" if near else "; --help says what there is")


def run_command(main: Callable[[Flags], None], usage: str, flags: Sequence[str]) -> int:
  """Runs a command and returns its exit status: 0; 2 for a mistake of the user's, told in one line on stderr.

  An interrupted run returns 128 plus the signal's number. Other errors are ours and keep their traceback. Of several
  processes all end with the same status; what they all know, process 0 alone tells.
  """
  from tfm_jax.training.interruption import Interrupted

  if any(argument in ("--help", "-h") for argument in sys.argv[1:]):
    return _help(usage)
  try:
    parsed = parse(sys.argv[1:], flags)
    set_up_logging()
    _run(main, parsed)
  except UserError as error:
    told = f"error: {' '.join(str(error).split())}\n"
    if not isinstance(error, FailedTogether):
      give_up(2, str(error), told)
    elif not error.silent:
      print(told, end="", file=sys.stderr)
    return 2
  except Interrupted as error:
    if process_index() == 0:
      print(error, file=sys.stderr)
    return 128 + error.number
  except BaseException as error:
    if process_count() > 1:
      give_up(1, f"{type(error).__name__}: {error}", traceback.format_exc())
    raise
  return 0


def _run(main: Callable[[Flags], None], flags: Flags) -> None:
  """main(flags), with a full disk as the user's own affair."""
  try:
    main(flags)
  except OSError as error:
    if not disk_is_full(error):
      raise
    where = f" {error.filename}" if error.filename else ""
    raise UserError(f"cannot write{where}: {error.strerror}; free some space, or choose another --workdir") from error


def _help(usage: str) -> int:
  from tfm_jax.training.config import Config, to_dict

  print(usage)
  print("Keys and their defaults (of the model: those of family=bert; other families have their own):")
  for name, section in to_dict(Config()).items():
    values = section.items() if isinstance(section, dict) else [("", section)]
    for key, value in values:
      print(f"  --config.{name}{'.' if key else ''}{key}={value!r}")
  return 0


def set_up_logging(process: int = 0) -> None:
  """The package's log lines on stderr; other libraries, and other processes than 0, only from warnings on."""
  handler = logging.StreamHandler(sys.stderr)
  who = f"process {process}: " if process else ""
  handler.setFormatter(logging.Formatter(f"%(asctime)s {who}%(message)s", "%H:%M:%S"))
  root = logging.getLogger()
  root.handlers[:] = [handler]
  root.setLevel(logging.WARNING)
  logging.getLogger("absl").setLevel(logging.WARNING)
  logging.getLogger("tfm_jax").setLevel(logging.WARNING if process else logging.INFO)
