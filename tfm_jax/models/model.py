"""`Model`: a family's pure functions `init` and `apply` for one configuration, strategy and vocabulary."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from tfm_jax.errors import UserError
from tfm_jax.models import bert, gpt, t5, transformer
from tfm_jax.models.config import Axes, ModelConfig, pad_vocab, param_axes, resolve
from tfm_jax.ops import losses
from tfm_jax.ops.dropout import Noise
from tfm_jax.sharding.placement import Placement

# A family: one file with its PRESET of ModelConfig and its module. The name is the config's `family`.
FAMILIES = {"bert": bert, "gpt": gpt, "t5": t5, "transformer": transformer}

Params = dict[str, Any]


def find_family(name: str) -> Any:
  """The family's file; UserError lists the names."""
  if name not in FAMILIES:
    raise UserError(f"family={name!r} is not one of {', '.join(FAMILIES)}")
  return FAMILIES[name]


def resolve_model(family: str, config: ModelConfig) -> ModelConfig:
  """`config` with the empty fields filled from the family's preset. Raises UserError."""
  config = resolve(config, find_family(family).PRESET)
  if config.scale_output is None:  # T5: only where the table serves both ends
    config = dataclasses.replace(config, scale_output=config.tied)
  return config


@dataclasses.dataclass(frozen=True)
class Model:
  """Static and hashable; parameters are a plain nested dict of float32 arrays, stacked over layers."""

  family: str
  config: ModelConfig  # resolved
  placement: Placement
  vocab_size: int  # true size; arrays are padded to a multiple of 128

  @property
  def module(self) -> nn.Module:
    """The Linen module."""
    return find_family(self.family).build(self.config, self.placement, self.vocab_size)

  @property
  def encoder_decoder(self) -> bool:
    """Whether batches have an encoder's and a decoder's side."""
    return self.family in ("t5", "transformer")

  def init(self, key: Array) -> Params:
    """Fresh parameters; the same on every strategy, bit for bit."""
    ids = jnp.zeros((1, 8), jnp.int32)
    batch = {"encoder_inputs": ids, "decoder_inputs": ids} if self.encoder_decoder else {"inputs": ids}
    return self.module.init(key, batch)["params"]

  def apply(
    self, params: Params, batch: Mapping[str, Array], noise: Noise | None = None
  ) -> tuple[Array, losses.Unembedding]:
    """Final hidden states [B, T or P, D] and the output layer. `noise` None: no dropout."""
    made: Any = self.module.apply({"params": params}, dict(batch), noise)
    return made

  def logits(self, params: Params, batch: Mapping[str, Array], noise: Noise | None = None) -> Array:
    """Float32 logits [B, T or P, V], ids that only pad the vocabulary at -1e30."""
    h, out = self.apply(params, batch, noise)
    return losses.logits(h, out, self.vocab_size, self.placement.platform)

  def shapes(self) -> Params:
    """The parameters as shapes, without making any."""
    return jax.tree.map(lambda leaf: leaf, _shapes(self))

  def shardings(self) -> Params:
    """Where each parameter lives under the strategy."""
    return jax.tree.map_with_path(lambda path, _: self.placement.sharding(self.axes(path).names), self.shapes())

  @staticmethod
  def axes(path: tuple) -> Axes:
    """Logical axes of the parameter at a tree path."""
    return param_axes("/".join(str(getattr(key, "key", key)) for key in path))

  def parameter_count(self) -> int:
    """Number of parameters, without the vocabulary's padding."""

    def count(path: tuple, leaf: jax.ShapeDtypeStruct) -> int:
      names = self.axes(path).names
      return math.prod(self.vocab_size if axis == "vocab" else n for axis, n in zip(names, leaf.shape, strict=True))

    return sum(jax.tree.leaves(jax.tree.map_with_path(count, self.shapes())))


@functools.lru_cache(maxsize=8)
def _shapes(model: Model) -> Params:
  """Traced once a model: each start asks for them about ten times."""
  return jax.eval_shape(model.init, jax.random.key(0))


def admits(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
  """Logical axis -> its lengths in the model, which the size of a mesh axis on which it lies must divide."""
  heads, mlp, vocab = (config.num_heads,), (config.mlp_features,), (pad_vocab(vocab_size),)
  kv_heads = (config.kv_heads,)
  return {
    "embed": (config.embed_dim,), "act_embed": (config.embed_dim,), "heads": heads, "act_heads": kv_heads,
    "kv_heads": kv_heads, "mlp": mlp, "act_mlp": mlp, "vocab": vocab, "act_vocab": vocab,
  }  # fmt: skip
