"""Classification of texts or pairs of texts, from a table such as that of SST-2."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from tfm_jax.data.prepare import classes_of
from tfm_jax.errors import UserError
from tfm_jax.models.config import replaced
from tfm_jax.models.model import Model
from tfm_jax.ops.losses import LossTerms
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.training.config import Config
from tfm_jax.training.task import Predictions, TextTask


class SequenceClassification(TextTask):
  """A `Task` that predicts the class of each row of a table.

  At the end of a run, `predictions.jsonl` has one object per held-out row, in the order of the file: `prediction` and
  `label` (names of classes), and `probabilities` (class name -> probability).
  """

  @classmethod
  def configure(cls, config: Config) -> Config:
    """Sets the head, with the classes of the table at `data.path`, and the objective. Raises UserError."""
    data = dataclasses.replace(config.data, source="tsv")
    classes = classes_of(data, config.task)
    if any("|" in name for name in classes):
      raise UserError(f"{data.path}: a label must not contain '|', which separates the labels in head.labels")
    head = {"head.name": "sequence_classification", "head.num_labels": len(classes), "head.labels": "|".join(classes)}
    objective = dataclasses.replace(config.objective, name="sequence_classification")
    return dataclasses.replace(config, data=data, objective=objective, model=replaced(config.model, head))

  def eval_metrics(self, split: str, totals: LossTerms, predictions: Predictions) -> dict[str, float]:
    """No metrics besides loss and accuracy."""
    return {}

  def report(self, model: Model, params: Any, metrics: Mapping[str, float], run: RunDirectory) -> list[str]:
    """Writes the predictions for all held-out rows; the line has their accuracy."""
    if self._eval is None:
      return []
    predictions = self._predictions(model, params)
    run.write_predictions(predictions)
    correct = sum(row["prediction"] == row["label"] for row in predictions)
    score = f"{correct:,} of {len(predictions):,} ({correct / len(predictions):.2%})"
    return [f"held-out accuracy: {score}; every prediction: {run.predictions}"]

  def _predictions(self, model: Model, params: Any) -> list[dict[str, Any]]:
    """One object per held-out row, in the order of the file."""
    assert self._eval is not None
    names = model.config.head.labels.split("|")
    predict = jax.jit(model.predict, out_shardings=model.placement.replicated)
    rows = {}
    for step in range(self._eval.num_batches()):
      batch = self._eval.batch(step)
      outputs = jax.device_get(predict(params, batch))
      for i in batch["weights"].nonzero()[0]:
        probabilities = {name: round(float(p), 6) for name, p in zip(names, outputs["probabilities"][i], strict=True)}
        prediction, label = names[int(outputs["class"][i])], names[int(batch["targets"][i])]
        rows[int(batch["rows"][i])] = {"prediction": prediction, "label": label, "probabilities": probabilities}
    return [rows[row] for row in sorted(rows)]
