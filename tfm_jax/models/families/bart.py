"""BART (Lewis et al. 2020): a post-norm encoder-decoder; each side has positions and a norm of its embeddings."""

from typing import Any

import flax.linen as nn
from jax import Array

from tfm_jax.models.config import HeadConfig, ModelConfig, replaced
from tfm_jax.models.embeddings import Embed, Places
from tfm_jax.models.family import Family
from tfm_jax.models.networks.encoder_decoder import EncoderDecoder
from tfm_jax.models.tower import Tower
from tfm_jax.ops.dropout import Noise


class PlacedTower(Tower):
  """A tower that adds positions to the embeddings of the tokens, and norms them."""

  @nn.nowrap
  def placed(self, x_BTD: Array, segments_BT: Array | None, positions_BT: Array | None, noise: Noise | None) -> Array:
    """See `Tower`."""
    assert positions_BT is not None
    layer = self.cfg.num_layers + self.cfg.decoder_depth + (2 if self.causal else 1)
    return Places(self.cfg, self.st, name="embed")(x_BTD, positions_BT, segments_BT, noise, layer)


class Bart(EncoderDecoder):
  """An `EncoderDecoder` that shares the token table alone between its sides."""

  def setup(self) -> None:
    c, st = self.cfg, self.st
    kind: Any = {"sublayers": self.sublayers}
    tokens = replaced(c, {"positions": "none", "embed_norm": False, "dropout": 0.0})
    self.embed = Embed(tokens, st, self.vocab_size)
    self.encoder = PlacedTower(c, st, depth=c.num_layers, **kind)
    self.decoder = PlacedTower(c, st, causal=True, depth=c.decoder_depth, first=c.num_layers + 1, **kind)


FAMILY = Family(
  module=Bart,
  preset=ModelConfig(
    max_positions=1026,
    position_offset=2,
    dropout=0.1,
    attention_dropout=0.1,
    norm_order="post",
    embed_norm=True,
    head=HeadConfig(bias=True),
  ),
  heads=("lm",),
  objectives=("bart", "seq2seq", "span_corruption", "ul2"),
)
