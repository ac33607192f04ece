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
from tfm_jax.models.batch import check_batch
from tfm_jax.models.cache import Cache, Memory, empty_cache
from tfm_jax.models.config import Axes, ModelConfig, pad_vocab, param_axes, replaced, resolve
from tfm_jax.models.families.table import find_family
from tfm_jax.models.heads.head import Outputs
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.heads.terms import result
from tfm_jax.models.layers import Sublayers
from tfm_jax.models.towers import EncoderDecoder
from tfm_jax.objectives.objective import ROWS, Fields
from tfm_jax.ops.dropout import Noise
from tfm_jax.sharding.placement import Placement

Params = dict[str, Any]


def resolve_model(family: str, changes: Mapping[str, Any] | None = None) -> ModelConfig:
  """The family's preset with some fields replaced ("num_layers", "head.name"), checked. Raises UserError."""
  config = resolve(replaced(find_family(family).preset, changes or {}))
  check_head(family, config)
  return config


def heads_of(family: str) -> tuple[str, ...]:
  """The names of the heads that a family has."""
  return find_family(family).heads or tuple(HEADS)


def check_head(family: str, config: ModelConfig) -> None:
  """Raises UserError for a head that does not exist, or not for this family."""
  name, heads = config.head.name, heads_of(family)
  if name not in HEADS:
    raise UserError(f"head.name={name!r} is not one of {', '.join(HEADS)}")
  if name not in heads:
    raise UserError(f"head.name={name} is not for family={family}: choose {' or '.join(heads)}")


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
    row = find_family(self.family)
    sublayers = Sublayers(row.attention, row.mlp)
    return row.module(self.config, self.placement, vocab_size=self.vocab_size, causal=row.causal, sublayers=sublayers)

  @property
  def encoder_decoder(self) -> bool:
    """Whether batches have an encoder's and a decoder's side."""
    return issubclass(find_family(self.family).module, EncoderDecoder)

  def init(self, key: Array) -> Params:
    """Fresh parameters; the same on every strategy, bit for bit."""
    fields = find_family(self.family).module.inputs(self.config, 8, self.vocab_size)
    batch = {name: jnp.zeros((1, *f.shape), f.dtype) for name, f in fields.items() if f.kind in ("ids", "pixels")}
    # A short row, for which the kernel that the config wants may not be made.
    plain = dataclasses.replace(self, config=replaced(self.config, {"attention": "auto"}))
    return plain.module.init(key, batch)["params"]

  def apply(self, params: Params, batch: Mapping[str, Array], noise: Noise | None = None) -> Outputs:
    """What the head predicts, as final hidden states with the last linear not applied: name -> `Output`. `noise`
    None: no dropout.

    Raises:
      UserError: fields are missing, of another shape, or out of range as far as that is known (see `check_batch`).
    """
    sides = ("encoder_", "decoder_") if self.encoder_decoder else ("",)
    check_batch(self.config, self.vocab_size, sides, batch)
    made: Any = self.module.apply({"params": params}, dict(batch), noise)
    return made

  def outputs(self, params: Params, batch: Mapping[str, Array], noise: Noise | None = None) -> dict[str, Array]:
    """What the head predicts, float32: name -> array.

    `logits`: [B, T or P, V] of tokens (V is `vocab_size`: rows that only pad the vocabulary are cut off), [B, C] of
    rows, [B, T, C] of tokens' classes, [B, T, 2] of an answer's start and end, [B, T] of replaced tokens. The head
    `pretraining` has `next_sentence` [B, 2] too; `none` has `hidden` [B, T, D], `pooled` has `hidden` and `pooled`
    [B, D].
    """
    return self._results(self.apply(params, batch, noise))

  def _results(self, outputs: Outputs) -> dict[str, Array]:
    return {name: result(self.placement, output) for name, output in outputs.items()}

  def logits(self, params: Params, batch: Mapping[str, Array], noise: Noise | None = None) -> Array:
    """`outputs(...)["logits"]`."""
    return self.outputs(params, batch, noise)["logits"]

  def predict(self, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
    """What a person wants to know of each row, as the head declares it (`models.heads`): the class, the answer ..."""
    return HEADS[self.config.head.name].predict(self.config, self.outputs(params, batch), batch)

  def encode(self, params: Params, batch: Mapping[str, Array]) -> Memory:
    """The encoder's output, for `init_cache`: `inputs` [B, S], and where there are any `segment_ids`, `positions`."""
    if not self.encoder_decoder:
      raise UserError(f"family={self.family} has no encoder beside a decoder: there is nothing to encode for it")
    check_batch(self.config, self.vocab_size, ("",), batch)
    memory: Any = self.module.apply({"params": params}, dict(batch), method="encode")
    return memory

  def init_cache(self, params: Params, rows: int, columns: int, memory: Memory | None = None) -> Cache:
    """The cache of a decoder that has read nothing, for `rows` rows of at most `columns` tokens.

    An encoder-decoder needs the encoder's output, `memory`, whose keys and values are computed here, once.
    """
    c = self.config
    if not (find_family(self.family).causal or self.encoder_decoder):
      raise UserError(f"family={self.family} reads its tokens in both directions: it cannot go on from a cache of them")
    if (memory is not None) != self.encoder_decoder:
      raise UserError(f"family={self.family}: `memory` is for encoder-decoders, and needed there")
    empty = empty_cache(c, self.placement, c.decoder_depth if memory else c.num_layers, rows, columns)
    if memory is None:
      return empty
    nothing = {"inputs": jnp.zeros((rows, 0), jnp.int32)}  # decoded, it leaves the keys and values of the memory alone
    return self._decode(params, nothing, empty._replace(memory_segments_BS=memory.segments_BS), memory=memory)[1]

  def decode(self, params: Params, batch: Mapping[str, Array], cache: Cache) -> tuple[dict[str, Array], Cache]:
    """What the head predicts for new tokens (see `outputs`), and the cache with them: of prompts and of single tokens.

    Args:
      params: the parameters.
      batch: `inputs` [B, T], for families with an encoder too, and where there are any `positions` [B or 1, T]
        (default: they count on from the cache's columns), `segment_ids` [B, T] (default: 1), `mlm_positions` [B, P]:
        the places among the T that go through the head (default: all). Prompts of unequal length stand at the right
        of their rows, behind padding of segment 0, and bring positions.
      cache: of `init_cache` or the last call. `cache.length` + T must not be more than its columns, which is
        checked outside of `jax.jit`.
    """
    check_batch(self.config, self.vocab_size, ("",), batch)
    tokens, columns = batch["inputs"].shape[1], cache.segments_BS.shape[1]
    if not isinstance(cache.length, jax.core.Tracer) and int(cache.length) + tokens > columns:
      raise UserError(
        f"a cache of {columns} columns, {int(cache.length)} of them filled, has no room for {tokens} tokens: give "
        f"init_cache more columns"
      )
    outputs, cache = self._decode(params, batch, cache)
    return self._results(outputs), cache

  def _decode(self, params: Params, batch: Mapping[str, Array], cache: Cache, **others: Any) -> tuple[Outputs, Cache]:
    result: Any = self.module.apply({"params": params}, dict(batch), cache, **others, method="decode")
    return result

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


def labelled_fields(family: str, config: ModelConfig, length: int, vocab_size: int) -> Fields:
  """The arrays of a batch for a head that declares its labels, in rows of so many tokens."""
  head = HEADS[config.head.name]
  labels = head.fields(config, length) if head.fields else {}
  return {**find_family(family).module.inputs(config, length, vocab_size), **labels, "rows": ROWS}


def admits(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
  """Logical axis -> its lengths in the model, which the size of a mesh axis on which it lies must divide."""
  heads, mlp, vocab = (config.num_heads,), (config.mlp_features,), (pad_vocab(vocab_size),)
  kv_heads, widths = (config.kv_heads,), (config.embed_dim, config.embed_features)
  return {
    "embed": widths, "act_embed": widths, "heads": heads, "act_heads": kv_heads,
    "kv_heads": kv_heads, "mlp": mlp, "act_mlp": mlp, "vocab": vocab, "act_vocab": vocab,
  }  # fmt: skip
