"""`ModelConfig`: everything in which the families differ, and the axes of every parameter."""

import dataclasses
import re
from typing import Any, NamedTuple

import jax.numpy as jnp

from tfm_jax.errors import UserError

VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and kind of a Transformer. Empty (None) fields take the family's own value, see `models.families`."""

  num_layers: int = 12  # blocks; of the encoder, where there are two stacks
  decoder_layers: int = 0  # blocks of the decoder in encoder-decoder families; 0: num_layers
  embed_dim: int = 768  # width of the residual stream
  num_heads: int = 12  # attention heads
  num_kv_heads: int = 0  # heads of keys and values, each shared by a group of query heads; 0: num_heads
  head_dim: int = 0  # features of a head; 0: embed_dim / num_heads
  mlp_dim: int = 0  # hidden features of the feed-forward layer; 0: 4 * embed_dim
  max_positions: int | None = None  # rows of the table of learned positions
  dropout: float | None = None  # rate after embeddings and sub-layers
  attention_dropout: float | None = None  # rate on the attention weights
  attention: str = "auto"  # auto (the fastest that can do it), xla, or splash (TPU; without dropout and bias)
  dtype: str = "bfloat16"  # compute dtype: bfloat16 or float32; parameters are float32
  remat: str = (
    "none"  # kept for the backward pass: none (everything), dots (outputs of linears), full (inputs of blocks)
  )
  scan: bool = True  # one compiled block for all layers; false unrolls it
  positions: str | None = None  # learned, sinusoidal, relative (T5), rotary or none
  norm: str | None = None  # layer or rms
  norm_order: str | None = None  # pre or post
  norm_epsilon: float | None = None  # added to the variance
  activation: str | None = None  # gelu (erf), gelu_tanh, relu or silu
  gated: bool | None = None  # a gate beside the activation (GEGLU, SwiGLU)
  bias: bool | None = None  # biases in linears and norms
  tied: bool | None = None  # the output layer is the embedding table
  token_types: int | None = None  # rows of the table of token types; 0: none
  embed_norm: bool | None = None  # a norm after the embeddings
  scale_attention: bool | None = None  # logits times head_dim^-0.5
  scale_embed: bool | None = None  # embeddings times embed_dim^0.5
  scale_output: bool | None = None  # hidden states times embed_dim^-0.5 before the output layer
  inner_dropout: bool | None = None  # dropout inside the feed-forward layer and after the last norm too
  init: str | None = None  # initialisation, a name in models.init.INITS

  @property
  def head_features(self) -> int:
    """K: features of a head."""
    return self.head_dim or self.embed_dim // self.num_heads

  @property
  def kv_heads(self) -> int:
    """G: heads of keys and values."""
    return self.num_kv_heads or self.num_heads

  @property
  def mlp_features(self) -> int:
    """F: hidden features of the feed-forward layer."""
    return self.mlp_dim or 4 * self.embed_dim

  @property
  def decoder_depth(self) -> int:
    """Blocks of the decoder in encoder-decoder families."""
    return self.decoder_layers or self.num_layers

  @property
  def compute_dtype(self) -> jnp.dtype:
    """dtype of activations."""
    return jnp.dtype(self.dtype)


CHOICES: dict[str, tuple[str, ...]] = {
  "attention": ("auto", "xla", "splash"),
  "dtype": ("bfloat16", "float32"),
  "remat": ("none", "dots", "full"),
  "positions": ("learned", "sinusoidal", "relative", "rotary", "none"),
  "norm": ("layer", "rms"),
  "norm_order": ("pre", "post"),
  "activation": ("gelu", "gelu_tanh", "relu", "silu"),
}


def resolve(config: ModelConfig, preset: dict[str, Any]) -> ModelConfig:
  """The config with every empty field filled from the family's preset, checked. Raises UserError."""
  config = dataclasses.replace(config, **{k: v for k, v in preset.items() if getattr(config, k) is None})
  for key, choices in CHOICES.items():
    if getattr(config, key) not in choices:
      raise UserError(f"model.{key}={getattr(config, key)!r} is not one of {', '.join(choices)}")
  for key in ("num_layers", "embed_dim", "num_heads"):
    if getattr(config, key) < 1:
      raise UserError(f"model.{key}={getattr(config, key)} must be positive")
  for key in ("dropout", "attention_dropout"):
    if not 0 <= getattr(config, key) < 1:
      raise UserError(f"model.{key}={getattr(config, key)} must lie in [0, 1)")
  if not config.head_dim and config.embed_dim % config.num_heads:
    raise UserError(
      f"model.num_heads={config.num_heads} does not divide model.embed_dim={config.embed_dim}: set model.head_dim"
    )
  if config.num_heads % config.kv_heads:
    raise UserError(
      f"model.num_kv_heads={config.num_kv_heads} does not divide model.num_heads={config.num_heads}: "
      f"each head of keys and values serves as many query heads as the others"
    )
  if config.positions == "rotary" and config.head_features % 2:
    raise UserError(f"rotary positions need an even head dimension, not {config.head_features}: set model.head_dim")
  if config.attention == "splash" and config.attention_dropout:
    raise UserError(
      f"model.attention=splash has no dropout, but model.attention_dropout={config.attention_dropout:g}: "
      f"set that to 0, or model.attention=auto"
    )
  if config.attention == "splash" and config.positions == "relative":
    raise UserError("model.attention=splash has no bias for model.positions=relative: set model.attention=auto")
  return config


def pad_vocab(size: int) -> int:
  """The vocabulary size of the arrays: the next multiple of 128, so that matrix units and meshes divide it."""
  return -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class Axes(NamedTuple):
  """Logical axes of a parameter. `layers`, `inputs` and `outputs` count axes, in this order; a parameter that is no
  matrix (a bias, a norm, a small table) has no inputs: its axes are all outputs."""

  names: tuple[str | None, ...]
  layers: int
  inputs: int

  @property
  def is_matrix(self) -> bool:
    """Weight decay acts on it, and optimizers that see matrices treat it as one."""
    return self.inputs > 0


# Path (from its end) -> input axes -> output axes, of one layer; "." is an axis that is never split. Public, like the
# paths: strategies name these axes.
PARAM_AXES = (
  (r"wq", "embed -> heads ."),
  (r"w[kv]", "embed -> kv_heads ."),
  (r"bq", "heads ."),
  (r"b[kv]", "kv_heads ."),
  (r"attn/wo|cross/wo", "heads . -> embed"),
  (r"mlp/w[ig]", "embed -> mlp"),
  (r"mlp/b[ig]", "mlp"),
  (r"mlp/wo", "mlp -> embed"),
  (r"bo", "."),
  (r"scale|\w*norm/bias", "."),
  (r"embed/token|head/w", "vocab -> embed"),
  (r"embed/(position|type)", ". -> embed"),
  (r"relative/table", ". heads"),
  (r"head/dense/w", "embed -> ."),
  (r"head/dense/b", "."),
  (r"head/bias", "vocab"),
)


def param_axes(path: str) -> Axes:
  """Logical axes of the parameter at `path`, as `blocks/attn/wq`. KeyError if no row of `PARAM_AXES` names it."""
  for pattern, row in PARAM_AXES:
    if re.search(rf"(^|/)({pattern})$", path):
      stacked = "blocks/" in path
      sides = [[None if axis == "." else axis for axis in side.split()] for side in row.split("->")]
      names = ("layers",) * stacked + tuple(axis for side in sides for axis in side)
      return Axes(names, int(stacked), len(sides[0]) if len(sides) == 2 else 0)
  raise KeyError(f"no row of PARAM_AXES names the parameter {path}")
