"""Classification of pictures, by a Vision Transformer (Dosovitskiy et al. 2021)."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from scipy.special import betaincinv

from tfm_jax.data.images.store import ImageSet
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.heads.head import Outputs
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import Model
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import FLOAT, INT, Field, Fields
from tfm_jax.ops.losses import LossConfig, LossTerms
from tfm_jax.sharding.placement import Placement
from tfm_jax.tasks.images.task import ImageTask, Prediction, class_keys, scaled
from tfm_jax.training.config import Config
from tfm_jax.training.loss import LossFunction, make_loss
from tfm_jax.training.task import Predictions

_PARTNER, _SHARE = 210, 211  # sites of the draws
_OTHER = np.uint64(0x9E3779B97F4A7C15)  # changes the keys of the second picture of a mixture


class ImageClassification(ImageTask):
  """A class for each picture. With `augment.mixup`, pictures of training are means of two.

  The second picture is any of the training pictures, drawn by the row, not one of the same batch: so a batch depends
  on the step alone, whichever of its rows a process makes.
  """

  family: ClassVar[str] = "vit"
  mixes: ClassVar[bool] = True
  head_name: ClassVar[str] = "sequence_classification"

  @classmethod
  def keys(cls, config: Config, images: ImageSet) -> dict[str, Any]:
    """See `ImageTask`: the head and the classes."""
    return {"head.name": cls.head_name, **class_keys(config, images)}

  @property
  def fields(self) -> Fields:
    """See `Task`."""
    mixed = {
      "other_targets": Field((), INT, "labels", ("batch",), self.config.model.head.num_labels),
      "shares": Field((), FLOAT, "numbers", ("batch",)),
    }
    return super().fields | (mixed if self.config.augment.mixup else {})

  def known(self, images: ImageSet, index: np.ndarray) -> np.ndarray:
    """See `ImageTask`: those with a class."""
    return index[self.numbers(images)[index] >= 0]

  def arrays(self, images: ImageSet, index: np.ndarray, real: np.ndarray, draws: Draws | None) -> dict[str, np.ndarray]:
    """See `ImageTask`."""
    augment, labels = self.config.augment, self.numbers(images)
    pixels, targets = scaled(self.pixels(images, index, draws, augment)), labels[index]
    weights = (real & (targets >= 0)).astype(np.float32)
    targets = np.maximum(targets, 0)
    out = {"images": pixels, "targets": targets, "weights": weights}
    if not augment.mixup:
      return out
    if draws is None:
      return out | {"other_targets": targets, "shares": np.ones(len(index), np.float32)}
    # index holds training pictures here
    pool = self._train.index
    others = pool[draws.integers(_PARTNER, 1, len(pool))[:, 0]]
    second = scaled(self.pixels(images, others, Draws(draws.keys ^ _OTHER), augment))
    shares = betaincinv(augment.mixup, augment.mixup, draws.uniform(_SHARE, 1)[:, 0]).astype(np.float32)
    mixed = second + shares[:, None, None, None] * (pixels - second)
    return out | {"images": mixed, "other_targets": labels[others], "shares": shares}

  def loss(self, model: Model) -> LossFunction:
    """See `Task`: of a mixture, the mean of the losses of both classes by their shares."""
    plain = HEADS[self.head_name].loss
    assert plain is not None

    def mixed(c: ModelConfig, st: Placement, outputs: Outputs, batch: Any, extras: LossConfig) -> LossTerms:
      of = lambda targets, shares: plain(
        c, st, outputs, {**batch, "targets": targets, "weights": batch["weights"] * shares}, extras
      )
      return _added(of(batch["targets"], batch["shares"]), of(batch["other_targets"], 1 - batch["shares"]))

    return make_loss(model, self.config.loss, mixed if self.config.augment.mixup else None)

  def eval_metrics(self, split: str, totals: LossTerms, predictions: Predictions) -> dict[str, float]:
    """See `Task`: the scores of the held-out pictures."""
    assert self._eval is not None
    probabilities = np.concatenate([batch["probabilities"] for batch in predictions])[: self._eval.num_rows]
    found = self.class_predictions(self._held_out_images, self._eval.index, probabilities)
    return self.scores(found, intervals=False)

  def predict(self, model: Model, params: Any, images: ImageSet, index: np.ndarray) -> list[Prediction]:
    """See `ImageTask`."""
    outputs = self.outputs(model, params, self.batches(images, index))
    probabilities = np.concatenate([batch["probabilities"] for batch in outputs])[: len(index)]
    return self.class_predictions(images, index, probabilities)


def _added(a: LossTerms, b: LossTerms) -> LossTerms:
  """The sums of both, and of their weights."""
  add: Callable[[Any, Any], Any] = lambda x, y: {name: (x[name][0] + y[name][0], x[name][1] + y[name][1]) for name in x}
  return LossTerms(*(add(one, other) for one, other in zip(a, b, strict=True)))
