"""`Single`: one stack of blocks over tokens. Encoders such as BERT, decoders such as GPT."""

from typing import Any

import flax.linen as nn
from jax import Array

from tfm_jax.models.blocks import LAST
from tfm_jax.models.cache import Cache
from tfm_jax.models.embeddings import Embed
from tfm_jax.models.heads.head import Output, Outputs, Seen
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.networks.generator import Generator, corrupted, generator_config
from tfm_jax.models.networks.network import Batch, Network, default_positions, with_hidden, with_routing
from tfm_jax.models.tower import tower
from tfm_jax.ops.dropout import Noise


class Single(Network):
  """A single stack with embeddings and a head: encoders such as BERT, decoders such as GPT and Llama (`causal`).

  Batch: `inputs` [B, T] and optionally `segment_ids`, `positions`, `token_types` [B, T]. With `mlm_positions` [B, P], a
  language model's head is applied only at these positions. Of a causal model, tokens with `prefix` 1 [B, T] are seen
  by earlier ones of their segment too. `embedding_shifts` [B, T, D] is added to the embeddings,
  for gradients with respect to them.
  """

  def __call__(self, batch: Batch, noise: Noise | None = None, hidden: bool = False) -> Outputs:
    outputs, _, last = self.run(batch, noise=noise, emit=LAST if hidden else "")
    return with_hidden(outputs, last)

  def decode(self, batch: Batch, cache: Cache) -> tuple[Outputs, Cache | None]:
    """The outputs for tokens that follow those of the cache, and the cache with them."""
    return self.run(batch, cache)[:2]

  def inspect(self, batch: Batch, emit: str, stack_name: str = "") -> Array:
    """See `Network`."""
    shown = self.run(batch, emit=emit)[2]
    assert shown is not None
    return shown

  @nn.compact
  def run(
    self, batch: Batch, cache: Cache | None = None, noise: Noise | None = None, emit: str = ""
  ) -> tuple[Outputs, Cache | None, Array | None]:
    """The outputs; the cache with the new tokens, or None; what `emit` names, or None."""
    c, st = self.cfg, self.st
    positions, segments = default_positions(batch.get("positions"), batch["inputs"], cache), batch.get("segment_ids")
    embed = Embed(c, st, self.vocab_size, name="embed")
    types, shifts = batch.get("token_types"), batch.get("embedding_shifts")
    inputs, generated = batch["inputs"], Outputs()
    if HEADS[c.head.name].generates and ("mlm_positions" in batch or self.is_initializing()):
      generator = Generator(generator_config(c), st, self.vocab_size, self.sublayers.cell, name="generator")
      x_BTE, table = embed(inputs, positions, segments, types, noise, c.num_layers + 1, narrow=True)
      output = generator(x_BTE, table, positions, batch, noise, c.num_layers + 2)
      if "mlm_positions" in batch:
        inputs, replaced_BT = corrupted(c, st, output, batch, noise)
        generated = {"generator": output, "replaced": Output(replaced_BT)}
    x_BTD, table = embed(inputs, positions, segments, types, noise, c.num_layers, shifts)
    kind: Any = {"causal": self.causal, "depth": c.num_layers, "cache": cache, "sublayers": self.sublayers}
    kind["prefix_BT"] = batch.get("prefix")
    h_BTD, cache, shown, routing = tower(c, st, x_BTD, segments, positions, noise, emit=emit, **kind)
    seen = Seen(self.vocab_size, table if c.tied else None, segments, batch.get("mlm_positions"))
    outputs = HEADS[c.head.name].apply(c, st, h_BTD, seen)
    return with_routing(outputs, routing=routing) | generated, cache, shown
