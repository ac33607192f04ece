"""Prompts as arrays: tokens, symbols, batches of few shapes; and what cannot be continued."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tfm_jax.decode.options import Options
from tfm_jax.errors import UserError
from tfm_jax.models.families.table import find_family
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import Model
from tfm_jax.text.tokenizers.table import Tokenizer

_SHORTEST = 16  # columns of prompts and of what follows; shorter ones are padded


@dataclasses.dataclass(frozen=True)
class Symbols:
  """How the texts of a model begin. An id of -1: with no symbol.

  Attributes:
    begin: of a decoder's texts, and of what an encoder reads.
    start: of an encoder-decoder's targets.
    prefix: a decoder reads its prompts in both directions, as one trained by objective.name=prefix_lm.
  """

  begin: int = -1
  start: int = -1
  prefix: bool = False


class Prompt(NamedTuple):
  """A prompt as the model reads it.

  Attributes:
    number: its place among all prompts, for errors and to restore the order.
    text: as it was given.
    ids: what the decoder reads before it generates: the prompt, or the start symbol; then the forced prefix.
    source: what the encoder reads; empty for decoders.
    forced: how many of `ids` are the forced prefix: they belong to the generated text.
    both_ways: the ids before the forced ones are read in both directions.
  """

  number: int
  text: str
  ids: np.ndarray
  source: np.ndarray
  forced: int = 0
  both_ways: bool = False


def read_prompts(
  model: Model, tokenizer: Tokenizer, symbols: Symbols, texts: Sequence[str], options: Options
) -> list[Prompt]:
  """The prompts of texts.

  Raises:
    UserError: the model generates no text; a prompt that is empty or too long for its positions.
  """
  check_generates(model)
  prefix = tokenizer.encode(options.prefix) if options.prefix else np.zeros(0, np.int32)
  names = ["the prompt"] if len(texts) == 1 else [f"prompt {number + 1}" for number in range(len(texts))]
  return [
    prompt_of(model, tokenizer, symbols, ids, number, text, prefix, names[number])
    for number, (text, ids) in enumerate(zip(texts, encoded(model, tokenizer, texts), strict=True))
  ]


def prompt_of(
  model: Model,
  tokenizer: Tokenizer,
  symbols: Symbols,
  ids: np.ndarray,
  number: int = 0,
  text: str = "",
  prefix: Sequence[int] | np.ndarray = (),
  name: str = "the prompt",
) -> Prompt:
  """The prompt of ids, with the symbols around it and the ids that are forced after it. Raises UserError."""
  end = np.array([tokenizer.eos_id] if tokenizer.eos_id >= 0 else [], np.int32)
  room = position_limit(model)
  if model.encoder_decoder:
    if not len(ids):
      raise UserError(f"{name} is empty: the encoder needs at least one token to read")
    front = np.array([symbols.begin] if symbols.begin >= 0 else [], np.int32)
    if room and len(front) + len(ids) + len(end) > room:
      raise UserError(f"{name} has {len(ids):,} tokens, but the encoder has {room:,} positions: shorten it")
    begin, source = [symbols.start], np.concatenate([front, ids, end])
    whole = np.concatenate([begin, prefix])
  else:
    begin, source = [symbols.begin] if symbols.begin >= 0 else [], ids[:0]
    whole = np.concatenate([begin, ids, prefix])
    if not len(whole):
      raise UserError(f"{name} is empty, and the texts of this model begin with no symbol: give it at least one token")
  if room and len(whole) >= room:
    raise UserError(
      f"{name} has {len(whole):,} tokens, but the model has {room:,} positions, so that nothing can follow: shorten it"
    )
  both_ways = symbols.prefix and not model.encoder_decoder
  return Prompt(number, text, whole.astype(np.int32), source, len(prefix), both_ways)


def encoded(model: Model, tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
  """The ids of texts; for an encoder-decoder <extra_id_0> stands for a sentinel, if its tokenizer has them."""
  return encode_with_gaps(tokenizer, texts, tokenizer.sentinel_ids[: None if model.encoder_decoder else 0])


def encode_with_gaps(tokenizer: Tokenizer, texts: Sequence[str], gap_ids: np.ndarray) -> list[np.ndarray]:
  """The ids of texts, in which the names of `gap_ids`, such as <mask> or <extra_id_0>, stand for these tokens."""
  if tokenizer.reads_names or not gap_ids.size:
    return tokenizer.encode_batch(list(texts))
  names = {tokenizer.token(id): np.array([id], np.int32) for id in gap_ids.tolist()}
  pattern = re.compile(f"({'|'.join(map(re.escape, names))})")
  cut = [pattern.split(text) for text in texts]  # text, name, text, name, ..., text
  # The piece of a word has its space in front: a gap stands for both.
  spaced = tokenizer.kind not in ("char", "byte")
  between = [
    part.removesuffix(" ") if spaced and i < len(parts) - 1 else part
    for parts in cut
    for i, part in list(enumerate(parts))[::2]
  ]
  found = iter(tokenizer.encode_batch(between))
  return [np.concatenate([names[part] if i % 2 else next(found) for i, part in enumerate(parts)]) for parts in cut]


def check_generates(model: Model) -> None:
  """Raises UserError for a model that cannot continue a text."""
  head = model.config.head.name
  if not HEADS[head].learns_from_objective:
    raise UserError(f"the run has head.name={head}, which predicts no tokens: it generates no text")
  if not (find_family(model.family).causal or model.encoder_decoder):
    raise UserError(
      f"family={model.family} reads in both directions and generates no text: use --fill for its masks, or "
      f"--score --out=PAGE.html for the surprisal of a text"
    )


def position_limit(model: Model) -> int:
  """The number of positions that have an embedding; 0: any."""
  c = model.config
  return c.max_positions - c.position_offset if c.positions == "learned" else 0


class Batch(NamedTuple):
  """Prompts of similar length, each repeated for its samples; rows after them are padding.

  Attributes:
    prompts: of the rows; shorter than the arrays if rows are padding.
    samples: number of each row's sample.
    ids_BT, segments_BT: right-aligned: padding of segment 0 stands in front.
    source_BS, source_segments_BS: the encoder's tokens, left-aligned; None for decoders.
    prefix_BT: 1 for tokens that are read in both directions; None: there are none.
  """

  prompts: list[Prompt]
  samples: list[int]
  ids_BT: np.ndarray
  segments_BT: np.ndarray
  source_BS: np.ndarray | None
  source_segments_BS: np.ndarray | None
  prefix_BT: np.ndarray | None = None


def batches(model: Model, prompts: Sequence[Prompt], samples: int, most: int) -> Iterator[Batch]:
  """All prompts in batches of at most `most` rows, the longest first; each row is one sample of a prompt."""
  longest_first = sorted(prompts, key=lambda p: (-len(p.ids) - len(p.source), p.number))
  rows = [(prompt, sample) for prompt in longest_first for sample in range(samples)]
  shards = model.placement.batch_shards
  for first in range(0, len(rows), most):
    part = rows[first : first + most]
    count = -(-power_of_two(len(part)) // shards) * shards
    ids, segments = _aligned([p.ids for p, _ in part], count, right=True, limit=position_limit(model))
    source = source_segments = None
    if model.encoder_decoder:
      source, source_segments = _aligned([p.source for p, _ in part], count, right=False, limit=position_limit(model))
    prefix = None
    if any(p.both_ways for p, _ in part):
      prefix = segments.copy()
      for i, (p, _) in enumerate(part):
        prefix[i, prefix.shape[1] - (p.forced if p.both_ways else len(p.ids)) :] = 0
    yield Batch([p for p, _ in part], [s for _, s in part], ids, segments, source, source_segments, prefix)


def _aligned(rows: Sequence[np.ndarray], count: int, right: bool, limit: int) -> tuple[np.ndarray, np.ndarray]:
  """(ids, segments) int32 [count, width]: the rows at one edge; padding has segment 0."""
  longest = max(map(len, rows))
  width = longest if longest == 1 else max(power_of_two(longest), _SHORTEST)
  width = max(min(width, limit), longest) if limit else width
  ids, segments = np.zeros((2, count, width), np.int32)
  for i, row in enumerate(rows):
    place = slice(width - len(row), None) if right else slice(len(row))
    ids[i, place], segments[i, place] = row, 1
  return ids, segments


def power_of_two(n: int) -> int:
  """The smallest power of two that is at least n."""
  return 1 << (n - 1).bit_length()
