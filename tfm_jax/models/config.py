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
  embedding_dim: int = 0  # features of the embedding tables, projected to embed_dim (ELECTRA); 0: embed_dim
  vocab_size: int = 0  # rows of the table of tokens, if more than the tokenizer has; 0: the tokenizer's vocabulary
  max_positions: int | None = None  # rows of the table of learned positions
  dropout: float | None = None  # rate after embeddings and sub-layers
  attention_dropout: float | None = None  # rate on the attention weights
  attention: str = "auto"  # auto (the fastest that can do it), xla, or splash (TPU; without dropout, bias and window)
  dtype: str = "bfloat16"  # compute dtype: bfloat16 or float32; parameters are float32
  remat: str = (
    "none"  # kept for the backward pass: none (everything), dots (outputs of linears), full (inputs of blocks)
  )
  scan: bool = True  # one compiled block for all layers; false unrolls it
  positions: str | None = None  # learned, sinusoidal, relative (T5), rotary or none
  position_offset: int | None = None  # rows of the table before the one of position 0; the last of them is for padding
  relative_buckets: int = 32  # of relative positions
  relative_distance: int = 128  # of relative positions: beyond it all share one bucket
  rotary_base: float | None = None  # of rotary positions: the longest wave is about 2 pi times it
  local_rotary_base: float | None = None  # the same in layers with a window
  rotary_factor: float = 1.0  # by which rotary waves are stretched, to reach longer texts
  rotary_original: int = 0  # Llama 3: the length trained on, of which only long waves are stretched; 0: all waves
  rotary_low: float = 1.0  # Llama 3: waves longer than rotary_original / rotary_low are stretched wholly
  rotary_high: float = 4.0  # Llama 3: waves shorter than rotary_original / rotary_high stay as they are
  window: int | None = None  # how far away a key may be in local attention, on either side; 0: every layer sees all
  global_every: int | None = None  # of local attention: layers 0, n, 2 n ... see all nonetheless; 0: none does
  norm: str | None = None  # layer or rms
  norm_order: str | None = None  # pre or post
  norm_epsilon: float | None = None  # added to the variance
  first_norm: bool | None = None  # of pre-norm: before the attention of the first block too
  activation: str | None = None  # gelu (erf), gelu_tanh, relu or silu
  gated: bool | None = None  # a gate beside the activation (GEGLU, SwiGLU)
  bias: bool | None = None  # biases in linears and norms; the following four differ where they are set
  qkv_bias: bool | None = None  # in the projections to queries, keys and values
  out_bias: bool | None = None  # in the projection of attention back to the residual stream
  mlp_bias: bool | None = None  # in the feed-forward layer
  norm_bias: bool | None = None  # in norms
  tied: bool | None = None  # the output layer is the embedding table
  token_types: int | None = None  # rows of the table of token types; 0: none
  embed_norm: bool | None = None  # a norm after the embeddings
  scale_attention: bool | None = None  # logits times head_dim^-0.5
  scale_by_layer: bool = False  # logits divided by the number of the layer, counted from 1
  scale_embed: bool | None = None  # embeddings times embed_dim^0.5
  scale_output: bool | None = None  # hidden states times embed_dim^-0.5 before the output layer
  inner_dropout: bool | None = None  # dropout inside the feed-forward layer and after the last norm too
  head: str = "lm"  # what is predicted, a name in models.heads.HEADS
  head_transform: bool | None = None  # a dense layer, activation and norm before the output layer
  classifier_transform: bool | None = None  # the same before classifiers
  head_activation: str | None = None  # its activation, if not that of the blocks
  head_bias: bool | None = None  # in the output layer
  transform_bias: bool | None = None  # in that dense layer, if not as in the blocks
  pooler: str | None = None  # of a row into one vector: tanh, relu (a dense layer and this activation) or none
  pooling: str | None = None  # what the pooler sees: first (token) or mean
  num_labels: int = 2  # classes of the heads that classify
  labels: str = ""  # their names, separated by "|"; empty: none
  image_height: int = 0  # pixels, of families that see images
  image_width: int = 0
  image_channels: int = 3
  patch_size: int = 0  # pixels along a side of the squares that images are cut into
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
  def embed_features(self) -> int:
    """E: features of the embedding tables."""
    return self.embedding_dim or self.embed_dim

  @property
  def decoder_depth(self) -> int:
    """Blocks of the decoder in encoder-decoder families."""
    return self.decoder_layers or self.num_layers

  @property
  def patches(self) -> int:
    """Squares that an image is cut into; 0 in families that see no images."""
    return self.patch_size and (self.image_height // self.patch_size) * (self.image_width // self.patch_size)

  @property
  def compute_dtype(self) -> jnp.dtype:
    """dtype of activations."""
    return jnp.dtype(self.dtype)


# What families do, unless their presets say otherwise.
COMMON: dict[str, Any] = {
  "max_positions": 0, "position_offset": 0, "rotary_base": 10_000.0, "window": 0, "global_every": 0,
  "first_norm": True, "gated": False, "token_types": 0, "embed_norm": False, "scale_attention": True,
  "scale_embed": False, "scale_output": False, "inner_dropout": False, "head_transform": False, "head_bias": False,
  "classifier_transform": False, "pooler": "none", "pooling": "first",
}  # fmt: skip
# Fields that otherwise take the value of another.
FOLLOWS = {
  "qkv_bias": "bias", "out_bias": "bias", "mlp_bias": "bias", "norm_bias": "bias", "transform_bias": "bias",
  "head_activation": "activation", "local_rotary_base": "rotary_base",
}  # fmt: skip

CHOICES: dict[str, tuple[str, ...]] = {
  "attention": ("auto", "xla", "splash"),
  "dtype": ("bfloat16", "float32"),
  "remat": ("none", "dots", "full"),
  "positions": ("learned", "sinusoidal", "relative", "rotary", "none"),
  "norm": ("layer", "rms"),
  "norm_order": ("pre", "post"),
  "activation": ("gelu", "gelu_tanh", "relu", "silu"),
  "head_activation": ("gelu", "gelu_tanh", "relu", "silu"),
  "pooler": ("none", "tanh", "relu"),
  "pooling": ("first", "mean"),
}


def resolve(config: ModelConfig, preset: dict[str, Any]) -> ModelConfig:
  """The config with every empty field filled from the family's preset, checked. Raises UserError."""
  for values in (preset, COMMON):
    config = dataclasses.replace(config, **{k: v for k, v in values.items() if getattr(config, k) is None})
  followed = {k: getattr(config, other) for k, other in FOLLOWS.items() if getattr(config, k) is None}
  config = dataclasses.replace(config, **followed)
  for key, choices in CHOICES.items():
    if getattr(config, key) not in choices:
      raise UserError(f"model.{key}={getattr(config, key)!r} is not one of {', '.join(choices)}")
  for key in ("num_layers", "embed_dim", "num_heads", "num_labels"):
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
  if config.embed_features != config.embed_dim and config.tied and config.head == "lm" and not config.head_transform:
    raise UserError(
      f"model.embedding_dim={config.embedding_dim} is not the width of the model, {config.embed_dim}: the embedding "
      f"table cannot be the output layer without model.head_transform=true; or set model.tied=false"
    )
  if config.labels and len(config.labels.split("|")) != config.num_labels:
    raise UserError(f"model.labels has {len(config.labels.split('|'))} names for model.num_labels={config.num_labels}")
  for side in ("height", "width"):
    length = getattr(config, f"image_{side}")
    if config.patch_size and (not length or length % config.patch_size):
      raise UserError(f"model.image_{side}={length} is no multiple of model.patch_size={config.patch_size}")
  if config.attention == "splash":
    _check_splash(config)
  return config


def _check_splash(config: ModelConfig) -> None:
  """Raises UserError for what splash attention cannot do."""
  for key, why in (
    ("attention_dropout", "has no dropout"),
    ("window", "is used without windows"),
    ("scale_by_layer", "has one scale for all layers"),
  ):
    if getattr(config, key):
      raise UserError(
        f"model.attention=splash {why}, but model.{key}={getattr(config, key):g}: set that to 0, or "
        f"model.attention=auto"
      )
  if config.positions == "relative":
    raise UserError("model.attention=splash has no bias for model.positions=relative: set model.attention=auto")


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
  (r"embed/patch/w", ". -> embed"),
  (r"embed/project/w", ". -> embed"),
  (r"embed/class", "."),
  (r"relative/table", ". heads"),
  (r"dense/w|pooler/w", "embed -> ."),
  (r"(classifier|next_sentence)/w", ". -> embed"),
  (r"(dense|pooler|classifier|next_sentence|project|patch)/b", "."),
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
