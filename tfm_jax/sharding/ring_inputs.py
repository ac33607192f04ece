"""What the parts of a ring have in common: its static description, and which keys it knows to be needed."""

import dataclasses
import math

import jax
from jax import Array
from jax.sharding import PartitionSpec

from tfm_jax.ops.tiles import Form, Given
from tfm_jax.sharding.order import NATURAL, ZIGZAG
from tfm_jax.sharding.placement import Placement

# The logical axes of each field of `Given`; of each device's rows it has whole ones.
GIVEN_AXES = (("batch",), ("batch",), ("batch",), (), ("batch",), ("act_heads",))


@dataclasses.dataclass(frozen=True)
class Ring:
  """The static part of a ring.

  Attributes:
    st: the strategy on its mesh.
    causal: later keys are masked, except those of a prefix.
    queries, keys: the order of the parts of the sequences, see `sharding.order`.
    scale: factor of the dot products.
    dropout: rate on the attention weights.
  """

  st: Placement
  causal: bool
  queries: str = NATURAL
  keys: str = NATURAL
  scale: float = 1.0
  dropout: float = 0.0

  @property
  def form(self) -> Form:
    """What its tiles read of it."""
    return Form(self.causal, self.scale, self.dropout, self.st.platform)

  @property
  def axes(self) -> tuple[str, ...]:
    """The mesh axes that cut sequences."""
    return self.st.strategy.mesh_axes("seq")

  @property
  def size(self) -> int:
    """c: number of devices of the ring."""
    return math.prod(self.st.mesh.shape[axis] for axis in self.axes)

  def spec(self, *axes: str | None) -> PartitionSpec:
    """See `Placement.spec`."""
    return self.st.spec(axes)

  def shift(self, x: Array) -> Array:
    """x of the device before this one."""
    return jax.lax.ppermute(x, self.axes, [(i, (i + 1) % self.size) for i in range(self.size)])


def planned(ring: Ring, given: Given) -> bool:
  """Whether it is known beforehand which keys a causal mask leaves: both are in the order `ZIGZAG`, without a prefix.

  At the first step the keys are a device's own, and the mask is causal in the device's own order too. Later, of keys of
  an earlier device both halves of the queries see the first half, and of those of a later device the second half of the
  queries sees both.
  """
  return ring.causal and ring.queries == ring.keys == ZIGZAG and given.prefix_BS is None
