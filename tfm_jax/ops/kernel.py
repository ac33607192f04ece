"""The contract of attention kernels: what can be needed of one, and what one is. `ops.attention.KERNELS` has them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from tfm_jax.ops.masks import Mask


class Need(NamedTuple):
  """What is needed of a kernel. The defaults stand for what is not known yet, and need nothing.

  Attributes:
    platform: "cpu", "gpu" or "tpu"; empty: any.
    lengths: numbers of queries and of keys.
    dropout: rate on the attention weights, while training.
    bias: something is added to the logits.
    window: keys are seen up to this distance alone; 0: at any distance.
    scale_by_layer: each layer scales its logits differently.
    groups: query heads that share a head of keys and values.
    cache: keys come from a cache: they begin before the queries.
    cut: a device has a part of each sequence.
    uneven: the devices do not divide the rows.
  """

  platform: str = ""
  lengths: tuple[int, ...] = ()
  dropout: float = 0.0
  bias: bool = False
  window: int = 0
  scale_by_layer: bool = False
  groups: int = 1
  cache: bool = False
  cut: bool = False
  uneven: bool = False


def whole(mask: Mask, queries: int, keys: int) -> Any:
  """The mask as it is."""
  return mask


class Kernel(NamedTuple):
  """One way to compute attention.

  Attributes:
    attend: the attention itself, with the arguments of `ops.attention.attend_dense` and its result.
    refuses: why the kernel cannot serve a need, in words that follow its name; empty if it can.
    prepare: the `mask` of `attend`, from (mask, T, S). This is called once per stack, not once per layer.
    local: XLA cannot split the kernel, so each device runs it on its own rows and heads, without bias and dropout.
  """

  attend: Callable[..., Array]
  refuses: Callable[[Need], str]
  prepare: Callable[[Mask, int, int], Any] = whole
  local: bool = False
