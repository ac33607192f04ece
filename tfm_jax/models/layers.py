"""Layers: their parameters and a few einsums. B batch, T queries, S keys, D embed, H heads, K head, F mlp, V vocab."""

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
from tfm_jax.ops.linear import linear as linear_op
from tfm_jax.ops.losses import Unembedding
from tfm_jax.sharding.placement import Placement

# Dropout sites within a layer; each has bits of its own.
EMBED, ATTENTION, AFTER_ATTENTION, CROSS, AFTER_CROSS, INNER, AFTER_MLP, FINAL = range(8)


_LINEAR = "linear"


def linear(spec: str, x: Array, w: Array, b: Array | None, platform: str) -> Array:
  """`ops.linear`, named, so that `model.remat=dots` can keep its output (the dots inside a custom VJP stay unseen)."""
  return checkpoint_name(linear_op(spec, x, w, b, platform), _LINEAR)


class Context(NamedTuple):
  """What every block of a stack sees beside its input."""

  mask_BTS: Array | None = None
  bias_HTS: Array | None = None
  positions_BT: Array | None = None  # for rotary positions
  memory_BSD: Array | None = None  # the encoder's output
  memory_mask_BTS: Array | None = None
  noise: Noise | None = None


class Layer(nn.Module):
  """Fields and helpers that all layers share. `st` is the strategy on its mesh, static data."""

  cfg: ModelConfig
  st: Placement

  def matrix(self, name: str, shape: tuple[int, ...], inputs: int, axes: tuple, kind: str = "") -> Array:
    """A weight whose first `inputs` axes are inputs: stored in float32, returned gathered in the compute dtype."""
    fan_in, fan_out = math.prod(shape[:inputs]), math.prod(shape[inputs:])
    init = initializer(kind or f"{self.name}/{name}", self.cfg, fan_in, fan_out)
    return self.st.weight(self.param(name, init, shape), axes, self.cfg.compute_dtype)

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
  """Multi-head attention of x over itself, or over the encoder's output (`cross`)."""

  cross: bool = False

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, ctx: Context) -> Array:
    c, st = self.cfg, self.st
    D, H, K = c.embed_dim, c.num_heads, c.head_features

    def projections(x: Array, names: str) -> list[Array]:
      """Linears that share an input are one dot, and so share one dX."""
      w_DCHK = jnp.stack([self.matrix(f"w{n}", (D, H, K), 1, ("embed", "heads", None)) for n in names], axis=1)
      b_CHK = jnp.stack([self.bias(f"b{n}", (H, K)) for n in names]) if c.bias else None
      y_BTCHK = linear("BTD,DCHK->BTCHK", x, w_DCHK, b_CHK, st.platform)
      y_BTCHK = st.constrain(y_BTCHK, ("batch", "seq", None, "act_heads", None))
      return [y_BTCHK[:, :, i] for i in range(len(names))]

    if self.cross:
      (q_BTHK,), (k_BSHK, v_BSHK) = projections(x_BTD, "q"), projections(ctx.memory_BSD, "kv")
    else:
      q_BTHK, k_BSHK, v_BSHK = projections(x_BTD, "qkv")
    if c.positions == "rotary" and not self.cross:
      q_BTHK, k_BSHK = (positions.rotate(x, ctx.positions_BT) for x in (q_BTHK, k_BSHK))
    y_BTHK = attend.attention(
      q_BTHK, k_BSHK, v_BSHK,
      mask_BTS=ctx.memory_mask_BTS if self.cross else ctx.mask_BTS,
      bias_HTS=None if self.cross else ctx.bias_HTS,
      scale=K**-0.5 if c.scale_attention else 1.0,
      platform=st.platform,
      dropout_rate=c.attention_dropout, noise=ctx.noise, layer=layer, site=CROSS if self.cross else ATTENTION,
    )  # fmt: skip
    y_BTHK = st.constrain(y_BTHK, ("batch", "seq", "act_heads", None))
    wo_HKD = self.matrix("wo", (H, K, D), 2, ("heads", None, "embed"))
    return linear("BTHK,HKD->BTD", y_BTHK, wo_HKD, self.bias("bo", (D,)), st.platform)


class Mlp(Layer):
  """Two linears around an activation, with a gate beside it if the config says so (Shazeer 2020)."""

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, ctx: Context) -> Array:
    c, st = self.cfg, self.st
    D, F = c.embed_dim, c.mlp_features
    names = "ig" if c.gated else "i"
    w_DCF = jnp.stack([self.matrix(f"w{n}", (D, F), 1, ("embed", "mlp")) for n in names], axis=1)
    b_CF = jnp.stack([self.bias(f"b{n}", (F,)) for n in names]) if c.bias else None
    h_BTCF = linear("BTD,DCF->BTCF", x_BTD, w_DCF, b_CF, st.platform)
    h_BTCF = st.constrain(h_BTCF, ("batch", "seq", None, "act_mlp"))
    # wi is what the activation sees, wg the linear gate beside it.
    if c.gated:
      h_BTF = GATED[c.activation](h_BTCF[:, :, 0], h_BTCF[:, :, 1])
    else:
      h_BTF = ACTIVATIONS[c.activation](h_BTCF[:, :, 0])
    if c.inner_dropout:
      h_BTF = dropout(h_BTF, c.dropout, ctx.noise, layer, INNER)
    wo_FD = self.matrix("wo", (F, D), 1, ("mlp", "embed"))
    return linear("BTF,FD->BTD", h_BTF, wo_FD, self.bias("bo", (D,)), st.platform)


class Block(Layer):
  """Attention, cross-attention where there is an encoder, feed-forward: each with its residual, norm and dropout."""

  cross: bool = False

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, ctx: Context) -> Array:
    c, st = self.cfg, self.st

    def residual(x: Array, name: str, site: int, sublayer: Layer) -> Array:
      norm = Norm(c, st, name=f"{name}_norm")
      y = sublayer(norm(x) if c.norm_order == "pre" else x, layer, ctx)
      y = st.constrain(y, ("batch", "seq", None))
      x = x + dropout(y, c.dropout, ctx.noise, layer, site)
      return x if c.norm_order == "pre" else norm(x)

    x_BTD = residual(x_BTD, "attn", AFTER_ATTENTION, Attention(c, st, name="attn"))
    if self.cross:
      x_BTD = residual(x_BTD, "cross", AFTER_CROSS, Attention(c, st, cross=True, name="cross"))
    return residual(x_BTD, "mlp", AFTER_MLP, Mlp(c, st, name="mlp"))


_KEPT = {
  "dots": jax.checkpoint_policies.save_only_these_names(_LINEAR),
  "full": jax.checkpoint_policies.nothing_saveable,
}


def stack(
  cfg: ModelConfig, st: Placement, x_BTD: Array, ctx: Context, depth: int, first: int = 0, cross: bool = False
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
  return run(block(cfg, st, cross=cross, name="blocks"), x_BTD, layers)[0]


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
    x_BTD = self.st.constrain(x_BTD, ("batch", "seq", None))
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
    w_DE = self.matrix("w", (D, D), 1, ("embed", None))
    y_BTE = linear("BTD,DE->BTE", x_BTD, w_DE, self.bias("b", (D,)), self.st.platform)
    return ACTIVATIONS[self.cfg.activation](y_BTE)
