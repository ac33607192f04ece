"""Masks (Devlin et al. 2019): which tokens of a row are predicted, and what stands in their place."""

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import FLOAT, INT, Field, Fields, ObjectiveConfig, Vocabulary, rate
from tfm_jax.objectives.words import choose_units, ngram_starts, pieces_of, slots_of, word_starts

_SELECT, _ACTION, _TOKEN, _UNSPACED, _NGRAM = range(5)  # sites of `Draws`; an objective that masks uses others


class Masking:
  """Chooses round(mask_rate * n) of a row's n ordinary tokens, at least one, and hides them.

  Whole words and n-grams are chosen as they fit into that number, so a few tokens less. Special tokens are never
  chosen.

  Args:
    config: the section `objective` of the configuration.
    vocabulary: special ids and pieces of the tokenizer.
    length: tokens per row.
    random_rate, keep_rate: the shares of the chosen tokens that become a random token, and that stay; the rest becomes
      the mask token. None: those of `config`.

  Attributes:
    predictions: most tokens that are predicted in a row, P.

  Raises:
    UserError: a share is impossible, or a schedule has no end.
  """

  def __init__(
    self,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
    length: int,
    random_rate: float | None = None,
    keep_rate: float | None = None,
  ):
    for name in ("mask_rate", "final_mask_rate", "random_rate", "keep_rate"):
      rate(name, getattr(config, name))
    if config.random_rate + config.keep_rate > 1:
      raise UserError("objective.random_rate + objective.keep_rate is above 1: they are shares of the masked tokens")
    if config.final_mask_rate and not config.mask_rate_steps:
      raise UserError(
        f"objective.final_mask_rate={config.final_mask_rate:g} needs the number of steps after which it is reached: "
        f"set objective.mask_rate_steps, such as train.steps"
      )
    if config.mask_rate_steps and not config.final_mask_rate:
      raise UserError(
        f"objective.mask_rate_steps={config.mask_rate_steps} needs the rate that is reached by then: "
        f"set objective.final_mask_rate"
      )
    if config.ngram < 1:
      raise UserError(f"objective.ngram={config.ngram} is below 1: it is the most words that are masked in a row")
    self._config, self._vocabulary, self._length = config, vocabulary, length
    self._random = config.random_rate if random_rate is None else random_rate
    self._keep = config.keep_rate if keep_rate is None else keep_rate
    highest = max(config.mask_rate, config.final_mask_rate if config.mask_rate_steps else 0.0)
    self.predictions = int(_count(np.array([length]), highest)[0])
    self._special = np.zeros(vocabulary.size, bool)
    self._special[[i for i in vocabulary.special_ids if 0 <= i < vocabulary.size]] = True
    self._ordinary = np.flatnonzero(~self._special).astype(np.int32)
    self._pieces = pieces_of(vocabulary)

  @property
  def fields(self) -> Fields:
    """The labels, each [P]."""
    shape, axes = (self.predictions,), ("batch", "masks")
    return {
      "mlm_positions": Field(shape, INT, "places", axes),
      "targets": Field(shape, INT, "labels", axes, self._vocabulary.size),
      "weights": Field(shape, FLOAT, "weights", axes),
    }

  def check(self, objective: str) -> None:
    """Raises UserError if the vocabulary has no mask token, or nothing to mask."""
    self._vocabulary.require("mask", objective)
    if not len(self._ordinary):
      raise UserError(f"objective.name={objective}: the vocabulary has only special tokens; raise tokenizer.vocab_size")

  def rates(self, draws: Draws) -> float | np.ndarray:
    """The mask rate of each row, [R], or of all. It is linear in the step; held-out rows have the final one."""
    config = self._config
    if not config.mask_rate_steps:
      return config.mask_rate
    if draws.steps is None:
      return config.final_mask_rate
    done = np.minimum(draws.steps / config.mask_rate_steps, 1.0)
    return config.mask_rate + done * (config.final_mask_rate - config.mask_rate)

  def apply(self, draws: Draws, tokens: np.ndarray, segment_ids: np.ndarray) -> dict[str, np.ndarray]:
    """`inputs` [R, L] with the masks, and the labels of `fields`, from int32 [R, L] tokens and their segments."""
    config = self._config
    candidates = (segment_ids > 0) & ~self._special[tokens]
    counts = _count(candidates.sum(axis=1), self.rates(draws))
    if config.whole_word or config.ngram > 1:
      units = candidates
      if config.whole_word:
        units = word_starts(draws, _UNSPACED, self._pieces[tokens], candidates, segment_ids)
      if config.ngram > 1:
        units = ngram_starts(draws, _NGRAM, units, candidates, segment_ids, config.ngram)
      chosen = choose_units(draws, _SELECT, units, candidates, counts)
      positions, used = slots_of(chosen, self.predictions)
    else:
      positions, used = draws.choose(_SELECT, candidates, counts, self.predictions)
    targets = np.where(used, np.take_along_axis(tokens, positions, axis=1), np.int32(0))

    action = draws.uniform(_ACTION, self.predictions)
    random = self._ordinary[draws.integers(_TOKEN, self.predictions, len(self._ordinary))]
    keep, replace = self._keep, self._keep + self._random
    mask_id = np.int32(self._vocabulary.mask_id)
    written = np.where(action < keep, targets, np.where(action < replace, random, mask_id))
    inputs = tokens.copy()
    row, _ = np.nonzero(used)
    inputs[row, positions[used]] = written[used]
    return {"inputs": inputs, "mlm_positions": positions, "targets": targets, "weights": used.astype(np.float32)}


def _count(ordinary: np.ndarray, mask_rate: float | np.ndarray) -> np.ndarray:
  """The number of predicted tokens in rows with this many ordinary tokens."""
  return np.minimum(np.maximum(np.round(mask_rate * ordinary).astype(np.int64), 1), ordinary)
