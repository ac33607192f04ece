"""Which attention heads a prediction depends on: each head's output is set to zero in turn (Michel et al. 2019)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.models.model import Model, Params
from tfm_jax.runtime.trees import flat, nested
from tfm_jax.tasks.looking.example import Example
from tfm_jax.tasks.looking.prediction import Prediction, log_probs

STACKS = {
  "": "blocks/attn/wo",
  "encoder": "encoder/blocks/attn/wo",
  "decoder": "decoder/blocks/attn/wo",
  "cross": "decoder/blocks/cross/wo",
}
"""Name of an attention stack, as in `Model.attention_weights` -> the parameter [N, H, K, D] after its heads."""


@dataclasses.dataclass(frozen=True)
class Ablation:
  """What changes when one head of a stack is removed, for every layer and head.

  Attributes:
    change: float32 [N, H]: the log-probability of all targets together without the head, minus that with it.
    flips: int32 [N, H]: targets at whose place another choice becomes the likeliest.
  """

  change: np.ndarray
  flips: np.ndarray


def without_heads(params: Params, stack: str, layer: int | Array, heads: int | Array | Sequence[int]) -> Params:
  """Parameters with which some heads of one layer contribute nothing: their rows of `wo` are zero.

  Args:
    params: the parameters.
    stack: "" of a model with one stack; "encoder", "decoder" or "cross" of an encoder-decoder.
    layer: the layer, from 0.
    heads: one head or several, from 0.
  """
  leaves = flat(params)
  path = STACKS[stack]
  return nested(leaves | {path: leaves[path].at[layer, jnp.asarray(heads)].set(0.0)})


def ablate(example: Example, prediction: Prediction) -> dict[str, Ablation]:
  """Stack -> what changes without each of its heads. One forward pass per head, in one compiled computation."""
  places, choices = (np.array([t[i] for t in prediction.targets], np.int32) for i in (0, 1))
  result = {}
  for stack, path in STACKS.items():
    wo = flat(example.params).get(path)
    if wo is not None:
      settings = (example.model, example.tokenizer.vocab_size, stack)
      arrays = _values_without(*settings, example.params, example.batch, places, choices)
      values, best = (np.asarray(x) for x in arrays)
      before = prediction.log_probs[places].argmax(-1)
      shape = wo.shape[:2]
      change = (values - prediction.values).sum(-1).reshape(shape)
      result[stack] = Ablation(change, (best != before).sum(-1, dtype=np.int32).reshape(shape))
  return result


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _values_without(
  model: Model, size: int, stack: str, params: Any, batch: Any, places: Array, choices: Array
) -> tuple[Array, Array]:
  """For each head, layer by layer: the values of the targets and the likeliest choices at their places, [N * H, J]."""
  layers, heads = flat(params)[STACKS[stack]].shape[:2]

  def values(index: Array) -> tuple[Array, Array]:
    numbers = log_probs(model, size, without_heads(params, stack, index // heads, index % heads), batch)
    return numbers[places, choices], numbers[places].argmax(-1)

  return jax.lax.map(values, jnp.arange(layers * heads))
