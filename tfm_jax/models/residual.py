"""How sub-layers and norms are joined to the residual stream: the values of `model.norm_order`."""

from typing import NamedTuple


class Order(NamedTuple):
  """One arrangement of the norms of a block.

  Attributes:
    before: a norm of what a sub-layer reads; such a stack ends with a norm.
    after: a norm of each sum.
    parallel: the sub-layers of a block read the same, after one norm; otherwise each reads the sum before it.
    deep: the stream is multiplied by a constant at each sum: see `deepnorm`.
    gain: the outputs of a block's sub-layers are multiplied by a learned number, at first 0.
  """

  before: bool = False
  after: bool = False
  parallel: bool = False
  deep: bool = False
  gain: bool = False


ORDERS = {
  "pre": Order(before=True),  # GPT-2 (Radford et al. 2019); Xiong et al. 2020
  "post": Order(after=True),  # Vaswani et al. 2017
  "parallel": Order(before=True, parallel=True),  # GPT-J (Wang and Komatsuzaki 2021), PaLM (Chowdhery et al. 2022)
  "deepnorm": Order(after=True, deep=True),  # Wang et al. 2022
  "rezero": Order(gain=True),  # Bachlechner et al. 2021
}


def deepnorm(side: str, layers: int, decoder_layers: int) -> tuple[float, float]:
  """DeepNorm's two constants (Wang et al. 2022, figure 2): the factor of the stream, and that of initial weights.

  The second multiplies the initial values and output projections of attention and the feed-forward layer's weights. The
  paper's scheme is Xavier's; queries and keys have it unscaled.

  Args:
    side: "encoder" or "decoder", of an encoder-decoder; otherwise a stack of its own.
    layers: number of blocks of the encoder, or of the only stack.
    decoder_layers: number of blocks of the decoder.
  """
  if side == "encoder":
    root = (layers**4 * decoder_layers) ** (1 / 16)
    return 0.81 * root, 0.87 / root
  depth, more = (decoder_layers, 3) if side == "decoder" else (layers, 2)
  return (more * depth) ** 0.25, (4 * more * depth) ** -0.25
