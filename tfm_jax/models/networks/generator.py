"""ELECTRA's generator (Clark et al. 2020): its size, its network, and the tokens that it writes in place of masks."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.models.blocks import Sublayers
from tfm_jax.models.config import ModelConfig, replaced
from tfm_jax.models.heads.head import Batch, Output
from tfm_jax.models.heads.parts import OutputLayer
from tfm_jax.models.heads.terms import tiles_of
from tfm_jax.models.layers import STREAM, Dense, Layer
from tfm_jax.models.tower import tower
from tfm_jax.ops import hashing
from tfm_jax.ops.dropout import Noise, row_keys
from tfm_jax.ops.losses import logits
from tfm_jax.ops.recurrent import Cell
from tfm_jax.sharding.order import pick
from tfm_jax.sharding.placement import Placement

_SITE = 100  # of the random numbers, as sites of dropout in `models.layers`


def generator_config(c: ModelConfig) -> ModelConfig:
  """The configuration of the generator of a model: the widths and heads times `head.generator`, the same tables."""
  share = c.head.generator
  heads, kv_heads = max(1, round(c.num_heads * share)), max(1, round(c.kv_heads * share))
  # The largest number of groups up to that share which divides the heads.
  groups = next(n for n in range(min(kv_heads, heads), 0, -1) if heads % n == 0)
  sizes = {
    "num_layers": c.head.generator_layers or c.num_layers,
    "num_heads": heads,
    "num_kv_heads": 0 if c.kv_heads == c.num_heads else groups,
    "head_dim": c.head_features,
    "embed_dim": 2 * max(1, round(c.embed_dim * share / 2)),  # even, for recurrent layers in two directions
    "mlp_dim": max(1, round(c.mlp_features * share)),
    "embedding_dim": c.embed_features,
  }
  return replaced(c, sizes | {"tied": True, "head.name": "lm", "head.transform": True, "head.bias": True})


class Generator(Layer):
  """ELECTRA's generator: a stack of its own and a masked language model's head over the model's embeddings.

  Attributes:
    vocab_size: true size of the vocabulary.
    cell: of a recurrent family, whose generator is recurrent too; None: a Transformer.
  """

  vocab_size: int = 0
  cell: Cell | None = None

  @nn.compact
  def __call__(
    self, x_BTE: Array, table_VE: Array, positions_BT: Array, batch: Batch, noise: Noise | None, first: int
  ) -> Output:
    """The output at the masked places, or at all. `first`: index of the first block, for its dropout."""
    c, st, segments = self.cfg, self.st, batch.get("segment_ids")
    if c.embed_dim != c.embed_features:
      x_BTE = st.constrain(Dense(c, st, c.embed_dim, name="project")(x_BTE), STREAM)
    kind: Any = {"causal": False, "depth": c.num_layers, "first": first, "sublayers": Sublayers(cell=self.cell)}
    h_BTD = tower(c, st, x_BTE, segments, positions_BT, noise, **kind)[0]
    if "mlm_positions" in batch:
      h_BTD = pick(st, h_BTD, batch["mlm_positions"])
    return OutputLayer(c, st, self.vocab_size, name="head")(h_BTD, table_VE)


class Corrupted(NamedTuple):
  """A batch in which masks are replaced by what the generator says.

  Attributes:
    inputs_BT: its tokens.
    replaced_BT: float32, 1 where a token is another than in the text.
  """

  inputs_BT: Array
  replaced_BT: Array


def corrupted(c: ModelConfig, st: Placement, output: Output, batch: Batch, noise: Noise | None) -> Corrupted:
  """Draws a token from the generator at each masked place, and writes it there.

  The random numbers are a hash of (seed, step, row, place, token), so the draws are equal under every sharding and
  microbatching, up to the rounding of the logits. Without noise, as in evaluation, seed and step are 0. No gradient
  flows through the draw.

  Args:
    c, st: of the model.
    output: the generator's output at the places `mlm_positions` [B, P].
    batch: `inputs` with masks, `mlm_positions`, the true tokens `targets` and `weights`, 0 in places without use.
    noise: of dropout; None: there is none.
  """
  ids_BT, places_BP, used_BP = batch["inputs"], batch["mlm_positions"], batch["weights"] > 0
  B, T = ids_BT.shape
  rows_B = batch["rows"] if "rows" in batch else jnp.arange(B, dtype=jnp.int32)
  zero = jnp.uint32(0)
  keys_B = row_keys(noise or Noise(zero, zero, rows_B), 0, _SITE)
  drawn_BP = _draw(st, output, places_BP, keys_B)
  # A sum over places instead of a scatter, which devices that share the rows would have to agree on.
  hit_BPT = (places_BP[:, :, None] == jnp.arange(T, dtype=jnp.int32)[None, None]) & used_BP[:, :, None]
  write = lambda x_BP: jnp.where(hit_BPT.any(1), (hit_BPT * x_BP[:, :, None]).sum(1, dtype=jnp.int32), ids_BT)
  written_BT = write(drawn_BP)
  return Corrupted(written_BT, (written_BT != write(batch["targets"])).astype(jnp.float32))


def gumbel(bits: Array) -> Array:
  """Gumbel noise from uint32 bits, float32. 23 of them, since half a step more than 2^24 - 1 would round to 1: +inf."""
  uniform = ((bits >> np.uint32(9)).astype(jnp.float32) + 0.5) * np.float32(2**-23)
  return -jnp.log(-jnp.log(uniform))


def _draw(st: Placement, output: Output, places_BP: Array, keys_B: Array) -> Array:
  """A token from each distribution, int32 [B, P]: the largest logit after Gumbel noise is added (Gumbel 1954)."""
  assert output.out is not None
  h_BPD, out = jax.lax.stop_gradient((output.h, output.out))
  B, P = places_BP.shape

  def one(h_BPD: Array, places_BP: Array) -> Array:
    y_BPV = logits(h_BPD, out, output.classes, st.platform)
    V = y_BPV.shape[-1]
    token_V = jax.lax.broadcasted_iota(jnp.uint32, (1, 1, V), 2)
    index_BPV = places_BP.astype(jnp.uint32)[:, :, None] * np.uint32(V) + token_V
    noise_BPV = gumbel(hashing.bits(index_BPV, keys_B[:, None, None]))
    return jnp.argmax(y_BPV + noise_BPV, axis=-1).astype(jnp.int32)

  tiles = tiles_of(st, output.classes, B, P)
  if tiles == 1:
    return one(h_BPD, places_BP)
  split = lambda x: jnp.moveaxis(x.reshape(B, tiles, P // tiles, *x.shape[2:]), 1, 0)
  drawn = jax.lax.map(lambda args: one(*args), (split(h_BPD), split(places_BP)))
  return jnp.moveaxis(drawn, 0, 1).reshape(B, P)
