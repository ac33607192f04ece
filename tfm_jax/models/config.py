"""`ModelConfig`: the configuration of a model of any family, and the logical axes of every parameter."""

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from tfm_jax.errors import UserError
from tfm_jax.models.residual import ORDERS
from tfm_jax.ops.attention import KERNELS, find_kernel
from tfm_jax.ops.kernel import Need

VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class RelativeConfig:
  """T5's relative positions (Raffel et al. 2020)."""

  buckets: int = 32  # number of buckets of relative positions
  distance: int = 128  # distance from which on relative positions share the last bucket


@dataclasses.dataclass(frozen=True)
class RotaryConfig:
  """Rotary positions (Su et al. 2021), and how they are stretched to reach longer texts."""

  base: float = 10_000.0  # base of the frequencies; the longest wavelength is about 2 pi times it, in tokens
  local_base: float = 0.0  # base in layers with local attention; 0: rotary.base
  factor: float = 1.0  # factor by which wavelengths are stretched
  original: int = 0  # original length of Llama 3's scaling, which stretches only long waves; 0: all are stretched
  low: float = 1.0  # Llama 3's scaling: wavelengths above original / low are stretched by the full factor
  high: float = 4.0  # Llama 3's scaling: wavelengths below original / high are not stretched


@dataclasses.dataclass(frozen=True)
class WindowConfig:
  """Local attention."""

  size: int = 0  # largest distance of a key that a query attends to, on either side; 0: attention is global
  global_every: int = 0  # every n-th layer (0, n, 2 n ...) has global attention nonetheless; 0: none


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
  """Experts in place of each feed-forward layer, of which a token uses a few."""

  count: int = 0  # number of experts of each feed-forward layer; 0: it is a single one
  top_k: int = 2  # experts per token; the gate of a single one is its probability, those of several sum to one
  # training: places of an expert for the tokens of a group, as a multiple of its even share; what exceeds them is
  # dropped. 0: no limit, as in evaluation, but each expert then computes every token
  capacity: float = 1.25
  group: int = 0  # training: tokens of a group, which are neighbours in a row; 0: the whole row is one
  balance: float = 0.01  # factor of the loss that spreads tokens over experts evenly, per layer
  z_loss: float = 0.001  # factor of the penalty on large logits of the router, per layer


@dataclasses.dataclass(frozen=True)
class HeadConfig:
  """The prediction head: what is predicted from the last hidden states."""

  name: str = "lm"  # lm, pretraining, none, pooled, or a task's: see models/heads/table.py
  transform: bool = False  # a dense layer, an activation and a norm before the output layer
  classifier_transform: bool = False  # the same transform before a classifier
  activation: str = ""  # activation of the transform; empty: model.activation
  bias: bool = False  # a bias in the output layer
  pooler: str = "none"  # dense layer on the pooled vector of a row, with the activation tanh or relu; none: no layer
  pooling: str = "first"  # vector that stands for a row: first or last (of its tokens), or mean (over them)
  num_labels: int = 2  # number of classes of a classification head; 1: a number is predicted
  labels: str = ""  # names of the classes, separated by "|"; empty: unnamed
  generator: float = 0.25  # electra: heads and widths of the generator as a share of the model's
  generator_layers: int = 0  # electra: blocks of the generator; 0: model.num_layers


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """Images, in families that read them."""

  height: int = 0  # height of an image in pixels
  width: int = 0  # width of an image in pixels
  channels: int = 3  # number of values per pixel
  patch: int = 0  # side of the square patches in pixels; 0: the model reads no images


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and kind of a Transformer: the fields that all families share, and sections.

  Each family has a preset, which is a value of this class; an experiment replaces fields of it.
  """

  num_layers: int = 12  # number of blocks (of the encoder, in encoder-decoder families)
  decoder_layers: int = 0  # number of decoder blocks in encoder-decoder families; 0: num_layers
  embed_dim: int = 768  # width of the residual stream
  num_heads: int = 12  # number of attention heads
  num_kv_heads: int = 0  # number of heads of keys and values, each shared by a group of query heads; 0: num_heads
  head_dim: int = 0  # width of an attention head; 0: embed_dim / num_heads
  mlp_dim: int = 0  # hidden width of the feed-forward layer; 0: 4 * embed_dim
  embedding_dim: int = 0  # width of the embedding tables, projected to embed_dim (ELECTRA); 0: embed_dim
  vocab_size: int = 0  # size of the token table if it is larger than the tokenizer's vocabulary; 0: the same size
  max_positions: int = 0  # size of the table of learned positions
  dropout: float = 0.0  # dropout rate after the embeddings and after each sub-layer
  attention_dropout: float = 0.0  # dropout rate on the attention weights
  attention: str = "auto"  # kernel: auto (the fastest that can serve), xla, tiles, cudnn (GPU) or splash (TPU)
  dtype: str = "bfloat16"  # dtype of computation: bfloat16 or float32; parameters are float32
  # kept for the backward pass: none (all), dots (outputs of linears), full (inputs of blocks) or offload (inputs of
  # blocks and projections of attention, in the memory of the host)
  remat: str = "none"
  scan: bool = True  # compile one block for all layers (on a CPU, if there are over 12); false unrolls their loop
  positions: str = "learned"  # position encoding: learned, sinusoidal, relative (T5), rotary, alibi or none
  position_offset: int = 0  # rows of the position table before that of position 0; the last of them is for padding
  norm: str = "layer"  # normalisation: layer (LayerNorm) or rms (RMSNorm)
  # place of the norms: pre (before each sub-layer), post (after its residual), parallel (one before all sub-layers of a
  # block, whose outputs are summed), deepnorm (post, for deep stacks; with init=xavier) or rezero (no norms)
  norm_order: str = "pre"
  norm_epsilon: float = 1e-5  # added to the variance in norms
  first_norm: bool = True  # a norm before the first block's attention too, where norm_order is pre
  activation: str = "gelu"  # activation of the feed-forward layer: gelu (erf), gelu_tanh, relu or silu
  gated: bool = False  # a linear gate beside the activation (GEGLU, SwiGLU)
  bias: str = "all"  # parts with a bias: all, none, or some of qkv, out, mlp, norm, transform, separated by commas
  tied: bool = True  # use the embedding table as the output layer
  token_types: int = 0  # number of token types (the segments of BERT); 0: no such table
  embed_norm: bool = False  # a norm after the embeddings
  scale_attention: bool = True  # multiply attention logits by head_dim^-0.5
  scale_by_layer: bool = False  # divide attention logits by the number of the layer, counted from 1
  scale_embed: bool = False  # multiply embeddings by embed_dim^0.5
  scale_output: str = "never"  # multiply the output layer's input by embed_dim^-0.5: always, never or tied (if it is)
  inner_dropout: bool = False  # dropout also inside the feed-forward layer and after the last norm
  init: str = "bert"  # initialisation: bert, gpt, t5 or xavier
  relative: RelativeConfig = RelativeConfig()
  rotary: RotaryConfig = RotaryConfig()
  window: WindowConfig = WindowConfig()
  experts: ExpertsConfig = ExpertsConfig()
  head: HeadConfig = HeadConfig()
  image: ImageConfig = ImageConfig()

  @property
  def head_features(self) -> int:
    """K: width of an attention head."""
    return self.head_dim or self.embed_dim // self.num_heads

  @property
  def kv_heads(self) -> int:
    """G: number of heads of keys and values."""
    return self.num_kv_heads or self.num_heads

  @property
  def mlp_features(self) -> int:
    """F: hidden width of the feed-forward layer."""
    return self.mlp_dim or 4 * self.embed_dim

  @property
  def embed_features(self) -> int:
    """E: width of the embedding tables."""
    return self.embedding_dim or self.embed_dim

  @property
  def decoder_depth(self) -> int:
    """Number of decoder blocks in encoder-decoder families."""
    return self.decoder_layers or self.num_layers

  @property
  def patches(self) -> int:
    """Number of patches of an image; 0 in families that read no images."""
    image = self.image
    return image.patch and (image.height // image.patch) * (image.width // image.patch)

  @property
  def compute_dtype(self) -> jnp.dtype:
    """dtype of activations."""
    return jnp.dtype(self.dtype)

  def has_bias(self, part: str) -> bool:
    """Whether a part (one of `BIASES`) has a bias."""
    return self.bias in ("all", "true") or part in self.bias.split(",")


# Parts of a model that may have a bias: the projections to queries, keys and values; attention's output projection; the
# feed-forward layer; norms; the dense layer of the prediction head's transform.
BIASES = ("qkv", "out", "mlp", "norm", "transform")

CHOICES: dict[str, tuple[str, ...]] = {
  "dtype": ("bfloat16", "float32"),
  "remat": ("none", "dots", "full", "offload"),
  "positions": ("learned", "sinusoidal", "relative", "rotary", "alibi", "none"),
  "norm": ("layer", "rms"),
  "norm_order": tuple(ORDERS),
  "activation": ("gelu", "gelu_tanh", "relu", "silu"),
  "scale_output": ("always", "never", "tied"),
  "head.activation": ("gelu", "gelu_tanh", "relu", "silu"),
  "head.pooler": ("none", "tanh", "relu"),
  "head.pooling": ("first", "last", "mean"),
}


def fields_of(kind: type) -> dict[str, type]:
  """The fields of a dataclass and of its sections, as `name` or `section.name`, with their types."""
  fields: dict[str, type] = {}
  hints: dict[str, Any] = typing.get_type_hints(kind)
  for name, hint in hints.items():
    inner = fields_of(typing.cast(type, hint)) if dataclasses.is_dataclass(hint) else {}
    fields |= {f"{name}.{key}": kind for key, kind in inner.items()} or {name: hint}
  return fields


def field(config: ModelConfig, key: str) -> Any:
  """The value of a field, named as "num_layers" or "head.name"."""
  section, _, name = key.rpartition(".")
  return getattr(getattr(config, section) if section else config, name)


def full_key(key: str) -> str:
  """A field's key in the whole configuration: "model.num_layers", "head.name"."""
  return key if "." in key else f"model.{key}"


def replaced(config: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
  """The configuration with some fields changed, named as "num_layers" or "head.name"."""
  sections: dict[str, dict[str, Any]] = {}
  for key, value in changes.items():
    section, _, name = key.rpartition(".")
    sections.setdefault(section, {})[name] = value
  own = sections.pop("", {})
  inner = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
  return dataclasses.replace(config, **own, **inner)


def resolve(config: ModelConfig) -> ModelConfig:
  """The configuration, checked, with fields that default to another field's value filled in. Raises UserError."""
  parts = [part for part in BIASES if config.has_bias(part)]
  unknown = set(config.bias.split(",")) - {*BIASES, "all", "none", "true", "false"}
  if unknown:
    raise UserError(f"model.bias={config.bias!r}: {unknown.pop()!r} is not one of all, none, {', '.join(BIASES)}")
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
  """Raises UserError for an impossible value, or for values that contradict each other."""
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
      f"each head of keys and values serves the same number of query heads"
    )
  if config.positions == "rotary" and config.head_features % 2:
    raise UserError(f"rotary positions need an even head dimension, not {config.head_features}: set model.head_dim")
  head, image, experts = config.head, config.image, config.experts
  for key in ("count", "capacity", "group", "balance", "z_loss"):
    if getattr(experts, key) < 0:
      raise UserError(f"experts.{key}={getattr(experts, key)} must not be negative")
  if experts.count and not 1 <= experts.top_k <= experts.count:
    raise UserError(f"experts.top_k={experts.top_k} must lie between 1 and experts.count={experts.count}")
  if experts.count and config.inner_dropout and config.dropout:
    raise UserError(
      f"experts.count={experts.count}: experts have no dropout inside, as model.inner_dropout=true asks: set it to "
      f"false, or model.dropout to 0"
    )
  if config.embed_features != config.embed_dim and config.tied and head.name == "lm" and not head.transform:
    raise UserError(
      f"model.embedding_dim={config.embedding_dim} is not the width of the model, {config.embed_dim}: the embedding "
      f"table cannot be the output layer without head.transform=true; or set model.tied=false"
    )
  if head.labels and len(head.labels.split("|")) != head.num_labels:
    raise UserError(f"head.labels has {len(head.labels.split('|'))} names for head.num_labels={head.num_labels}")
  for side, length in (("height", image.height), ("width", image.width)):
    if image.patch and (not length or length % image.patch):
      raise UserError(f"image.{side}={length} is not a multiple of image.patch={image.patch}")
  if not 0 < head.generator <= 1:
    raise UserError(f"head.generator={head.generator:g} is not a share above 0 and up to 1 of the model's widths")
  find_kernel(config.attention, attention_need(config))


def attention_need(config: ModelConfig, training: bool = True) -> Need:
  """What a model needs of its attention kernel on any platform."""
  return Need(
    dropout=config.attention_dropout if training else 0.0,
    bias=config.positions in ("relative", "alibi"),
    window=config.window.size,
    scale_by_layer=config.scale_by_layer,
    groups=config.num_heads // config.kv_heads,
    heads=config.kv_heads,
    dtype=config.dtype,
    head_dim=config.head_features,
    mixed=config.window.global_every > 0,
  )


def pad_vocab(size: int) -> int:
  """The vocabulary size of the arrays: the next multiple of 128, so that matrix units and meshes divide it."""
  return -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class Axes(NamedTuple):
  """Logical axes of a parameter: first those of layers and experts if it has any, then its input and output axes.

  Attributes:
    names: the logical axes; None for an axis that is never split.
    layers: number of axes along which separate matrices are stacked: those of layers and of experts.
    inputs: number of input axes; 0 for a parameter that is not a matrix (a bias, a norm, a small table).
  """

  names: tuple[str | None, ...]
  layers: int
  inputs: int

  @property
  def is_matrix(self) -> bool:
    """Whether weight decay applies to it and matrix optimizers treat it as a matrix."""
    return self.inputs > 0


# End of a parameter's path, and the axes of one layer, inputs -> outputs; "." is an axis that is never split, and "|"
# ends the axes of separate matrices. Paths and axes are public: strategies name these axes.
PARAM_AXES = (
  (r"mlp/router", "embed -> ."),
  (r"experts/w[ig]", "experts | embed -> mlp"),
  (r"experts/b[ig]", "experts | mlp"),
  (r"experts/wo", "experts | mlp -> embed"),
  (r"experts/bo", "experts | ."),
  (r"wq", "embed -> heads ."),
  (r"w[kv]", "embed -> kv_heads ."),
  (r"bq", "heads ."),
  (r"b[kv]", "kv_heads ."),
  (r"attn/wo|cross/wo", "heads . -> embed"),
  (r"mlp/w[ig]", "embed -> mlp"),
  (r"mlp/b[ig]", "mlp"),
  (r"mlp/wo", "mlp -> embed"),
  (r"(rnn|reverse)/w[xh]", "embed -> . mlp"),
  (r"(rnn|reverse)/bh?", ". mlp"),
  (r"bo", "."),
  (r"blocks/gain", ""),
  (r"scale|\w*norm/bias", "."),
  (r"embed/token|head/w", "vocab -> embed"),
  (r"embed/(position|type)", ". -> embed"),
  (r"embed/patch/w", ". -> embed"),
  (r"(embed|generator)/project/w", ". -> embed"),
  (r"embed/class", "."),
  (r"relative/table", ". heads"),
  (r"dense/w|pooler/w|(image|text)_projection/w", "embed -> ."),
  (r"(classifier|next_sentence)/w", ". -> embed"),
  (r"(dense|pooler|classifier|next_sentence|project|patch)/b", "."),
  (r"head/bias", "vocab"),
  (r"temperature/log_scale", ""),
)


def param_axes(path: str) -> Axes:
  """Logical axes of the parameter at `path`, such as `blocks/attn/wq`. KeyError if `PARAM_AXES` has no entry for it."""
  for pattern, axes in PARAM_AXES:
    if re.search(rf"(^|/)({pattern})$", path):
      separate, _, matrix = axes.rpartition("|")
      first = ["layers"] * ("blocks/" in path) + separate.split()
      sides = [[None if axis == "." else axis for axis in side.split()] for side in matrix.split("->")]
      names = (*first, *(axis for side in sides for axis in side))
      return Axes(names, len(first), len(sides[0]) if len(sides) == 2 else 0)
  raise KeyError(f"PARAM_AXES has no entry for the parameter {path}")
