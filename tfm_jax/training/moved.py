"""Keys that have moved since they were written to a `config.json`: what each is called now."""

from collections.abc import Mapping
from typing import Any

from tfm_jax.models.config import BIASES

# Old key -> new key.
MOVED = {
  "model.rotary_base": "rotary.base",
  "model.local_rotary_base": "rotary.local_base",
  "model.rotary_factor": "rotary.factor",
  "model.rotary_original": "rotary.original",
  "model.rotary_low": "rotary.low",
  "model.rotary_high": "rotary.high",
  "model.window": "window.size",
  "model.global_every": "window.global_every",
  "model.head": "head.name",
  "model.head_transform": "head.transform",
  "model.classifier_transform": "head.classifier_transform",
  "model.head_activation": "head.activation",
  "model.head_bias": "head.bias",
  "model.pooler": "head.pooler",
  "model.pooling": "head.pooling",
  "model.num_labels": "head.num_labels",
  "model.labels": "head.labels",
  "model.image_height": "image.height",
  "model.image_width": "image.width",
  "model.image_channels": "image.channels",
  "model.patch_size": "image.patch",
  **{f"model.{part}_bias": "model.bias" for part in BIASES},
}


def translated(stored: Mapping[str, Any]) -> dict[str, Any]:
  """The sections of a stored `config.json` under today's keys, with today's values."""
  sections = {name: dict(value) if isinstance(value, Mapping) else value for name, value in stored.items()}
  model = sections.get("model")
  if not isinstance(model, dict):
    return sections
  if isinstance(model.get("bias"), bool):
    biases = {part: model.pop(f"{part}_bias", None) for part in BIASES}
    parts = [part for part, own in biases.items() if (model["bias"] if own is None else own)]
    model["bias"] = ",".join(parts) or "none"
  if isinstance(model.get("scale_output"), bool):
    model["scale_output"] = "always" if model["scale_output"] else "never"
  for old, new in MOVED.items():
    name = old.removeprefix("model.")
    if name in model:
      section, _, key = new.partition(".")
      sections.setdefault(section, {})[key] = model.pop(name)
  return sections
