"""The base of objectives: settings, fields of a batch, and what they need to know of vocabulary and documents."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.plan import RowPlan, Rows, Split, stream_plan

INT = np.dtype(np.int32)
FLOAT = np.dtype(np.float32)


class Field(NamedTuple):
  """What one array of a batch holds.

  Attributes:
    shape: shape of one row; the batch's array is [rows, *shape].
    dtype: int32 or float32.
    kind: what the numbers mean.
      ids: token ids that the model reads; segments: 1, 2, ... for the packed documents, 0 for padding; positions:
      positions within a document; prefix: 1 for tokens that earlier ones of their segment see too; places: indices into
      the row; types: token types; labels: classes to predict (also tokens); numbers: quantities to predict; weights:
      weights of the labels in the loss; pixels; rows: global row ids.
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
  """What is predicted, and how inputs are corrupted."""

  name: str = "mlm"  # what is predicted
  mask_rate: float = 0.15  # mlm, nsp, sop, electra: the share of a row's ordinary tokens that is predicted
  final_mask_rate: float = 0.0  # the same at the end of mask_rate_steps
  mask_rate_steps: int = 0  # steps over which mask_rate goes to final_mask_rate, evenly; 0: it stays
  random_rate: float = 0.1  # mlm, nsp, sop: of those, the share that is replaced by a random token
  keep_rate: float = 0.1  # mlm, nsp, sop: of those, the share that stays as it is; the rest becomes the mask token
  # mlm, nsp, sop, electra: all tokens of a word are masked or none; Chinese in pieces of one to four characters
  whole_word: bool = False
  ngram: int = 1  # mlm, nsp, sop, electra: most neighbouring tokens (words, with whole_word) that are masked together
  noise_density: float = 0.15  # span_corruption, bart: the share of tokens that is removed
  mean_span: float = 3.0  # span_corruption, bart: mean length of a removed span, in tokens
  permute_rate: float = 1.0  # bart: the share of a row's sentences that change places
  rotate_rate: float = 0.0  # bart: the share of rows that begin at any of their tokens
  delete_rate: float = 0.0  # bart: the share of tokens that are left out without a trace


@dataclass(frozen=True)
class Vocabulary:
  """What objectives need to know of a tokenizer. An id of -1 means that the tokenizer has no such token."""

  size: int  # ids are 0 .. size - 1; the padding of the model's arrays does not count
  pad_id: int = 0
  unk_id: int = 1
  bos_id: int = 2
  eos_id: int = 3
  mask_id: int = 4
  sentinel_ids: tuple[int, ...] = ()  # in order of use
  special_ids: tuple[int, ...] = (0, 1, 2, 3, 4)  # never masked and never a random replacement
  pieces: bytes = b""  # what each id is of a text, see `words`; empty: unknown

  def require(self, name: str, objective: str) -> int:
    """The id of a token that the objective needs. Raises UserError if the tokenizer has none."""
    token_id: int = getattr(self, f"{name}_id")
    if token_id < 0:
      raise UserError(
        f"objective.name={objective} needs a {name} token and this tokenizer has none: "
        f"choose another tokenizer.path, or leave it empty to train a tokenizer"
      )
    return token_id


@dataclass(frozen=True)
class Documents:
  """What objectives need to know of the documents of a corpus."""

  sides: int = 1  # texts per document: 1, or 2 (a pair)


PLAIN = Documents()


class Objective:
  """Decides which tokens each row holds (its row plan), and turns rows into the arrays of a batch.

  Args:
    config: the section `objective` of the configuration.
    vocabulary: special ids and size of the tokenizer.
    seq_len: length of a row (of its encoder side where it has two).
    target_len: length of the decoder side; 0: the objective's natural length.
    documents: what documents consist of.

  Raises:
    UserError: settings or documents that the objective cannot serve.
  """

  adds_bos: ClassVar[bool] = False  # documents start with bos in the token file
  begins_with_bos: ClassVar[bool] = False  # `make` puts bos before the text of a row; documents have none then
  adds_eos: ClassVar[bool] = True  # documents end with eos in the token file
  targets_begin: ClassVar[str] = "pad"  # with what the decoder starts: pad, as T5's, bos where there is one, or eos
  head: ClassVar[str] = ""  # head.name that reads the labels; empty: any head that learns from objectives
  token_types: ClassVar[int] = 0  # token types in a batch, which model.token_types must cover
  sides: ClassVar[int] = 1  # most texts that a document may have
  lookahead: ClassVar[int] = 0  # extra tokens read past the end of a row: `make` gets row_tokens + lookahead
  reads_prefixes: ClassVar[bool] = False  # models read prompts in both directions: batches have the field `prefix`
  # Whether each token of the text is a target exactly once and unchanged (except perhaps the first of a document), and
  # nothing that the model reads gives it away. Only such objectives have a loss per byte of text.
  predicts_text: ClassVar[bool] = False

  row_tokens: int  # tokens of the token file that a row takes

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
    """Checks the objective's own settings and derives its own attributes. Raises UserError for impossible settings."""

  @property
  def fields(self) -> Fields:
    """The arrays of a batch by name; includes `rows`, which the data set fills."""
    raise NotImplementedError

  def check(self) -> None:
    """Raises UserError if the vocabulary lacks a token that the objective needs."""

  def plan(self, split: Split, packing: bool) -> RowPlan:
    """The row plan of a split: by default the stream of its documents, cut every `row_tokens` tokens; each row also
    reads the `lookahead` tokens after it.

    packing: whether a row may hold several documents.
    """
    return stream_plan(split.sides[0], self.row_tokens, self.lookahead, self.vocabulary.pad_id, packing)

  def make(self, draws: Draws, source: Rows, target: Rows | None = None) -> dict[str, np.ndarray]:
    """All fields except `rows`, each with a leading axis R, from the R rows that the row plan read.

    draws: the random numbers of these rows.
    source: their tokens; of pairs, those of the first side.
    target: of pairs, the tokens of the second side.
    """
    raise NotImplementedError


def check_arrays(arrays: Any, fields: Fields, rows: int | None, culprit: str) -> None:
  """Raises UserError, which begins with `culprit`, unless the arrays are as declared.

  Ids and labels out of range would otherwise train silently: on devices, indices out of range read and write anything.

  Args:
    arrays: field name -> array; code of an author of objectives or tasks has made it, so it may be anything.
    fields: what is declared.
    rows: number of rows; None: any.
    culprit: what to correct, such as "objective.name=mlm".
  """
  if not isinstance(arrays, Mapping):
    raise UserError(f"{culprit}: a batch is {arrays!r}, not a dictionary of arrays: does `make` return it?")
  for name in fields:
    if arrays.get(name) is None:
      raise UserError(f"{culprit}: the batch has no {name}, which `fields` declares")
  for name, array in arrays.items():
    if name not in fields:
      raise UserError(f"{culprit}: the batch has {name}, which `fields` does not declare: {', '.join(fields)}")
    field = fields[name]
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape is None or dtype is None:
      raise UserError(f"{culprit}: {name} is of type {type(array).__name__}, not an array")
    declared = (shape[0] if rows is None and shape else rows, *field.shape)
    if (shape, dtype) != (declared, field.dtype):
      raise UserError(f"{culprit}: {name} is {_form(dtype, shape)}, declared {_form(field.dtype, declared)}")
    if field.kind in ("ids", "labels") and field.classes and array.size:
      low, high = int(array.min()), int(array.max())
      if low < 0 or high >= field.classes:
        raise UserError(f"{culprit}: {name} has values from {low} to {high}, declared 0 to {field.classes - 1}")


def _form(dtype: Any, shape: tuple[Any, ...]) -> str:
  """As "int32[8,64]"."""
  return f"{dtype}[{','.join(map(str, shape))}]"


def rate(name: str, value: float) -> float:
  """The value, which must be a share in [0, 1]; otherwise raises UserError."""
  if not 0.0 <= value <= 1.0:
    raise UserError(f"objective.{name}={value:g} is not a share between 0 and 1")
  return value


def shift_right(targets: np.ndarray, positions: np.ndarray, valid: np.ndarray, first: int, pad: int) -> np.ndarray:
  """Decoder inputs: the targets moved right by one, `first` at the start of each segment, `pad` where not valid."""
  shifted = np.empty_like(targets)
  shifted[:, 0] = first
  shifted[:, 1:] = np.where(positions[:, 1:] == 0, first, targets[:, :-1])
  return np.where(valid, shifted, pad).astype(np.int32, copy=False)


def token_fields(length: int, classes: int, prefix: str = "") -> Fields:
  """The fields that the block stack reads: token ids, segments and positions."""
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
  """The arrays of `encoder_decoder_fields` from two sides with matching segments.

  first: the decoder input at the start of each segment (T5: pad; seq2seq: bos where there is one).
  """
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
