"""Layers: their parameters and a few einsums. B batch, T queries, S keys, D embed, H heads, K head, F mlp, V vocab."""

import contextlib
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from tfm_jax.models.config import Axes, ModelConfig, pad_vocab, param_axes
from tfm_jax.models.init import initializer
from tfm_jax.ops import attention as attend
from tfm_jax.ops import norms, positions
from tfm_jax.ops.activations import ACTIVATIONS, GATED
from tfm_jax.ops.broadcast import spread
from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.ops.linear import embed
from tfm_jax.ops.masks import CAUSAL
from tfm_jax.ops.splash import fits as splash_fits
from tfm_jax.ops.splash import splash_attention
from tfm_jax.sharding.linear import linear as linear_op
from tfm_jax.sharding.placement import Placement

# Dropout sites within a layer; each has bits of its own.
EMBED, ATTENTION, AFTER_ATTENTION, CROSS, AFTER_CROSS, INNER, AFTER_MLP, FINAL = range(8)


STREAM = ("batch", "seq", "act_embed")  # axes of the residual stream
_LINEAR = "linear"
_LOOKED_UP = ("token", "position", "type")


def linear(spec: str, x: Array, w: Array, b: Array | None, axes: tuple, st: Placement) -> Array:
  """The linear of a stored weight with these logical axes.

  It has a name, so that `model.remat=dots` can keep its output (the dots inside a custom VJP stay unseen).
  """
  return checkpoint_name(linear_op(spec, x, w, b, axes, st), _LINEAR)


class Context(NamedTuple):
  """What every block of a stack sees beside its input."""

  mask_BTS: Array | None = None
  local_mask_BTS: Array | None = None  # of layers with a window
  segments_BT: Array | None = None
  bias_HTS: Array | None = None
  positions_BT: Array | None = None  # for rotary positions
  memory_BSD: Array | None = None  # the encoder's output
  memory_mask_BTS: Array | None = None
  memory_segments_BS: Array | None = None
  noise: Noise | None = None


class Layer(nn.Module):
  """Fields and helpers that all layers share. `st` is the strategy on its mesh, static data."""

  cfg: ModelConfig
  st: Placement

  def axes(self, name: str) -> Axes:
    """Logical axes of the parameter of that name in one layer, as `PARAM_AXES` declares them."""
    names, layers, inputs = param_axes("/".join((*self.path, name)))
    return Axes(names[layers:], 0, inputs)

  def stored(self, name: str, shape: tuple[int, ...], kind: str = "") -> Array:
    """A weight as it is stored: in float32, where the strategy puts it."""
    inputs = self.axes(name).inputs or 1  # tables that are no matrices have one row per input
    fan_in, fan_out = math.prod(shape[:inputs]), math.prod(shape[inputs:])
    return self.param(name, initializer(kind or f"{self.name}/{name}", self.cfg, fan_in, fan_out), shape)

  def matrix(self, name: str, shape: tuple[int, ...], kind: str = "") -> Array:
    """A weight, gathered in the compute dtype."""
    w = self.stored(name, shape, kind)
    return self.st.weight(w, self.axes(name).names, self.cfg.compute_dtype, looked_up=kind in _LOOKED_UP)

  def bias(self, name: str, shape: tuple[int, ...], wanted: bool) -> Array | None:
    """A bias of zeros, float32, or None where none is wanted."""
    return self.param(name, nn.initializers.zeros, shape) if wanted else None


class Norm(Layer):
  """LayerNorm or RMSNorm, as the config says."""

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, x_BTD.shape[-1:])
    epsilon: Any = self.cfg.norm_epsilon
    if self.cfg.norm == "rms":
      return norms.rms_norm(x_BTD, scale, epsilon)
    return norms.layer_norm(x_BTD, scale, self.bias("bias", x_BTD.shape[-1:], self.cfg.has_bias("norm")), epsilon)


class Attention(Layer):
  """Multi-head attention of x over itself (what stands before, if `causal`), or over the encoder's output (`cross`).

  Heads of queries may share heads of keys and values (Ainslie et al. 2023): G groups of R query heads each.
  """

  causal: bool = False
  cross: bool = False

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, ctx: Context) -> Array:
    c, st = self.cfg, self.st
    D, H, G, K = c.embed_dim, c.num_heads, c.kv_heads, c.head_features
    embed_axis, group_axis, head_axis = self.axes("wk").names

    def projections(x: Array, names: str) -> list[Array]:
      """Linears that share an input are one dot: they share one dX, one gathering of weights, one scattering of dW.

      A group is its query heads, its key and its value.
      """
      sizes = {"q": H // G, "k": 1, "v": 1}
      ws = [self.stored(f"w{n}", (D, G * sizes[n], K)).reshape(D, G, sizes[n], K) for n in names]
      w_DGRK = jnp.concatenate(ws, axis=2)
      biases = [self.bias(f"b{n}", (G * sizes[n], K), c.has_bias("qkv")) for n in names]
      bs = [b.reshape(G, sizes[n], K) for n, b in zip(names, biases, strict=True) if b is not None]
      b_GRK = jnp.concatenate(bs, axis=1) if bs else None
      y_BTGRK = linear("BTD,DGRK->BTGRK", x, w_DGRK, b_GRK, (embed_axis, group_axis, None, head_axis), st)
      y_BTGRK = st.constrain(y_BTGRK, ("batch", "seq", "act_heads", None, None))
      ends = np.cumsum([sizes[n] for n in names])[:-1]
      return [y.reshape(*y.shape[:2], -1, K) for y in jnp.split(y_BTGRK, ends, axis=3)]

    if self.cross:
      assert ctx.memory_BSD is not None
      (q_BTHK,), (k_BSGK, v_BSGK) = projections(x_BTD, "q"), projections(ctx.memory_BSD, "kv")
    else:
      q_BTHK, k_BSGK, v_BSGK = projections(x_BTD, "qkv")
    if c.positions == "rotary" and not self.cross:
      assert ctx.positions_BT is not None
      rates = rotary_rates(c, layer)
      q_BTHK, k_BSGK = (positions.rotate(x, ctx.positions_BT, rates) for x in (q_BTHK, k_BSGK))
    if c.scale_by_layer:
      q_BTHK = (q_BTHK.astype(jnp.float32) / (layer + 1).astype(jnp.float32)).astype(q_BTHK.dtype)
    with jax.named_scope(CAUSAL) if self.causal else contextlib.nullcontext():  # so that FLOPs can be counted
      y_BTHK = self.attend(q_BTHK, k_BSGK, v_BSGK, layer, ctx)
    y_BTHK = st.constrain(y_BTHK, ("batch", "seq", "act_heads", None))
    wo_HKD = self.stored("wo", (H, K, D))
    return linear("BTHK,HKD->BTD", y_BTHK, wo_HKD, self.bias("bo", (D,), c.has_bias("out")), self.axes("wo").names, st)

  def attend(self, q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, layer: Array, ctx: Context) -> Array:
    """The attention itself, by the kernel that the config, or else the platform, wants."""
    c, st = self.cfg, self.st
    scale = c.head_features**-0.5 if c.scale_attention else 1.0
    if splash_serves(c, st, q_BTHK.shape[1], k_BSGK.shape[1], ctx.noise is not None):
      kernel = functools.partial(splash_attention, causal=self.causal, scale=scale, interpret=st.platform != "tpu")
      segments = (ctx.segments_BT, ctx.memory_segments_BS if self.cross else ctx.segments_BT)
      axes = ("batch", "seq", "act_heads", None)
      places = [("batch", "seq")] * 2 if all(x is not None for x in segments) else [None, None]
      return st.local(kernel, (axes,) * 3 + tuple(places), axes)(q_BTHK, k_BSGK, v_BSGK, *segments)
    groups = c.num_heads // c.kv_heads
    k_BSHK, v_BSHK = (jnp.repeat(x, groups, axis=2) if groups > 1 else x for x in (k_BSGK, v_BSGK))
    return attend.attention(
      q_BTHK, k_BSHK, v_BSHK,
      mask_BTS=ctx.memory_mask_BTS if self.cross else self_mask(c, layer, ctx),
      bias_HTS=None if self.cross else ctx.bias_HTS,
      scale=scale,
      platform=st.platform,
      dropout_rate=c.attention_dropout, noise=ctx.noise, layer=layer, site=CROSS if self.cross else ATTENTION,
    )  # fmt: skip


def is_global(c: ModelConfig, layer: Array) -> Array | bool:
  """Whether a layer of a model with local attention sees all keys nonetheless."""
  return layer % c.window.global_every == 0 if c.window.global_every else False


def self_mask(c: ModelConfig, layer: Array, ctx: Context) -> Array | None:
  """The mask of a layer's attention over its own input."""
  if not c.window.size:
    return ctx.mask_BTS
  assert ctx.local_mask_BTS is not None
  everything = jnp.ones_like(ctx.local_mask_BTS) if ctx.mask_BTS is None else ctx.mask_BTS
  return jnp.where(is_global(c, layer), everything, ctx.local_mask_BTS)


def rotary_rates(c: ModelConfig, layer: Array) -> Array | np.ndarray:
  """The rates of a layer's rotary positions, [K / 2]."""
  stretched = (c.rotary.factor, c.rotary.original, c.rotary.low, c.rotary.high)
  rates, local = (
    positions.rotary_rates(c.head_features, base, *stretched) for base in (c.rotary.base, c.rotary.local_base)
  )
  return jnp.where(is_global(c, layer), rates, local) if c.window.size else rates


def splash_serves(c: ModelConfig, st: Placement, queries: int, keys: int, training: bool) -> bool:
  """Whether attention runs as splash attention: asked for, or on a TPU where it can do what the config wants."""
  if not splash_fits(queries, keys):  # initialisation has a short row, whatever the config wants
    return False
  able = c.positions != "relative" and not (training and c.attention_dropout)
  able = able and not c.window.size and not c.scale_by_layer
  return c.attention == "splash" or (c.attention == "auto" and st.platform == "tpu" and able)


class Mlp(Layer):
  """Two linears around an activation, with a gate beside it if the config says so (Shazeer 2020)."""

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, ctx: Context) -> Array:
    c, st = self.cfg, self.st
    D, F = c.embed_dim, c.mlp_features
    names = "ig" if c.gated else "i"
    w_DCF = jnp.stack([self.stored(f"w{n}", (D, F)) for n in names], axis=1)
    embed_axis, mlp_axis = self.axes("wi").names
    biases = [b for n in names if (b := self.bias(f"b{n}", (F,), c.has_bias("mlp"))) is not None]
    b_CF = jnp.stack(biases) if biases else None
    h_CBTF = linear("BTD,DCF->CBTF", x_BTD, w_DCF, b_CF, (embed_axis, None, mlp_axis), st)
    h_CBTF = st.constrain(h_CBTF, (None, "batch", "seq", "act_mlp"))
    # wi is what the activation sees, wg the linear gate beside it.
    if c.gated:
      h_BTF = GATED[c.activation](h_CBTF[0], h_CBTF[1])
    else:
      h_BTF = ACTIVATIONS[c.activation](h_CBTF[0])
    if c.inner_dropout:
      h_BTF = dropout(h_BTF, c.dropout, ctx.noise, layer, INNER)
    wo_FD = self.stored("wo", (F, D))
    return linear("BTF,FD->BTD", h_BTF, wo_FD, self.bias("bo", (D,), c.has_bias("mlp")), self.axes("wo").names, st)


class Sublayers(NamedTuple):
  """The classes of which a family's blocks are made."""

  attention: type[Layer] = Attention
  mlp: type[Layer] = Mlp


STANDARD = Sublayers()


class Block(Layer):
  """Attention, cross-attention where there is an encoder, feed-forward: each with its residual, norm and dropout."""

  causal: bool = False
  cross: bool = False
  sublayers: Sublayers = STANDARD

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, ctx: Context) -> Array:
    c, st = self.cfg, self.st

    def residual(x: Array, name: str, site: int, sublayer: Layer) -> Array:
      norm = Norm(c, st, name=f"{name}_norm")
      y = norm(x) if c.norm_order == "pre" else x
      if c.norm_order == "pre" and name == "attn" and not c.first_norm:
        y = jnp.where(layer == 0, x, y)
      y = sublayer(st.constrain(y, ("batch", "seq", None)), layer, ctx)
      y = st.constrain(y, STREAM)
      x = x + dropout(y, c.dropout, ctx.noise, layer, site)
      return x if c.norm_order == "pre" else norm(x)

    attention: Any = self.sublayers.attention
    x_BTD = residual(x_BTD, "attn", AFTER_ATTENTION, attention(c, st, self.causal, name="attn"))
    if self.cross:
      x_BTD = residual(x_BTD, "cross", AFTER_CROSS, attention(c, st, cross=True, name="cross"))
    return residual(x_BTD, "mlp", AFTER_MLP, self.sublayers.mlp(c, st, name="mlp"))


_KEPT = {
  "dots": jax.checkpoint_policies.save_only_these_names(_LINEAR),
  "full": jax.checkpoint_policies.nothing_saveable,
}


def stack(
  cfg: ModelConfig,
  st: Placement,
  x_BTD: Array,
  ctx: Context,
  depth: int,
  first: int = 0,
  causal: bool = False,
  cross: bool = False,
  sublayers: Sublayers = STANDARD,
) -> Array:
  """`depth` blocks as one scan over stacked parameters `blocks/...` [N, ...]; `model.scan=false` unrolls it.

  `first` is the number of the first layer, so that the dropout of two stacks differs.
  """
  block = Block
  if cfg.remat != "none":
    block = nn.remat(Block, prevent_cse=not cfg.scan, policy=_KEPT[cfg.remat])
  run = nn.scan(
    lambda module, x, layer: (module(x, layer, ctx), None),
    variable_axes={"params": 0},
    split_rngs={"params": True},
    length=depth,
    unroll=1 if cfg.scan else depth,
  )
  layers = jnp.arange(first, first + depth, dtype=jnp.int32)
  return run(block(cfg, st, causal, cross, sublayers, name="blocks"), x_BTD, layers)[0]


class Embed(Layer):
  """Token embeddings, with positions and token types where the family has them, norm and dropout."""

  vocab_size: int = 0

  @nn.compact
  def __call__(
    self,
    ids_BT: Array,
    positions_BT: Array,
    segments_BT: Array | None,
    types_BT: Array | None,
    noise: Noise | None,
    layer: int,
  ) -> tuple[Array, Array]:
    """The embeddings [B, T, D] and the table [V, E], both in the compute dtype."""
    c = self.cfg
    E = c.embed_features
    table_VE = self.matrix("token", (pad_vocab(self.vocab_size), E), kind="token")
    x_BTE = embed(table_VE, ids_BT)
    if c.scale_embed:
      x_BTE = x_BTE * np.asarray(E**0.5, x_BTE.dtype)
    if c.positions == "learned":
      table = self.matrix("position", (c.max_positions, E), kind="position")
      x_BTE = x_BTE + spread(embed(table, self.rows_of(positions_BT, segments_BT)), x_BTE.shape)
    elif c.positions == "sinusoidal":
      table = jnp.asarray(positions.sinusoid_table(ids_BT.shape[1], E), x_BTE.dtype)
      x_BTE = x_BTE + table[positions_BT]
    if c.token_types:
      table = self.matrix("type", (c.token_types, E), kind="type")
      x_BTE = x_BTE + (spread(table[None, :1], x_BTE.shape) if types_BT is None else embed(table, types_BT))
    x_BTE = self.st.constrain(x_BTE, STREAM)
    if c.embed_norm:
      x_BTE = Norm(c, self.st, name="norm")(x_BTE)
    x_BTE = dropout(x_BTE, c.dropout, noise, layer, EMBED)
    if c.embed_dim != E:
      x_BTE = self.st.constrain(Dense(c, self.st, c.embed_dim, name="project")(x_BTE), STREAM)
    return x_BTE, table_VE

  def rows_of(self, positions_BT: Array, segments_BT: Array | None) -> Array:
    """Rows of the table of positions; padding has one of its own where there is an offset (RoBERTa)."""
    offset = self.cfg.position_offset
    rows = positions_BT + offset
    return jnp.where(segments_BT == 0, offset - 1, rows) if offset and segments_BT is not None else rows


class Dense(Layer):
  """One linear to `features`, and an activation unless its name is empty."""

  features: int = 0
  activation: str = ""
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    w_DE = self.stored("w", (x.shape[-1], self.features))
    batch = "BTPQ"[: x.ndim - 1]
    b_E = self.bias("b", (self.features,), self.use_bias)
    y = linear(f"{batch}D,DE->{batch}E", x, w_DE, b_E, self.axes("w").names, self.st)
    return ACTIVATIONS[self.activation](y) if self.activation else y
