"""What all tasks share whose batches come from a prepared corpus."""

from collections.abc import Iterator

import numpy as np
from etils import epath

from tfm_jax.data.dataset import batches
from tfm_jax.data.prepare import prepare
from tfm_jax.models.model import Model
from tfm_jax.training.config import Config
from tfm_jax.training.loss import LossFunction, make_loss
from tfm_jax.training.task import Batch, EvalStream


class TextTask:
  """The part of a `Task` that reads the corpus, tokenizer and objective of a configuration. See `Task`."""

  def __init__(self, config: Config, stored_tokenizer: epath.PathLike | None = None) -> None:
    prepared = prepare(config.data, config.tokenizer, config.objective, config.seed, stored_tokenizer, task=config.task)
    self._config, self._prepared = config, prepared
    self._train = prepared.train(config.train.batch_size)
    self._eval = prepared.evaluation(config.train.batch_size)
    self.tokenizer = prepared.tokenizer
    self.fields = self._train.fields
    self.fingerprints, self.former_fingerprints = prepared.fingerprints, prepared.former_fingerprints

  def train_batches(self, start: int, stop: int, rows: np.ndarray | None) -> Iterator[tuple[int, Batch]]:
    """See `Task`."""
    return batches(self._train, start, stop, rows, self._config.data.prefetch)

  @property
  def eval_streams(self) -> dict[str, EvalStream]:
    """See `Task`."""
    held_out = self._eval
    if held_out is None:
      return {}
    steps = range(held_out.num_batches(self._config.eval.batches))
    return {"eval": lambda rows: (held_out.batch(step, rows) for step in steps)}

  def loss(self, model: Model) -> LossFunction:
    """See `Task`."""
    return make_loss(model, self._config.loss)
