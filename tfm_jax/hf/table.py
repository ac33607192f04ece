"""`Table`: how a family maps to transformers, in entries (parameter and tensor) and keys of the two configurations."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.models.config import ModelConfig, param_axes
from tfm_jax.models.heads.head import of_head

Index = tuple[slice, ...]
Shapes = Mapping[str, tuple[int, ...]]  # of our parameters, by path
Params = Mapping[str, Any]  # our parameters, by path

AS_IS, TRANSPOSED, PER_HEAD, PATCHES, TWO_AXES = "as is", "transposed", "per head", "patches", "two axes"


class Entry(NamedTuple):
  """One or several parameters and the tensor that holds them; one tensor per layer where the name contains `{}`.

  Attributes:
    theirs: the tensor's name in architectures with a head.
    ours: paths of the parameters. Several are stored in one tensor, concatenated along their output axis.
    layout: how a matrix is stored. AS_IS: [inputs, outputs]. TRANSPOSED: [outputs, inputs], as in PyTorch's Linear.
      PER_HEAD: transposed, and several parameters are concatenated within each attention head. PATCHES: [D, C, P, P],
      as in PyTorch's convolution. TWO_AXES: a table that is no matrix here keeps its two axes.
    ones: axes of length 1 in front of the others.
  """

  theirs: str
  ours: tuple[str, ...]
  layout: str = AS_IS
  ones: int = 0

  def matrix(self, path: str, shapes: Shapes) -> tuple[int, ...]:
    """The shape of one layer of a parameter, flattened to (inputs, outputs), or (outputs,) if it is no matrix."""
    axes, shape = param_axes(path), shapes[path]
    shape, count = shape[axes.layers :], self.inputs(path)
    inputs, outputs = math.prod(shape[:count]), math.prod(shape[count:])
    return (inputs, outputs) if count else (outputs,)

  def inputs(self, path: str) -> int:
    """How many axes of a parameter's layer form the first of the tensor's two axes; 0 if the tensor has one axis."""
    return 1 if self.layout == TWO_AXES else param_axes(path).inputs

  def shape(self, shapes: Shapes, vocab_size: int, patch: int) -> tuple[int, ...]:
    """The shape of the tensor, without the vocabulary's padding."""
    parts = [self.matrix(path, shapes) for path in self.ours]
    *front, _ = parts[0]
    shape = [*front, sum(part[-1] for part in parts)]
    if self.of_vocabulary:
      shape[0] = vocab_size
    if self.layout in (TRANSPOSED, PER_HEAD):
      shape.reverse()
    if self.layout == PATCHES:
      shape = [shape[1], shape[0] // patch**2, patch, patch]
    return (1,) * self.ones + tuple(shape)

  def layers(self, shapes: Shapes) -> list[int | None]:
    """Layer indices, or [None] if the tensor is not per layer."""
    return list(range(shapes[self.ours[0]][0])) if param_axes(self.ours[0]).layers else [None]

  @property
  def of_head(self) -> bool:
    """Whether the parameters belong to the prediction head."""
    return of_head(self.ours[0])

  @property
  def of_vocabulary(self) -> bool:
    """Whether the first axis of the tensor is the vocabulary."""
    return "vocab" in param_axes(self.ours[0]).names

  def exists(self, config: ModelConfig, layer: int | None) -> bool:
    """Whether a layer has the tensor: `model.first_norm=false` leaves out the first block's first norm."""
    return config.first_norm or layer != 0 or not self.ours[0].startswith("blocks/attn_norm/")

  def name(self, layer: int | None) -> str:
    """The tensor's name in one layer."""
    return self.theirs if layer is None else self.theirs.format(layer)

  def export(self, parts: Sequence[np.ndarray], vocab_size: int, patch: int) -> np.ndarray:
    """The tensor of one layer from that layer of our arrays, given in the order of `ours`."""
    flatten = lambda x, count: x.reshape(*((math.prod(x.shape[:count]),) if count else ()), -1)
    counts = [self.inputs(path) for path in self.ours]
    if self.layout == PER_HEAD:
      tensor = flatten(np.concatenate(parts, axis=-1), counts[0])
    else:
      tensor = np.concatenate([flatten(part, count) for part, count in zip(parts, counts, strict=True)], axis=-1)
    if self.of_vocabulary:
      tensor = tensor[:vocab_size]
    if self.layout in (TRANSPOSED, PER_HEAD):
      tensor = tensor.T
    if self.layout == PATCHES:
      tensor = tensor.reshape(patch, patch, -1, tensor.shape[-1]).transpose(3, 2, 0, 1)
    return tensor.reshape((1,) * self.ones + tensor.shape)

  def read(
    self,
    path: str,
    index: Index,
    shapes: Shapes,
    vocab_size: int,
    read: Callable[[Index], np.ndarray],
    patch: int,
  ) -> np.ndarray:
    """A part of one layer of the parameter at `path`, from as little of the tensor as possible.

    Args:
      path: one of `ours`.
      index: of the part, without the axis of layers.
      shapes: of our parameters.
      vocab_size: rows of the vocabulary; further rows of the file are padding.
      read: index -> that part of the tensor.
      patch: pixels along the side of a patch.
    """
    axes = param_axes(path)
    shape = shapes[path][axes.layers :]
    bounds = [part.indices(n)[:2] for part, n in zip(index, shape, strict=True)]
    if self.layout in (PATCHES, PER_HEAD):
      return self._unpacked(path, shape, read)[tuple(slice(*pair) for pair in bounds)]
    matrix = self.matrix(path, shapes)
    count = self.inputs(path)
    groups = [(shape[:count], bounds[:count])] if count else []
    groups += [(shape[count:], bounds[count:])]
    ranges, exact = zip(*(_range(*group) for group in groups), strict=True)
    before = sum(self.matrix(other, shapes)[-1] for other in self.ours[: self.ours.index(path)])
    *front, last = ranges
    region = [*(slice(*r) for r in front), slice(last[0] + before, last[1] + before)]
    missing = 0
    if self.of_vocabulary:  # rows that pad the vocabulary are zeros
      missing = max(region[0].stop - max(vocab_size, region[0].start), 0)
      region[0] = slice(min(region[0].start, vocab_size), min(region[0].stop, vocab_size))
    if self.layout == TRANSPOSED:
      region.reverse()
    values = read((*(slice(None),) * self.ones, *region))
    values = values.reshape(values.shape[self.ones :])
    if self.layout == TRANSPOSED:
      values = values.T
    if missing:
      values = np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)])
    if all(exact):
      return values.reshape([end - begin for begin, end in bounds])
    # The part is not one block of rows and columns: cut it out of the block that was read.
    full = np.zeros(matrix, values.dtype)
    full[tuple(slice(*r) for r in ranges)] = values
    return full.reshape(shape)[tuple(slice(*pair) for pair in bounds)]

  def _unpacked(self, path: str, shape: tuple[int, ...], read: Callable[[Index], np.ndarray]) -> np.ndarray:
    """One layer of the parameter at `path`, from the whole tensor."""
    if self.layout == PATCHES:
      return read((slice(None),) * 4).transpose(2, 3, 1, 0).reshape(shape)
    tensor = read((slice(None),) * (1 + (self.inputs(path) > 0))).T
    split = np.split(tensor.reshape(*shape[:-1], -1), len(self.ours), axis=-1)
    return split[self.ours.index(path)]


def _range(shape: tuple[int, ...], bounds: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], bool]:
  """The range of the flattened axes that contains the bounds, and whether it contains nothing else."""
  if not shape:
    return (0, 1), True
  inner = math.prod(shape[1:])
  whole = all(pair == (0, n) for pair, n in zip(bounds[1:], shape[1:], strict=True))
  return (bounds[0][0] * inner, bounds[0][1] * inner), whole


# Entries, as tables write them. A star stands for w and b: "blocks/attn/*q" is a weight and a bias.


def same(ours: str, theirs: str, layout: str = AS_IS, ones: int = 0) -> list[Entry]:
  """One parameter and its tensor."""
  return [Entry(theirs, (ours,), layout, ones)]


def linear(ours: str, theirs: str, layout: str = TRANSPOSED) -> list[Entry]:
  """A weight and its bias. `ours` lists several, separated by spaces, that share one tensor."""
  weights, biases = (tuple(path.replace("*", letter) for path in ours.split()) for letter in "wb")
  bias_layout = PER_HEAD if layout == PER_HEAD else AS_IS
  return [Entry(f"{theirs}.weight", weights, layout), Entry(f"{theirs}.bias", biases, bias_layout)]


def norm(ours: str, theirs: str) -> list[Entry]:
  """The scale and bias of a norm."""
  return [Entry(f"{theirs}.weight", (f"{ours}/scale",)), Entry(f"{theirs}.bias", (f"{ours}/bias",))]


class Key(NamedTuple):
  """A field of ModelConfig, the key of config.json with the same meaning, and that key's default.

  A field of a section is written "head.bias"; "bias.qkv" is whether that part has a bias.
  """

  ours: str
  theirs: str
  default: Any


# Their names of activations -> ours. Where several have the same meaning, export writes the first.
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "relu": "relu",
  "silu": "silu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_python": "gelu",
  "swish": "silu",
}
_THEIR_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


def activation(theirs: Any) -> str:
  """Our name of an activation. Raises UserError."""
  if theirs not in ACTIVATIONS:
    raise UserError(f"config.json: the activation {theirs!r} is not one of {', '.join(ACTIVATIONS)}")
  return ACTIVATIONS[theirs]


def their_activation(ours: str) -> str:
  """The name of an activation in config.json."""
  return _THEIR_ACTIVATIONS[ours]


class Table(NamedTuple):
  """How one of our families (or one kind of its models) maps to the architectures of transformers.

  Attributes:
    family: the name of our family.
    model_types: names in config.json. Export writes the first, unless `to_theirs` chooses another.
    architectures: name -> our head. Export writes the first that has the model's head and model type.
    prefix: of tensors that do not belong to a head; files of bare models leave it out.
    keys: pairs of configuration keys.
    entries: config -> pairs of parameters and tensors.
    serves: whether a model of the family is exported by this table; the first table that serves is used.
    fixed: keys of config.json that may only have this value, because our models have no counterpart of others.
    ignored: regular expressions of tensors that are no parameters.
    omitted: prefixes of tensors of a part that the family lacks, which is left out: the decoder, of an encoder alone.
    rotary_rates: regular expression of tensors with rotary frequencies, which must be those of the configuration.
    aliases: config -> other names of a tensor, where files store it twice or under an older name.
    output: the tensor of the output layer, which may be tied with
    embedding: the tensor of the embedding table.
    to_ours: (config.json with defaults, our fields so far) -> further fields of ours.
    to_theirs: (config, requested model type or "") -> further keys of config.json.
    simplify: (config, parameters) -> an equivalent model without what the architecture cannot express.
    extras: config -> tensors without a counterpart here, which transformers expects in a file.
  """

  family: str
  model_types: tuple[str, ...]
  architectures: dict[str, str]
  prefix: str
  keys: tuple[Key, ...]
  entries: Callable[[ModelConfig], list[Entry]]
  serves: Callable[[ModelConfig], bool] = lambda config: True
  fixed: Mapping[str, Any] = {}
  ignored: tuple[str, ...] = ()
  omitted: tuple[str, ...] = ()
  rotary_rates: str = r"(?!)"
  aliases: Callable[[ModelConfig], Mapping[str, str]] = lambda config: {}
  output: str = ""
  embedding: str = ""
  to_ours: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] = lambda theirs, ours: {}
  to_theirs: Callable[[ModelConfig, str], dict[str, Any]] = lambda config, kind: {}
  simplify: Callable[[ModelConfig, Params], tuple[ModelConfig, Params]] = lambda config, params: (config, params)
  extras: Callable[[ModelConfig], Mapping[str, np.ndarray]] = lambda config: {}

  def architectures_of(self, model_type: str) -> list[str]:
    """The architectures of one model type."""
    every = list(self.architectures)
    return every if len(self.model_types) == 1 else [name for name in every if name.lower().startswith(model_type)]
