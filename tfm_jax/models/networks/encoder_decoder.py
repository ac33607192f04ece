"""`EncoderDecoder`: an encoder, and a decoder that reads its output. T5, BART, the Transformer of 2017."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import flax.linen as nn
from jax import Array

from tfm_jax.models.blocks import LAST
from tfm_jax.models.cache import Cache, Memory
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.embeddings import Embed
from tfm_jax.models.heads.head import Outputs, Seen
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.networks.network import Batch, Network, default_positions, side, with_hidden, with_routing
from tfm_jax.models.tower import Tower
from tfm_jax.objectives.objective import Fields, token_fields
from tfm_jax.ops.dropout import Noise

Leaf = TypeVar("Leaf")


class EncoderDecoder(Network):
  """An encoder and a decoder that share their token embeddings: T5 and the Transformer of 2017.

  Batch: `encoder_inputs` [B, S], `decoder_inputs` [B, T], and optionally `encoder_segment_ids`, `encoder_positions`,
  `decoder_segment_ids`, `decoder_positions`; `encoder_embedding_shifts`, `decoder_embedding_shifts` as in `Single`.
  """

  sides: ClassVar[tuple[str, ...]] = ("encoder_", "decoder_")

  @staticmethod
  def inputs(c: ModelConfig, length: int, vocab_size: int) -> Fields:
    """See `Network`."""
    return token_fields(length, vocab_size, "encoder_") | token_fields(length, vocab_size, "decoder_")

  def setup(self) -> None:
    c, st = self.cfg, self.st
    kind: Any = {"sublayers": self.sublayers}
    self.embed = Embed(c, st, self.vocab_size)
    self.encoder = Tower(c, st, depth=c.num_layers, **kind)
    self.decoder = Tower(c, st, causal=True, depth=c.decoder_depth, first=c.num_layers + 1, **kind)

  def __call__(self, batch: Batch, noise: Noise | None = None, hidden: bool = False) -> Outputs:
    memory = self.encode(side(batch, "encoder"), noise)
    outputs, _, last = self.run(side(batch, "decoder"), noise=noise, memory=memory, emit=LAST if hidden else "")
    return with_hidden(outputs, last)

  def encode(self, batch: Batch, noise: Noise | None = None) -> Memory:
    """The encoder's output for `inputs` [B, S] and optional `segment_ids`, `positions`."""
    return self.run_encoder(batch, noise)[0]

  def decode(self, batch: Batch, cache: Cache, memory: Memory | None = None) -> tuple[Outputs, Cache | None]:
    """The outputs for tokens that follow those of the cache, and the cache with them.

    `memory`: the encoder's output, read if the cache does not hold its keys and values.
    """
    return self.run(batch, cache, memory=memory)[:2]

  def inspect(self, batch: Batch, emit: str, stack_name: str = "") -> Array:
    """See `Network`."""
    encoding = stack_name == "encoder"
    memory, shown = self.run_encoder(side(batch, "encoder"), emit=emit if encoding else "")
    if not encoding:
      shown = self.run(side(batch, "decoder"), memory=memory, emit=emit)[2]
    assert shown is not None
    return shown

  def run_encoder(self, batch: Batch, noise: Noise | None = None, emit: str = "") -> tuple[Memory, Array | None]:
    """The encoder's output; what `emit` names, or None."""
    x, segments, positions, _ = self.embedded(batch, noise, 1)
    h_BSD, _, shown, routing = self.encoder(x, segments, positions, noise, emit=emit)
    return Memory(h_BSD, segments, routing), shown

  @nn.compact
  def run(
    self,
    batch: Batch,
    cache: Cache | None = None,
    noise: Noise | None = None,
    memory: Memory | None = None,
    emit: str = "",
  ) -> tuple[Outputs, Cache | None, Array | None]:
    """The decoder's outputs; the cache with the new tokens, or None; what `emit` names, or None."""
    x, segments, positions, table = self.embedded(batch, noise, 2, cache)
    h_BTD, cache, shown, routing = self.decoder(x, segments, positions, noise, memory, cache, emit)
    seen = Seen(self.vocab_size, table if self.cfg.tied else None, segments, batch.get("mlm_positions"))
    outputs = HEADS[self.cfg.head.name].apply(self.cfg, self.st, h_BTD, seen)
    outputs = with_routing(outputs, routing=routing, encoder_routing=memory and memory.routing)
    return outputs, cache, shown

  def embedded(
    self, batch: Batch, noise: Noise | None, site: int, cache: Cache | None = None
  ) -> tuple[Array, Array | None, Array, Array]:
    """Embeddings, segments and positions of one side, and the embedding table."""
    ids, segments = batch["inputs"], batch.get("segment_ids")
    positions = default_positions(batch.get("positions"), ids, cache)
    layer = self.cfg.num_layers + self.cfg.decoder_depth + site
    x, table = self.embed(ids, positions, segments, None, noise, layer, batch.get("embedding_shifts"))
    return x, segments, positions, table


def encoder_params(params: Mapping[str, Leaf]) -> dict[str, Leaf]:
  """The embeddings and the encoder of an `EncoderDecoder`, under their paths in a `Single`; its head stays what it is.

  Args:
    params: leaf by path ("encoder/blocks/attn/wq"); those of the decoder are left out.
  """
  return {path.removeprefix("encoder/"): x for path, x in params.items() if not path.startswith("decoder/")}
