"""One class per text, or per pair of texts: a table in the form of SST-2, its accuracy, and a prediction per row."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from tfm_jax.data.prepare import classes_of
from tfm_jax.errors import UserError
from tfm_jax.models.config import replaced
from tfm_jax.models.model import Model
from tfm_jax.ops.losses import LossTerms
from tfm_jax.training.config import Config
from tfm_jax.training.run_directory import RunDirectory
from tfm_jax.training.text_task import TextTask


class SequenceClassification(TextTask):
  """A `Task`. At the end of a run, `predictions.jsonl` has one object per held-out row, in the order of the file:
  `prediction`, `label` (their names) and `probabilities` (by name)."""

  @classmethod
  def configure(cls, config: Config) -> Config:
    """The head has the classes of the table at `data.path`. Raises UserError."""
    data = dataclasses.replace(config.data, source="tsv")
    classes = classes_of(data, config.task)
    if any("|" in name for name in classes):
      raise UserError(f"{data.path}: a label must not contain '|', which separates the labels in head.labels")
    head = {"head.name": "sequence_classification", "head.num_labels": len(classes), "head.labels": "|".join(classes)}
    objective = dataclasses.replace(config.objective, name="sequence_classification")
    return dataclasses.replace(config, data=data, objective=objective, model=replaced(config.model, head))

  def eval_metrics(self, split: str, totals: LossTerms) -> dict[str, float]:
    """Nothing beside loss and accuracy."""
    return {}

  def report(self, model: Model, params: Any, metrics: Mapping[str, float], run: RunDirectory) -> list[str]:
    """The accuracy on all held-out rows, whose predictions are written."""
    if self._eval is None:
      return []
    predictions = self._predictions(model, params)
    run.write_predictions(predictions)
    right = sum(row["prediction"] == row["label"] for row in predictions)
    share = right / len(predictions)
    return [f"held-out accuracy: {right:,} of {len(predictions):,} ({share:.2%}); every prediction: {run.predictions}"]

  def _predictions(self, model: Model, params: Any) -> list[dict[str, Any]]:
    """One object per held-out row, in the order of the file."""
    assert self._eval is not None
    names = model.config.head.labels.split("|")
    predict = jax.jit(model.predict, out_shardings=model.placement.replicated)
    rows = {}
    for step in range(self._eval.num_batches()):
      batch = self._eval.batch(step)
      found = jax.device_get(predict(params, batch))
      for i in batch["weights"].nonzero()[0]:
        shares = {name: round(float(p), 6) for name, p in zip(names, found["probabilities"][i], strict=True)}
        prediction, label = names[int(found["class"][i])], names[int(batch["targets"][i])]
        rows[int(batch["rows"][i])] = {"prediction": prediction, "label": label, "probabilities": shares}
    return [rows[row] for row in sorted(rows)]
