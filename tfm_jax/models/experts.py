"""Experts: feed-forward layers of which each token uses a few, chosen by a router."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.layers import Context, Layer, Routing, linear
from tfm_jax.ops import experts as ops
from tfm_jax.ops.activations import ACTIVATIONS, GATED


class Experts(Layer):
  """The feed-forward layer of models with experts (`experts.count`).

  Training gives each expert a limited number of places for the tokens of a row or of a part of it (`experts.capacity`,
  `experts.group`), so that all shapes are known and rows do not depend on each other. Otherwise no token is dropped:
  every expert computes every token, and the gates of those that were not chosen are zero. Router, gates and losses are
  float32.
  """

  @nn.compact
  def __call__(self, x_BTD: Array, layer: Array, ctx: Context) -> tuple[Array, Routing]:
    c, st = self.cfg, self.st
    E, K = c.experts.count, c.experts.top_k
    real_BT = jnp.ones(x_BTD.shape[:2], bool) if ctx.segments_BT is None else ctx.segments_BT != 0
    real_BT = jnp.broadcast_to(real_BT, x_BTD.shape[:2])
    w_DE = self.stored("router", (c.embed_dim, E))
    logits_BTE = linear("BTD,DE->BTE", x_BTD.astype(jnp.float32), w_DE, None, self.axes("router").names, st)
    choice = ops.choose(logits_BTE, K)
    experts = _Stacked(c, st, name="experts")
    routing = Routing(ops.balance_B(choice, real_BT), ops.z_B(logits_BTE, real_BT), jnp.zeros(len(x_BTD)))
    if c.experts.capacity and ctx.noise is not None:
      y_BTD, dropped_B = self.limited(experts, x_BTD, real_BT, choice)
      return y_BTD, routing._replace(dropped_B=dropped_B)
    gates_BTE = (jax.nn.one_hot(choice.experts_BTK, E) * choice.gates_BTK[..., None]).sum(2)
    with jax.named_scope(ops.share_scope(K, E)):  # read by the count of FLOPs
      return experts(x_BTD, gates_BTE), routing

  def limited(
    self, experts: Callable[[Array], Array], x_BTD: Array, real_BT: Array, choice: ops.Choice
  ) -> tuple[Array, Array]:
    """The output [B, T, D] where experts have places for so many tokens of a group; the number of dropped choices [B].

    In the names of axes, B are the groups of all rows here, and T the tokens of a group.
    """
    c, st = self.cfg, self.st
    E, (rows, length, D) = c.experts.count, x_BTD.shape
    T = min(c.experts.group or length, length)
    C = ops.places_per_expert(c.experts.capacity, T, E, c.experts.top_k)

    def grouped(x: Array) -> Array:
      padding = [(0, 0), (0, -length % T), *[(0, 0)] * (x.ndim - 2)]
      return jnp.pad(x, padding).reshape(-1, T, *x.shape[2:])

    x_BTD, real_BT, experts_BTK, gates_BTK = map(grouped, (x_BTD, real_BT, choice.experts_BTK, choice.gates_BTK))
    place_BTK = ops.places(experts_BTK, real_BT, E, C)
    dropped_BT = ((place_BTK == E * C) & real_BT[:, :, None]).sum(2)
    send, gather = ops.COPIES if st.lone_cpu else ops.PRODUCTS
    x_BXD = send(x_BTD, place_BTK, E * C, st.platform)
    # The tokens of all rows that an expert has go to its device, and come back: if experts are split over the axes of
    # the batch, these constraints are the two all-to-alls.
    by_row, by_expert = ((*axes, None, None) for axes in ((None, "batch"), ("act_experts", "batch")))
    x_EBCD = st.constrain(x_BXD.reshape(-1, E, C, D).swapaxes(0, 1), by_row)
    y_EBCD = experts(st.constrain(x_EBCD, by_expert))
    y_BXD = st.constrain(st.constrain(y_EBCD, by_expert), by_row).swapaxes(0, 1).reshape(x_BXD.shape)
    y_BTD = gather(y_BXD, place_BTK, gates_BTK, st.platform).reshape(rows, -1, D)[:, :length]
    return y_BTD, dropped_BT.reshape(rows, -1).sum(1).astype(jnp.float32)


class _Stacked(Layer):
  """The weights of all experts, [E, ...]."""

  @nn.compact
  def __call__(self, x: Array, gates_BTE: Array | None = None) -> Array:
    """The output [E, B, C, D] for each expert's own tokens x [E, B, C, D].

    With gates, every expert computes the same tokens x [B, T, D], and the result is the sum of their outputs times
    their gates.
    """
    c, st = self.cfg, self.st
    E, D, F = c.experts.count, c.embed_dim, c.mlp_features
    names = "ig" if c.gated else "i"
    w_EDNF = jnp.stack([self.stored(f"w{n}", (E, D, F)) for n in names], axis=2)
    biases = [self.bias(f"b{n}", (E, F), c.has_bias("mlp")) for n in names]
    expert_axis, embed_axis, mlp_axis = self.axes("wi").names
    own, spec = ("act_experts", "batch", None, "act_mlp"), "EBTD" if gates_BTE is None else "BTD"
    h_NEBTF = linear(f"{spec},EDNF->NEBTF", x, w_EDNF, None, (expert_axis, embed_axis, None, mlp_axis), st)
    h_NEBTF = st.constrain(h_NEBTF, (None, *own))
    each = [h if b is None else (h + b[:, None, None]).astype(h.dtype) for h, b in zip(h_NEBTF, biases, strict=True)]
    h_EBTF = GATED[c.activation](*each) if c.gated else ACTIVATIONS[c.activation](*each)
    w_EFD, b_ED = self.stored("wo", (E, F, D)), self.bias("bo", (E, D), c.has_bias("mlp"))
    axes = self.axes("wo").names
    if gates_BTE is None:
      y_EBTD = linear("EBTF,EFD->EBTD", h_EBTF, w_EFD, None, axes, st)
      return y_EBTD if b_ED is None else (y_EBTD + b_ED[:, None, None]).astype(y_EBTD.dtype)
    gates_EBT = jnp.moveaxis(gates_BTE, -1, 0)
    h_EBTF = st.constrain((h_EBTF * gates_EBT[..., None]).astype(h_EBTF.dtype), own)
    y_BTD = linear("EBTF,EFD->BTD", h_EBTF, w_EFD, None, axes, st)
    if b_ED is not None:
      y_BTD = (y_BTD + jnp.einsum("EBT,ED->BTD", gates_EBT, b_ED, precision="highest")).astype(y_BTD.dtype)
    return y_BTD
