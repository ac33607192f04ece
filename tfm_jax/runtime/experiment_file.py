"""Experiment files: Python modules whose `get_config()` returns a configuration, and `get_sweep()` values to try."""

import contextlib
import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tfm_jax.errors import UserError


def evaluate(path: str) -> Any:
  """What `get_config()` of `file.py`, or `get_config(variant)` of `file.py:variant`, returns.

  Raises:
    UserError: no such file or variant, or an error in the file, with its line.
  """
  file, variant, module = _module(path)
  if not hasattr(module, "get_config"):
    raise UserError(f"{file} has no function get_config: see configs/quickstart.py")
  if variant:
    _check_variant(file, module, variant)
  with _errors_of(file):
    return module.get_config(variant) if variant else module.get_config()


def evaluate_sweep(path: str) -> Any:
  """What `get_sweep()` of `file.py` returns; of `file.py:variant`, `get_sweep(variant)` if it takes an argument.

  Raises:
    UserError: no such file or function, or an error in the file, with its line.
  """
  file, variant, module = _module(path)
  if not hasattr(module, "get_sweep"):
    example = 'return {"optimizer.learning_rate": [1e-4, 3e-4], "model.dropout": [0.0, 0.1]}'
    raise UserError(f"{file} has no function get_sweep, which says what to try: def get_sweep(): {example}")
  with _errors_of(file):
    takes = inspect.signature(module.get_sweep).parameters
    return module.get_sweep(variant) if variant and takes else module.get_sweep()


def _module(path: str) -> tuple[str, str, ModuleType]:
  """(file, variant or "", module) of `file.py[:variant]`. Raises UserError."""
  file, _, variant = path.partition(":")
  if not Path(file).is_file():
    similar = difflib.get_close_matches(Path(file).name, [p.name for p in Path("configs").glob("*.py")], n=1)
    hint = f"did you mean configs/{similar[0]}?" if similar else "the experiments of this repository are in configs/"
    raise UserError(f"no config file or run directory {file!r}; {hint}")
  return file, variant, _load(file)


def _load(file: str) -> ModuleType:
  """The module of a Python file. Raises UserError."""
  spec = importlib.util.spec_from_file_location(Path(file).stem, file)
  if spec is None or spec.loader is None:
    raise UserError(
      f"--config={file} is not a Python file: name an experiment (configs/quickstart.py) or a run directory"
    )
  module = importlib.util.module_from_spec(spec)
  folder = str(Path(file).resolve().parent.parent)  # experiment files say `from configs import base`
  if folder not in sys.path:
    sys.path.append(folder)
  with _errors_of(file):
    spec.loader.exec_module(module)
  return module


def _check_variant(file: str, module: ModuleType, variant: str) -> None:
  """Raises UserError for a variant that the file does not have, according to its `VARIANTS`."""
  if not inspect.signature(module.get_config).parameters:
    raise UserError(f"{file} has no variants: write --config={file}")
  variants = getattr(module, "VARIANTS", None)
  if variants is not None and variant not in variants:
    raise UserError(f"{file} has no variant {variant!r}: choose one of {', '.join(variants)}")


@contextlib.contextmanager
def _errors_of(file: str) -> Iterator[None]:
  """Turns every error in an experiment file into a UserError that names the file and the line."""
  try:
    yield
  except (Exception, SystemExit) as error:
    raise UserError(f"{file}{_line(error, file)}: {_reason(error)}") from error


def _line(error: BaseException, file: str) -> str:
  """ ", line N": the last line of the file that the error passed through."""
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if Path(frame.filename).resolve() == Path(file).resolve()
  ]
  if isinstance(error, SyntaxError):
    lines.append(error.lineno)
  return f", line {lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
  """The message of an exception, in one line, with its type unless the message speaks for itself."""
  if isinstance(error, SyntaxError):
    message = error.msg
  else:  # str() of a KeyError is the repr of its message
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
  kind = "" if isinstance(error, (UserError, AttributeError)) else f"{type(error).__name__}: "
  return kind + " ".join(message.split())
