"""The embedded corpus: the English prose that every installation carries.

The topics of the Python documentation (`pydoc_data.topics`) and the docstrings of the standard library and of
the installed numpy, scipy, jax and flax. Source files are parsed, never imported.
"""

import ast
import concurrent.futures
import gzip
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import logging
import multiprocessing
import os
import platform
import shutil
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tfm_jax.cache import atomic_directory, cache_dir
from tfm_jax.text.corpora.corpus import Corpus, Counts, Document
from tfm_jax.text.workers import deaf_to_interrupts

log = logging.getLogger(__name__)

PACKAGES = ("numpy", "scipy", "jax", "flax")

_FORMAT = 1  # part of the fingerprint: raise it when the documents change
_HELD_OUT = 0.02  # share of the documents
_SHORTEST = 120  # characters of a document
# Folders that are left out: some installations of the same version lack them, or they hold no English prose.
_SKIPPED = {
  "test",
  "tests",
  "idlelib",
  "lib2to3",
  "site-packages",
  "dist-packages",
  "ensurepip",
  "__pycache__",
  "pydoc_data",
}


def embedded_corpus() -> Corpus:
  """The embedded corpus, about 11 MB: built on all cores the first time, then read from the cache."""
  versions = _versions()
  fingerprint = hashlib.sha256(json.dumps([_FORMAT, versions]).encode()).hexdigest()[:16]
  listed = ", ".join(f"{name} {version}" for name, version in versions.items())
  description = f"documentation topics and docstrings of {listed} (for your own text: --config.data.path=FILES)"

  def read(part: str, counts: Counts) -> Iterator[Document]:
    content = _load(cache_dir() / "corpora" / f"embedded-{fingerprint}")
    counts.update(content["counts"])
    for text in content[part]:
      yield (text,)

  return Corpus(
    name="embedded",
    description=description,
    held_out=f"{_HELD_OUT:.0%} of the documents, by a hash of their text",
    fingerprint=fingerprint,
    read=read,
    left_out_of_both={
      "too_short": f"shorter than {_SHORTEST} characters",
      "not_prose": "not prose (fewer letters than other characters)",
      "duplicates": "duplicates",
    },
  )


def _versions() -> dict[str, str]:
  """What the documents depend on: Python and those packages that are installed."""
  installed = {name: _version(name) for name in PACKAGES if importlib.util.find_spec(name)}
  return {"python": platform.python_version(), **installed}


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return "unknown"


def _load(directory: Path) -> dict[str, Any]:
  """The documents of both parts and the counts, from the cache; built if they are missing or damaged."""
  file = directory / "documents.json.gz"
  try:
    return json.loads(gzip.decompress(file.read_bytes()))
  except FileNotFoundError:
    pass
  except (OSError, EOFError, ValueError, zlib.error) as error:
    log.warning("building the embedded corpus again: %s is damaged (%s)", file, error)
    shutil.rmtree(directory, ignore_errors=True)
  content = _build()
  with atomic_directory(directory) as temporary:
    data = json.dumps(content, ensure_ascii=False).encode()
    (temporary / file.name).write_bytes(gzip.compress(data, compresslevel=5, mtime=0))
  return content


def _build() -> dict[str, Any]:
  """Reads every source file on all cores; the result does not depend on their number."""
  log.info("building the embedded corpus from the installed documentation (once, then it is cached)")
  files = _source_files()
  texts = _topics()
  workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  context = multiprocessing.get_context("spawn")  # a fork of a process that runs JAX may hang
  pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
  try:
    with deaf_to_interrupts():
      docstrings = pool.map(_docstrings, files, chunksize=16)
    of_files = list(tqdm(docstrings, "embedded corpus", len(files), unit=" files", disable=None))
  except BrokenProcessPool:
    log.warning("a worker process died (a script without `if __name__ == '__main__'`?): reading on one core")
    of_files = [_docstrings(file) for file in files]
  finally:
    pool.shutdown(cancel_futures=True)
  texts.extend(itertools.chain.from_iterable(of_files))
  return _split(texts, len(files))


def _split(texts: list[str], files: int) -> dict[str, Any]:
  """Drops what is not prose and duplicates; holds out by a hash of the document."""
  counts = {"files": files, "too_short": 0, "not_prose": 0, "duplicates": 0}
  parts: dict[str, list[str]] = {"train": [], "evaluation": []}
  seen: set[bytes] = set()
  for text in texts:
    if len(text) < _SHORTEST:
      counts["too_short"] += 1
    elif not _is_prose(text):
      counts["not_prose"] += 1
    else:
      digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
      if digest in seen:
        counts["duplicates"] += 1
        continue
      seen.add(digest)
      held_out = int.from_bytes(digest[:4]) < _HELD_OUT * 2**32
      parts["evaluation" if held_out else "train"].append(text)
  return {**parts, "counts": counts}


def _is_prose(text: str) -> bool:
  """Whether at least half of the characters other than spaces are letters, and all can be written as UTF-8."""
  letters = sum(map(str.isalpha, text))
  return 2 * letters >= len("".join(text.split())) and not any("\ud800" <= c <= "\udfff" for c in text)


def _source_files() -> list[Path]:
  """Python files of the standard library and the packages, in the same order everywhere."""
  roots = [Path(sysconfig.get_path("stdlib"))]
  for name in PACKAGES:
    spec = importlib.util.find_spec(name)  # of a top-level package: nothing is imported
    roots += map(Path, (spec and spec.submodule_search_locations) or [])
  files = []
  for root in roots:
    inside = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    files += [root / path for path in inside if _SKIPPED.isdisjoint(path.parts)]
  return files


def _topics() -> list[str]:
  """The texts of `pydoc_data.topics`, a dict literal; none if the installation lacks it."""
  path = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
  tree = _parse(path)
  for node in tree.body if tree else []:
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
      return [inspect.cleandoc(text) for text in ast.literal_eval(node.value).values()]
  return []


def _docstrings(path: Path) -> list[str]:
  """The docstrings of a module, its classes and its functions, without their indentation."""
  tree = _parse(path)
  owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  docstrings = (ast.get_docstring(node) for node in (ast.walk(tree) if tree else ()) if isinstance(node, owners))
  return [text for text in docstrings if text]


def _parse(path: Path) -> ast.Module | None:
  """The syntax tree of a file; None if it is missing or not Python of this version."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other people's escape sequences
    try:
      return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
      return None
