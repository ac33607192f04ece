"""The package's log lines: their form, and how they are shown to a program that has not configured logging."""

import logging
import sys

PACKAGE = "tfm_jax"


def line_handler(process: int = 0) -> logging.Handler:
  """A handler that writes "HH:MM:SS message" to stderr, with the number of the process if that is not 0."""
  handler = logging.StreamHandler(sys.stderr)
  prefix = f"process {process}: " if process else ""
  handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
  return handler


def show_log_lines() -> None:
  """Shows the package's info lines on stderr, unless the program has configured logging itself.

  Only the logger "tfm_jax" is changed, never the root logger. A program that wants silence sets that logger's level.
  """
  package = logging.getLogger(PACKAGE)
  if package.handlers or package.level != logging.NOTSET or _configured(logging.getLogger()):
    return
  package.setLevel(logging.INFO)
  package.addHandler(line_handler())
  package.propagate = False  # the root logger may have a handler, see below: each line would be shown twice


def _configured(root: logging.Logger) -> bool:
  """Whether the program has set up the root logger.

  A plain handler at the default level does not count: absl adds one when Orbax is imported, and notebooks have one.
  """
  return root.level != logging.WARNING or not all(map(_is_plain, root.handlers))


def _is_plain(handler: logging.Handler) -> bool:
  """Whether a handler is one that `logging.basicConfig()` makes."""
  form = handler.formatter
  return type(handler) is logging.StreamHandler and (form is None or form._fmt == logging.BASIC_FORMAT)
