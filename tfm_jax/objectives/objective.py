"""What every objective shares: its settings, what it must know of vocabulary and documents, its plan and its fields."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.plan import Plan, Rows, Split, stream_plan

INT = np.dtype(np.int32)
FLOAT = np.dtype(np.float32)


class Field(NamedTuple):
  """What one array of a batch holds.

  Attributes:
    shape: of one row; the batch's array is [rows, *shape].
    dtype: int32 or float32.
    kind: what the numbers are.
      ids: token ids that a model reads; segments: 1, 2, ... of the packed documents, 0 for padding; positions: within
      a document; places: indices into the row; types: of tokens; labels: classes to predict (tokens too);
      numbers: quantities to predict; weights: of the labels in the loss; pixels; rows: global row ids.
    axes: logical axes of the batch's array, as strategies name them; None: never split.
    classes: ids and labels lie in [0, classes).
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  kind: str
  axes: tuple[str | None, ...]
  classes: int = 0


Fields = dict[str, Field]

ROWS = Field((), INT, "rows", ("batch",))


def along_row(length: int, kind: str, classes: int = 0) -> Field:
  """A field with one number per token of the row."""
  return Field((length,), FLOAT if kind == "weights" else INT, kind, ("batch", "seq"), classes)


@dataclass(frozen=True)
class ObjectiveConfig:
  name: str = "mlm"  # mlm, causal, span_corruption, seq2seq, sequence_classification
  mask_rate: float = 0.15  # mlm: the share of a row's ordinary tokens that is predicted
  random_rate: float = 0.1  # mlm: of those, the share that is replaced by a random token
  keep_rate: float = 0.1  # mlm: and the share that stays; the rest becomes the mask token
  noise_density: float = 0.15  # span_corruption: the share of tokens that is removed
  mean_span: float = 3.0  # span_corruption: mean length of a removed span, in tokens


@dataclass(frozen=True)
class Vocabulary:
  """What objectives need of a tokenizer. An id of -1: the tokenizer has no such token."""

  size: int  # ids are 0 .. size - 1, without the padding of the arrays
  pad_id: int = 0
  unk_id: int = 1
  bos_id: int = 2
  eos_id: int = 3
  mask_id: int = 4
  sentinel_ids: tuple[int, ...] = ()  # in order of use
  special_ids: tuple[int, ...] = (0, 1, 2, 3, 4)  # never masked, never a random replacement

  def require(self, name: str, objective: str) -> int:
    """The id of a token that the objective cannot do without. Raises UserError when there is none."""
    found: int = getattr(self, f"{name}_id")
    if found < 0:
      raise UserError(
        f"objective.name={objective} needs a {name} token and this tokenizer has none: "
        f"choose another tokenizer.path, or leave it empty to train a tokenizer"
      )
    return found


@dataclass(frozen=True)
class Documents:
  """What objectives need to know of the documents of a corpus."""

  sides: int = 1  # texts of a document: one, or a pair
  classes: int = 0  # of its label; 0: documents have none


PLAIN = Documents()  # one text, no label


class Objective:
  """Plans the rows of a split, and turns them into training arrays, vectorised over rows.

  A subclass is built from (config, vocabulary, seq_len, target_len, documents); target_len 0 means its natural length.
  """

  adds_bos: ClassVar[bool] = False  # a document of the stream starts with bos
  adds_eos: ClassVar[bool] = True  # and ends with eos
  sides: ClassVar[int] = 1  # texts that a document may have
  # Each token of the text is a target once, as it stands there (the first of a document perhaps not): only then is
  # there a loss per byte of text.
  predicts_text: ClassVar[bool] = False

  row_tokens: int  # tokens that a row takes from the stream

  def __init__(
    self,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
    seq_len: int,
    target_len: int,
    documents: Documents = PLAIN,
  ):
    if seq_len < 2:
      raise UserError(f"data.seq_len={seq_len} is too short: a row needs at least 2 tokens")
    if target_len < 0:
      raise UserError(f"data.target_len={target_len} is negative: give a length, or 0 for the natural one")
    if documents.sides > self.sides:
      raise UserError(
        f"objective.name={config.name} reads one text per document, and this data.source has pairs: choose another "
        f"source (of a table, one column by task.text), or objective.name=seq2seq"
      )
    self.config, self.vocabulary, self.seq_len, self.target_len = config, vocabulary, seq_len, target_len
    self.documents = documents
    self.row_tokens = seq_len
    self.setup()

  def setup(self) -> None:
    """Checks and derives what is an objective's own. Raises UserError for settings that cannot be."""

  @property
  def fields(self) -> Fields:
    """The arrays of a batch by name. The data set adds `rows`, the row ids."""
    raise NotImplementedError

  def check(self) -> None:
    """Raises UserError when the vocabulary lacks a token that the objective needs."""

  def plan(self, split: Split, packing: bool) -> Plan:
    """The rows of a split: by default its stream of documents, cut every `row_tokens` tokens.

    packing: rows may hold several documents.
    """
    return stream_plan(split.sides[0], self.row_tokens, 0, self.vocabulary.pad_id, packing)

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    """Training arrays of what the plan read, all fields but `rows`, each with a leading axis R."""
    raise NotImplementedError


def rate(name: str, value: float) -> float:
  """A share in [0, 1], or UserError."""
  if not 0.0 <= value <= 1.0:
    raise UserError(f"objective.{name}={value:g} is not a share between 0 and 1")
  return value


def shift_right(targets: np.ndarray, positions: np.ndarray, valid: np.ndarray, first: int, pad: int) -> np.ndarray:
  """Decoder inputs: the targets one place later, `first` where a segment starts, `pad` where not valid."""
  shifted = np.empty_like(targets)
  shifted[:, 0] = first
  shifted[:, 1:] = np.where(positions[:, 1:] == 0, first, targets[:, :-1])
  return np.where(valid, shifted, pad).astype(np.int32, copy=False)


def token_fields(length: int, classes: int, prefix: str = "") -> Fields:
  """The fields that a stack reads: token ids, segments and positions."""
  return {
    f"{prefix}inputs": along_row(length, "ids", classes),
    f"{prefix}segment_ids": along_row(length, "segments"),
    f"{prefix}positions": along_row(length, "positions"),
  }


def encoder_decoder_fields(seq_len: int, target_len: int, classes: int) -> Fields:
  """The fields of every encoder-decoder objective."""
  return {
    **token_fields(seq_len, classes, "encoder_"),
    **token_fields(target_len, classes, "decoder_"),
    "decoder_targets": along_row(target_len, "labels", classes),
    "decoder_weights": along_row(target_len, "weights"),
    "rows": ROWS,
  }


def encoder_decoder_arrays(source: Rows, target: Rows, first: int, pad: int) -> dict[str, np.ndarray]:
  """Encoder-decoder arrays of two sides with matching segments; `first` starts each decoder segment."""
  valid = target.segment_ids > 0
  return {
    "encoder_inputs": source.tokens,
    "encoder_segment_ids": source.segment_ids,
    "encoder_positions": source.positions,
    "decoder_inputs": shift_right(target.tokens, target.positions, valid, first, pad),
    "decoder_targets": target.tokens,
    "decoder_weights": valid.astype(np.float32),
    "decoder_segment_ids": target.segment_ids,
    "decoder_positions": target.positions,
  }
