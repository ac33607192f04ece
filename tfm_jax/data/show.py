"""Rows of a batch as lines to read: the text that a model sees, with what it has to predict marked."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tfm_jax.objectives.objective import Fields
from tfm_jax.text.tokenizers.table import Tokenizer

LEGEND = (
  "{piece > seen}: predicted, and what the model sees in its place; ║: another document; ⏎: a line end; "
  "·: not predicted; of targets, the piece that is predicted at each place"
)


def shown(batch: Mapping[str, np.ndarray], fields: Fields, tokenizer: Tokenizer, names: Sequence[str]) -> list[str]:
  """Some lines per row of a batch.

  Args:
    batch: the arrays.
    fields: what they hold; fields of one number per token belong to the token ids whose prefix ("encoder_") they have.
    tokenizer: pieces of ids.
    names: the source of each row; empty: there is only one.
  """
  lines: list[str] = []
  for r in range(len(batch["rows"])):
    lines += [*_row({name: x[r] for name, x in batch.items()}, fields, tokenizer, names[r] if names else "")]
  return lines


def _row(row: Mapping[str, np.ndarray], fields: Fields, tokenizer: Tokenizer, source: str) -> Iterator[str]:
  """The lines of one row."""
  ids = [name for name, field in fields.items() if field.kind == "ids"]
  labels = [name for name, field in fields.items() if field.kind == "labels"]
  places = next((name for name, field in fields.items() if field.kind == "places"), "")
  prefixes = {name: name.removesuffix("inputs") for name in ids}
  counts = []
  for name, prefix in prefixes.items():
    segments = row.get(f"{prefix}segment_ids", np.ones_like(row[name]))
    counts.append(f"{name} {np.count_nonzero(segments)} of {len(segments)} tokens, {segments.max()} segments")
  yield f"row {row['rows']}{f' of {source}' if source else ''}: {'; '.join(counts)}"
  for name, prefix in prefixes.items():
    length = len(row[name])
    segments = row.get(f"{prefix}segment_ids", np.ones(length, np.int32))
    predicted: dict[int, int] = {}
    for label in labels if places else ():
      if fields[label].shape == fields[places].shape and fields[label].classes == fields[name].classes:
        seen = _weights(row, label, fields) > 0
        predicted |= dict(zip(row[places][seen].tolist(), row[label][seen].tolist(), strict=True))
    yield f"  {name}: {_text(row[name], segments, tokenizer, predicted)}"
    types = next((n for n, field in fields.items() if field.kind == "types" and n.startswith(prefix)), "")
    if types and row[types][segments > 0].any():
      yield f"  {types}: {_runs(row[types][segments > 0])}"
    for label in labels:
      if (
        fields[label].shape == (length,) and label.startswith(prefix) and fields[label].classes == fields[name].classes
      ):
        weights = _weights(row, label, fields)
        yield f"  {label}: {_text(row[label], np.where(weights > 0, segments, -1), tokenizer, {}, segments)}"
  for label in labels:
    if fields[label].shape == ():
      yield f"  {label}: {row[label]}"


def _weights(row: Mapping[str, np.ndarray], label: str, fields: Fields) -> np.ndarray:
  """The weights of labels: those of the same shape, of the same prefix if there are several; without any, ones."""
  shape, prefix = fields[label].shape, label.removesuffix("targets")
  same = [name for name, field in fields.items() if field.kind == "weights" and field.shape == shape]
  return row[next((name for name in same if name == f"{prefix}weights"), same[0])] if same else np.ones(shape)


def _text(
  ids: np.ndarray,
  segments: np.ndarray,
  tokenizer: Tokenizer,
  predicted: Mapping[int, int],
  borders: np.ndarray | None = None,
) -> str:
  """The pieces of ids on one line.

  Args:
    ids: [n].
    segments: [n] 1, 2, ... of the documents, 0 for padding, -1 for what is shown as a dot.
    tokenizer: pieces of ids.
    predicted: place -> the id that is predicted there.
    borders: [n] the documents, where `segments` does not tell them.
  """
  borders = segments if borders is None else borders
  special = {*tokenizer.special_ids.tolist()}
  parts: list[str] = []
  run: list[int] = []

  def end_run() -> None:
    if run:
      parts.append(_printable(tokenizer.decode(np.array(run, np.int32))))
      run.clear()

  for place, id in enumerate(ids.tolist()):
    if place and borders[place] and borders[place] != borders[place - 1]:
      end_run()
      parts.append("║")
    if place in predicted:
      end_run()
      parts.append(f"{{{_piece(tokenizer, predicted[place])} > {_piece(tokenizer, id)}}}")
    elif segments[place] == -1 and borders[place]:
      end_run()
      parts.append("·")
    elif not borders[place]:
      continue
    elif id in special:
      end_run()
      parts.append(_piece(tokenizer, id))
    else:
      run.append(id)
  end_run()
  padding = int(np.count_nonzero(borders == 0))
  return " ".join([*_counted(parts), *([f"(padding × {padding})"] if padding else [])])


def _counted(parts: Sequence[str]) -> Iterator[str]:
  """The parts, with runs of dots as one "·×5"."""
  dots = 0
  for part in [*parts, ""]:
    if part == "·":
      dots += 1
      continue
    if dots:
      yield "·" if dots == 1 else f"·×{dots}"
      dots = 0
    if part:
      yield part


def _piece(tokenizer: Tokenizer, id: int) -> str:
  return _printable(tokenizer.token(id))


def _runs(values: np.ndarray) -> str:
  """As "0 × 12, 1 × 30"."""
  starts = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
  return ", ".join(f"{part[0]} × {len(part)}" for part in np.split(values, starts[1:]))


def _printable(text: str) -> str:
  """The text on one line of a terminal."""
  text = text.replace("\r", "").replace("\n", "⏎").replace("\t", " ")
  return "".join(c if c.isprintable() else "\ufffd" for c in text)
