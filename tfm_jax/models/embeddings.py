"""Embeddings: of tokens, with positions and token types, and of the patches of an image."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.models.config import ModelConfig, pad_vocab
from tfm_jax.models.layers import EMBED, STREAM, Dense, Layer, Norm
from tfm_jax.ops import positions
from tfm_jax.ops.broadcast import spread
from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.sharding.linear import embed


class Embed(Layer):
  """Token embeddings plus those of positions and token types, with norm, dropout and projection, as configured."""

  vocab_size: int = 0

  @nn.compact
  def __call__(
    self,
    ids_BT: Array,
    positions_BT: Array,
    segments_BT: Array | None,
    types_BT: Array | None,
    noise: Noise | None,
    layer: int,
    shifts_BTD: Array | None = None,
    narrow: bool = False,
  ) -> tuple[Array, Array]:
    """The embeddings [B, T, D] and the table [V, E], both in the compute dtype.

    `shifts_BTD` is added to the embeddings: its gradient is theirs. If `narrow`, they are not projected: [B, T, E].
    """
    c = self.cfg
    E = c.embed_features
    stored_VE = self.stored("token", (pad_vocab(self.vocab_size), E), kind="token")
    axes = self.axes("token").names
    table_VE = self.st.weight(stored_VE, axes, c.compute_dtype, looked_up=True)
    # One device reads the stored table: XLA then adds the gradients of the rows into that of the head, in place.
    # Several devices read the cast one, which is half as many bytes to gather.
    read_VE = stored_VE if self.st.mesh.size == 1 else table_VE
    x_BTE = embed(read_VE, ids_BT, axes, self.st).astype(table_VE.dtype)
    if c.scale_embed:
      x_BTE = x_BTE * np.asarray(E**0.5, x_BTE.dtype)
    x_BTE = placed(self, x_BTE, positions_BT, segments_BT, types_BT, noise, layer)
    if narrow:
      return x_BTE, table_VE
    if c.embed_dim != E:
      x_BTE = self.st.constrain(Dense(c, self.st, c.embed_dim, name="project")(x_BTE), STREAM)
    if shifts_BTD is not None:
      x_BTE = x_BTE + shifts_BTD.astype(x_BTE.dtype)
    return x_BTE, table_VE


class Places(Layer):
  """What `Embed` adds to tokens, as a module: positions, a norm and dropout, for a side that has its own (BART)."""

  @nn.compact
  def __call__(
    self, x_BTE: Array, positions_BT: Array, segments_BT: Array | None, noise: Noise | None, layer: int
  ) -> Array:
    return placed(self, x_BTE, positions_BT, segments_BT, None, noise, layer)


def placed(
  module: Layer,
  x_BTE: Array,
  positions_BT: Array,
  segments_BT: Array | None,
  types_BT: Array | None,
  noise: Noise | None,
  layer: int,
) -> Array:
  """Token embeddings with those of positions and token types, norm and dropout; the parameters are of `module`."""
  c, E = module.cfg, x_BTE.shape[-1]
  if c.positions == "learned":
    table = module.matrix("position", (c.max_positions, E), kind="position")
    rows_BT = _rows_of(c, positions_BT, segments_BT)
    x_BTE = x_BTE + spread(embed(table, rows_BT, module.axes("position").names, module.st), x_BTE.shape)
  elif c.positions == "sinusoidal":
    x_BTE = x_BTE + positions.sinusoids(positions_BT, E).astype(x_BTE.dtype)
  if c.token_types:
    table = module.matrix("type", (c.token_types, E), kind="type")
    if types_BT is None:
      x_BTE = x_BTE + spread(table[None, :1], x_BTE.shape)
    else:
      x_BTE = x_BTE + embed(table, types_BT, module.axes("type").names, module.st)
  x_BTE = module.st.constrain(x_BTE, STREAM)
  if c.embed_norm:
    x_BTE = Norm(c, module.st, name="norm")(x_BTE)
  return dropout(x_BTE, c.dropout, noise, layer, EMBED)


def _rows_of(c: ModelConfig, positions_BT: Array, segments_BT: Array | None) -> Array:
  """Rows of the position table. With an offset (RoBERTa), padding has a row of its own."""
  offset = c.position_offset
  rows = positions_BT + offset
  return jnp.where(segments_BT == 0, offset - 1, rows) if offset and segments_BT is not None else rows


class Patches(Layer):
  """Embeddings of an image: a linear per patch, the class vector in front of them, positions and dropout."""

  @nn.compact
  def __call__(self, images: Array, noise: Noise | None) -> Array:
    c, st = self.cfg, self.st
    P, D = c.image.patch, c.embed_dim
    B, height, width, channels = images.shape
    x = images.astype(c.compute_dtype).reshape(B, height // P, P, width // P, P, channels)
    x_BTP = x.transpose(0, 1, 3, 2, 4, 5).reshape(B, c.patches, P * P * channels)
    x_BTD = Dense(c, st, D, name="patch")(x_BTP)
    first = self.param("class", nn.initializers.zeros, (D,)).astype(x_BTD.dtype)
    x_BTD = jnp.concatenate([spread(first[None, None], (B, 1, D)), x_BTD], axis=1)
    table_TD = self.matrix("position", (c.patches + 1, D), kind="position")
    x_BTD = st.constrain(x_BTD + spread(table_TD[None], x_BTD.shape), STREAM)
    return dropout(x_BTD, c.dropout, noise, c.num_layers, EMBED)
