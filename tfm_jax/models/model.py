"""`Model`: the pure functions `init`, `apply` and others for one configuration, sharding strategy and vocabulary."""

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
from tfm_jax.models.batch import check_batch
from tfm_jax.models.blocks import ATTN, CROSS_ATTN, HIDDEN, Sublayers
from tfm_jax.models.cache import Cache, KeyValueCache, Memory, empty_cache, empty_states
from tfm_jax.models.config import Axes, ModelConfig, field, full_key, pad_vocab, param_axes, replaced, resolve
from tfm_jax.models.experts import Experts
from tfm_jax.models.families.table import find_family
from tfm_jax.models.heads.groups import flatten, grouped
from tfm_jax.models.heads.head import ROUTING, Outputs
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.heads.terms import result
from tfm_jax.models.networks.generator import generator_config
from tfm_jax.models.per_layer import whole
from tfm_jax.models.recurrent import cells
from tfm_jax.models.residual import ORDERS
from tfm_jax.objectives.objective import ROWS, Fields
from tfm_jax.ops.dropout import Noise
from tfm_jax.sharding.placement import Placement

Params = dict[str, Any]


def resolve_model(family: str, changes: Mapping[str, Any] | None = None) -> ModelConfig:
  """The family's preset with some fields ("num_layers", "head.name") changed, checked. Raises UserError."""
  entry = find_family(family)
  config = resolve(replaced(entry.preset, changes or {}))
  check_family(family, config)
  return config


def heads_of(family: str) -> tuple[str, ...]:
  """The names of the prediction heads that a family supports."""
  return find_family(family).heads or tuple(name for name, head in HEADS.items() if not head.two_towers)


def check_family(family: str, config: ModelConfig) -> None:
  """Raises UserError for a prediction head that does not exist, or for anything that the family does not support."""
  entry, (name, heads) = find_family(family), (config.head.name, heads_of(family))
  if name not in HEADS:
    raise UserError(f"head.name={name!r} is not one of {', '.join(HEADS)}")
  if name not in heads:
    raise UserError(f"head.name={name} is not for family={family}: choose {' or '.join(heads)}")
  if reads_images(family):
    if not config.image.patch:
      raise UserError(f"image.patch=0: family={family} reads images: set the side of their patches")
    if config.positions != "learned":
      raise UserError(f"model.positions={config.positions}: those of patches are learned: set learned")
  for key in ("experts.count", "window.size", "norm_order", "positions") if entry.cell else ():
    value, usual = field(config, key), field(entry.preset, key)
    if value != usual and value not in ("learned", "sinusoidal"):  # positions that are added to the embeddings
      raise UserError(f"{full_key(key)}={value}: the layers of family={family} are recurrent, set it to {usual}")
  if entry.cell and not entry.causal and config.embed_dim % 2:
    raise UserError(f"model.embed_dim={config.embed_dim} must be even: half of it reads in each direction")


def reads_images(family: str) -> bool:
  """Whether the models of a family read images."""
  return "images" in find_family(family).module.inputs(ModelConfig(), 1, 1)


@dataclasses.dataclass(frozen=True)
class Model:
  """A model, without its parameters: static and hashable.

  Parameters are a plain nested dict of float32 arrays; those of blocks are stacked over layers.

  Attributes:
    family: name of the family.
    config: the resolved configuration.
    placement: the sharding strategy on its mesh.
    vocab_size: true size of the vocabulary; the arrays are padded to a multiple of 128.
  """

  family: str
  config: ModelConfig
  placement: Placement
  vocab_size: int

  @property
  def module(self) -> nn.Module:
    """The Flax module."""
    family = find_family(self.family)
    mlp = Experts if self.config.experts.count else family.mlp
    fields: Any = {"causal": family.causal, "sublayers": Sublayers(family.attention, mlp, family.cell)}
    return family.module(self.config, self.placement, vocab_size=self.vocab_size, **fields)

  @property
  def encoder_decoder(self) -> bool:
    """Whether the model has an encoder and a decoder."""
    return find_family(self.family).encoder_decoder

  def init(self, key: Array) -> Params:
    """Initial parameters, bit-equal under every sharding strategy."""
    fields = find_family(self.family).module.inputs(self.config, 8, self.vocab_size)
    batch = {name: jnp.zeros((1, *f.shape), f.dtype) for name, f in fields.items() if f.kind in ("ids", "pixels")}
    # The configured kernel may not support so short a row.
    plain = dataclasses.replace(self, config=replaced(self.config, {"attention": "auto"}))
    return plain.module.init(key, batch)["params"]

  def apply(
    self, params: Params, batch: Mapping[str, Array], noise: Noise | None = None, hidden: bool = False
  ) -> Outputs:
    """The outputs of the head by name, before the last linear (see `Output`); of experts also `routing`, and of those
    of an encoder beside a decoder `encoder_routing` (see `heads.head.ROUTING`).

    Args:
      params: the parameters.
      batch: the fields that the family reads.
      noise: of dropout; None: no dropout.
      hidden: whether the last hidden states [B, T, D], of an encoder-decoder the decoder's, are the output `hidden`.

    Raises:
      UserError: fields are missing, of another shape, or out of range as far as that is known (see `check_batch`).
    """
    sides = find_family(self.family).module.sides
    if HEADS[self.config.head.name].grouped:
      batch, noise = flatten(batch, noise)
    check_batch(self.config, self.vocab_size, sides, batch)
    outputs: Any = self.module.apply({"params": params}, dict(batch), noise, hidden)
    return outputs

  def outputs(self, params: Params, batch: Mapping[str, Array], noise: Noise | None = None) -> dict[str, Array]:
    """The outputs of the head by name, float32.

    `logits` has the shape [B, T or P, V] of a language model (V is `vocab_size`, without padding), [B, C] of a
    classifier of rows, [B, T, C] of one of tokens, [B, T, 2] of question answering (start, end), [B, T] of
    replaced-token detection. The head `electra` also has `generator` [B, P, V] and `replaced` [B, T], where the batch
    has masks. The head `pretraining` also has `next_sentence` [B, 2]. The head `none` has `hidden`
    [B, T, D]; `pooled` has `hidden` and `pooled` [B, D].
    """
    return self._results(self.apply(params, batch, noise))

  def _results(self, outputs: Outputs) -> dict[str, Array]:
    return {name: result(self.placement, y) for name, y in outputs.items() if not name.endswith(ROUTING)}

  def logits(self, params: Params, batch: Mapping[str, Array], noise: Noise | None = None) -> Array:
    """`outputs(...)["logits"]`."""
    return self.outputs(params, batch, noise)["logits"]

  def predict(self, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
    """The head's prediction for each row of the batch, such as a class or an answer: see `models.heads`."""
    return HEADS[self.config.head.name].predict(self.config, self.outputs(params, batch), batch)

  def hidden_states(self, params: Params, batch: Mapping[str, Array], side: str = "") -> Array:
    """The embeddings and the output of each block, float32 [N + 1, B, T, D]; the last is after the final norm.

    Args:
      params: the parameters.
      batch: as for `outputs`; for the encoder, its own fields are enough.
      side: of an encoder-decoder: "encoder" or "decoder" (the default).
    """
    return self._inspect(HIDDEN, params, batch, side).astype(jnp.float32)

  def attention_weights(self, params: Params, batch: Mapping[str, Array], side: str = "") -> Array:
    """The weight of each key for each query in every block, float32 [N, B, H, T, S].

    The weights of a query sum to one. Keys that it may not attend to, such as padding, have weight 0. A query that may
    attend to no key (padding in front of a causal row) has weights of 0.

    Args:
      params: the parameters.
      batch: as for `outputs`; for the encoder, its own fields are enough.
      side: of an encoder-decoder: "encoder", "decoder" (the default), or "cross": the decoder's over the encoder's
        tokens.
    """
    return self._inspect(CROSS_ATTN if side == "cross" else ATTN, params, batch, side)

  def _inspect(self, emit: str, params: Params, batch: Mapping[str, Array], side: str) -> Array:
    """What all blocks of one stack emit. Raises UserError for a side that the model or the question does not have."""
    if emit == ATTN and find_family(self.family).cell:
      hint = ": side=cross is that of the decoder over the encoder's text" if self.encoder_decoder else ""
      raise UserError(f"the layers of family={self.family} are recurrent and have no attention{hint}")
    sides: tuple[str, ...] = ("decoder", "encoder", *(("cross",) if emit != HIDDEN else ()))
    if side and not self.encoder_decoder:
      raise UserError(f"side={side!r} is for encoder-decoders: family={self.family} has one stack")
    if side and side not in sides:
      raise UserError(f"side={side!r} is not one of {', '.join(sides)}")
    family, read = find_family(self.family), ("encoder_",) if side == "encoder" else ("encoder_", "decoder_")
    check_batch(self.config, self.vocab_size, read if self.encoder_decoder else family.module.sides, batch)
    # Without a backward pass there is nothing to rematerialise; the kernel "xla" prepares the dense masks for weights.
    changes = {"remat": "none"} | ({} if emit == HIDDEN else {"attention": "xla"})
    module = dataclasses.replace(self, config=replaced(self.config, changes)).module
    shown: Any = module.apply({"params": params}, dict(batch), emit, side, method="inspect")
    return shown

  def encode(self, params: Params, batch: Mapping[str, Array]) -> Memory:
    """The encoder's output, for `init_cache`. Batch: `inputs` [B, S] and optional `segment_ids`, `positions`."""
    if not self.encoder_decoder:
      raise UserError(f"family={self.family} has no encoder and decoder: only encoder-decoders encode")
    check_batch(self.config, self.vocab_size, ("",), batch)
    memory: Any = self.module.apply({"params": whole(params)}, dict(batch), method="encode")
    return memory

  @property
  def window(self) -> int:
    """The most tokens that a new one attends to before itself, if all layers have a window; 0: any number."""
    return 0 if self.config.window.global_every else self.config.window.size

  def init_cache(self, params: Params, rows: int, columns: int, memory: Memory | None = None, dtype: str = "") -> Cache:
    """An empty cache for `rows` rows of `columns` tokens.

    Args:
      params: the parameters.
      rows: number of rows.
      columns: the most tokens of a row; of a model with a `window`, rows may be longer: `columns` - `window` tokens can
        then be decoded at once.
      memory: of encoder-decoders the encoder's output, whose keys and values are computed here once.
      dtype: of the keys and values: float32, bfloat16, or int8 with a scale for each token and head; empty: the
        compute dtype.
    """
    c = self.config
    if not (find_family(self.family).causal or self.encoder_decoder):
      raise UserError(f"family={self.family} attends in both directions: it cannot continue from a cache")
    if (memory is not None) != self.encoder_decoder:
      raise UserError(f"family={self.family}: `memory` is required by encoder-decoders and by no other family")
    depth, cell = c.decoder_depth if memory else c.num_layers, find_family(self.family).cell
    if cell and dtype:
      raise UserError(f"cache_dtype={dtype} is of keys and values: family={self.family} has a state, in float32")
    empty: Cache
    if cell:
      empty = empty_states(self.placement, depth, rows, cell.vectors, cells(c, causal=True))
    else:
      empty = empty_cache(c, self.placement, depth, rows, columns, dtype)
    if memory is None:
      return empty
    no_tokens = {"inputs": jnp.zeros((rows, 0), jnp.int32)}  # decoding them only adds the keys and values of the memory
    return self._decode(params, no_tokens, empty._replace(memory_segments_BS=memory.segments_BS), memory=memory)[1]

  def decode(self, params: Params, batch: Mapping[str, Array], cache: Cache) -> tuple[dict[str, Array], Cache]:
    """The outputs for new tokens (see `outputs`), which may be prompts or single tokens, and the cache with them.

    Args:
      params: the parameters.
      batch: `inputs` [B, T] (the decoder's, in encoder-decoders), and optionally `positions` [B or 1, T] (default: they
        continue from the cache's length), `segment_ids` [B, T] (default: 1) and `mlm_positions` [B, P], the places
        among the T at which the head is applied (default: all). Prompts of unequal length are right-aligned, after
        padding of segment 0, and need `positions`.
      cache: from `init_cache` or the last call. `cache.length` + T must not exceed its columns; this is checked
        outside `jax.jit`. Of a model with a `window` it may, where the T tokens take columns in a row and leave
        `window` others.
    """
    outputs, cache = self.apply_cached(params, batch, cache)
    return self._results(outputs), cache

  def apply_cached(self, params: Params, batch: Mapping[str, Array], cache: Cache) -> tuple[Outputs, Cache]:
    """`decode` with the outputs before the last linear (see `Output`), as `apply` gives them."""
    check_batch(self.config, self.vocab_size, ("",), batch)
    if isinstance(cache, KeyValueCache) and not isinstance(cache.length, jax.core.Tracer):
      self._check_room(batch["inputs"].shape[1], cache)
    return self._decode(params, batch, cache)

  def _check_room(self, tokens: int, cache: KeyValueCache) -> None:
    """Raises UserError if new tokens do not fit."""
    rolls = self.window and tokens + self.window <= cache.columns
    if int(cache.start if rolls else cache.length) + tokens > cache.columns:
      raise UserError(
        f"a cache of {cache.columns} columns, {int(cache.length)} of them filled, has no room for {tokens} tokens: "
        f"give init_cache more columns"
      )

  def _decode(self, params: Params, batch: Mapping[str, Array], cache: Cache, **others: Any) -> tuple[Outputs, Cache]:
    variables = {"params": whole(params)}
    outputs_and_cache: Any = self.module.apply(variables, dict(batch), cache, **others, method="decode")
    return outputs_and_cache

  def shapes(self) -> Params:
    """The parameters as shapes, without allocating any."""
    return jax.tree.map(lambda leaf: leaf, _shapes(self))

  def shardings(self) -> Params:
    """The sharding of each parameter under the strategy."""
    return jax.tree.map_with_path(lambda path, _: self.placement.sharding(self.axes(path).names), self.shapes())

  def abstract(self) -> Params:
    """The parameters as `jax.ShapeDtypeStruct`s with their shardings."""
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(place, self.shapes(), self.shardings())

  @staticmethod
  def axes(path: tuple) -> Axes:
    """Logical axes of the parameter at a tree path."""
    return param_axes("/".join(str(getattr(key, "key", key)) for key in path))

  def parameter_count(self, active: bool = False) -> int:
    """Number of parameters, without padding of the vocabulary and the norm that `model.first_norm=false` omits.

    `active`: only those that a token uses, so of each layer's experts only `experts.top_k`.
    """

    omits = not self.config.first_norm and ORDERS[self.config.norm_order].before

    def count(path: tuple, leaf: jax.ShapeDtypeStruct) -> int:
      axes = self.axes(path)
      shape = [self.vocab_size if axis == "vocab" else n for axis, n in zip(axes.names, leaf.shape, strict=True)]
      if omits and "attn_norm" in jax.tree_util.keystr(path):
        shape[0] -= 1  # that of the first block is not used
      if active and "experts" in axes.names:
        shape[axes.names.index("experts")] = self.config.experts.top_k
      return math.prod(shape)

    return sum(jax.tree.leaves(jax.tree.map_with_path(count, self.shapes())))


@functools.lru_cache(maxsize=8)
def _shapes(model: Model) -> Params:
  """`Model.shapes`, traced once: a run asks for them about ten times as it starts."""
  return jax.eval_shape(model.init, jax.random.key(0))


def labelled_fields(family: str, config: ModelConfig, length: int, vocab_size: int) -> Fields:
  """The fields of a batch of rows of `length` tokens, for a head that declares its own labels."""
  head = HEADS[config.head.name]
  labels = head.fields(config, length) if head.fields else {}
  inputs = find_family(family).module.inputs(config, length, vocab_size)
  if head.grouped:
    inputs = {name: grouped(field, max(config.head.num_labels, 2)) for name, field in inputs.items()}
  return {**inputs, **labels, "rows": ROWS}


def admits(family: str, config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
  """Logical axis -> its lengths in the model, all of which must be divisible by the mesh axis that splits it."""
  entry, c = find_family(family), config
  parts = [c, generator_config(c)] if HEADS[c.head.name].generates else [c]
  heads, kv_heads, mlp = (tuple(getattr(part, n) for part in parts) for n in ("num_heads", "kv_heads", "mlp_features"))
  widths, vocab = (*(part.embed_dim for part in parts), c.embed_features), (pad_vocab(vocab_size),)
  if entry.cell:
    mlp = tuple(cells(part, entry.causal) for part in parts)
    widths += mlp
  attends = not entry.cell or entry.encoder_decoder
  experts = (c.experts.count,) if c.experts.count else ()
  two_stacks = entry.encoder_decoder or HEADS[c.head.name].two_towers
  return {
    "layers": (*(part.num_layers for part in parts), *((c.decoder_depth,) if two_stacks else ())),
    "embed": widths,
    "act_embed": widths,
    "heads": heads if attends else (),
    "act_heads": kv_heads if attends else (),
    "kv_heads": kv_heads if attends else (),
    "mlp": mlp,
    "act_mlp": mlp,
    "experts": experts,
    "act_experts": experts,
    "vocab": vocab,
    "act_vocab": vocab,
  }
