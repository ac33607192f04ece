"""What the queries of a stack see: the attention kernel that serves it, and its masks, once for all layers."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import ModelConfig, attention_need
from tfm_jax.ops.attention import find_kernel
from tfm_jax.ops.kernel import Kernel
from tfm_jax.ops.masks import Mask
from tfm_jax.sharding.placement import Placement


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["mask", "local_mask", "bias_HTS"], meta_fields=["kernel", "causal"]
)
@dataclasses.dataclass(frozen=True)
class Sight:
  """What the queries of a stack see of some keys, made once for all layers. The masks are as the kernel wants them."""

  kernel: Kernel
  causal: bool
  mask: Any
  local_mask: Any = None  # of layers with a window
  bias_HTS: Array | None = None

  def of_layer(self, is_global: Array | bool) -> Any:
    """The mask of one layer."""
    if self.local_mask is None:
      return self.mask
    whole = jax.tree.map(jnp.ones_like, self.local_mask) if self.mask is None else self.mask
    return jax.tree.map(functools.partial(jnp.where, is_global), whole, self.local_mask)


def make_sight(
  c: ModelConfig,
  st: Placement,
  mask: Mask,
  shape: tuple[int, int, int],
  *,
  window: int = 0,
  bias_HTS: Array | None = None,
  training: bool = False,
  cached: bool = False,
) -> Sight:
  """The kernel that the config, or else the platform, wants for [B, T, S] = `shape`, and its masks. Raises UserError.

  A cache is read by whatever kernel can.
  """
  name = "auto" if cached else c.attention
  rows, cut = st.parts(("batch", "seq"))
  need = attention_need(c, training)._replace(
    platform=st.platform if name == "auto" else "",  # else it was checked when the model was built
    lengths=shape[1:], cache=cached, cut=cut > 1, uneven=shape[0] % rows > 0,
  )  # fmt: skip
  kernel = find_kernel(name, need)
  local = kernel.prepare(dataclasses.replace(mask, window=window), *shape[1:]) if window else None
  return Sight(kernel, mask.causal, kernel.prepare(mask, *shape[1:]), local, bias_HTS)
