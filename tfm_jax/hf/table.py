"""What a family's table is made of: rows that name a parameter here and a tensor there, and keys of the two configs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.models.config import ModelConfig, param_axes
from tfm_jax.models.heads.head import of_head

Index = tuple[slice, ...]
Shapes = Mapping[str, tuple[int, ...]]  # of our parameters, by path

AS_IS, TRANSPOSED, PATCHES, TABLE = "as is", "transposed", "patches", "table"


class Row(NamedTuple):
  """Parameters and the tensor that holds them, one a layer where the name has `{}`.

  Attributes:
    theirs: the tensor's name in the architectures that have a head.
    ours: paths; several where the file has them in one tensor, one after the other along their output axis.
    layout: of a matrix: AS_IS [inputs, outputs]; TRANSPOSED, as PyTorch's Linear has it; PATCHES [D, C, P, P], as
      its convolution has it; TABLE: two axes of what is no matrix here.
    ones: axes of length 1 before the others.
  """

  theirs: str
  ours: tuple[str, ...]
  layout: str = AS_IS
  ones: int = 0

  def matrix(self, path: str, shapes: Shapes) -> tuple[int, ...]:
    """The shape of one layer's part, as (inputs, outputs), or (outputs,) for what is no matrix."""
    axes, shape = param_axes(path), shapes[path]
    shape, count = shape[axes.layers :], self.inputs(path)
    inputs, outputs = math.prod(shape[:count]), math.prod(shape[count:])
    return (inputs, outputs) if count else (outputs,)

  def inputs(self, path: str) -> int:
    """How many axes of one layer make the first of the tensor's two; 0: it has one."""
    return 1 if self.layout == TABLE else param_axes(path).inputs

  def shape(self, shapes: Shapes, vocab_size: int, patch: int) -> tuple[int, ...]:
    """The shape of the tensor: without the vocabulary's padding."""
    parts = [self.matrix(path, shapes) for path in self.ours]
    *front, _ = parts[0]
    shape = [*front, sum(part[-1] for part in parts)]
    if self.of_vocabulary:
      shape[0] = vocab_size
    if self.layout == TRANSPOSED:
      shape.reverse()
    if self.layout == PATCHES:
      shape = [shape[1], shape[0] // patch**2, patch, patch]
    return (1,) * self.ones + tuple(shape)

  def layers(self, shapes: Shapes) -> list[int | None]:
    """The layers that there is a tensor for; [None] where layers have no part in it."""
    return list(range(shapes[self.ours[0]][0])) if param_axes(self.ours[0]).layers else [None]

  @property
  def of_head(self) -> bool:
    """Whether the parameters belong to the head."""
    return of_head(self.ours[0])

  @property
  def of_vocabulary(self) -> bool:
    """Whether the tensor has a row a token."""
    return "vocab" in param_axes(self.ours[0]).names

  def exists(self, config: ModelConfig, layer: int | None) -> bool:
    """Whether a layer has the tensor: the norm before the first block's attention may not exist."""
    return config.first_norm or layer != 0 or not self.ours[0].startswith("blocks/attn_norm/")

  def name(self, layer: int | None) -> str:
    """The tensor's name in one layer."""
    return self.theirs if layer is None else self.theirs.format(layer)

  def export(self, parts: Sequence[np.ndarray], vocab_size: int, patch: int) -> np.ndarray:
    """The tensor of one layer from our arrays of that layer, in the order of `ours`."""
    shapes = {path: (1, *part.shape) if param_axes(path).layers else part.shape
              for path, part in zip(self.ours, parts, strict=True)}  # fmt: skip
    flat = [part.reshape(self.matrix(path, shapes)) for path, part in zip(self.ours, parts, strict=True)]
    made = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=-1)
    if self.of_vocabulary:
      made = made[:vocab_size]
    if self.layout == TRANSPOSED:
      made = made.T
    if self.layout == PATCHES:
      made = made.reshape(patch, patch, -1, made.shape[-1]).transpose(3, 2, 0, 1)
    return made.reshape((1,) * self.ones + made.shape)

  def read(
    self, path: str, index: Index, shapes: Shapes, vocab_size: int, read: Callable[[Index], np.ndarray],
    patch: int,
  ) -> np.ndarray:  # fmt: skip
    """A part of one layer of the parameter at `path`, read from the tensor: no more of it than is needed.

    Args:
      path: one of `ours`.
      index: of the part, in the parameter's axes without that of layers.
      shapes: of our parameters.
      vocab_size: rows of the vocabulary: what the file may have beyond them only pads.
      read: index -> that part of the tensor.
      patch: pixels along a patch's side.
    """
    axes = param_axes(path)
    shape = shapes[path][axes.layers :]
    places = [part.indices(n)[:2] for part, n in zip(index, shape, strict=True)]
    wanted = tuple(end - begin for begin, end in places)
    if self.layout == PATCHES:
      whole = read((slice(None),) * 4).transpose(2, 3, 1, 0)
      return whole.reshape(shape)[tuple(slice(*place) for place in places)]
    matrix = self.matrix(path, shapes)
    count = self.inputs(path)
    groups = [(shape[:count], places[:count])] if count else []
    groups += [(shape[count:], places[count:])]
    ranges, exact = zip(*(_range(*group) for group in groups), strict=True)
    before = sum(self.matrix(other, shapes)[-1] for other in self.ours[: self.ours.index(path)])
    *front, last = ranges
    region = [*(slice(*r) for r in front), slice(last[0] + before, last[1] + before)]
    missing = 0
    if self.of_vocabulary:  # rows that only pad are zeros
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
      return values.reshape(wanted)
    # The part is not one block of rows and columns: cut it out of the rows and columns around it.
    full = np.zeros(matrix, values.dtype)
    full[tuple(slice(*r) for r in ranges)] = values
    return full.reshape(shape)[tuple(slice(*place) for place in places)]


def _range(shape: tuple[int, ...], places: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], bool]:
  """First and last + 1 of the flattened axes in which the places lie, and whether there is nothing else between."""
  if not shape:
    return (0, 1), True
  inner = math.prod(shape[1:])
  whole = all(place == (0, n) for place, n in zip(places[1:], shape[1:], strict=True))
  return (places[0][0] * inner, places[0][1] * inner), whole


# Rows, as tables write them. A star stands for w and b: "blocks/attn/*q" is a weight and a bias.


def same(ours: str, theirs: str, layout: str = AS_IS, ones: int = 0) -> list[Row]:
  """A tensor as it is."""
  return [Row(theirs, (ours,), layout, ones)]


def linear(ours: str, theirs: str, layout: str = TRANSPOSED) -> list[Row]:
  """A weight and its bias; `ours` names several with spaces between, where the file has them in one tensor."""
  weights, biases = (tuple(path.replace("*", letter) for path in ours.split()) for letter in "wb")
  return [Row(f"{theirs}.weight", weights, layout), Row(f"{theirs}.bias", biases)]


def norm(ours: str, theirs: str) -> list[Row]:
  """The scale and bias of a norm."""
  return [Row(f"{theirs}.weight", (f"{ours}/scale",)), Row(f"{theirs}.bias", (f"{ours}/bias",))]


class Key(NamedTuple):
  """A field of ModelConfig, the key of config.json that says the same, and what the key's absence means.

  Fields of sections are "head.bias"; "bias.qkv" is whether that part has a bias.
  """

  ours: str
  theirs: str
  default: Any


# Names of activations there -> here; the first of several is what export writes.
ACTIVATIONS = {
  "gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu",
  "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_python": "gelu", "swish": "silu",
}  # fmt: skip
_THEIR_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


def activation(theirs: Any) -> str:
  """Our name of an activation. Raises UserError."""
  if theirs not in ACTIVATIONS:
    raise UserError(f"config.json: the activation {theirs!r} is not one of {', '.join(ACTIVATIONS)}")
  return ACTIVATIONS[theirs]


def their_activation(ours: str) -> str:
  """The name that config.json gives an activation."""
  return _THEIR_ACTIVATIONS[ours]


class Family(NamedTuple):
  """One family's table.

  Attributes:
    model_types: as config.json names it; the first is what export writes, unless `to_theirs` says another.
    architectures: name -> our head. Export takes the first with the head and the model type.
    prefix: of the names of tensors that do not belong to a head; bare models' files have none.
    keys: of the configs.
    rows: config -> the table.
    fixed: keys of config.json that have to have this value, as there is nothing here that they could say.
    ignored: regular expressions of tensors that are no parameters.
    aliases: config -> names that stand for another tensor, where files store one twice or under an older name.
    output: the tensor of the output layer, and
    table: that of the embedding table, with which it may be tied.
    to_ours: (config.json with defaults, our fields so far) -> more of our fields.
    to_theirs: (config, model type that is wanted, or "") -> more keys of config.json.
  """

  model_types: tuple[str, ...]
  architectures: dict[str, str]
  prefix: str
  keys: tuple[Key, ...]
  rows: Callable[[ModelConfig], list[Row]]
  fixed: Mapping[str, Any] = {}
  ignored: tuple[str, ...] = ()
  aliases: Callable[[ModelConfig], Mapping[str, str]] = lambda config: {}
  output: str = ""
  table: str = ""
  to_ours: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] = lambda theirs, ours: {}
  to_theirs: Callable[[ModelConfig, str], dict[str, Any]] = lambda config, kind: {}

  def architectures_of(self, model_type: str) -> list[str]:
    """Those of a model type, where the family has several."""
    every = list(self.architectures)
    return every if len(self.model_types) == 1 else [name for name in every if name.lower().startswith(model_type)]
