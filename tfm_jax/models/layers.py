"""Layers: their parameters and a few einsums. B batch, T queries, S keys, D embed, H heads, K head, F mlp, V vocab."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from tfm_jax.models.config import ModelConfig, pad_vocab
from tfm_jax.models.init import initializer
from tfm_jax.ops import attention as attend
from tfm_jax.ops import norms, positions
from tfm_jax.ops.activations import ACTIVATIONS, GATED
from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.ops.linear import embed
from tfm_jax.ops.losses import Unembedding
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

  def stored(self, name: str, shape: tuple[int, ...], inputs: int, kind: str = "") -> Array:
    """A weight whose first `inputs` axes are inputs, as it is stored: in float32, where the strategy puts it."""
    fan_in, fan_out = math.prod(shape[:inputs]), math.prod(shape[inputs:])
    return self.param(name, initializer(kind or f"{self.name}/{name}", self.cfg, fan_in, fan_out), shape)

  def matrix(self, name: str, shape: tuple[int, ...], inputs: int, axes: tuple, kind: str = "") -> Array:
    """A weight, gathered in the compute dtype."""
    w = self.stored(name, shape, inputs, kind)
    return self.st.weight(w, axes, self.cfg.compute_dtype, looked_up=kind in _LOOKED_UP)

  def bias(self, name: str, shape: tuple[int, ...]) -> Array | None:
    """A bias of zeros, float32, or None in a model without biases."""
    return self.param(name, nn.initializers.zeros, shape) if self.cfg.bias else None


class Norm(Layer):
  """LayerNorm or RMSNorm, as the config says."""

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, x_BTD.shape[-1:])
    epsilon: Any = self.cfg.norm_epsilon
    if self.cfg.norm == "rms":
      return norms.rms_norm(x_BTD, scale, epsilon)
    return norms.layer_norm(x_BTD, scale, self.bias("bias", x_BTD.shape[-1:]), epsilon)


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

    def projections(x: Array, names: str) -> list[Array]:
      """Linears that share an input are one dot: they share one dX, one gathering of weights, one scattering of dW.

      A group is its query heads, its key and its value.
      """
      sizes = {"q": H // G, "k": 1, "v": 1}
      ws = [self.stored(f"w{n}", (D, G * sizes[n], K), 1).reshape(D, G, sizes[n], K) for n in names]
      w_DGRK = jnp.concatenate(ws, axis=2)
      bs = [b.reshape(G, sizes[n], K) for n in names if (b := self.bias(f"b{n}", (G * sizes[n], K))) is not None]
      b_GRK = jnp.concatenate(bs, axis=1) if bs else None
      y_BTGRK = linear("BTD,DGRK->BTGRK", x, w_DGRK, b_GRK, ("embed", "kv_heads", None, None), st)
      y_BTGRK = st.constrain(y_BTGRK, ("batch", "seq", "act_heads", None, None))
      ends = np.cumsum([sizes[n] for n in names])[:-1]
      return [y.reshape(*y.shape[:2], -1, K) for y in jnp.split(y_BTGRK, ends, axis=3)]

    if self.cross:
      (q_BTHK,), (k_BSGK, v_BSGK) = projections(x_BTD, "q"), projections(ctx.memory_BSD, "kv")
    else:
      q_BTHK, k_BSGK, v_BSGK = projections(x_BTD, "qkv")
    if c.positions == "rotary" and not self.cross:
      q_BTHK, k_BSGK = (positions.rotate(x, ctx.positions_BT) for x in (q_BTHK, k_BSGK))
    y_BTHK = self.attend(q_BTHK, k_BSGK, v_BSGK, layer, ctx)
    y_BTHK = st.constrain(y_BTHK, ("batch", "seq", "act_heads", None))
    wo_HKD = self.stored("wo", (H, K, D), 2)
    return linear("BTHK,HKD->BTD", y_BTHK, wo_HKD, self.bias("bo", (D,)), ("heads", None, "embed"), st)

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
      mask_BTS=ctx.memory_mask_BTS if self.cross else ctx.mask_BTS,
      bias_HTS=None if self.cross else ctx.bias_HTS,
      scale=scale,
      platform=st.platform,
      dropout_rate=c.attention_dropout, noise=ctx.noise, layer=layer, site=CROSS if self.cross else ATTENTION,
    )  # fmt: skip


def splash_serves(c: ModelConfig, st: Placement, queries: int, keys: int, training: bool) -> bool:
  """Whether attention runs as splash attention: asked for, or on a TPU where it can do what the config wants."""
  if not splash_fits(queries, keys):  # initialisation has a short row, whatever the config wants
    return False
  able = c.positions != "relative" and not (training and c.attention_dropout)
  return c.attention == "splash" or (c.attention == "auto" and st.platform == "tpu" and able)


class Mlp(Layer):
  """Two linears around an activation, with a gate beside it if the config says so (Shazeer 2020)."""

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, ctx: Context) -> Array:
    c, st = self.cfg, self.st
    D, F = c.embed_dim, c.mlp_features
    names = "ig" if c.gated else "i"
    w_DCF = jnp.stack([self.stored(f"w{n}", (D, F), 1) for n in names], axis=1)
    b_CF = jnp.stack([self.bias(f"b{n}", (F,)) for n in names]) if c.bias else None
    h_CBTF = linear("BTD,DCF->CBTF", x_BTD, w_DCF, b_CF, ("embed", None, "mlp"), st)
    h_CBTF = st.constrain(h_CBTF, (None, "batch", "seq", "act_mlp"))
    # wi is what the activation sees, wg the linear gate beside it.
    if c.gated:
      h_BTF = GATED[c.activation](h_CBTF[0], h_CBTF[1])
    else:
      h_BTF = ACTIVATIONS[c.activation](h_CBTF[0])
    if c.inner_dropout:
      h_BTF = dropout(h_BTF, c.dropout, ctx.noise, layer, INNER)
    wo_FD = self.stored("wo", (F, D), 1)
    return linear("BTF,FD->BTD", h_BTF, wo_FD, self.bias("bo", (D,)), ("mlp", "embed"), st)


class Block(Layer):
  """Attention, cross-attention where there is an encoder, feed-forward: each with its residual, norm and dropout."""

  causal: bool = False
  cross: bool = False

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, ctx: Context) -> Array:
    c, st = self.cfg, self.st

    def residual(x: Array, name: str, site: int, sublayer: Layer) -> Array:
      norm = Norm(c, st, name=f"{name}_norm")
      y = sublayer(st.constrain(norm(x) if c.norm_order == "pre" else x, ("batch", "seq", None)), layer, ctx)
      y = st.constrain(y, STREAM)
      x = x + dropout(y, c.dropout, ctx.noise, layer, site)
      return x if c.norm_order == "pre" else norm(x)

    x_BTD = residual(x_BTD, "attn", AFTER_ATTENTION, Attention(c, st, self.causal, name="attn"))
    if self.cross:
      x_BTD = residual(x_BTD, "cross", AFTER_CROSS, Attention(c, st, cross=True, name="cross"))
    return residual(x_BTD, "mlp", AFTER_MLP, Mlp(c, st, name="mlp"))


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
  return run(block(cfg, st, causal, cross, name="blocks"), x_BTD, layers)[0]


class Embed(Layer):
  """Token embeddings, with positions and token types where the family has them, norm and dropout."""

  vocab_size: int = 0

  @nn.compact
  def __call__(
    self, ids_BT: Array, positions_BT: Array, types_BT: Array | None, noise: Noise | None, layer: int
  ) -> tuple[Array, Array]:
    """The embeddings [B, T, D] and the table [V, D], both in the compute dtype."""
    c = self.cfg
    D = c.embed_dim
    table_VD = self.matrix("token", (pad_vocab(self.vocab_size), D), 1, ("vocab", "embed"), kind="token")
    x_BTD = embed(table_VD, ids_BT)
    if c.scale_embed:
      x_BTD = x_BTD * np.asarray(D**0.5, x_BTD.dtype)
    if c.positions == "learned":
      table = self.matrix("position", (c.max_positions, D), 1, (None, "embed"), kind="position")
      x_BTD = x_BTD + embed(table, positions_BT)
    elif c.positions == "sinusoidal":
      table = jnp.asarray(positions.sinusoid_table(ids_BT.shape[1], D), x_BTD.dtype)
      x_BTD = x_BTD + table[positions_BT]
    if c.token_types:
      table = self.matrix("type", (c.token_types, D), 1, (None, "embed"), kind="type")
      x_BTD = x_BTD + (table[None, :1] if types_BT is None else embed(table, types_BT))
    x_BTD = self.st.constrain(x_BTD, STREAM)
    if c.embed_norm:
      x_BTD = Norm(c, self.st, name="norm")(x_BTD)
    return dropout(x_BTD, c.dropout, noise, layer, EMBED), table_VD


class Head(Layer):
  """The output layer: a table of its own, or the embedding table (`tied_VD`)."""

  vocab_size: int = 0
  transform: bool = False  # BERT: a dense layer, activation and norm before it, and a bias

  @nn.compact
  def __call__(self, h_BTD: Array, tied_VD: Array | None) -> tuple[Array, Unembedding]:
    c, st = self.cfg, self.st
    D, V = c.embed_dim, pad_vocab(self.vocab_size)
    if self.transform:
      h_BTD = Norm(c, st, name="norm")(Dense(c, st, name="dense")(h_BTD))
    if c.scale_output:
      h_BTD = h_BTD * np.asarray(D**-0.5, h_BTD.dtype)
    w_VD = self.matrix("w", (V, D), 1, ("vocab", "embed"), kind="head") if tied_VD is None else tied_VD
    bias_V = self.param("bias", nn.initializers.zeros, (V,)) if self.transform else None
    return h_BTD, Unembedding(w_VD, bias_V)


class Dense(Layer):
  """One linear D -> D and the family's activation."""

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    D = self.cfg.embed_dim
    w_DE = self.stored("w", (D, D), 1)
    y_BTE = linear("BTD,DE->BTE", x_BTD, w_DE, self.bias("b", (D,)), ("embed", None), self.st)
    return ACTIVATIONS[self.cfg.activation](y_BTE)
