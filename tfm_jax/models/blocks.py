"""The block, and the stack of blocks, of every Transformer."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from tfm_jax.models.cache import KeysValues
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.layers import (
  AFTER_ATTENTION,
  AFTER_CROSS,
  AFTER_MLP,
  LINEAR,
  PROJECTION,
  READ,
  STREAM,
  Attention,
  Context,
  Layer,
  Mlp,
  Norm,
  Routing,
)
from tfm_jax.models.residual import ORDERS
from tfm_jax.ops.dropout import dropout
from tfm_jax.ops.recurrent import Cell
from tfm_jax.sharding.placement import Placement

# Depth up to which XLA:CPU gets unrolled layers. In a scan one thread alone stacks the activations for the backward
# pass: a step of four layers takes 4 to 9 % longer.
UNROLLED_ON_CPU = 12


class Sublayers(NamedTuple):
  """The classes of a family's attention and feed-forward layers; or the cell of its recurrent layers."""

  attention: type[Layer] = Attention
  mlp: type[Layer] = Mlp
  cell: Cell | None = None


STANDARD = Sublayers()

Kept = dict[str, KeysValues]  # by name of the attention layer ("attn", "cross"); of one block or of all
HIDDEN, ATTN, CROSS_ATTN = "hidden", "attn", "cross"  # what a block can emit: its output, or attention weights
LAST = "last"  # what a stack can emit: its output


class Emitted(NamedTuple):
  """What a block returns in addition to its output; from a stack, with a leading axis of layers.

  Attributes:
    new: with a cache, the keys and values to add to it (`Kept`); of a recurrent layer its state.
    shown: what `Block.emit` names, or None.
    routed: what the experts did, or None.
  """

  new: Any = None
  shown: Array | None = None
  routed: Routing | None = None


class Block(Layer):
  """Attention, cross-attention (in a decoder with an encoder) and feed-forward, each with residual, norm and dropout.

  `models.residual` says how these are arranged.

  Attributes:
    cross: has cross-attention.
    sublayers: the classes of attention and feed-forward.
    emit: what is returned for inspection: "" (nothing), HIDDEN, ATTN or CROSS_ATTN.
  """

  cross: bool = False
  sublayers: Sublayers = STANDARD
  emit: str = ""

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, ctx: Context, kept: Kept | None = None) -> tuple[Array, Emitted]:
    """The output, and what the block emits. `layer`: its index. `kept`: its part of a cache."""
    c, st = self.cfg, self.st
    x_BTD = checkpoint_name(x_BTD, _INPUT)
    new: Kept = {}
    shown: dict[str, Array | None] = {}
    routed: Routing | None = None
    order = ORDERS[c.norm_order]
    factor = np.float32(self.deepnorm()[0]) if order.deep else None
    gain = self.param("gain", nn.initializers.zeros, ()) if order.gain else None
    shared_BTD = st.gather(Norm(c, st, name="norm")(x_BTD), STREAM, READ) if order.parallel else None

    def residual(x: Array, name: str, site: int, sublayer: Layer) -> Array:
      nonlocal routed
      norm = Norm(c, st, name=f"{name}_norm")
      y = norm(x) if order.before and not order.parallel else x
      if order.before and name == "attn" and not c.first_norm:
        y = jnp.where(layer == 0, x, y)
      y = st.gather(y, STREAM, READ) if shared_BTD is None else shared_BTD
      if name == "mlp":
        y, routed = sublayer(y, layer, ctx)
      else:
        y, new[name], shown[name] = sublayer(y, layer, ctx, (kept or {}).get(name))
      y = dropout(st.scatter(y, READ, STREAM), c.dropout, ctx.noise, layer, site)
      y = y if gain is None else (gain * y).astype(y.dtype)
      x = x + y if factor is None else (factor * x + y).astype(x.dtype)
      return norm(x) if order.after else x

    attention: Any = self.sublayers.attention
    x_BTD = residual(x_BTD, "attn", AFTER_ATTENTION, attention(c, st, emit=self.emit == ATTN, name="attn"))
    if self.cross:
      cross = attention(c, st, cross=True, emit=self.emit == CROSS_ATTN, name="cross")
      x_BTD = residual(x_BTD, "cross", AFTER_CROSS, cross)
    x_BTD = residual(x_BTD, "mlp", AFTER_MLP, self.sublayers.mlp(c, st, name="mlp"))
    shown[HIDDEN] = x_BTD
    if kept is None:
      return x_BTD, Emitted(None, shown.get(self.emit), routed)
    new = {name: x for name, x in new.items() if name == "attn" or name not in kept}
    return x_BTD, Emitted(new, shown.get(self.emit), routed)


_INPUT = "input"  # name by which `model.remat=offload` keeps the input of a block
_NAMED = jax.checkpoint_policies.save_only_these_names
KEPT = {  # by remat
  "dots": _NAMED(LINEAR, PROJECTION),
  "full": jax.checkpoint_policies.nothing_saveable,
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[_INPUT, PROJECTION],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}
# By remat, for several blocks at once: their inputs as well, but not their parameters.
KEPT_OF_SEVERAL = KEPT | {"none": _NAMED(_INPUT, LINEAR, PROJECTION), "dots": _NAMED(_INPUT, LINEAR, PROJECTION)}
KEPT_OF_SEVERAL["full"] = _NAMED(_INPUT)


def stack(
  cfg: ModelConfig,
  st: Placement,
  x_BTD: Array,
  ctx: Any,
  depth: int,
  first: int = 0,
  kept: Any = None,
  kind: type[Layer] = Block,
  **fields: Any,
) -> tuple[Array, Emitted]:
  """`depth` blocks as one scan over stacked parameters `blocks/...` [N, ...].

  `model.scan=false` unrolls the scan, and so does a single CPU device if there are at most `UNROLLED_ON_CPU` blocks. It
  stays a scan where that only takes longer to compile: to create parameters, and to decode unless model.scan=false.

  Args:
    cfg, st: see `Layer`.
    x_BTD: the input.
    ctx: what the blocks share.
    depth: number of blocks.
    first: index of the first block, so that two stacks have different dropout.
    kept: what a cache has of the blocks, [N, ...].
    kind, fields: the class of a block, with the call of `Block`, and its fields.

  Returns:
    The output, and what the blocks emit, [N, ...].
  """
  block: Any = kind
  scan = cfg.scan and not (st.lone_cpu and depth <= UNROLLED_ON_CPU)
  if cfg.remat != "none":
    block = nn.remat(kind, prevent_cse=not scan, policy=KEPT[cfg.remat])
  blocks = block(cfg, st, **fields, name="blocks")
  run = nn.scan(
    lambda module, x, layer, kept: module(x, layer, ctx, kept),
    variable_axes={"params": 0},
    split_rngs={"params": True},
    length=depth,
    unroll=1 if scan or (kept is not None and cfg.scan) or blocks.is_initializing() else depth,
  )
  layers = jnp.arange(first, first + depth, dtype=jnp.int32)
  x_BTD, emitted = run(blocks, x_BTD, layers, kept)
  return x_BTD, emitted
