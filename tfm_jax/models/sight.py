"""`Sight`: the attention kernel of a stack and its masks, which are prepared once for all layers."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.models.config import ModelConfig, attention_need
from tfm_jax.ops.attention import find_kernel
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.kernel import Kernel
from tfm_jax.ops.masks import Mask
from tfm_jax.sharding.context import context_attention, context_kernel
from tfm_jax.sharding.order import NATURAL, ZIGZAG, context_size
from tfm_jax.sharding.placement import Placement


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["mask", "local_mask", "bias_HTS"],
  meta_fields=["kernel", "causal", "lengths"],
)
@dataclasses.dataclass(frozen=True)
class Sight:
  """Which keys the queries of a stack attend to, and by which kernel.

  Attributes:
    kernel: computes the attention.
    causal: no query attends to a later key.
    lengths: numbers of queries and of keys.
    mask: a `Mask`; once it is `prepared`, in the form of the kernel.
    local_mask: the mask of layers with a window; None if there are none.
    bias_HTS: bias of the logits in the form that the kernel reads, or None.
  """

  kernel: Kernel
  causal: bool
  lengths: tuple[int, int]
  mask: Any
  local_mask: Any = None
  bias_HTS: Array | None = None

  def prepared(self) -> "Sight":
    """With the masks in the form of the kernel."""
    prepare = lambda mask: None if mask is None else self.kernel.prepare(mask, *self.lengths)
    return dataclasses.replace(self, mask=prepare(self.mask), local_mask=prepare(self.local_mask))

  def of_layer(self, is_global: Array | bool) -> Any:
    """The mask of one layer, given whether its attention is global."""
    if self.local_mask is None or is_global is False:
      return self.mask if self.local_mask is None else self.local_mask
    if isinstance(self.mask, Mask):
      return dataclasses.replace(self.mask, window=jnp.where(is_global, self.mask.window, self.local_mask.window))
    whole = self.mask if jax.tree.leaves(self.mask) else jax.tree.map(jnp.ones_like, self.local_mask)
    return jax.tree.map(functools.partial(jnp.where, is_global), whole, self.local_mask)


def attend_locally(
  st: Placement,
  kernel: Kernel,
  q_BTHK: Array,
  keys_values: tuple[Array, Array],
  mask: Any,
  bias_HL: Array | None,
  noise: Noise | None,
  layer: Array,
  **fixed: Any,
) -> Array:
  """Attention by a `local` kernel: each device has its rows and heads of all arguments; `fixed` are static."""
  heads = ("batch", "seq", "act_heads", None)
  rows = lambda x: ("batch",) if jnp.ndim(x) and x.shape[0] == q_BTHK.shape[0] else ()
  of_noise = None
  if noise is not None:
    noise = noise._replace(heads_H=jnp.arange(q_BTHK.shape[2], dtype=jnp.uint32))
    of_noise = Noise((), (), ("batch",), None, ("act_heads",))  # type: ignore[arg-type]
  axes = (heads, heads, heads, jax.tree.map(rows, mask), None if bias_HL is None else ("act_heads",), of_noise, ())

  def run(q: Array, k: Array, v: Array, mask: Any, bias: Array | None, noise: Noise | None, layer: Array) -> Array:
    return kernel.attend(q, k, v, mask=mask, bias_HTS=bias, noise=noise, layer=layer, **fixed)

  return st.local(run, axes, heads)(q_BTHK, *keys_values, mask, bias_HL, noise, layer)


def make_sight(
  c: ModelConfig,
  st: Placement,
  mask: Mask,
  shape: tuple[int, int, int],
  *,
  window: int = 0,
  training: bool = False,
  cached: bool = False,
  orders: tuple[str, str] = (NATURAL, NATURAL),
) -> Sight:
  """The kernel that the config names, or the fastest on the platform, and masks for [B, T, S] = `shape`.

  With a cache, any kernel that can read it is used. `orders`: of the queries and of the keys, see `sharding.order`; the
  mask is in natural order. Raises UserError if the named kernel cannot serve.
  """
  name = "auto" if cached else c.attention
  rows, cut, heads = st.parts(("batch", "seq", "act_heads"))
  need = attention_need(
    c, training
  )._replace(
    platform=st.platform if name == "auto" else "",  # a named kernel was checked when the model was built
    lengths=shape[1:],
    cache=cached,
    prefix=mask.prefix_BS is not None,
    cut=cut > 1,
    uneven=shape[0] % rows > 0,
    causal=mask.causal,
    staged=st.stages > 1,
    logits=math.prod(shape) * c.num_heads // (rows * heads),
  )
  if is_shared(c, st, *shape) and not cached:
    kernel = context_kernel(st, need, mask.causal, *orders)
  else:
    kernel = find_kernel(name, need)
  local = dataclasses.replace(mask, window=window) if window else None
  return Sight(kernel, mask.causal and mask.prefix_BS is None, shape[1:], mask, local)


def is_shared(c: ModelConfig, st: Placement, rows: int, *lengths: int) -> bool:
  """Whether devices share sequences of these lengths, and attend to them by a kernel of `sharding.context`."""
  context = context_size(st)
  divide = not (rows % st.batch_shards or any(length % context for length in lengths))
  return context > 1 and c.attention == "auto" and divide


def stream_order(c: ModelConfig, st: Placement, rows: int, tokens: int, memory: int, causal: bool) -> str:
  """The order in which a stack has its tokens: `ZIGZAG` if that shares the work of a causal ring evenly.

  Experts with limited places read groups of neighbours, so these have to stay together.
  """
  parts = 2 * context_size(st)
  if not causal or tokens % parts or not is_shared(c, st, rows, tokens, memory):
    return NATURAL
  grouped = c.experts.count and c.experts.capacity and (tokens // parts) % (c.experts.group or tokens)
  ring = context_attention(st, attention_need(c)._replace(platform=st.platform, lengths=(tokens, tokens))) == "ring"
  return ZIGZAG if ring and not grouped else NATURAL
