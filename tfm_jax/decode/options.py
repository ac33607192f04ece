"""`Options`: how text is generated."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from jax import Array

from tfm_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Options:
  """How text is generated. The defaults are greedy: the likeliest token at each step."""

  max_new_tokens: int = 128  # at most; a text ends earlier with the end symbol or a stop string
  min_new_tokens: int = 0  # the end symbol is not chosen before
  temperature: float = 0.0  # logits are divided by it, and a token is drawn; 0: the likeliest token
  top_k: int = 0  # only the k likeliest tokens are drawn, or the candidates of contrastive search; 0: any
  top_p: float = 1.0  # only the fewest likeliest tokens that have this probability together (Holtzman et al. 2020)
  min_p: float = 0.0  # only tokens with at least this share of the likeliest one's probability (Nguyen et al. 2024)
  # Only the tokens whose information is nearest to the expected one and that have this probability together
  # (Meister et al. 2023)
  typical_p: float = 1.0
  # Divides positive logits of tokens that the text has, multiplies negative ones (Keskar et al. 2019)
  repetition_penalty: float = 1.0
  presence_penalty: float = 0.0  # is subtracted from the logits of tokens that were generated
  frequency_penalty: float = 0.0  # the same, times how often
  no_repeat_ngram: int = 0  # no n tokens in a row occur twice; 0: any may
  bad_words: tuple[str, ...] = ()  # strings whose tokens are never generated in a row
  stop: tuple[str, ...] = ()  # strings, or names of special tokens, that end the text, which is cut before them
  prefix: str = ""  # the generated text begins with it
  beams: int = 1  # of beam search; 1: none
  beam_groups: int = 1  # that search one after the other, each avoiding what the others chose (Vijayakumar et al. 2018)
  diversity: float = 0.0  # is subtracted from a token's score for each beam of an earlier group that chose it
  length_penalty: float = 1.0  # beams are ranked by sum of log p / length ** this
  # Of contrastive search (Su et al. 2022): the weight of a token's likeness to the text so far, which counts against
  # it, beside its probability, among the top_k likeliest ones; 0: none
  penalty_alpha: float = 0.0
  samples: int = 1  # texts per prompt: drawn ones, or the best beams
  # Of what is drawn. Without a draft, a text depends on it, the prompt and the sample's number, not on other prompts
  seed: int = 0
  # Of decoders with relative positions: each token attends to itself and to those before it, so many in all; 0: to all
  context: int = 0
  cache_dtype: str = ""  # of the cached keys and values: float32, bfloat16 or int8; empty: the compute dtype
  batch_size: int = 16  # most texts at once

  def check(self, vocab_size: int) -> None:
    """Raises UserError for an option that cannot be."""
    rules = (
      ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
      ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
      ("temperature", self.temperature >= 0, "0 (greedy) or more"),
      ("top_k", self.top_k >= 0, "0 (any token) or more"),
      ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
      ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
      ("typical_p", 0 < self.typical_p <= 1, "above 0 and at most 1"),
      ("repetition_penalty", self.repetition_penalty > 0, "above 0 (1: none)"),
      ("no_repeat_ngram", self.no_repeat_ngram >= 0, "0 (none) or more"),
      ("seed", self.seed >= 0, "0 or more"),
      ("samples", self.samples >= 1, "at least 1"),
      ("batch_size", self.batch_size >= 1, "at least 1"),
      ("beams", 1 <= self.beams <= vocab_size, f"between 1 and {vocab_size:,}, the size of the vocabulary"),
      ("beam_groups", 1 <= self.beam_groups <= self.beams, "between 1 and beams"),
      ("diversity", self.diversity >= 0, "0 or more"),
      ("penalty_alpha", 0 <= self.penalty_alpha <= 1, "between 0 (no contrastive search) and 1"),
      ("context", self.context == 0 or self.context >= 2, "at least 2, or 0 (all tokens)"),
      ("cache_dtype", self.cache_dtype in ("", "float32", "bfloat16", "int8"), "float32, bfloat16 or int8"),
    )
    for name, holds, expected in rules:
      if not holds:
        raise UserError(f"{name}={getattr(self, name)} must be {expected}")
    if self.beams % self.beam_groups:
      raise UserError(f"beams={self.beams} do not divide into beam_groups={self.beam_groups}")
    if self.beams > 1 and self.temperature:
      raise UserError("beam search draws nothing: set temperature=0, or beams=1")
    if self.beams > 1 and self.stop:
      raise UserError("beam search ends at the end symbol alone: leave stop out, or set beams=1")
    if self.samples > 1 and not self.temperature and self.samples > self.beams:
      raise UserError(f"samples={self.samples} would all be equal: set a temperature, or as many beams")
    drawing = ["top_p", "min_p", "typical_p"]
    if self.penalty_alpha:
      self._check_contrastive(vocab_size)
    else:
      drawing.insert(0, "top_k")
    changed = [name for name in drawing if getattr(self, name) != getattr(Options(), name)]
    if changed and not self.temperature:
      raise UserError(f"{changed[0]}={getattr(self, changed[0])} chooses what is drawn: set a temperature too")

  def _check_contrastive(self, vocab_size: int) -> None:
    """Raises UserError for options that contrastive search does not have."""
    subject = f"contrastive search (penalty_alpha={self.penalty_alpha})"
    if self.temperature or self.beams > 1:
      raise UserError(f"{subject} draws nothing and has no beams: set temperature=0 and beams=1")
    if not 2 <= self.top_k <= vocab_size:
      raise UserError(
        f"{subject} chooses among the top_k likeliest tokens: set top_k=4, or another number from 2 to {vocab_size:,}, "
        f"not {self.top_k}"
      )


def changed(options: Options | None, changes: Mapping[str, Any]) -> Options:
  """The options (default: `Options()`) with some changed by name. Raises UserError for an unknown name."""
  options = options or Options()
  known = [field.name for field in dataclasses.fields(Options)]
  for name in changes:
    if name not in known:
      similar = nearest(name, known)
      raise UserError(f"{name} is no option of generation" + (f"; did you mean {similar}?" if similar else ""))
  return dataclasses.replace(options, **changes)


class Numbers(NamedTuple):
  """The numbers of `Options` that a compiled step takes as arguments: other values need no other program."""

  temperature: Any
  top_k: Any
  top_p: Any
  min_p: Any
  typical_p: Any
  repetition_penalty: Any
  presence_penalty: Any
  frequency_penalty: Any
  min_new_tokens: Any
  penalty_alpha: Any


Ids = tuple[int, ...]


class Plan(NamedTuple):
  """What of `Options` a step is compiled for: static and hashable.

  Attributes:
    active: the names of the options that differ from their defaults.
    vocab_size: ids below it can be chosen: those of the tokenizer.
    ends: ids that end a text.
    pad: the id of columns after the end.
    no_repeat_ngram: see `Options`.
    bad_words: sequences of ids that are never generated.
    candidates: tokens that contrastive search chooses among; 0: there is none.
  """

  active: frozenset[str]
  vocab_size: int
  ends: Ids
  pad: int
  no_repeat_ngram: int = 0
  bad_words: tuple[Ids, ...] = ()
  candidates: int = 0


def numbers(options: Options) -> Numbers:
  """The numbers of the options."""
  return Numbers(**{name: getattr(options, name) for name in Numbers._fields})


def plan(options: Options, vocab_size: int, ends: Ids, pad: int, bad_words: tuple[Ids, ...] = ()) -> Plan:
  """What a step is compiled for; see `Plan`."""
  default = Options()
  active = frozenset(name for name in Numbers._fields if getattr(options, name) != getattr(default, name))
  candidates = options.top_k if options.penalty_alpha else 0
  return Plan(active, vocab_size, ends, pad, options.no_repeat_ngram, bad_words, candidates)


class History(NamedTuple):
  """What a text has so far.

  Attributes:
    ids_BS: the tokens, padding and columns that are not yet filled.
    filled_BS: whether a column holds a token.
    new_BS: whether it holds a generated one.
    length: number of columns so far, of all rows.
  """

  ids_BS: Array
  filled_BS: Array
  new_BS: Array
  length: Array
