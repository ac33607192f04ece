"""Recurrent stacks: layers of LSTM or GRU cells, in one or both directions, with attention in a decoder.

F is the number of cells of a layer and direction: D in a decoder, D / 2 in an encoder, whose two directions stand
side by side in the output.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.blocks import CROSS_ATTN, HIDDEN, LAST, Emitted, stack
from tfm_jax.models.cache import STATE, KeysValues, Memory, States
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.layers import (
  AFTER_CROSS,
  AFTER_MLP,
  READ,
  STREAM,
  WHOLE,
  Attention,
  Context,
  Dense,
  Layer,
  linear,
)
from tfm_jax.models.sight import make_sight
from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.ops.masks import Mask
from tfm_jax.ops.recurrent import Cell, State, Steps, steps_of
from tfm_jax.sharding.placement import Placement
from tfm_jax.sharding.recurrent import recur


def cells(c: ModelConfig, causal: bool) -> int:
  """F: number of cells of a layer and direction."""
  return c.embed_dim if causal else c.embed_dim // 2


class Recurrent(Layer):
  """One direction of a recurrent layer.

  Attributes:
    cell: LSTM or GRU.
    features: F, the number of cells.
    backward: reads from the last token to the first.
  """

  cell: Cell
  features: int
  backward: bool = False

  @nn.compact
  def __call__(self, x_BTD: Array, steps: Steps | None, state: State) -> tuple[Array, State]:
    """The output [B, T, F], and the state after the last token that was read."""
    c, st, cell, F = self.cfg, self.st, self.cell, self.features
    G, has_bias = cell.gates, c.has_bias("mlp")
    wx_DGF = self.stored("wx", (x_BTD.shape[-1], G, F))
    wh_FGF = self.stored("wh", (F, G, F))
    b_GF = self.param("b", self.fresh_bias, (G, F)) if has_bias else None
    bh_GF = self.bias("bh", (G, F), has_bias and cell.separate)
    x_TBD = x_BTD.swapaxes(0, 1)
    x_TBD = x_TBD[::-1] if self.backward else x_TBD
    inputs = linear("TBD,DGF->TBGF", x_TBD, wx_DGF, b_GF, self.axes("wx").names, st)
    inputs = st.constrain(inputs, ("seq", "batch", None, "act_mlp"))
    h_TBF, state = recur(cell, self.axes("wh").names, st, inputs, wh_FGF, bh_GF, state, steps)
    h_TBF = h_TBF[::-1] if self.backward else h_TBF
    return st.constrain(h_TBF.swapaxes(0, 1), ("batch", "seq", "act_mlp")), state

  @nn.nowrap
  def fresh_bias(self, key: Array, shape: tuple[int, ...]) -> Array:
    """Zeros; 1 for the forget gate."""
    zeros = jnp.zeros(shape)
    return zeros if self.cell.forget is None else zeros.at[self.cell.forget].set(1)


class Shared(NamedTuple):
  """What all layers of a stack share: the steps of each direction, and dropout's noise."""

  forward: Steps | None
  backward: Steps | None
  noise: Noise | None


class Block(Layer):
  """A recurrent layer and dropout, in one direction or both, with the fields and call of `blocks.Block`.

  Attributes:
    cell: LSTM or GRU.
    causal: reads forward alone.
    emit: what is returned for inspection: "" (nothing) or HIDDEN.
  """

  cell: Cell
  causal: bool
  emit: str = ""

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, shared: Shared, kept: State | None = None) -> tuple[Array, Emitted]:
    c, st, F = self.cfg, self.st, cells(self.cfg, self.causal)
    x_BTD = st.gather(x_BTD, STREAM, READ)
    none = st.constrain(jnp.zeros((len(x_BTD), F), jnp.float32), STATE)
    fresh = (none,) * self.cell.vectors
    y_BTD, state = Recurrent(c, st, self.cell, F, name="rnn")(x_BTD, shared.forward, fresh if kept is None else kept)
    if not self.causal:
      back = Recurrent(c, st, self.cell, F, backward=True, name="reverse")
      y_BTD = jnp.concatenate([y_BTD, back(x_BTD, shared.backward, fresh)[0]], axis=-1)
    y_BTD = dropout(st.scatter(y_BTD, READ, STREAM), c.dropout, shared.noise, layer, AFTER_MLP)
    return y_BTD, Emitted(None if kept is None else state, y_BTD if self.emit == HIDDEN else None)


def recurrent_tower(
  c: ModelConfig,
  st: Placement,
  x_BTD: Array,
  segments_BT: Array | None,
  noise: Noise | None,
  *,
  cell: Cell,
  causal: bool,
  depth: int,
  first: int = 0,
  memory: Memory | None = None,
  cache: States | None = None,
  emit: str = "",
) -> tuple[Array, States | None, Array | None]:
  """A stack of recurrent layers over embeddings; in a decoder with an encoder, attention follows the last layer.

  A state begins at zero with each document, and padding leaves it as it is. A decoder knows the encoder's text by
  attention alone (Luong et al. 2015): tanh(W a + V h), with the context a of the queries h. It is not fed back into the
  layers, so that all time steps attend at once.

  Call it in a compact module: the parameters belong to that module. Arguments and results: see `tower.tower`.
  """
  B, T = x_BTD.shape[:2]
  forward = backward = None
  if cache is not None or segments_BT is not None:
    segments_BT = jnp.broadcast_to(1 if segments_BT is None else segments_BT, (B, T)).astype(jnp.int32)
    forward, last_B = steps_of(segments_BT, None if cache is None else cache.segment_B)
    backward = None if causal else steps_of(segments_BT[:, ::-1])[0]
    cache = cache and cache._replace(segment_B=last_B)
  kept = None if cache is None else cache.own
  fields: Any = {"cell": cell, "causal": causal, "emit": emit if emit == HIDDEN else ""}
  h_BTD, (new, shown, _) = stack(c, st, x_BTD, Shared(forward, backward, noise), depth, first, kept, Block, **fields)
  h_BTD = st.gather(h_BTD, STREAM, WHOLE)
  if cache is not None:
    cache = cache._replace(own=new, length=cache.length + T)
  if memory is not None or (cache is not None and cache.across is not None):
    h_BTD, cache, weights = attended(c, st, h_BTD, segments_BT, noise, first + depth, memory, cache, emit)
    shown = weights if emit == CROSS_ATTN else shown
  if emit == HIDDEN:
    assert shown is not None
    shown = jnp.concatenate([x_BTD[None], shown[:-1], h_BTD[None]])
  elif emit == LAST:
    shown = h_BTD
  return h_BTD, cache, shown


def attended(
  c: ModelConfig,
  st: Placement,
  h_BTD: Array,
  segments_BT: Array | None,
  noise: Noise | None,
  layer: int,
  memory: Memory | None,
  cache: States | None,
  emit: str,
) -> tuple[Array, States | None, Array | None]:
  """The attention of a decoder over the encoder's text: see `recurrent_tower`.

  Returns:
    The output; the cache with the keys and values of the memory, or None; if `emit` says so, the attention weights
    [1, B, H, T, S].
  """
  kept: KeysValues | None = None
  if cache is not None and cache.across is not None:
    kept = jax.tree.map(lambda x: x[0], cache.across)
    memory_segments, length = cache.memory_segments_BS, cache.across.k.shape[3]
  else:
    assert memory is not None
    memory_segments, length = memory.segments_BS, memory.h_BSD.shape[1]
  if segments_BT is None and memory_segments is not None:  # a single segment, which does not see padding
    segments_BT = jnp.ones(h_BTD.shape[:2], jnp.int32)
  mask = Mask(query_segments_BT=segments_BT, key_segments_BS=memory_segments)
  kind: Any = {"training": noise is not None, "cached": cache is not None}
  sight = make_sight(c, st, mask, (h_BTD.shape[0], h_BTD.shape[1], length), **kind).prepared()
  ctx = Context(sight, sight, memory_BSD=memory and memory.h_BSD, noise=noise)
  cross = Attention(c, st, cross=True, emit=emit == CROSS_ATTN, name="cross")
  context_BTD, new, weights = cross(h_BTD, jnp.int32(layer), ctx, kept)
  y_BTD = jnp.tanh(context_BTD + Dense(c, st, c.embed_dim, name="dense")(h_BTD))
  y_BTD = dropout(st.constrain(y_BTD, WHOLE), c.dropout, noise, layer, AFTER_CROSS)
  if cache is not None and kept is None:
    cache = cache._replace(across=jax.tree.map(lambda x: x[None], new.stored(c.compute_dtype)))
  return y_BTD, cache, None if weights is None else weights[None]
