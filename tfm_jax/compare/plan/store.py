"""Compiled results on disk, one line each: a second run of the same plan compiles only what is missing."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from pathlib import Path

from tfm_jax.compare.forecast.ledger import versions
from tfm_jax.compare.plan.space import Candidate
from tfm_jax.compare.results import StrategyResult, result_from_json, to_json
from tfm_jax.errors import UserError
from tfm_jax.training.config import Config, to_dict

NAME = "compiled.jsonl"
_OTHERS = ("eval", "checkpoint", "seed", "init_from", "branch_from", "branch_at")  # not in the program
_SOURCES = ("compare/compiled", "compare/forecast", "models", "objectives", "ops", "sharding", "training")
_FILES = ("compare/program.py", "runtime/chips.py")


class Store:
  """The results of one configuration in a folder, under the installed versions.

  Args:
    folder: where `compiled.jsonl` is.
    config: whose candidates are compiled. Results of others stay in the file and do not count.

  Raises:
    UserError: the folder cannot be written to.
  """

  def __init__(self, folder: Path, config: Config) -> None:
    self._file, self._config = Path(folder) / NAME, config
    try:
      self._file.parent.mkdir(parents=True, exist_ok=True)
      self._file.touch()
    except OSError as error:
      raise UserError(f"cannot write to --out={folder}: {error.strerror}") from error

  def key(self, one: Candidate) -> str:
    """A hash of what decides the result: the configuration, the code and the versions."""
    config = {name: value for name, value in to_dict(one.of(self._config)).items() if name not in _OTHERS}
    text = json.dumps([config, one.topology, versions(), _code()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def results(self) -> dict[Candidate, StrategyResult]:
    """All results of this configuration, code and versions. Damaged lines count as missing."""
    found: dict[Candidate, StrategyResult] = {}
    for line in self._file.read_text(encoding="utf-8").splitlines():
      with contextlib.suppress(ValueError, KeyError, TypeError):
        entry = json.loads(line)
        one = Candidate(**entry["candidate"] | {"mesh": tuple(entry["candidate"]["mesh"])})
        if entry["key"] == self.key(one):
          found[one] = result_from_json(entry["result"])
    return found

  def add(self, one: Candidate, result: StrategyResult) -> None:
    """Appends a result."""
    values = to_json(result) | {"layout": None}  # which device holds which piece: large, and not shown
    entry = {"key": self.key(one), "candidate": dataclasses.asdict(one), "result": values}
    with self._file.open("a", encoding="utf-8") as file:
      file.write(json.dumps(entry) + "\n")


@functools.cache
def _code() -> str:
  """A hash of the code that decides programs and forecasts."""
  digest, root = hashlib.sha256(), Path(__file__).parents[2]
  files = [file for folder in _SOURCES for file in sorted((root / folder).rglob("*.py"))]
  for file in [*files, *(root / name for name in _FILES)]:
    digest.update(file.read_bytes())
  return digest.hexdigest()[:16]
