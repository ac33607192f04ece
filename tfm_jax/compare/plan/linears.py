"""What estimates read of a program: the linears of its blocks, and its bytes on one device."""

import dataclasses

from tfm_jax.training.compiled.program import Program


@dataclasses.dataclass(frozen=True)
class Linear:
  """The weights of a block that one product reads: those of queries, keys and values; those of a gated activation.

  Attributes:
    path: of the first of them.
    layers: number of blocks.
    names, shape: logical axes and lengths of one block's weight.
    inputs: number of leading axes (after those of experts) that are summed over.
    outputs: how many such weights there are side by side, as a multiple of the first.
    tokens: of a row.
    reach: the rows of the product per token: 1, or the places of experts.
  """

  path: str
  layers: int
  names: tuple[str | None, ...]
  shape: tuple[int, ...]
  inputs: int
  outputs: float
  tokens: int
  reach: float

  @property
  def closes(self) -> bool:
    """Whether a sub-layer ends with it."""
    return self.path.endswith("wo")

  @property
  def attends(self) -> bool:
    """Whether it makes queries."""
    return self.path.endswith("wq")

  @property
  def experts(self) -> int:
    """Number of leading axes of experts."""
    return int(self.names[:1] == ("experts",))


@dataclasses.dataclass(frozen=True)
class Placed:
  """A program on a mesh without devices, and bytes on one device.

  Attributes:
    program: with the placement.
    state: the whole training state.
    params: all parameters; `trained`: those that have a gradient; `gradients`: their sum.
    moments: the optimizer state.
  """

  program: Program
  state: float
  params: float
  trained: float
  gradients: float
  moments: float
