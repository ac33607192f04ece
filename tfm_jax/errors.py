"""User errors: each is one line that names the culprit and the remedy."""

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
  """Printed without a traceback, as one line on stderr; the process exits with status 2."""


def disk_is_full(error: OSError) -> bool:
  """Whether a write failed because the disk or the quota is full, or the file is larger than allowed."""
  return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def nearest(name: str, names: Iterable[str]) -> str | None:
  """The name that a mistyped or abbreviated `name` most likely stands for; None if all are too different.

  Names may have a section, as "optimizer.learning_rate". The part after the last dot counts more than the section.
  """
  section, _, last = name.rpartition(".")
  scores: dict[str, float] = {}
  for candidate in names:
    other_section, _, other = candidate.rpartition(".")
    # A key under another name of its section, as train.eval_every for eval.every, beats everything else.
    likeness = 1.5 if other_section and last == f"{other_section}_{other}" else _likeness(last, other)
    if likeness >= 0.6:
      scores[candidate] = likeness + 0.5 * _ratio(section, other_section)
  return max(scores, key=scores.__getitem__, default=None)


def nearest_key(name: str, keys: Iterable[str], sections: Iterable[str]) -> str | None:
  """`nearest` among the keys of a configuration and, for a name without a section, its sections."""
  return nearest(name, [*keys, *([] if "." in name else sections)])


def _likeness(name: str, other: str) -> float:
  """How alike two names are, 0 to 1: equal, then initials ("lr" for learning_rate), then substrings, then spelling."""
  if name == other:
    return 1.0
  if name == "".join(word[:1] for word in other.split("_")):
    return 0.95
  if (len(name) >= 3 and name in other) or (len(other) >= 3 and other in name):
    return 0.8 + 0.1 * _ratio(name, other)
  return _ratio(name, other)


def _ratio(one: str, other: str) -> float:
  return difflib.SequenceMatcher(None, one, other).ratio()
