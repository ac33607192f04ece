"""Classification of a text or a pair of texts: one labelled document per row (Devlin et al. 2019)."""

from typing import ClassVar

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import FLOAT, INT, ROWS, Field, Fields, Objective, along_row, token_fields
from tfm_jax.objectives.plan import RowPlan, Rows, Split, WholePlan


class SequenceClassification(Objective):
  """A row is `bos text eos`, or `bos text eos pair eos`, without bos if the tokenizer has none.

  A text that is too long loses its end; of a pair, the longer text is cut first, until both are equally long.
  """

  adds_eos: ClassVar[bool] = False  # `make` adds eos, after texts that are too long were cut
  sides: ClassVar[int] = 2

  @property
  def fields(self) -> Fields:
    types = {"token_types": along_row(self.seq_len, "types", 2)} if self.documents.sides == 2 else {}
    return {
      **token_fields(self.seq_len, self.vocabulary.size),
      **types,
      "targets": Field((), INT, "labels", ("batch",), self.documents.classes),
      "weights": Field((), FLOAT, "weights", ("batch",)),
      "rows": ROWS,
    }

  def check(self) -> None:
    self.vocabulary.require("eos", self.config.name)
    if self.documents.classes < 2:
      raise UserError(
        f"objective.name={self.config.name} needs documents with labels of at least two classes, and these have "
        f"{self.documents.classes}: set data.source=tsv and task.label"
      )
    if self._room < self.documents.sides:
      raise UserError(f"data.seq_len={self.seq_len} leaves no room for text between the special tokens: raise it")

  def plan(self, split: Split, packing: bool) -> RowPlan:
    """One document per row; `packing` is ignored."""
    sizes = [np.diff(side.offsets) for side in split.sides]
    if len(sizes) == 1:
      keep = [np.minimum(sizes[0], self._room)]
    else:
      text, pair = sizes
      text = np.minimum(text, np.maximum(self._room - pair, -(-self._room // 2)))
      keep = [text, np.minimum(pair, self._room - text)]
    return WholePlan(split, keep, [self.seq_len] * len(sizes), packing=False, pad=self.vocabulary.pad_id)

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    assert source.labels is not None
    column = np.arange(self.seq_len)
    blank = source.labels < 0
    tokens = np.full(source.tokens.shape, self.vocabulary.pad_id, np.int32)
    if self._begin:
      tokens[:, 0] = self.vocabulary.bos_id
    ends = []
    begin = np.full((len(tokens), 1), self._begin)
    for side in (source,) if target is None else (source, target):
      end = begin + (side.segment_ids > 0).sum(axis=1, keepdims=True)
      text = np.take_along_axis(side.tokens, np.clip(column - begin, 0, self.seq_len - 1), axis=1)
      tokens = np.where((column >= begin) & (column < end), text, tokens)
      tokens[column == end] = self.vocabulary.eos_id
      ends.append(end)
      begin = end + 1
    valid = (column <= ends[-1]) & ~blank[:, None]
    segment_ids = valid.astype(np.int32)
    tokens[~valid] = self.vocabulary.pad_id
    types = {"token_types": ((column > ends[0]) & valid).astype(np.int32)} if target is not None else {}
    return {
      "inputs": tokens,
      "segment_ids": segment_ids,
      "positions": segment_ids * column.astype(np.int32),
      **types,
      "targets": np.maximum(source.labels, 0),
      "weights": (~blank).astype(np.float32),
    }

  @property
  def _begin(self) -> int:
    """The position of the first token of text: 1 if the tokenizer has bos, otherwise 0."""
    return int(self.vocabulary.bos_id >= 0)

  @property
  def _room(self) -> int:
    """Tokens of text that fit into a row beside the special tokens."""
    return self.seq_len - self._begin - self.documents.sides
