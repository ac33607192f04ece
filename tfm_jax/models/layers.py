"""The layers of every Transformer: their parameters and a few einsums. The mathematics is in `ops`.

Names of arrays carry their axes: B batch, T queries, S keys, D embed, H attention heads, G heads of keys and values, K
head dimension, F mlp, V vocabulary, E width of the embedding tables.
"""

import contextlib
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from tfm_jax.models.cache import KeysValues
from tfm_jax.models.config import Axes, ModelConfig, param_axes
from tfm_jax.models.init import initializer, scaled
from tfm_jax.models.residual import ORDERS, deepnorm
from tfm_jax.models.sight import Sight, attend_locally
from tfm_jax.ops import norms, positions
from tfm_jax.ops.activations import ACTIVATIONS, GATED
from tfm_jax.ops.attention import attention_probabilities
from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.ops.masks import CAUSAL
from tfm_jax.sharding.linear import linear as linear_op
from tfm_jax.sharding.placement import Placement

# Dropout sites of a layer. Each draws its own random bits.
EMBED, ATTENTION, AFTER_ATTENTION, CROSS, AFTER_CROSS, INNER, AFTER_MLP, FINAL = range(8)

STREAM = ("batch", "stream", "act_embed")  # axes of the residual stream, of norms and dropout
READ = ("batch", "seq", None)  # axes of what the linears of a block read
WHOLE = ("batch", "seq", "act_embed")  # axes of the output of a stack
# Names by which `model.remat` keeps the outputs of linears, and of those of attention.
LINEAR, PROJECTION = "linear", "projection"
_SCALED_BY_DEEPNORM = r"(attn|cross)/w[vo]|(mlp|experts)/w\w"  # weights that its second constant multiplies
_LOOKED_UP = ("token", "position", "type")  # tables from which rows are looked up


def linear(spec: str, x: Array, w: Array, b: Array | None, axes: tuple, st: Placement, name: str = LINEAR) -> Array:
  """A linear with a weight as it is stored, which has these logical axes.

  Its output is named for `model.remat`: checkpoint policies do not see the dots inside a custom VJP.
  """
  return checkpoint_name(linear_op(spec, x, w, b, axes, st), name)


class Context(NamedTuple):
  """What all blocks of a stack share.

  Attributes:
    own: kernel and masks of attention over the stack's own tokens.
    across: the same for attention over the encoder's tokens.
    positions_BT: positions of the tokens, for rotary positions.
    memory_BSD: the encoder's output.
    start: with a cache, the column of the first new token.
    noise: of dropout; None: no dropout.
    segments_BT: of the tokens, [B or 1, T]; 0 is padding. None: a single segment.
  """

  own: Sight
  across: Sight | None = None
  positions_BT: Array | None = None
  memory_BSD: Array | None = None
  start: Array | None = None
  noise: Noise | None = None
  segments_BT: Array | None = None

  def prepared(self) -> "Context":
    """With the masks in the form of their kernels."""
    return self._replace(own=self.own.prepared(), across=self.across and self.across.prepared())


class Routing(NamedTuple):
  """What the experts of a layer did, as sums over the tokens of each row, float32 [B]: see `ops.experts`.

  Attributes:
    balance_B: of the balance loss.
    z_B: of the router's z-loss.
    dropped_B: choices of an expert that had no place left.
  """

  balance_B: Array
  z_B: Array
  dropped_B: Array


class Layer(nn.Module):
  """A Flax module with the fields and helpers that all layers share.

  Attributes:
    cfg: the resolved configuration.
    st: the sharding strategy on its mesh (static data).
  """

  cfg: ModelConfig
  st: Placement

  @nn.nowrap
  def param(self, name: str, init: Callable[..., Array], *args: Any) -> Array:  # type: ignore[override]
    """A parameter, created by `init(key, *args)`.

    Existing ones are only read. Flax would trace `init` at every call to compare shapes, a third of all tracing.
    """
    value = None if self.is_initializing() else self.get_variable("params", name)
    return super().param(name, init, *args) if value is None else value

  def axes(self, name: str) -> Axes:
    """Logical axes that `PARAM_AXES` declares for a parameter of this module, without the axis of layers."""
    names, layers, inputs = param_axes("/".join((*self.path, name)))
    first = int(names[:1] == ("layers",))
    return Axes(names[first:], layers - first, inputs)

  def stored(self, name: str, shape: tuple[int, ...], kind: str = "") -> Array:
    """A weight as it is stored: float32, sharded by the strategy. `kind`: see `initializer`."""
    _, experts, inputs = self.axes(name)
    matrix = shape[experts:]
    inputs = inputs or 1  # in tables that are not matrices, each row belongs to one input
    fan_in, fan_out = math.prod(matrix[:inputs]), math.prod(matrix[inputs:])
    part = kind or f"{self.name}/{name}"
    init = initializer(part, self.cfg, fan_in, fan_out)
    if ORDERS[self.cfg.norm_order].deep and re.fullmatch(_SCALED_BY_DEEPNORM, part):
      init = scaled(init, self.deepnorm()[1])
    return self.param(name, init, shape)

  @nn.nowrap
  def deepnorm(self) -> tuple[float, float]:
    """See `residual.deepnorm`."""
    return deepnorm(self.path[0] if self.path else "", self.cfg.num_layers, self.cfg.decoder_depth)

  def matrix(self, name: str, shape: tuple[int, ...], kind: str = "") -> Array:
    """A weight, cast to the compute dtype and gathered."""
    w = self.stored(name, shape, kind)
    return self.st.weight(w, self.axes(name).names, self.cfg.compute_dtype, looked_up=kind in _LOOKED_UP)

  def bias(self, name: str, shape: tuple[int, ...], exists: bool) -> Array | None:
    """A float32 bias that starts as zeros, or None."""
    return self.param(name, nn.initializers.zeros, shape) if exists else None


class Norm(Layer):
  """LayerNorm or RMSNorm (`model.norm`)."""

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, x_BTD.shape[-1:])
    epsilon: Any = self.cfg.norm_epsilon
    if self.cfg.norm == "rms":
      return norms.rms_norm(x_BTD, scale, epsilon)
    return norms.layer_norm(x_BTD, scale, self.bias("bias", x_BTD.shape[-1:], self.cfg.has_bias("norm")), epsilon)


class Attention(Layer):
  """Multi-head attention of x over itself, or over the encoder's output (`cross`).

  Query heads may share heads of keys and values (Ainslie et al. 2023): G groups of R query heads each.

  Attributes:
    cross: attend to the encoder's output.
    emit: also return the attention weights.
  """

  cross: bool = False
  emit: bool = False

  @nn.compact
  def __call__(
    self, x_BTD: Array, layer: Array, ctx: Context, kept: KeysValues | None = None
  ) -> tuple[Array, KeysValues, Array | None]:
    """The output [B, T, D]; the keys and values computed here; if `emit`, the attention weights [B, H, T, S].

    `kept` are the keys and values of a cache: those of earlier tokens, or (`cross`) of the whole encoder's output.
    """
    c, st = self.cfg, self.st
    D, H, G, K = c.embed_dim, c.num_heads, c.kv_heads, c.head_features
    embed_axis, group_axis, head_axis = self.axes("wk").names

    def projections(x: Array, names: str) -> list[Array]:
      """Projections of one input, computed as a single dot with one dX, one gather of weights and one scatter of dW.

      With a key per query head, the weights are stacked along a leading axis C. Otherwise they are concatenated within
      each group: its R query heads, its key, its value.
      """
      sizes = {"q": H // G, "k": 1, "v": 1}
      ws = [self.stored(f"w{n}", (D, G * sizes[n], K)) for n in names]
      biases = [self.bias(f"b{n}", (G * sizes[n], K), c.has_bias("qkv")) for n in names]
      if kept is not None:  # few tokens: to put the weights together would take longer than to multiply with them
        each = [
          linear("BTD,DHK->BTHK", x, w, b, self.axes(f"w{n}").names, st)
          for n, w, b in zip(names, ws, biases, strict=True)
        ]
        return [st.constrain(y_BTHK, ("batch", "seq", "act_heads", None)) for y_BTHK in each]
      bs = [b for b in biases if b is not None]
      if H == G:
        w_DCHK, b_CHK = jnp.stack(ws, axis=1), jnp.stack(bs) if bs else None
        y_CBTHK = linear("BTD,DCHK->CBTHK", x, w_DCHK, b_CHK, (embed_axis, None, group_axis, head_axis), st, PROJECTION)
        return list(st.constrain(y_CBTHK, (None, "batch", "seq", "act_heads", None)))
      w_DGRK = jnp.concatenate([w.reshape(D, G, -1, K) for w in ws], axis=2)
      b_GRK = jnp.concatenate([b.reshape(G, -1, K) for b in bs], axis=1) if bs else None
      y_BTGRK = linear("BTD,DGRK->BTGRK", x, w_DGRK, b_GRK, (embed_axis, group_axis, None, head_axis), st, PROJECTION)
      y_BTGRK = st.constrain(y_BTGRK, ("batch", "seq", "act_heads", None, None))
      ends = np.cumsum([sizes[n] for n in names])[:-1]
      return [y.reshape(*y.shape[:2], y.shape[2] * y.shape[3], K) for y in jnp.split(y_BTGRK, ends, axis=3)]

    if self.cross:
      (q_BTHK,) = projections(x_BTD, "q")
      q_BTHK = self.prepared(q_BTHK, "q")
      if kept is None:
        assert ctx.memory_BSD is not None
        k_BSGK, v_BSGK = projections(ctx.memory_BSD, "kv")
        new = keys_values = KeysValues(self.prepared(k_BSGK, "k"), v_BSGK)
      else:
        new, keys_values = kept, kept.read(c.compute_dtype)
    else:
      q_BTHK, k_BTGK, v_BTGK = projections(x_BTD, "qkv")
      q_BTHK, k_BTGK = self.prepared(q_BTHK, "q"), self.prepared(k_BTGK, "k")
      if c.positions == "rotary":
        assert ctx.positions_BT is not None
        rates = rotary_rates(c, layer)
        q_BTHK, k_BTGK = (positions.rotate(x, ctx.positions_BT, rates) for x in (q_BTHK, k_BTGK))
      new = KeysValues(k_BTGK, v_BTGK)
      keys_values = new
      if kept is not None:
        assert ctx.start is not None
        keys_values = kept.with_new(new, ctx.start, st).read(c.compute_dtype)
    if c.scale_by_layer:
      q_BTHK = (q_BTHK.astype(jnp.float32) / (layer + 1).astype(jnp.float32)).astype(q_BTHK.dtype)
    sight = ctx.across if self.cross else ctx.own
    assert sight is not None
    with jax.named_scope(CAUSAL) if sight.causal else contextlib.nullcontext():  # read by the count of FLOPs
      y_BTHK, weights_BHTS = self.attend(q_BTHK, keys_values, sight, layer, ctx.noise)
    y_BTHK = st.constrain(y_BTHK, ("batch", "seq", "act_heads", None))
    wo_HKD, b_D = self.stored("wo", (H, K, D)), self.bias("bo", (D,), c.has_bias("out"))
    y_BTD = linear("BTHK,HKD->BTD", y_BTHK, wo_HKD, b_D, self.axes("wo").names, st, PROJECTION)
    return y_BTD, new, weights_BHTS

  def prepared(self, x: Array, name: str) -> Array:
    """Queries ("q") or keys ("k") as they are used, before rotary positions. Families may differ."""
    return x

  def attend(
    self, q_BTHK: Array, keys_values: KeysValues, sight: Sight, layer: Array, noise: Noise | None
  ) -> tuple[Array, Array | None]:
    """The attention itself, by the stack's kernel. If `emit`, also the weights; the masks must be dense then."""
    c, st = self.cfg, self.st
    mask = sight.of_layer(is_global(c, layer))
    fixed: dict[str, Any] = {"scale": c.head_features**-0.5 if c.scale_attention else 1.0, "platform": st.platform}
    weights_BHTS = None
    if self.emit:
      weights_BHTS = attention_probabilities(q_BTHK, keys_values.k, mask, sight.bias_HTS, **fixed)
      weights_BHTS = st.constrain(weights_BHTS, ("batch", "act_heads", "seq", None))
    site = CROSS if self.cross else ATTENTION
    if sight.kernel.local:
      noise = noise if c.attention_dropout else None
      arrays = (q_BTHK, keys_values[:2], mask, sight.bias_HTS, noise, layer)
      fixed |= {"dropout_rate": c.attention_dropout, "site": site}
      return attend_locally(st, sight.kernel, *arrays, **fixed), weights_BHTS
    random: dict[str, Any] = {"dropout_rate": c.attention_dropout, "noise": noise, "layer": layer, "site": site}
    y_BTHK = sight.kernel.attend(q_BTHK, *keys_values[:2], mask=mask, bias_HTS=sight.bias_HTS, **fixed, **random)
    return y_BTHK, weights_BHTS


def is_global(c: ModelConfig, layer: Array) -> Array | bool:
  """Whether a layer of a model with local attention has global attention."""
  return layer % c.window.global_every == 0 if c.window.global_every else False


def rotary_rates(c: ModelConfig, layer: Array) -> Array | np.ndarray:
  """The frequencies of a layer's rotary positions, [K / 2]."""
  stretched = (c.rotary.factor, c.rotary.original, c.rotary.low, c.rotary.high)
  rates, local = (
    positions.rotary_rates(c.head_features, base, *stretched) for base in (c.rotary.base, c.rotary.local_base)
  )
  return jnp.where(is_global(c, layer), rates, local) if c.window.size else rates


class Mlp(Layer):
  """The feed-forward layer: two linears around an activation, which may be gated (Shazeer 2020)."""

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, ctx: Context) -> tuple[Array, Routing | None]:
    """The output [B, T, D]; what its experts did, or None if it has none."""
    c, st = self.cfg, self.st
    D, F = c.embed_dim, c.mlp_features
    names = "ig" if c.gated else "i"
    ws = [self.stored(f"w{n}", (D, F)) for n in names]
    biases = [self.bias(f"b{n}", (F,), c.has_bias("mlp")) for n in names]
    embed_axis, mlp_axis = self.axes("wi").names
    if ctx.start is None:
      w_DCF, bs = jnp.stack(ws, axis=1), [b for b in biases if b is not None]
      b_CF = jnp.stack(bs) if bs else None
      h_CBTF = linear("BTD,DCF->CBTF", x_BTD, w_DCF, b_CF, (embed_axis, None, mlp_axis), st)
      each = list(st.constrain(h_CBTF, (None, "batch", "seq", "act_mlp")))
    else:  # with a cache: few tokens, as for the projections of attention
      each = [linear("BTD,DF->BTF", x_BTD, w, b, (embed_axis, mlp_axis), st) for w, b in zip(ws, biases, strict=True)]
      each = [st.constrain(h_BTF, ("batch", "seq", "act_mlp")) for h_BTF in each]
    # The activation is applied to the output of wi; wg is the linear gate.
    h_BTF = GATED[c.activation](*each) if c.gated else ACTIVATIONS[c.activation](*each)
    if c.inner_dropout:
      h_BTF = dropout(h_BTF, c.dropout, ctx.noise, layer, INNER)
    wo_FD = self.stored("wo", (F, D))
    b_D = self.bias("bo", (D,), c.has_bias("mlp"))
    return linear("BTF,FD->BTD", h_BTF, wo_FD, b_D, self.axes("wo").names, st), None


class Dense(Layer):
  """A linear to `features` and, unless its name is empty, an activation."""

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
