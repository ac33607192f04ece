"""The least that one device has to send in a step under a strategy: what compiled programs are held against."""

import math
from typing import Any

import jax

from tfm_jax.sharding.strategy import BATCH_AXES
from tfm_jax.training.flops import sequence_lengths
from tfm_jax.training.program import Program


def minimum_bytes(program: Program, microbatches: int) -> dict[str, float]:
  """Mesh axes -> bytes that one device sends, in the compute dtype, around rings.

  Over the axes that split the batch, for each weight: where it is split over them too (fsdp), two gathers (forward and
  backward) and one reduce-scatter of its gradient in each microbatch, tables of embeddings and the output layer one
  gather; where it is not, one all-reduce of its gradient, or of its part of it. Over `model`: four all-reduces of the
  residual stream [B, T, D] a block (six with cross-attention), one more for each attention that remat computes again,
  and one for the embeddings and one for the output layer.
  """
  model = program.model
  shape = model.placement.mesh.shape
  item = model.config.compute_dtype.itemsize
  total: dict[str, float] = {}

  def add(axes: tuple[str, ...], kind: float, size: float) -> None:
    n = math.prod(shape[axis] for axis in axes)
    if n > 1:
      key = ",".join(axis for axis in axes if shape[axis] > 1)
      total[key] = total.get(key, 0.0) + kind * size * (n - 1) / n

  def weight(path: tuple, leaf: jax.ShapeDtypeStruct) -> None:
    axes = model.axes(path)
    spec = [_names(part) for part in model.placement.spec(axes.names)]
    used = {name for names in spec for name in names}
    size = math.prod(leaf.shape) * item / math.prod(shape[name] for name in used if name not in BATCH_AXES)
    scattered = tuple(name for name in BATCH_AXES if name in used and shape[name] > 1)
    name = "/".join(str(key.key) for key in path)
    once = name.startswith("embed/") or name == "head/w"
    add(scattered, (1 if once else 2 * microbatches) + (1 if once else microbatches), size)
    add(tuple(name for name in BATCH_AXES if name not in used), 2, size / math.prod(shape[name] for name in scattered))

  jax.tree.map_with_path(weight, model.shapes())
  c, rows = model.config, program.config.train.batch_size / model.placement.batch_shards
  if dict(model.placement.strategy.rules).get("heads") and shape["model"] > 1:
    again = 1 if c.remat == "full" else 0
    lengths = sequence_lengths(c, program.fields)
    if model.encoder_decoder:
      S, T = lengths
      reduced = c.num_layers * (4 + again) * S + c.decoder_depth * (6 + 2 * again) * T + S + 2 * T
    else:
      (T,), head = lengths, (*program.fields["targets"].shape, 1)[0]
      reduced = c.num_layers * (4 + again) * T + T + head
    add(("model",), 2, rows * reduced * c.embed_dim * item)
  return total


def _names(part: Any) -> tuple[str, ...]:
  return (part,) if isinstance(part, str) else part or ()
