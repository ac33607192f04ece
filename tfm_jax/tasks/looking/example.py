"""`Example`: one text as a model reads it, a batch of a single row without padding."""

import dataclasses
from typing import Any

import numpy as np

from tfm_jax.decode.filling import masked_ids
from tfm_jax.decode.generate import continued
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import Prompt, encoded, position_limit
from tfm_jax.decode.scoring import is_masked, with_symbols
from tfm_jax.errors import UserError
from tfm_jax.models.config import replaced
from tfm_jax.models.families.table import find_family
from tfm_jax.models.model import Model
from tfm_jax.runtime.reporting.page import visible
from tfm_jax.text.tokenizers.table import Tokenizer
from tfm_jax.training.load import Run

LONGEST = 512  # tokens: pictures of attention grow with the square
_GENERATED = 32  # tokens of a target that is not given


@dataclasses.dataclass(frozen=True)
class Example:
  """One text as a model reads it.

  Attributes:
    model: the run's, computing in float32 with dense attention.
    params: its parameters.
    tokenizer: its tokenizer.
    batch: field -> int32 [B, T]. All rows are equal: there are as many as the batch has shards, one on a single device.
    ids: side ("" of a single stack, or "encoder" and "decoder") -> the ids of its row.
    targets: of an encoder-decoder, the id that each decoder position is to predict.
    text: the text that it was read from.
  """

  model: Model
  params: Any
  tokenizer: Tokenizer
  batch: dict[str, np.ndarray]
  ids: dict[str, np.ndarray]
  targets: np.ndarray
  text: str

  def tokens(self, side: str = "") -> list[str]:
    """The tokens of a side as text, with blanks made visible."""
    return [self.name(int(id)) for id in self.ids[side]]

  def name(self, id: int) -> str:
    """A token as text, with blanks made visible."""
    return visible(self.tokenizer.token(id))

  def is_symbol(self, side: str = "") -> np.ndarray:
    """Which tokens of a side are symbols such as the beginning and the end, bool [T]; a mask is one."""
    symbols = self.tokenizer.special_ids[self.tokenizer.special_ids != self.tokenizer.unk_id]
    return np.isin(self.ids[side], symbols)


def read(run: Run, text: str, pair: str = "", target: str = "") -> Example:
  """A text as the model of a run reads it.

  Args:
    run: from `load_run`.
    text: the text; for a masked language model with "[MASK]" where pieces are predicted, for question answering the
      question, for an encoder-decoder what the encoder reads.
    pair: a second text: of a pair to classify, or the context of a question.
    target: what the decoder of an encoder-decoder writes; empty: what it writes by itself, at most 32 tokens.

  Raises:
    UserError: the text is empty or too long, a text that this model does not read, or a run without tokenizer.
  """
  model, tokenizer = run.model, run.tokenizer
  if model.config.image.patch:
    raise UserError(f"family={model.family} reads images: only models of text can be looked at")
  if find_family(model.family).cell:
    raise UserError(f"family={model.family} is recurrent: its layers have no attention to look at")
  if tokenizer is None:
    raise UserError("the run has no tokenizer, so it cannot read text: import it from a folder with tokenizer files")
  changes = {"dtype": "float32", "attention": "xla", "remat": "none"}
  model = dataclasses.replace(model, config=replaced(model.config, changes))
  _check_texts(model, text, pair, target)
  if model.encoder_decoder:
    return _two_sides(run, model, tokenizer, text, target)
  if find_family(model.family).causal:
    ids = tokenizer.encode(text)
    row = {"inputs": np.concatenate([[run.begin_id], ids]) if run.begin_id >= 0 else ids}
  else:
    row = _encoder_row(model, tokenizer, text, pair)
  _check_length(model, "the text", row["inputs"])
  return Example(model, run.params, tokenizer, _batch(model, row), {"": row["inputs"]}, np.zeros(0, np.int32), text)


def _encoder_row(model: Model, tokenizer: Tokenizer, text: str, pair: str) -> dict[str, np.ndarray]:
  """bos text eos, or bos text eos pair eos, as the objectives mlm and sequence_classification make them."""
  masked = is_masked(model) and tokenizer.mask_id >= 0
  encode = (lambda text: masked_ids(tokenizer, text)) if masked else tokenizer.encode
  first = with_symbols(tokenizer, encode(text))
  if not pair:
    return {"inputs": first}
  second = with_symbols(tokenizer, encode(pair))[int(tokenizer.bos_id >= 0) :]
  row = {"inputs": np.concatenate([first, second])}
  if model.config.token_types > 1:
    row["token_types"] = np.repeat([0, 1], [len(first), len(second)])
  return row


def _two_sides(run: Run, model: Model, tokenizer: Tokenizer, text: str, target: str) -> Example:
  """text eos for the encoder; for the decoder the target, shifted right behind the symbol that it begins with."""
  source, targets = encoded(model, tokenizer, [text, target])
  source = np.append(source, tokenizer.eos_id)
  first = run.start_id
  _check_length(model, "the text", source)
  if target:
    targets = np.append(targets, tokenizer.eos_id)
  else:
    targets = _written(model, run.params, tokenizer, source, first)
  decoder = np.append(first, targets[:-1])
  _check_length(model, "the target", decoder)
  batch = _batch(model, {"encoder_inputs": source, "decoder_inputs": decoder})
  return Example(model, run.params, tokenizer, batch, {"encoder": source, "decoder": decoder}, targets, text)


def _written(model: Model, params: Any, tokenizer: Tokenizer, source: np.ndarray, first: int) -> np.ndarray:
  """What the decoder writes, always the likeliest token, up to eos (kept) or `_GENERATED` tokens."""
  options = Options(max_new_tokens=min(_GENERATED, position_limit(model) or _GENERATED))
  ((one,),) = continued(model, params, tokenizer, [Prompt(0, "", np.array([first]), source)], options)
  return np.array(one.ids)


def _batch(model: Model, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The row as a batch, repeated so that each shard of the batch has it."""
  return {name: np.tile(np.asarray(x, np.int32), (model.placement.batch_shards, 1)) for name, x in row.items()}


def _check_texts(model: Model, text: str, pair: str, target: str) -> None:
  """Raises UserError for a text that is missing, or that the model does not read."""
  if not text.strip():
    raise UserError("the text is empty: there is nothing to look at")
  encoder = not (model.encoder_decoder or find_family(model.family).causal)
  if pair and not encoder:
    raise UserError(f"a pair is for encoders: family={model.family} reads one text")
  if target and not model.encoder_decoder:
    raise UserError(f"a target is for encoder-decoders: family={model.family} has no decoder that writes it")
  if model.config.head.name == "question_answering" and not pair.strip():
    raise UserError("question answering reads a question and its context: give the context as the pair")


def _check_length(model: Model, name: str, ids: np.ndarray) -> None:
  """Raises UserError for no tokens, for more than the model has positions, or than pictures can show."""
  limit = position_limit(model)
  if not len(ids):
    raise UserError(f"{name} has no tokens: the tokenizer leaves nothing of it")
  if limit and len(ids) > limit:
    raise UserError(f"{name} has {len(ids)} tokens, but the model has {limit} positions: shorten it")
  if len(ids) > LONGEST:
    raise UserError(f"{name} has {len(ids)} tokens, and pictures show at most {LONGEST}: shorten it")
