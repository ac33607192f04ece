"""The corpus of parallel files: line n of a source file and line n of its target file belong together."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.corpus import LINE_COUNTS, Corpus, Counts, Document
from tfm_jax.text.corpora.files import (
  content_fingerprint,
  counted,
  decoded,
  find_text_files,
  former_fingerprint,
  line_count,
  read_lines,
)
from tfm_jax.text.corpora.held_out import check_documents, split_lines


def parallel_corpus(
  path: str,
  target_path: str,
  eval_path: str = "",
  eval_target_path: str = "",
  eval_fraction: float = 0.1,
  errors: str = "raise",
) -> Corpus:
  """Two sides of text files: line n of a source file and line n of its target file belong together.

  Folders, globs and lists pair up in order. A pair with a blank side is skipped and counted. Without
  evaluation paths the last `eval_fraction` of the source text, with its targets, is held out. Arguments
  otherwise as in `text_corpus`.

  Raises:
    UserError: as `text_corpus`, and for different numbers of files or of lines.
  """
  if bool(eval_path) != bool(eval_target_path):
    raise UserError("data.eval_path and data.eval_target_path: give both or neither")
  split = split_lines(path, eval_path, eval_fraction, errors)
  split = split._replace(whole=frozenset([*split.files, *split.eval_files]))
  pairs = eval_pairs = paired_files(
    split.files, find_text_files(target_path, "data.target_path"), "data.path", "data.target_path"
  )
  if eval_path:
    eval_targets = find_text_files(eval_target_path, "data.eval_target_path")
    eval_pairs = paired_files(split.eval_files, eval_targets, "data.eval_path", "data.eval_target_path")

  def read(part: str, counts: Counts) -> Iterator[Document]:
    counts["blank"] = documents = 0
    target_of = pairs if part == "train" else eval_pairs
    for file, sources in itertools.groupby(split.lines(part, counts), key=lambda line: line.file):
      first = next(sources)
      whole = itertools.chain([first], sources)  # noqa: B031 (the rest of the group)
      targets = itertools.islice(read_lines(target_of[file]), first.number - 1, None)
      both = decoded(whole, errors, counts), decoded(targets, errors, counts)
      for source, target in zip(*both, strict=False):
        if source.strip() and target.strip():
          documents += 1
          yield source.removesuffix("\n"), target.removesuffix("\n")
        else:
          counts["blank"] += 1
    check_documents(documents, part, path, eval_path)

  settings, targets = ["parallel", errors], list(pairs.values())
  held_out = [*eval_pairs, *eval_pairs.values()] if eval_path else []
  return Corpus(
    name="parallel",
    description=f"{path} with {target_path}: {counted(list(pairs), 'file')} each; documents are pairs of lines",
    held_out=split.held_out,
    fingerprint=content_fingerprint([*settings, split.cut], [split.files, targets, held_out]),
    former_fingerprint=former_fingerprint(
      settings, split.cut, [*pairs, *targets, *eval_pairs.values(), *split.eval_files]
    ),
    read=read,
    sides=2,
    left_out={"blank": "pairs with a blank line, left out", **LINE_COUNTS},
  )


def paired_files(sources: list[Path], targets: list[Path], key: str, target_key: str) -> dict[Path, Path]:
  """Source file -> target file, of equally many lines. Raises UserError, which names the keys."""
  if len(sources) != len(targets):
    raise UserError(f"{key} names {len(sources)} files and {target_key} {len(targets)}: they must pair up")
  for source, target in zip(sources, targets, strict=True):
    lines, target_lines = line_count(source), line_count(target)
    if lines != target_lines:
      raise UserError(
        f"{source} has {lines} lines and {target} has {target_lines}: line n of each must belong together"
      )
  return dict(zip(sources, targets, strict=True))
