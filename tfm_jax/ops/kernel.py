"""The contract of attention kernels: `Need` and `Kernel`. `ops.attention.KERNELS` lists them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from tfm_jax.ops.masks import Mask


class Need(NamedTuple):
  """What a model needs of its kernel. The defaults need nothing, and stand for what is not known yet.

  Attributes:
    platform: "cpu", "gpu" or "tpu"; empty: any.
    lengths: numbers of queries and of keys.
    dropout: rate on the attention weights during training.
    bias: a bias is added to the logits.
    window: largest distance of a key; 0: any distance.
    scale_by_layer: layers scale their logits differently.
    groups: number of query heads that share a head of keys and values.
    cache: keys come from a cache, so they begin before the queries.
    prefix: some keys are seen by earlier queries too, although the attention is causal.
    cut: sequences are split over devices.
    uneven: the number of rows is not divisible by the devices that split them.
    heads: number of heads of keys and values.
    dtype: of queries, keys and values.
    head_dim: width of a head.
    causal: no query sees a later key, but for a prefix.
    mixed: layers with and without a window take turns.
    staged: layers are split over devices, a pipeline.
    logits: number of logits of a layer on one device.
  """

  platform: str = ""
  lengths: tuple[int, ...] = ()
  dropout: float = 0.0
  bias: bool = False
  window: int = 0
  scale_by_layer: bool = False
  groups: int = 1
  cache: bool = False
  prefix: bool = False
  cut: bool = False
  uneven: bool = False
  heads: int = 0
  dtype: str = ""
  head_dim: int = 0
  causal: bool = False
  mixed: bool = False
  staged: bool = False
  logits: int = 0


def whole(mask: Mask, queries: int, keys: int) -> Any:
  """The mask unchanged."""
  return mask


class Kernel(NamedTuple):
  """One way to compute attention.

  Attributes:
    attend: computes the attention, with the arguments and the result of `ops.attention.attend_dense`.
    refuses: the reason why the kernel cannot serve a need, in words that follow its name; empty if it can.
    prepare: (mask, T, S) -> the `mask` of `attend`. It is called once per stack, not once per layer.
    local: XLA does not partition the kernel, so each device runs it on its rows and heads. A bias is by distance then.
    by_distance: it reads the bias [H, T + S] by distance (`ops.positions.by_distance`) instead of `bias_HTS`.
    suits: whether "auto" takes it for a need that it can serve.
  """

  attend: Callable[..., Array]
  refuses: Callable[[Need], str]
  prepare: Callable[[Mask, int, int], Any] = whole
  local: bool = False
  by_distance: bool = False
  suits: Callable[[Need], bool] = lambda need: True
