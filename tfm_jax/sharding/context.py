"""Attention over sequences that are cut over devices: a ring, or an exchange of sequences for heads."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from tfm_jax.errors import UserError
from tfm_jax.ops.attention import KERNELS, find_kernel
from tfm_jax.ops.kernel import Kernel, Need
from tfm_jax.ops.masks import Mask
from tfm_jax.sharding.order import ZIGZAG, context_size
from tfm_jax.sharding.placement import Placement, names
from tfm_jax.sharding.ring import RingKernel


def context_attention(st: Placement, need: Need) -> str:
  """How devices that share sequences compute attention: `sharding.attention`, or the better for a need.

  That is "ulysses" where splash attention can then serve, and otherwise "ring", which serves any need and never holds
  the logits of a whole sequence. Raises UserError if the one that is named cannot serve.
  """
  why = _ulysses_refuses(st, need)
  if st.attention == "ulysses" and why:
    raise UserError(f"sharding.attention=ulysses {why}: set sharding.attention=ring")
  if st.attention == "auto":
    return "ring" if why or not _local(need).local else "ulysses"
  return st.attention


def context_kernel(st: Placement, need: Need, causal: bool, queries: str, keys: str) -> Kernel:
  """The kernel for sequences in these orders (see `sharding.order`). "ulysses" reads natural order alone."""
  never = lambda need: ""
  if ZIGZAG in (queries, keys) or context_attention(st, need) == "ring":
    return Kernel(RingKernel(st, causal, queries, keys), never, lambda mask, T, S: _whole(st, mask), by_distance=True)
  inner = _local(need)
  prepare = lambda mask, T, S: inner.prepare(_whole(st, mask), T, S)
  return Kernel(Ulysses(st, inner), never, prepare)


def _whole(st: Placement, mask: Mask) -> Mask:
  """The mask, of whose arrays each device has whole rows: gathered once, not once per layer."""
  divides = lambda x: jnp.ndim(x) == 2 and x.shape[0] % st.batch_shards == 0
  return jax.tree.map(lambda x: st.constrain(x, ("batch", None)) if divides(x) else x, mask)


def _ulysses_refuses(st: Placement, need: Need) -> str:
  """Why devices cannot exchange sequences for heads; empty if they can."""
  parts = context_size(st) * st.parts(("act_heads",))[0]
  if need.heads % parts:
    return f"needs a number of heads of keys and values that {parts} devices divide, not {need.heads}"
  return ""


def _local(need: Need) -> Kernel:
  """The kernel of each device, which then has whole sequences. That of `Ulysses` reads a dense bias, and all noise."""
  kernel = find_kernel("auto", need._replace(cut=False))
  return KERNELS["xla"] if kernel.local and (need.bias or need.dropout) else kernel


@dataclasses.dataclass(frozen=True)
class Ulysses:
  """DeepSpeed-Ulysses (Jacobs et al. 2023) as the `attend` of a `Kernel`: four all-to-alls around any other kernel.

  Each device gets all tokens of some heads. They are written out: for a mere constraint XLA also moves what queries and
  keys were before their rotation, half as much again.
  """

  st: Placement
  inner: Kernel

  def __call__(self, q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, *, mask: Any, bias_HTS: Any, **others: Any) -> Array:
    st = self.st
    cut = st.spec(("batch", "seq", "act_heads", None))
    batch, context, heads, _ = cut
    whole = PartitionSpec(batch, None, (*names(heads), *names(context)), None)
    exchange = partial(jax.lax.all_to_all, axis_name=names(context), tiled=True)
    to_heads = jax.shard_map(
      partial(exchange, split_axis=2, concat_axis=1), mesh=st.mesh, in_specs=cut, out_specs=whole, check_vma=False
    )
    to_tokens = jax.shard_map(
      partial(exchange, split_axis=1, concat_axis=2), mesh=st.mesh, in_specs=whole, out_specs=cut, check_vma=False
    )
    attend = lambda q, k, v, mask: self.inner.attend(q, k, v, mask=mask, bias_HTS=bias_HTS, **others)
    if self.inner.local:
      rows = lambda x: jnp.ndim(x) and x.shape[0] == q_BTHK.shape[0]
      masks = jax.tree.map(lambda x: PartitionSpec(batch) if rows(x) else PartitionSpec(), mask)
      inputs = (whole, whole, whole, masks)
      attend = jax.shard_map(attend, mesh=st.mesh, in_specs=inputs, out_specs=whole, check_vma=False)
    y_BTHK = attend(to_heads(q_BTHK), to_heads(k_BSGK), to_heads(v_BSGK), mask)
    return to_tokens(jax.lax.with_sharding_constraint(y_BTHK, NamedSharding(st.mesh, whole)))
