"""`ModelConfig`: everything in which the families differ, and the axes of every parameter."""

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from tfm_jax.errors import UserError
from tfm_jax.ops.attention import KERNELS, find_kernel
from tfm_jax.ops.kernel import Need

VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class RotaryConfig:
  """Rotary positions (Su et al. 2021), and how they are stretched to reach longer texts."""

  base: float = 10_000.0  # the longest wave is about 2 pi times it
  local_base: float = 0.0  # the same in layers with a window; 0: base
  factor: float = 1.0  # by which waves are stretched
  original: int = 0  # Llama 3: the length trained on, of which only long waves are stretched; 0: all waves
  low: float = 1.0  # Llama 3: waves longer than original / low are stretched wholly
  high: float = 4.0  # Llama 3: waves shorter than original / high stay as they are


@dataclasses.dataclass(frozen=True)
class WindowConfig:
  """Local attention."""

  size: int = 0  # how far away a key may be, on either side; 0: every layer sees all
  global_every: int = 0  # layers 0, n, 2 n ... see all nonetheless; 0: none does


@dataclasses.dataclass(frozen=True)
class HeadConfig:
  """What is predicted from the last hidden states."""

  name: str = "lm"  # a name in models.heads.table.HEADS
  transform: bool = False  # a dense layer, activation and norm before the output layer
  classifier_transform: bool = False  # the same before classifiers
  activation: str = ""  # its activation; empty: that of the blocks
  bias: bool = False  # in the output layer
  pooler: str = "none"  # of a row into one vector: tanh, relu (a dense layer and this activation) or none
  pooling: str = "first"  # what the pooler sees: first (token) or mean
  num_labels: int = 2  # classes of the heads that classify
  labels: str = ""  # their names, separated by "|"; empty: none


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """Images, in families that see them."""

  height: int = 0  # pixels
  width: int = 0  # pixels
  channels: int = 3  # values of a pixel
  patch: int = 0  # pixels along a side of the squares that images are cut into; 0: the model sees no images


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and kind of a Transformer: what all families share, and four sections. A family's preset is such a value."""

  num_layers: int = 12  # blocks; of the encoder, where there are two stacks
  decoder_layers: int = 0  # blocks of the decoder in encoder-decoder families; 0: num_layers
  embed_dim: int = 768  # width of the residual stream
  num_heads: int = 12  # attention heads
  num_kv_heads: int = 0  # heads of keys and values, each shared by a group of query heads; 0: num_heads
  head_dim: int = 0  # features of a head; 0: embed_dim / num_heads
  mlp_dim: int = 0  # hidden features of the feed-forward layer; 0: 4 * embed_dim
  embedding_dim: int = 0  # features of the embedding tables, projected to embed_dim (ELECTRA); 0: embed_dim
  vocab_size: int = 0  # rows of the table of tokens, if more than the tokenizer has; 0: the tokenizer's vocabulary
  max_positions: int = 0  # rows of the table of learned positions
  dropout: float = 0.0  # rate after embeddings and sub-layers
  attention_dropout: float = 0.0  # rate on the attention weights
  attention: str = "auto"  # auto (the fastest that can do it), xla, or splash (TPU; without dropout, bias and window)
  dtype: str = "bfloat16"  # compute dtype: bfloat16 or float32; parameters are float32
  remat: str = "none"  # kept for the backward pass: none (all), dots (outputs of linears), full (inputs of blocks)
  scan: bool = True  # one compiled block for all layers; false unrolls it
  positions: str = "learned"  # learned, sinusoidal, relative (T5), rotary or none
  position_offset: int = 0  # rows of the table before the one of position 0; the last of them is for padding
  relative_buckets: int = 32  # of relative positions
  relative_distance: int = 128  # of relative positions: beyond it all share one bucket
  norm: str = "layer"  # layer or rms
  norm_order: str = "pre"  # pre or post
  norm_epsilon: float = 1e-5  # added to the variance
  first_norm: bool = True  # of pre-norm: before the attention of the first block too
  activation: str = "gelu"  # gelu (erf), gelu_tanh, relu or silu
  gated: bool = False  # a gate beside the activation (GEGLU, SwiGLU)
  bias: str = "all"  # what has a bias: all, none, or some of qkv, out, mlp, norm, transform, separated by commas
  tied: bool = True  # the output layer is the embedding table
  token_types: int = 0  # rows of the table of token types; 0: none
  embed_norm: bool = False  # a norm after the embeddings
  scale_attention: bool = True  # logits times head_dim^-0.5
  scale_by_layer: bool = False  # logits divided by the number of the layer, counted from 1
  scale_embed: bool = False  # embeddings times embed_dim^0.5
  scale_output: str = "never"  # hidden states times embed_dim^-0.5 before the output layer: always, never, if tied
  inner_dropout: bool = False  # dropout inside the feed-forward layer and after the last norm too
  init: str = "bert"  # initialisation, a name in models.init.INITS
  rotary: RotaryConfig = RotaryConfig()
  window: WindowConfig = WindowConfig()
  head: HeadConfig = HeadConfig()
  image: ImageConfig = ImageConfig()

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
    image = self.image
    return image.patch and (image.height // image.patch) * (image.width // image.patch)

  @property
  def compute_dtype(self) -> jnp.dtype:
    """dtype of activations."""
    return jnp.dtype(self.dtype)

  def has_bias(self, part: str) -> bool:
    """Whether a part, one of `BIASES`, has a bias."""
    return self.bias in ("all", "true") or part in self.bias.split(",")


# Parts of a model that may have a bias: projections to queries, keys and values; the one back to the residual stream;
# the feed-forward layer; norms; the dense layer of the head's transform.
BIASES = ("qkv", "out", "mlp", "norm", "transform")

CHOICES: dict[str, tuple[str, ...]] = {
  "dtype": ("bfloat16", "float32"),
  "remat": ("none", "dots", "full"),
  "positions": ("learned", "sinusoidal", "relative", "rotary", "none"),
  "norm": ("layer", "rms"),
  "norm_order": ("pre", "post"),
  "activation": ("gelu", "gelu_tanh", "relu", "silu"),
  "scale_output": ("always", "never", "tied"),
  "head.activation": ("gelu", "gelu_tanh", "relu", "silu"),
  "head.pooler": ("none", "tanh", "relu"),
  "head.pooling": ("first", "mean"),
}


def fields_of(kind: type) -> dict[str, type]:
  """The fields of a dataclass and of those it holds, `name` or `section.name`, with their types."""
  made: dict[str, type] = {}
  hints: dict[str, Any] = typing.get_type_hints(kind)
  for name, hint in hints.items():
    inner = fields_of(typing.cast(type, hint)) if dataclasses.is_dataclass(hint) else {}
    made |= {f"{name}.{key}": kind for key, kind in inner.items()} or {name: hint}
  return made


def field(config: ModelConfig, key: str) -> Any:
  """The value of a field, as "num_layers" or "head.name"."""
  section, _, name = key.rpartition(".")
  return getattr(getattr(config, section) if section else config, name)


def full_key(key: str) -> str:
  """The key of the whole configuration that holds a field: "model.num_layers", "head.name"."""
  return key if "." in key else f"model.{key}"


def replaced(config: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
  """The configuration with other values in some fields, "num_layers" or "head.name"."""
  sections: dict[str, dict[str, Any]] = {}
  for key, value in changes.items():
    section, _, name = key.rpartition(".")
    sections.setdefault(section, {})[name] = value
  own = sections.pop("", {})
  inner = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
  return dataclasses.replace(config, **own, **inner)


def resolve(config: ModelConfig) -> ModelConfig:
  """The configuration with values in place of those that stand for another field's, checked. Raises UserError."""
  parts = [part for part in BIASES if config.has_bias(part)]
  others = set(config.bias.split(",")) - {*BIASES, "all", "none", "true", "false"}
  if others:
    raise UserError(f"model.bias={config.bias!r}: {others.pop()!r} is not one of all, none, {', '.join(BIASES)}")
  changes: dict[str, Any] = {
    "bias": {len(BIASES): "all", 0: "none"}.get(len(parts), ",".join(parts)),
    "head.activation": config.head.activation or config.activation,
    "rotary.local_base": config.rotary.local_base or config.rotary.base,
  }
  if config.scale_output == "tied":
    changes["scale_output"] = "always" if config.tied else "never"
  config = replaced(config, changes)
  check(config)
  return config


def check(config: ModelConfig) -> None:
  """Raises UserError for an impossible value, and for values that do not go together."""
  for key, choices in {"attention": ("auto", *reversed(KERNELS)), **CHOICES}.items():
    if field(config, key) not in choices:
      raise UserError(f"{full_key(key)}={field(config, key)!r} is not one of {', '.join(choices)}")
  for key in ("num_layers", "embed_dim", "num_heads", "head.num_labels"):
    if field(config, key) < 1:
      raise UserError(f"{full_key(key)}={field(config, key)} must be positive")
  for key in ("dropout", "attention_dropout"):
    if not 0 <= field(config, key) < 1:
      raise UserError(f"model.{key}={field(config, key)} must lie in [0, 1)")
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
  head, image = config.head, config.image
  if config.embed_features != config.embed_dim and config.tied and head.name == "lm" and not head.transform:
    raise UserError(
      f"model.embedding_dim={config.embedding_dim} is not the width of the model, {config.embed_dim}: the embedding "
      f"table cannot be the output layer without head.transform=true; or set model.tied=false"
    )
  if head.labels and len(head.labels.split("|")) != head.num_labels:
    raise UserError(f"head.labels has {len(head.labels.split('|'))} names for head.num_labels={head.num_labels}")
  for side, length in (("height", image.height), ("width", image.width)):
    if image.patch and (not length or length % image.patch):
      raise UserError(f"image.{side}={length} is no multiple of image.patch={image.patch}")
  find_kernel(config.attention, attention_need(config))


def attention_need(config: ModelConfig, training: bool = True) -> Need:
  """What a model needs of its attention kernel, wherever it runs."""
  return Need(
    dropout=config.attention_dropout if training else 0.0,
    bias=config.positions == "relative",
    window=config.window.size,
    scale_by_layer=config.scale_by_layer,
    groups=config.num_heads // config.kv_heads,
  )


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
