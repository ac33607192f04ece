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
from tfm_jax.models import bert, distilbert, electra, gpt, llama, modernbert, roberta, t5, transformer, vit
from tfm_jax.models.config import Axes, ModelConfig, pad_vocab, param_axes, replaced, resolve
from tfm_jax.models.heads import HEADS, Output, Outputs
from tfm_jax.ops import losses
from tfm_jax.ops.dropout import Noise
from tfm_jax.sharding.placement import Placement

# A family: one file with its PRESET of ModelConfig and its module. The name is the config's `family`.
FAMILIES = {
  "bert": bert, "roberta": roberta, "distilbert": distilbert, "electra": electra, "modernbert": modernbert,
  "gpt": gpt, "llama": llama, "t5": t5, "transformer": transformer, "vit": vit,
}  # fmt: skip

ENCODER_DECODER = ("t5", "transformer")

Params = dict[str, Any]


def find_family(name: str) -> Any:
  """The family's file; UserError lists the names."""
  if name not in FAMILIES:
    raise UserError(f"family={name!r} is not one of {', '.join(FAMILIES)}")
  return FAMILIES[name]


def resolve_model(family: str, changes: Mapping[str, Any] | None = None) -> ModelConfig:
  """The family's preset with some fields replaced ("num_layers", "head.name"), checked. Raises UserError."""
  config = resolve(replaced(find_family(family).PRESET, changes or {}))
  check_family(family, config)
  return config


def check_family(family: str, config: ModelConfig) -> None:
  """Raises UserError for what the family does not have."""
  head = config.head.name
  if head not in HEADS:
    raise UserError(f"head.name={head!r} is not one of {', '.join(HEADS)}")
  if head != "lm" and family in ENCODER_DECODER:
    raise UserError(f"head.name={head} is not for family={family}, which has the head lm alone")
  if family == "vit" and head not in ("none", "pooled", "sequence_classification"):
    raise UserError(f"head.name={head} is not for family=vit: set head.name=sequence_classification")


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
    return self.family in ENCODER_DECODER

  def init(self, key: Array) -> Params:
    """Fresh parameters; the same on every strategy, bit for bit."""
    c, ids = self.config, jnp.zeros((1, 8), jnp.int32)
    batch = {"encoder_inputs": ids, "decoder_inputs": ids} if self.encoder_decoder else {"inputs": ids}
    if c.image.patch:
      batch = {"images": jnp.zeros((1, c.image.height, c.image.width, c.image.channels))}
    return self.module.init(key, batch)["params"]

  def apply(self, params: Params, batch: Mapping[str, Array], noise: Noise | None = None) -> Outputs:
    """What the head predicts, as final hidden states with the last linear not applied: name -> `Output`. `noise`
    None: no dropout."""
    made: Any = self.module.apply({"params": params}, dict(batch), noise)
    return made

  def outputs(self, params: Params, batch: Mapping[str, Array], noise: Noise | None = None) -> dict[str, Array]:
    """What the head predicts, float32: name -> array.

    `logits`: [B, T or P, V] of tokens (ids that only pad the vocabulary at -1e30), [B, C] of rows, [B, T, C] of
    tokens' classes, [B, T, 2] of an answer's start and end, [B, T] of replaced tokens. The head `pretraining` has
    `next_sentence` [B, 2] too; `none` has `hidden` [B, T, D], `pooled` has `hidden` and `pooled` [B, D].
    """

    def finish(made: Output) -> Array:
      if made.out is None:
        return made.h.astype(jnp.float32)
      y = losses.logits(made.h, made.out, made.classes, self.placement.platform)
      return y[..., 0] if self.config.head.name == "replaced_token_detection" else y

    return {name: finish(made) for name, made in self.apply(params, batch, noise).items()}

  def logits(self, params: Params, batch: Mapping[str, Array], noise: Noise | None = None) -> Array:
    """`outputs(...)["logits"]`."""
    return self.outputs(params, batch, noise)["logits"]

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
    """Number of parameters, without the vocabulary's padding and the norm that `model.first_norm=false` leaves out."""

    def count(path: tuple, leaf: jax.ShapeDtypeStruct) -> int:
      axes = self.axes(path)
      shape = [self.vocab_size if axis == "vocab" else n for axis, n in zip(axes.names, leaf.shape, strict=True)]
      if not self.config.first_norm and "attn_norm" in jax.tree_util.keystr(path):
        shape[0] -= 1  # the first block's is not used
      return math.prod(shape)

    return sum(jax.tree.leaves(jax.tree.map_with_path(count, self.shapes())))


@functools.lru_cache(maxsize=8)
def _shapes(model: Model) -> Params:
  """Traced once a model: each start asks for them about ten times."""
  return jax.eval_shape(model.init, jax.random.key(0))


def admits(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
  """Logical axis -> its lengths in the model, which the size of a mesh axis on which it lies must divide."""
  heads, mlp, vocab = (config.num_heads,), (config.mlp_features,), (pad_vocab(vocab_size),)
  kv_heads, widths = (config.kv_heads,), (config.embed_dim, config.embed_features)
  return {
    "embed": widths, "act_embed": widths, "heads": heads, "act_heads": kv_heads,
    "kv_heads": kv_heads, "mlp": mlp, "act_mlp": mlp, "vocab": vocab, "act_vocab": vocab,
  }  # fmt: skip
