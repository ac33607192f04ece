"""Pre-training on unlabelled text: the task of a run whose configuration names no other."""

import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from tfm_jax.data.prepare import nothing_held_out
from tfm_jax.decode import samples
from tfm_jax.errors import UserError
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import Model, heads_of
from tfm_jax.ops.losses import LossTerms, mean
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.training.config import Config
from tfm_jax.training.task import Predictions, TextTask


class Pretraining(TextTask):
  """A `Task` over the corpus, tokenizer and objective that the configuration names.

  Args:
    config: the resolved configuration.
    stored_tokenizer: the folder of the tokenizer of this run, or of the run that it starts from; None: train one, or
      read `tokenizer.path`.

  Attributes:
    evaluated: how much held-out text an evaluation covers, by the split of its records.

  Raises:
    UserError: the head needs labels, or the data cannot be prepared.
  """

  def __init__(self, config: Config, stored_tokenizer: epath.PathLike | None = None) -> None:
    if not HEADS[config.model.head.name].learns_from_objective:
      has_lm_head = "lm" in heads_of(config.family)
      remedy = ": set head.name=lm (its output layer starts afresh)" if has_lm_head else ""
      raise UserError(f"head.name={config.model.head.name} has nothing to learn from unlabelled text{remedy}")
    super().__init__(config, stored_tokenizer)
    self._unigram = {split: self._prepared.unigram_entropy(data, split) for split, data in self._evals.items()}
    self.evaluated = {split: data.evaluated(config.eval.batches) for split, data in self._evals.items()}

  @classmethod
  def configure(cls, config: Config) -> Config:
    """The configuration as it is: see `Task`."""
    return config

  def eval_metrics(self, split: str, totals: LossTerms, predictions: Predictions) -> dict[str, float]:
    """Perplexity, unigram entropy, and bits per byte of the evaluated text, all of the predicted tokens.

    The unigram entropy is that of all held-out targets, in nats. Bits per byte exist for objectives that predict each
    token of the text once.
    """
    loss = mean(totals.loss["labels"])
    metrics = {"perplexity": math.exp(min(loss, 700.0))}
    if split not in self.evaluated:  # short rows, see `data.first_steps`
      return metrics
    metrics["unigram_entropy"] = self._unigram[split]
    evaluated = self.evaluated[split]
    if evaluated.text_bytes:
      metrics["bits_per_byte"] = loss / math.log(2) * evaluated.tokens / evaluated.text_bytes
    return metrics

  def report(self, model: Model, params: Any, metrics: Mapping[str, float], run: RunDirectory) -> list[str]:
    """The loss beside the unigram entropy, and samples of what the model does with held-out text."""
    lines = [] if self._eval else [nothing_held_out(self._config.data)]
    batch = None
    if metrics and self._eval is not None:
      evaluated = self.evaluated["eval"]
      loss, entropy = metrics.get("loss_labels", metrics["loss"]), metrics["unigram_entropy"]
      side = "below" if loss < entropy else "above"
      lines += [
        f"unigram entropy: {entropy:.3f} nats, of all held-out targets",
        f"held-out loss: {loss:.3f} nats, {abs(entropy - loss):.3f} {side} the unigram entropy; on "
        f"{evaluated.rows:,} of {evaluated.of:,} held-out rows (eval.batches)",
      ]
      if side == "above":
        lines.append("the model predicts worse than pieces by their frequency: train longer, or see docs/faq.md")
      batch = self._eval.batch(0)
    return lines + samples.show(model, params, self.tokenizer, batch if batch is not None else self._train.batch(0))
