"""What all commands share: flags, `--help`, logging, and errors in one line."""

import dataclasses
import importlib.metadata
import importlib.util
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from tfm_jax.errors import UserError, disk_is_full, nearest
from tfm_jax.runtime.agreement import FailedTogether, give_up, process_count, process_index
from tfm_jax.runtime.help import Section, listing, overview
from tfm_jax.runtime.reporting.logs import line_handler

log = logging.getLogger(__name__)

# (config file or "", overrides) -> the sections of the configuration, with the values of that file.
Keys = Callable[[str, Mapping[str, str]], Sequence[Section]]


@dataclasses.dataclass(frozen=True)
class Flags:
  """A parsed command line: `--name=value` flags, and `--config.KEY=VALUE` overrides as text."""

  values: dict[str, str]
  overrides: dict[str, str]

  def require(self, name: str) -> str:
    """The value of a mandatory flag. Raises UserError if it is missing."""
    if not self.values.get(name):
      workdir = self.values.get("workdir", "")
      own = name == "config" and workdir and os.path.isfile(os.path.join(workdir, "config.json"))
      remedy = f"to go on with the run there, add --config={workdir}" if own else "--help lists the flags"
      raise UserError(f"--{name}=... is missing ({remedy})")
    return self.values[name]


def parse(
  arguments: Sequence[str], names: Sequence[str], keys: Keys | None = None, switches: Sequence[str] = ()
) -> Flags:
  """Parses a command line; `--name value` is the same as `--name=value`. The last of repeated flags wins.

  Args:
    arguments: the command line without the program.
    names: the flags of the command.
    keys: the keys of the configuration, for hints in errors.
    switches: flags that may stand without a value, which is then "true".

  Raises:
    UserError: an unknown flag, or one without a value.
  """
  flags = Flags({}, {})
  rest = list(arguments)
  while rest:
    argument = rest.pop(0)
    name, equals, value = argument.removeprefix("--").partition("=")
    key = name.removeprefix("config.")
    if not argument.startswith("--") or (key == name and name not in (*names, *switches)):
      raise UserError(_unknown(argument, [*names, *switches], keys))
    if not equals and name in switches:
      value = "true"
    elif not equals:
      if not rest or rest[0].startswith("--"):
        raise UserError(f"--{name} needs a value: --{name}=...")
      value = rest.pop(0)
    values = flags.values if key == name else flags.overrides
    if key in values:
      log.info("--%s is given more than once: %s is used, not %s", name, value, values[key])
    values[key] = value
  return flags


def _unknown(argument: str, names: Sequence[str], keys: Keys | None) -> str:
  """The error for an argument that is not a flag, with the flag that was probably meant."""
  name, equals, value = argument.lstrip("-").partition("=")
  subject = f"{argument!r} is not a flag" if not argument.startswith("--") else f"--{name} is not a flag"
  value = value if equals else "..."
  if name in names or name.startswith("config."):
    return f"{subject}: write --{name}={value}"
  known = [key.name for section in keys("", {}) for key in section.keys] if keys else []
  full = [key for key in known if key == name or key.rpartition(".")[2] == name]
  if full:
    return f"{subject}; to set a key of the config write --config.{full[0]}={value}"
  mistyped = equals or argument.startswith("-")  # a word alone resembles some key by chance
  if mistyped and (similar := nearest(name, [*names, *known])):
    return f"{subject}; did you mean --{similar if similar in names else f'config.{similar}'}={value}?"
  return f"{subject}; flags are written --name=value, and --help lists them"


def run_command(
  main: Callable[[Flags], None],
  usage: str,
  flags: Sequence[str],
  keys: Keys | None = None,
  switches: Sequence[str] = (),
) -> int:
  """Runs a command and returns its exit status.

  0 for success; 2 for a UserError, which is printed as one line on stderr; 128 plus the signal's number for an
  interrupted run. Any other exception is a bug and keeps its traceback. Of several processes all end with the same
  status, and process 0 alone prints what all of them know.

  Args:
    main: the command.
    usage: what `--help` prints first.
    flags: the names of its flags.
    keys: the keys of the configuration, if it has `--config.KEY=VALUE` flags.
    switches: see `parse`.
  """
  from tfm_jax.runtime.interruption import Interrupted

  set_up_logging()
  try:
    check_installation()
    _hide_false_alarms()
    topic, arguments = _help_topic(sys.argv[1:])
    if topic is not None:
      _print(_help(topic, arguments, usage, flags, keys))
    else:
      _run(main, parse(arguments, flags, keys, switches))
  except UserError as error:
    message = f"error: {' '.join(str(error).split())}\n"
    if not isinstance(error, FailedTogether):
      give_up(2, str(error), message)
    elif not error.silent:
      print(message, end="", file=sys.stderr)
    return 2
  except Interrupted as error:
    if process_index() == 0:
      print(error, file=sys.stderr)
    return 128 + error.number
  except KeyboardInterrupt:
    if process_count() > 1:
      raise
    print("SIGINT: stopped", file=sys.stderr)
    return 128 + signal.SIGINT
  except BaseException as error:
    if process_count() > 1:
      give_up(1, f"{type(error).__name__}: {error}", traceback.format_exc())
    raise
  return 0


def _run(main: Callable[[Flags], None], flags: Flags) -> None:
  """main(flags), with a full disk reported as a UserError."""
  try:
    main(flags)
  except OSError as error:
    if not disk_is_full(error):
      raise
    path = f" {error.filename}" if error.filename else ""
    raise UserError(f"cannot write{path}: {error.strerror}; free some space, or choose another --workdir") from error


def _help_topic(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
  """(the topic of `--help`: "" without one, None if no help is requested; the other arguments)."""
  topic, rest = None, list(arguments)
  for argument in arguments:
    name, _, value = argument.partition("=")
    if name in ("--help", "-h"):
      at = rest.index(argument)
      if not value and at + 1 < len(rest) and "-" not in rest[at + 1][:1] and "=" not in rest[at + 1]:
        value = rest.pop(at + 1)  # --help TOPIC
      topic = topic or value
      del rest[at]
  return topic, rest


def _help(topic: str, arguments: Sequence[str], usage: str, flags: Sequence[str], keys: Keys | None) -> str:
  """The text of `--help`, with the values of the config that the other arguments name. Raises UserError."""
  if keys is None:
    return usage
  parsed = parse(arguments, flags, keys)
  sections = keys(parsed.values.get("config", ""), parsed.overrides)
  if not topic and not parsed.values.get("config"):
    return overview(usage, sections)
  return listing(sections, topic or "all")


def _print(text: str) -> None:
  """Prints a text to a reader that may not want all of it, such as `head`."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it exits


def set_up_logging(process: int = 0) -> None:
  """Log lines of the package on stderr; of other libraries, and of processes other than 0, only warnings and errors."""
  root = logging.getLogger()
  root.handlers[:] = [line_handler(process)]
  root.setLevel(logging.WARNING)
  logging.getLogger("absl").setLevel(logging.WARNING)
  logging.getLogger("tfm_jax").setLevel(logging.WARNING if process else logging.INFO)


def check_installation() -> None:
  """Raises UserError if a package is missing, as it is before the environment is activated."""
  for package in ("jax", "jaxlib", "numpy", "etils", "flax", "grain", "ml_collections", "optax", "orbax", "tqdm"):
    if importlib.util.find_spec(package) is None:
      raise UserError(
        f'{package} is not installed for {sys.executable}: run "source .venv/bin/activate" first '
        f'("make install" sets it up)'
      )


def _hide_false_alarms() -> None:
  """jaxlib 0.9 logs errors when it reads its own programs from the compilation cache of this very machine."""
  if importlib.metadata.version("jaxlib").startswith("0.9."):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when jaxlib is imported; fatal messages stay
