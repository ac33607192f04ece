"""`look`: everything that the attention page shows, as arrays."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.runtime.reporting.page import frame
from tfm_jax.tasks.looking.ablation import Ablation, ablate
from tfm_jax.tasks.looking.example import Example, read
from tfm_jax.tasks.looking.page import attention_page
from tfm_jax.tasks.looking.prediction import Prediction, predict
from tfm_jax.tasks.looking.saliency import Saliency, saliency
from tfm_jax.training.load import Run

QUERIES_AND_KEYS = {
  "": ("", ""),
  "encoder": ("encoder", "encoder"),
  "decoder": ("decoder", "decoder"),
  "cross": ("decoder", "encoder"),
}
"""Name of an attention stack -> the sides of its queries and of its keys."""


@dataclasses.dataclass(frozen=True, repr=False)
class Look:
  """What a model does with one text. A notebook shows it as a page.

  Attributes:
    example: the text as the model reads it; `example.tokens()` are its tokens.
    prediction, saliency, ablation: None for heads that predict nothing.
    attention: stack ("" of a single stack; "encoder", "decoder", "cross") -> weights float32 [N, H, T, S].
    layers: the layers that the page shows maps of.
    facts: about the run, by name.
  """

  example: Example
  prediction: Prediction | None
  saliency: Saliency | None
  ablation: dict[str, Ablation] | None
  attention: dict[str, np.ndarray]
  layers: tuple[int, ...]
  facts: dict[str, str]

  def __repr__(self) -> str:
    """In one line."""
    names = [target.name for target in self.prediction.targets] if self.prediction else []
    return f"Look({self.example.text!r}, predicted={names})"

  def html(self) -> str:
    """The page: one HTML document that needs no other file."""
    sides = {stack: tuple(self.example.tokens(side) for side in QUERIES_AND_KEYS[stack]) for stack in self.attention}
    return attention_page(self, sides)

  def _repr_html_(self) -> str:
    return frame(self.html())


def look(run: Run, text: str, pair: str = "", target: str = "", layers: Sequence[int] | None = None) -> Look:
  """Runs a model on a text and looks inside: prediction, attention, saliency and ablation of every head.

  Args:
    run: from `load_run`.
    text, pair, target: see `tfm_jax.tasks.looking.example.read`.
    layers: the layers whose maps the page shows, from 0; None: all.

  Raises:
    UserError: see `read`; or a layer that the model does not have.
  """
  example = read(run, text, pair, target)
  c = run.model.config
  depth = max(c.num_layers, c.decoder_depth if run.model.encoder_decoder else 0)
  for layer in layers or ():
    if not 0 <= layer < depth:
      raise UserError(f"layer {layer} does not exist: the model has the layers 0 to {depth - 1}")
  prediction = predict(example)
  facts = {
    "family": run.model.family,
    "step": f"{run.step:,}",
    "parameters": f"{run.model.parameter_count():,}",
    "head": c.head.name,
    "layers × heads": f"{c.num_layers} × {c.num_heads}",
    "tokens": " + ".join(str(len(ids)) for ids in example.ids.values()),
  }
  return Look(
    example,
    prediction,
    saliency(example, prediction) if prediction else None,
    ablate(example, prediction) if prediction else None,
    attention(example),
    tuple(layers if layers is not None else range(depth)),
    facts,
  )


def attention(example: Example) -> dict[str, np.ndarray]:
  """Stack -> the weight of each key for each query of every layer and head, float32 [N, H, T, S]."""
  stacks = ("encoder", "decoder", "cross") if example.model.encoder_decoder else ("",)
  return {stack: np.asarray(_weights(example.model, stack, example.params, example.batch)) for stack in stacks}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _weights(model: Model, stack: str, params: Any, batch: Any) -> jax.Array:
  """The attention weights of the first row."""
  weights = model.attention_weights(params, batch, stack)[:, 0]
  return model.placement.constrain(weights, (None, None, None, None))
