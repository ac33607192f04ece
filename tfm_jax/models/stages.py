"""`staged`: the stack of blocks as a pipeline."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import Scope
from jax import Array

from tfm_jax.models.blocks import KEPT, KEPT_OF_SEVERAL, Block, Emitted
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.layers import Context
from tfm_jax.sharding.pipeline import Schedule, pipelined
from tfm_jax.sharding.placement import Placement


def staged(
  cfg: ModelConfig, st: Placement, plan: Schedule, x_BTD: Array, ctx: Context, first: int, **fields: Any
) -> tuple[Array, Emitted]:
  """`blocks.stack` over the stages of a pipeline. The parameters must exist.

  Args:
    cfg, st: see `Layer`.
    plan: the schedule.
    x_BTD: the input.
    ctx: what the blocks share, with masks that are not prepared: each stage prepares those of its microbatch.
    first: index of the first block.
    fields: of `Block`.

  Returns:
    The output, and what the experts did, [N, B].
  """
  # The biases of attention have no rows. Everything else in the context that is an array begins with rows, or with 1.
  bias_HTS, without = ctx.own.bias_HTS, ctx._replace(own=dataclasses.replace(ctx.own, bias_HTS=None))
  leaves, tree = jax.tree.flatten(without)
  of_rows = [n for n, leaf in enumerate(leaves) if jnp.ndim(leaf) and leaf.shape[0] == len(x_BTD)]
  blocks = Block(cfg, st, **fields, name="blocks")
  block: Any = blocks.clone(parent=None, st=st.inside)

  def run(params: Any, start: Array, x_bTD: Array, rows: dict[int, Array]) -> tuple[Array, Any]:
    part: Context = jax.tree.unflatten(tree, [rows.get(n, leaf) for n, leaf in enumerate(leaves)])
    part = part._replace(own=dataclasses.replace(part.own, bias_HTS=bias_HTS)).prepared()

    def layer(x_bTD: Array, of_layer: tuple[Any, Array]) -> tuple[Array, Any]:
      params, index = of_layer
      # The block as it is in the model, so that it has the same path, with the parameters of one layer.
      one = block.clone(parent=Scope({"params": params}, path=blocks.path))
      x_bTD, emitted = one(x_bTD, index, part)
      return x_bTD, emitted.routed

    if cfg.remat != "none":
      layer = jax.checkpoint(layer, prevent_cse=not cfg.scan, policy=KEPT[cfg.remat])
    depth = jax.tree.leaves(params)[0].shape[0]
    layers = first + start + jnp.arange(depth, dtype=jnp.int32)
    return jax.lax.scan(layer, x_bTD, (params, layers), unroll=1 if cfg.scan else depth)

  stacked = blocks.variables["params"]
  rows = {n: leaves[n] for n in of_rows}
  h_BTD, routed = pipelined(run, st, plan, stacked, x_BTD, rows, KEPT_OF_SEVERAL[cfg.remat])
  return h_BTD, Emitted(routed=routed)
