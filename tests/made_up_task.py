"""A task without text: which quarter of a small image is bright, with two held-out sets and a metric from counts."""

import dataclasses
import json

import jax
import numpy as np

from tfm_jax.models.config import replaced
from tfm_jax.objectives.objective import FLOAT, INT, ROWS, Field
from tfm_jax.ops.losses import LossTerms
from tfm_jax.training.loss import LossConfig, make_loss

SIZE = 8


def images(first, count):
  """(images [count, 8, 8, 1], quarters [count]): pure functions of their numbers."""
  draw = np.random.default_rng(first)
  quarters = draw.integers(0, 4, count).astype(np.int32)
  pixels = draw.normal(0, 0.3, (count, 2, SIZE // 2, 2, SIZE // 2)).astype(np.float32)
  pixels[np.arange(count), quarters // 2, :, quarters % 2, :] += 1
  return pixels.reshape(count, SIZE, SIZE, 1), quarters


class BrightQuarter:
  tokenizer = None
  fingerprints = {"data": "made up"}
  fields = {
    "images": Field((SIZE, SIZE, 1), FLOAT, "pixels", ("batch", None, None, None)),
    "targets": Field((), INT, "labels", ("batch",), 4),
    "weights": Field((), FLOAT, "weights", ("batch",)),
    "rows": ROWS,
  }

  def __init__(self, config, stored_tokenizer=None):
    self._size = config.train.batch_size

  @classmethod
  def configure(cls, config):
    keys = {"head.name": "sequence_classification", "head.num_labels": 4}
    keys |= {"image.height": SIZE, "image.width": SIZE, "image.channels": 1, "image.patch": SIZE // 2}
    return dataclasses.replace(config, model=replaced(config.model, keys))

  def batch(self, step, rows, weight=1.0):
    pixels, quarters = images(step, self._size)
    batch = {
      "images": pixels,
      "targets": quarters,
      "weights": np.full(self._size, weight, np.float32),
      "rows": np.arange(self._size, dtype=np.int32),
    }
    return batch if rows is None else {name: x[rows] for name, x in batch.items()}

  def train_batches(self, start, stop, rows):
    return ((step, self.batch(step, rows)) for step in range(start, stop))

  @property
  def eval_streams(self):
    return {
      "eval": lambda rows: (self.batch(10_000 + n, rows) for n in range(2)),
      "eval_other": lambda rows: (self.batch(20_000 + n, rows) for n in range(3)),
      "eval_blank": lambda rows: iter([self.batch(30_000, rows, weight=0.0)]),
    }

  def loss(self, model):
    """The head's own loss, and the counts that an F1 of the first quarter is made from."""
    of_head = make_loss(model, LossConfig())

    def loss(params, batch, noise):
      terms = of_head(params, batch, noise)
      guess = model.logits(params, batch).argmax(-1) == 0
      truth = batch["targets"] == 0
      one = batch["weights"].sum()
      counts = {
        "true_positives": ((guess & truth) * batch["weights"]).sum(),
        "guesses": (guess * batch["weights"]).sum(),
        "truths": (truth * batch["weights"]).sum(),
      }
      return terms | LossTerms({}, {}, {name: (value, one) for name, value in counts.items()})

    return loss

  def eval_metrics(self, split, totals):
    hits, guesses, truths = (totals.metrics[name][0] for name in ("true_positives", "guesses", "truths"))
    return {"f1": 2 * hits / max(guesses + truths, 1)}

  def report(self, model, params, metrics, run):
    batch = self.batch(10_000, None)
    guesses = np.asarray(jax.jit(model.logits)(params, batch)).argmax(-1)
    if run.writes:
      (run.path / "guesses.json").write_text(json.dumps(guesses.tolist()))
    return [f"right: {int((guesses == batch['targets']).sum())} of {len(guesses)}"]
