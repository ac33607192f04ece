"""The perplexity of texts.

Rows are padded to a few lengths, and batches to a few numbers of rows, so that a model is compiled once per shape. The
parameters may be sharded over the devices of several processes: all processes call these functions alike.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.decode.prompts import position_limit, power_of_two
from tfm_jax.decode.start import any_rows
from tfm_jax.errors import UserError
from tfm_jax.models.families.table import find_family
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import Model
from tfm_jax.text.tokenizers.table import Tokenizer

Arrays = dict[str, np.ndarray]

_ROWS = 32  # rows of a batch, where a text needs many
_LOGITS = 1 << 28  # of a batch, at most: 1 GiB
_SHORTEST = 16  # tokens of a row; shorter texts are padded


def perplexity(model: Model, params: Any, tokenizer: Tokenizer, text: str, window: int, begin_id: int = -1) -> float:
  """exp of the mean negative log-likelihood per token of a text; the end symbol is not counted.

  Of a causal model: each token given those before it. A text that is longer than `window` is read in windows that
  overlap by half, so that each token (but the first ones) has half a window before it. Of a masked model: the
  pseudo-perplexity (Salazar et al. 2020), each token given all others, as many rows as there are tokens.

  Args:
    model: a language model.
    params: its parameters.
    tokenizer: its tokenizer.
    text: the text.
    window: of a causal model, the tokens of a row: what it was trained on.
    begin_id: of a causal model, the id of the symbol that its texts begin with; the first token is then scored given
      this symbol. -1: texts begin without one, and the first token is only read.

  Raises:
    UserError: an encoder-decoder or another model without such a likelihood, or a text that is too short or too long.
  """
  masked = is_masked(model)
  if window < 2 and not masked:
    raise UserError(f"window={window} is too short: a window needs at least 2 tokens")
  documents = [tokenizer.encode(text)]
  nll, tokens = score_documents(model, params, tokenizer, documents, None if masked else window, begin_id=begin_id)
  if not tokens[0]:
    reason = "the text is empty" if masked else "the text is too short for a perplexity: nothing is left to predict"
    raise UserError(reason)
  return math.exp(nll[0] / tokens[0])


def score_documents(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  documents: Sequence[np.ndarray],
  window: int | None,
  stride: int | None = None,
  begin_id: int = -1,
  advance: Callable[[int], object] = lambda tokens: None,
) -> tuple[np.ndarray, np.ndarray]:
  """The negative log-likelihoods of documents, each token scored once; see `perplexity`.

  A longer document is read in windows that begin every `stride` tokens. Of a causal model, a token is scored in the
  first window that has it, with at least `window` - `stride` tokens before it (unless the document begins later); of a
  masked model in the window in whose middle it lies, with half of that on both sides. Rows of all documents fill the
  same batches.

  Args:
    model: a causal or a masked language model.
    params: its parameters.
    tokenizer: its tokenizer.
    documents: the ids of each, without symbols.
    window: tokens of a row, of a masked model with the symbols at both ends; None: rows hold whole documents.
    stride: from 1 to `window`, which gives windows that do not overlap; None: half of `window`.
    begin_id: see `perplexity`.
    advance: is called with the number of tokens that each batch has scored.

  Returns:
    Sums of nats, float64 [documents], and numbers of scored tokens, int64 [documents].

  Raises:
    UserError: an encoder-decoder or another model without such a likelihood; a window or a stride that is impossible.
  """
  masked = is_masked(model)
  if not masked and not (find_family(model.family).causal and predicts_tokens(model)):
    raise UserError(f"perplexity needs a causal or a masked language model: {description(model)}")
  symbols = sum(id >= 0 for id in (tokenizer.bos_id, tokenizer.eos_id)) if masked else 0
  least = symbols + 1 if masked else 2
  if window is not None and window < least:
    raise UserError(f"window={window} is too short: a window needs at least {least} tokens")
  room = None if window is None else window - symbols
  if stride is not None and not 1 <= stride <= (room or stride):
    raise UserError(f"stride={stride} must lie between 1 and {room or 'any number'}, the tokens of a window")
  rows = (
    row
    for number, ids in enumerate(documents)
    for row in (
      _masked_rows(number, ids, tokenizer, room, stride)
      if masked
      else _causal_rows(number, ids, window, stride, begin_id)
    )
  )
  nll, tokens = np.zeros(len(documents)), np.zeros(len(documents), np.int64)
  waiting: dict[int, list[_Row]] = {}  # by the length of their batch

  def score(length: int) -> None:
    batch = waiting.pop(length)
    for row, values in zip(batch, _row_nll(model, params, batch, length), strict=True):
      nll[row.document] += values.sum(dtype=np.float64)
      tokens[row.document] += len(values)
    advance(sum(len(row.targets) - row.first for row in batch))

  positions = position_limit(model)
  for row in rows:
    if window and positions and len(row.inputs) > positions:
      raise UserError(f"window={window} is longer than the model's {positions} positions: choose {positions} or less")
    length = min(row_length(model, len(row.inputs)), window or sys.maxsize)
    waiting.setdefault(length, []).append(row)
    if len(waiting[length]) == _rows_of_batch(model, length, row):
      score(length)
  for length in sorted(waiting):
    score(length)
  return nll, tokens


class _Row(NamedTuple):
  """A row to be scored: `targets` from `first` on, at `mask` or, without one, at every position."""

  document: int
  inputs: np.ndarray
  targets: np.ndarray
  first: int = 0
  mask: int = -1


def _causal_rows(
  document: int, ids: np.ndarray, window: int | None, stride: int | None, begin_id: int
) -> Iterator[_Row]:
  """The windows of a document; each scores the targets that no earlier one has scored."""
  ids = np.concatenate([[begin_id], ids]) if begin_id >= 0 else ids
  count, end = len(ids) - 1, 0
  window = window or max(count, 1)
  stride = stride or window // 2
  for start in range(0, max(count - window, 0) + stride, stride) if count > 0 else ():
    stop = min(start + window, count)
    yield _Row(document, ids[start:stop], ids[start + 1 : stop + 1], end - start)
    end = stop


def _masked_rows(
  document: int, ids: np.ndarray, tokenizer: Tokenizer, room: int | None, stride: int | None
) -> Iterator[_Row]:
  """One row per token, in which it is masked; `room`: the tokens of a window without symbols."""
  count = len(ids)
  if not count:
    return
  room = min(room or count, count)
  stride = stride or max(room // 2, 1)
  starts = [min(start, count - room) for start in range(0, count - room + stride, stride)]
  margin, before = max(room - stride, 0) // 2, int(tokenizer.bos_id >= 0)
  for start, following in zip(starts, [*starts[1:], None], strict=True):
    row = with_symbols(tokenizer, ids[start : start + room])
    first = margin if start else 0
    last = room if following is None else following + margin - start
    for place in range(before + first, before + last):
      masked = row.copy()
      masked[place] = tokenizer.mask_id
      yield _Row(document, masked, row[place : place + 1], mask=place)


def _rows_of_batch(model: Model, length: int, row: _Row) -> int:
  """Rows of a batch with rows like this one: fewer than `_ROWS` if their logits would be large."""
  width = length if row.mask < 0 else 1
  return max(min(_ROWS, power_of_two(_LOGITS // (width * model.vocab_size) + 1) // 2), 1)


def _row_nll(model: Model, params: Any, rows: list[_Row], length: int) -> Iterator[np.ndarray]:
  """The negative log-likelihoods of the targets that each row scores."""
  count = _rows_of_batch(model, length, rows[0]) if len(rows) > 1 else 1
  batch = batch_of(model, [row.inputs for row in rows], length, count)
  size = len(batch["inputs"])
  one = rows[0].mask >= 0
  if one:
    batch["mlm_positions"] = padded([np.array([row.mask]) for row in rows], 1, size)
  batch["targets"] = padded([row.targets for row in rows], 1 if one else length, size)
  nll = jax.device_get(_nll(any_rows(model), params, batch))
  return (values[row.first : len(row.targets)] for values, row in zip(nll, rows, strict=False))


@functools.partial(jax.jit, static_argnums=0)
def _nll(model: Model, params: Any, batch: Any) -> Array:
  """The negative log-likelihood of each target, [B, T or P]."""
  logits = model.logits(params, batch)
  target_logits = jnp.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
  nll = jax.nn.logsumexp(logits, -1) - target_logits
  return model.placement.constrain(nll, (None, None))


def predicts_tokens(model: Model) -> bool:
  """Whether the head predicts pieces of the vocabulary."""
  head = HEADS[model.config.head.name]
  return head.learns_from_objective and not head.generates


def is_masked(model: Model) -> bool:
  """Whether the model predicts masked tokens."""
  family = find_family(model.family)
  return "mlm" in family.objectives and predicts_tokens(model)


def description(model: Model) -> str:
  """What a model is instead, for an error."""
  if not predicts_tokens(model):
    return f"this one predicts no tokens (head.name={model.config.head.name})"
  kind = "an encoder-decoder" if model.encoder_decoder else "a causal language model"
  return f"family={model.family} is {kind}"


def with_symbols(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
  """The ids between the beginning and the end symbol, as far as the tokenizer has them: a document of objective mlm."""
  symbol = lambda id: np.array([id] if id >= 0 else [], np.int32)
  return np.concatenate([symbol(tokenizer.bos_id), ids, symbol(tokenizer.eos_id)])


def row_length(model: Model, tokens: int) -> int:
  """The length of rows that hold so many tokens. Raises UserError if the model has fewer positions."""
  positions = position_limit(model)
  if positions and tokens > positions:
    raise UserError(f"the text has {tokens} tokens, but the model has {positions} positions: shorten the text")
  length = max(power_of_two(tokens), _SHORTEST)
  return min(length, positions) if positions else length


def batch_of(model: Model, rows: list[np.ndarray], length: int, count: int, side: str = "") -> Arrays:
  """A batch of `count` rows, rounded up to a multiple of the shards, with one document in each of the first.

  `side`: prefix of the fields' names, of an encoder-decoder "encoder_" or "decoder_".
  """
  shards = model.placement.batch_shards
  count = -(-count // shards) * shards
  segments = [np.ones(len(row), np.int32) for row in rows]
  return {f"{side}inputs": padded(rows, length, count), f"{side}segment_ids": padded(segments, length, count)}


def padded(rows: list[np.ndarray], length: int, count: int) -> np.ndarray:
  """int32 [count, length], zero where there is nothing."""
  out = np.zeros((count, length), np.int32)
  for i, row in enumerate(rows):
    out[i, : len(row)] = row
  return out
