"""Pre-training: the task of a run that names no other."""

import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from tfm_jax.errors import UserError
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import Model, heads_of
from tfm_jax.ops.losses import LossTerms, total
from tfm_jax.training import samples
from tfm_jax.training.config import Config
from tfm_jax.training.run_directory import RunDirectory
from tfm_jax.training.text_task import TextTask


class Pretraining(TextTask):
  """A `Task` over the corpus, tokenizer and objective of a configuration.

  Args:
    config: the resolved configuration.
    stored_tokenizer: the run's own tokenizer (or that of the run it starts from), which then stands.
  """

  def __init__(self, config: Config, stored_tokenizer: epath.PathLike | None = None) -> None:
    if not HEADS[config.model.head.name].learns_from_objective:
      able = "lm" in heads_of(config.family)
      remedy = ": set head.name=lm (its output layer starts afresh)" if able else ""
      raise UserError(f"head.name={config.model.head.name} has nothing to learn from unlabelled text{remedy}")
    super().__init__(config, stored_tokenizer)
    self._unigram = self._prepared.unigram_entropy(self._eval) if self._eval else math.nan
    self._evaluated = self._eval.evaluated(config.eval.batches) if self._eval else None

  @classmethod
  def configure(cls, config: Config) -> Config:
    """See `Task`."""
    return config

  def eval_metrics(self, split: str, totals: LossTerms) -> dict[str, float]:
    """Perplexity, the unigram entropy of all held-out targets in nats, and, of objectives that predict a text, bits per
    byte of the text that was evaluated."""
    loss = total(totals.loss)
    metrics = {"perplexity": math.exp(min(loss, 700.0)), "unigram_entropy": self._unigram}
    if self._evaluated and self._evaluated.text_bytes:
      metrics["bits_per_byte"] = loss / math.log(2) * self._evaluated.tokens / self._evaluated.text_bytes
    return metrics

  def report(self, model: Model, params: Any, metrics: Mapping[str, float], run: RunDirectory) -> list[str]:
    """The scores, and what the model makes of some held-out text."""
    lines = []
    batch = None
    if metrics and self._eval is not None and self._evaluated is not None:
      loss, entropy = metrics["loss"], metrics["unigram_entropy"]
      side = "below" if loss < entropy else "above"
      lines += [
        f"unigram entropy: {entropy:.3f} nats, of all held-out targets",
        f"held-out loss: {loss:.3f} nats, {abs(entropy - loss):.3f} {side} the unigram entropy; on "
        f"{self._evaluated.rows:,} of {self._evaluated.of:,} held-out rows (eval.batches)",
      ]
      batch = self._eval.batch(0)
    return lines + samples.show(model, params, self.tokenizer, batch if batch is not None else self._train.batch(0))
