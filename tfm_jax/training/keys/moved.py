"""Renamed keys: how a `config.json` of an earlier version is read."""

from collections.abc import Mapping
from typing import Any

from tfm_jax.models.config import BIASES

# Old key in the section `model` -> new key.
_SECTIONS = {
  "relative_buckets": "relative.buckets",
  "relative_distance": "relative.distance",
  "rotary_base": "rotary.base",
  "local_rotary_base": "rotary.local_base",
  "rotary_factor": "rotary.factor",
  "rotary_original": "rotary.original",
  "rotary_low": "rotary.low",
  "rotary_high": "rotary.high",
  "window": "window.size",
  "global_every": "window.global_every",
  "head": "head.name",
  "head_transform": "head.transform",
  "classifier_transform": "head.classifier_transform",
  "head_activation": "head.activation",
  "head_bias": "head.bias",
  "pooler": "head.pooler",
  "pooling": "head.pooling",
  "num_labels": "head.num_labels",
  "labels": "head.labels",
  "image_height": "image.height",
  "image_width": "image.width",
  "image_channels": "image.channels",
  "patch_size": "image.patch",
}
_BIASES = {f"{part}_bias": "model.bias" for part in BIASES}
MOVED = {f"model.{old}": new for old, new in (_SECTIONS | _BIASES).items()} | {"data.text_key": "data.field"}


def translated(stored: Mapping[str, Any]) -> dict[str, Any]:
  """A stored `config.json` with the current names and values of its keys."""
  sections = {name: dict(value) if isinstance(value, Mapping) else value for name, value in stored.items()}
  objective = sections.get("objective")
  if isinstance(objective, dict) and objective.get("name") == "sequence_classification":
    del objective["name"]  # since then, tasks make their own rows
  data = sections.get("data")
  if isinstance(data, dict):
    key = data.pop("text_key", "text")
    if key != "text" and data.get("source") in ("text", "jsonl"):  # other sources did not read it
      data["field"] = key
  model = sections.get("model")
  if not isinstance(model, dict):
    return sections
  if isinstance(model.get("bias"), bool):
    biases = {part: model.pop(f"{part}_bias", None) for part in BIASES}
    parts = [part for part, own in biases.items() if (model["bias"] if own is None else own)]
    model["bias"] = ",".join(parts) or "none"
  if isinstance(model.get("scale_output"), bool):
    model["scale_output"] = "always" if model["scale_output"] else "never"
  for old, new in _SECTIONS.items():
    if old in model:
      section, _, key = new.partition(".")
      sections.setdefault(section, {})[key] = model.pop(old)
  return sections
