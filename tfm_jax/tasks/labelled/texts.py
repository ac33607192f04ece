"""Examples of one or two texts with a label, and their rows: `bos text eos`, or `bos text eos pair eos`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import Vocabulary
from tfm_jax.tasks.labelled.rows import Rows, make_rows
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.examples.tables import Column, Row, Table, check_text, listed, place_of, read_table
from tfm_jax.text.tokenizers.table import Tokenizer
from tfm_jax.training.config import Config

TEXT = ("sentence", "text", "sentence1", "premise", "question1", "review", "content", "title")
PAIR = ("sentence2", "hypothesis", "question2")
LABEL = ("label", "class", "category", "score")


class TextExample(NamedTuple):
  """One or two texts, and their label as the file spells it; None: the file has none.

  Attributes:
    classes: all labels that there may be, by number, where the data set declares them.
  """

  file: Table
  line: int
  texts: tuple[str, ...]
  label: str | None
  classes: tuple[str, ...] = ()

  @property
  def place(self) -> str:
    """For messages."""
    return place_of(self.file, self.line)


def read_texts(
  config: Config,
  files: Sequence[Table],
  labelled: bool,
  counts: Counts,
  names: Mapping[str, tuple[str, ...]],
  pairs: bool = False,
) -> list[TextExample]:
  """The examples of tables, with the columns that the section `task` names, or else the usual names.

  Args:
    config: its sections `task` and `data`.
    files: tables, see `read_table`.
    labelled: whether each example must have a label.
    counts: see `read_table`.
    names: usual names of the columns text, pair and label.
    pairs: whether each example must have two texts.

  Raises:
    UserError: a mistake in a file, named by its line, or files of which only some have pairs.
  """
  task = config.task
  columns = {
    "text": Column(task.text, names["text"]),
    "label": Column(task.label, names["label"], required=labelled),
  }
  if task.pair or pairs or not task.text:  # a config that names the text's column also names the pair's
    columns["pair"] = Column(task.pair, names["pair"], required=bool(task.pair) or pairs)
  examples: list[TextExample] = []
  for row in read_table(files, columns, config.data.errors, counts):
    texts = (
      _text(row.values["text"], row),
      *((_text(pair, row),) if (pair := row.values.get("pair")) is not None else ()),
    )
    label = row.values["label"]
    label = None if label is None else str(label).strip()
    if labelled and not label:
      raise UserError(f"{row.place}: no label")
    examples.append(TextExample(row.file, row.line, texts, label or None, row.classes))
  if len({len(example.texts) for example in examples}) > 1:
    other = next(example for example in examples if len(example.texts) != len(examples[0].texts))
    raise UserError(
      f"{other.place}: {len(other.texts)} texts per row, and {examples[0].file} has {len(examples[0].texts)}: set "
      f"task.text and task.pair"
    )
  return examples


def _text(value: Any, row: Row) -> str:
  if isinstance(value, str):
    return check_text(value, row.place)
  raise UserError(f"{row.place}: the text is {value!r}, not a text: set task.text and task.pair")


def classes_of(config: Config, examples: Sequence[TextExample]) -> tuple[str, ...]:
  """The classes that the data set declares; otherwise the labels in alphabetical order, or by size if all are numbers.

  Raises:
    UserError: fewer than two classes, or labels that are none.
  """
  declared = examples[0].classes
  names = set(declared) or {example.label for example in examples if example.label is not None}
  if any("|" in name for name in names):
    raise UserError(f"{config.data.path}: a label must not contain '|', which separates the labels in head.labels")
  if len(names) < 2:
    raise UserError(
      f"{config.data.path} has labels of {len(names)} class ({listed(sorted(names))}): at least two classes are needed"
    )
  if declared:
    return declared
  if len(names) > max(50, len(examples) // 2):
    raise UserError(f"{config.data.path} has {len(names):,} different labels: set task.label to the column of classes")
  if first_line := _header_taken_for_a_row(examples):
    raise UserError(
      f"{first_line.place}: the label {first_line.label!r} occurs nowhere else; if the line is a header, name the "
      f"columns by their names in it: --config.task.label={first_line.label}"
    )
  if all(map(_is_number, names)):
    return tuple(sorted(names, key=lambda name: (float(name), name)))
  return tuple(sorted(names))


def _header_taken_for_a_row(examples: Sequence[TextExample]) -> TextExample | None:
  """The example of a file's first line, if its label is the only one that is no number. It may be a held-out one."""
  odd = [example for example in examples if not _is_number(example.label or "")]
  return odd[0] if len(odd) == 1 and odd[0].line == 1 and len(examples) > 2 else None


def check_labels(config: Config, classes: Sequence[str], examples: Sequence[TextExample]) -> None:
  """Raises UserError, which names file and line, for a label that is not a class."""
  for example in examples:
    if example.label is not None and example.label not in classes:
      raise UserError(
        f"{example.place}: the label {example.label!r} is not a class of the training data, whose classes are "
        f"{listed(classes)}"
      )


def check_pairs(trained: int, examples: Sequence[TextExample]) -> None:
  """Raises UserError, which names file and column, for pairs where training has single texts, and the reverse.

  Args:
    trained: texts per example of the training data, 1 or 2; 0: not known.
    examples: all with equally many texts.
  """
  if not (trained and examples) or len(examples[0].texts) == trained:
    return
  file, columns = examples[0].file, f"{', '.join(PAIR[:-1])} or {PAIR[-1]}"
  if trained == 1:
    raise UserError(
      f"{file} has pairs of texts, by its column {columns}, and training has single texts: remove that column"
    )
  raise UserError(f"{file} has single texts, and training has pairs: name the column of the second text {columns}")


def text_rows(
  examples: Sequence[tuple[str, ...]],
  labels: Mapping[str, np.ndarray],
  tokenizer: Tokenizer,
  vocabulary: Vocabulary,
  seq_len: int,
  token_types: bool,
) -> Rows:
  """One row per example. A text that is too long loses its end; of a pair, the longer text is cut first.

  Args:
    examples: the texts of each, one or two.
    labels: name -> array with one value per example.
    tokenizer, vocabulary: text -> ids, and the special ids.
    seq_len: most tokens of a row.
    token_types: whether the second text of a pair and its eos have type 1.

  Raises:
    UserError: rows are too short for any text.
  """
  sides = len(examples[0]) if examples else 1
  begin = [vocabulary.bos_id] if vocabulary.bos_id >= 0 else []
  room = seq_len - len(begin) - sides
  if room < sides:
    raise UserError(f"data.seq_len={seq_len} leaves no room for text between the special tokens: raise it")
  ids = [tokenizer.encode_batch([texts[side] for texts in examples]) for side in range(sides)]
  eos = np.array([vocabulary.eos_id], np.int32)
  sequences, types, truncated = [], [], 0
  for parts in zip(*ids, strict=True):
    kept = _cut([len(part) for part in parts], room)
    truncated += sum(len(part) > n for part, n in zip(parts, kept, strict=True))
    pieces = [part for text, n in zip(parts, kept, strict=True) for part in (text[:n], eos)]
    sequences.append(np.concatenate([np.array(begin, np.int32), *pieces]))
    if token_types:
      second = kept[1] + 1 if sides == 2 else 0
      types.append((np.arange(len(sequences[-1])) >= len(sequences[-1]) - second).astype(np.int32))
  with_types = types if token_types and sides == 2 else None
  return make_rows(sequences, with_types, labels, {}, range(len(sequences)), truncated)


def _cut(sizes: Sequence[int], room: int) -> list[int]:
  """How many tokens of each text are kept."""
  if len(sizes) == 1:
    return [min(sizes[0], room)]
  text, pair = sizes
  text = min(text, max(room - pair, -(-room // 2)))
  return [text, min(pair, room - text)]


def _is_number(name: str) -> bool:
  try:
    return bool(np.isfinite(float(name)))
  except ValueError:
    return False
