"""Layers: their parameters and a few einsums. B batch, T queries, S keys, D embed, H heads, K head, F mlp, V vocab."""

import contextlib
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from tfm_jax.models.cache import KeysValues
from tfm_jax.models.config import Axes, ModelConfig, pad_vocab, param_axes
from tfm_jax.models.init import initializer
from tfm_jax.models.sight import Sight
from tfm_jax.ops import norms, positions
from tfm_jax.ops.activations import ACTIVATIONS, GATED
from tfm_jax.ops.broadcast import spread
from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.ops.linear import embed
from tfm_jax.ops.masks import CAUSAL
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

  own: Sight  # of the stack's own tokens
  across: Sight | None = None  # of the encoder's
  positions_BT: Array | None = None  # for rotary positions
  memory_BSD: Array | None = None  # the encoder's output
  start: Array | None = None  # with a cache: the column of the first new token
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
  """Multi-head attention of x over itself, or over the encoder's output (`cross`).

  Heads of queries may share heads of keys and values (Ainslie et al. 2023): G groups of R query heads each.
  """

  cross: bool = False

  @nn.compact
  def __call__(
    self, x_BTD: Array, layer: Array, ctx: Context, kept: KeysValues | None = None
  ) -> tuple[Array, KeysValues]:
    """The output [B, T, D], and the keys and values that were computed here: those that `kept` lacks.

    `kept` has keys and values of a cache: of the tokens so far, or (`cross`) all of them.
    """
    c, st = self.cfg, self.st
    D, H, G, K = c.embed_dim, c.num_heads, c.kv_heads, c.head_features
    embed_axis, group_axis, head_axis = self.axes("wk").names

    def projections(x: Array, names: str) -> list[Array]:
      """Linears that share an input are one dot: they share one dX, one gathering of weights, one scattering of dW.

      Where each query head has a key of its own, the projections come first, as slices of the dot. Else a group is its
      R query heads, its key and its value.
      """
      sizes = {"q": H // G, "k": 1, "v": 1}
      ws = [self.stored(f"w{n}", (D, G * sizes[n], K)) for n in names]
      biases = [self.bias(f"b{n}", (G * sizes[n], K), c.has_bias("qkv")) for n in names]
      bs = [b for b in biases if b is not None]
      if H == G:
        w_DCHK, b_CHK = jnp.stack(ws, axis=1), jnp.stack(bs) if bs else None
        y_CBTHK = linear("BTD,DCHK->CBTHK", x, w_DCHK, b_CHK, (embed_axis, None, group_axis, head_axis), st)
        return list(st.constrain(y_CBTHK, (None, "batch", "seq", "act_heads", None)))
      w_DGRK = jnp.concatenate([w.reshape(D, G, -1, K) for w in ws], axis=2)
      b_GRK = jnp.concatenate([b.reshape(G, -1, K) for b in bs], axis=1) if bs else None
      y_BTGRK = linear("BTD,DGRK->BTGRK", x, w_DGRK, b_GRK, (embed_axis, group_axis, None, head_axis), st)
      y_BTGRK = st.constrain(y_BTGRK, ("batch", "seq", "act_heads", None, None))
      ends = np.cumsum([sizes[n] for n in names])[:-1]
      return [y.reshape(*y.shape[:2], y.shape[2] * y.shape[3], K) for y in jnp.split(y_BTGRK, ends, axis=3)]

    if self.cross:
      (q_BTHK,) = projections(x_BTD, "q")
      if kept is None:
        assert ctx.memory_BSD is not None
        kept = KeysValues(*projections(ctx.memory_BSD, "kv"))
      new = keys_values = kept
    else:
      q_BTHK, k_BTGK, v_BTGK = projections(x_BTD, "qkv")
      if c.positions == "rotary":
        assert ctx.positions_BT is not None
        rates = rotary_rates(c, layer)
        q_BTHK, k_BTGK = (positions.rotate(x, ctx.positions_BT, rates) for x in (q_BTHK, k_BTGK))
      new = KeysValues(k_BTGK, v_BTGK)
      keys_values = new
      if kept is not None:
        assert ctx.start is not None
        keys_values = kept.with_new(new, ctx.start, st)
    if c.scale_by_layer:
      q_BTHK = (q_BTHK.astype(jnp.float32) / (layer + 1).astype(jnp.float32)).astype(q_BTHK.dtype)
    sight = ctx.across if self.cross else ctx.own
    assert sight is not None
    with jax.named_scope(CAUSAL) if sight.causal else contextlib.nullcontext():  # so that FLOPs can be counted
      y_BTHK = self.attend(q_BTHK, keys_values, sight, layer, ctx.noise)
    y_BTHK = st.constrain(y_BTHK, ("batch", "seq", "act_heads", None))
    wo_HKD, b_D = self.stored("wo", (H, K, D)), self.bias("bo", (D,), c.has_bias("out"))
    return linear("BTHK,HKD->BTD", y_BTHK, wo_HKD, b_D, self.axes("wo").names, st), new

  def attend(self, q_BTHK: Array, keys_values: KeysValues, sight: Sight, layer: Array, noise: Noise | None) -> Array:
    """The attention itself, by the stack's kernel."""
    c, st = self.cfg, self.st
    mask = sight.of_layer(is_global(c, layer))
    fixed: dict[str, Any] = {"scale": c.head_features**-0.5 if c.scale_attention else 1.0, "platform": st.platform}
    if sight.kernel.local:
      heads = ("batch", "seq", "act_heads", None)
      places = jax.tree.map(lambda x: ("batch", "seq")[: jnp.ndim(x)], mask)
      run = lambda *arrays: sight.kernel.attend(*arrays[:3], mask=arrays[3], bias_HTS=None, **fixed)
      return st.local(run, (heads, heads, heads, places), heads)(q_BTHK, *keys_values, mask)
    return sight.kernel.attend(
      q_BTHK, *keys_values, mask=mask, bias_HTS=sight.bias_HTS, **fixed,
      dropout_rate=c.attention_dropout, noise=noise, layer=layer, site=CROSS if self.cross else ATTENTION,
    )  # fmt: skip


def is_global(c: ModelConfig, layer: Array) -> Array | bool:
  """Whether a layer of a model with local attention sees all keys nonetheless."""
  return layer % c.window.global_every == 0 if c.window.global_every else False


def rotary_rates(c: ModelConfig, layer: Array) -> Array | np.ndarray:
  """The rates of a layer's rotary positions, [K / 2]."""
  stretched = (c.rotary.factor, c.rotary.original, c.rotary.low, c.rotary.high)
  rates, local = (
    positions.rotary_rates(c.head_features, base, *stretched) for base in (c.rotary.base, c.rotary.local_base)
  )
  return jnp.where(is_global(c, layer), rates, local) if c.window.size else rates


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


Kept = dict[str, KeysValues]  # by the name of the attention; of one layer or of all


class Block(Layer):
  """Attention, cross-attention where there is an encoder, feed-forward: each with its residual, norm and dropout."""

  cross: bool = False
  sublayers: Sublayers = STANDARD

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, ctx: Context, kept: Kept | None = None) -> tuple[Array, Kept | None]:
    """The output, and with a cache (`kept`: this layer's part of it) what is new in it."""
    c, st = self.cfg, self.st
    new: Kept = {}

    def residual(x: Array, name: str, site: int, sublayer: Layer) -> Array:
      norm = Norm(c, st, name=f"{name}_norm")
      y = norm(x) if c.norm_order == "pre" else x
      if c.norm_order == "pre" and name == "attn" and not c.first_norm:
        y = jnp.where(layer == 0, x, y)
      y = st.constrain(y, ("batch", "seq", None))
      if name == "mlp":
        y = sublayer(y, layer, ctx)
      else:
        y, new[name] = sublayer(y, layer, ctx, (kept or {}).get(name))
      y = st.constrain(y, STREAM)
      x = x + dropout(y, c.dropout, ctx.noise, layer, site)
      return x if c.norm_order == "pre" else norm(x)

    attention: Any = self.sublayers.attention
    x_BTD = residual(x_BTD, "attn", AFTER_ATTENTION, attention(c, st, name="attn"))
    if self.cross:
      x_BTD = residual(x_BTD, "cross", AFTER_CROSS, attention(c, st, cross=True, name="cross"))
    x_BTD = residual(x_BTD, "mlp", AFTER_MLP, self.sublayers.mlp(c, st, name="mlp"))
    if kept is None:
      return x_BTD, None
    return x_BTD, {name: x for name, x in new.items() if name == "attn" or name not in kept}


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
  cross: bool = False,
  kept: Kept | None = None,
  sublayers: Sublayers = STANDARD,
) -> tuple[Array, Kept | None]:
  """`depth` blocks as one scan over stacked parameters `blocks/...` [N, ...]; `model.scan=false` unrolls it.

  `first` is the number of the first layer, so that the dropout of two stacks differs. `kept` [N, ...] is what a cache
  has for the layers; what is new in it comes back beside the output.
  """
  block = Block
  if cfg.remat != "none":
    block = nn.remat(Block, prevent_cse=not cfg.scan, policy=_KEPT[cfg.remat])
  run = nn.scan(
    lambda module, x, layer, kept: module(x, layer, ctx, kept),
    variable_axes={"params": 0},
    split_rngs={"params": True},
    length=depth,
    unroll=1 if cfg.scan else depth,
  )
  layers = jnp.arange(first, first + depth, dtype=jnp.int32)
  x_BTD, new = run(block(cfg, st, cross, sublayers, name="blocks"), x_BTD, layers, kept)
  return x_BTD, new


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
      x_BTE = x_BTE + positions.sinusoids(positions_BT, E).astype(x_BTE.dtype)
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
