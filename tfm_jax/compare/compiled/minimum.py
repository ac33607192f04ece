"""The analytic minimum: the fewest bytes that one device has to send per step under a strategy."""

import math
from typing import Any

import jax

from tfm_jax.models.config import ModelConfig, attention_need
from tfm_jax.models.families.table import find_family
from tfm_jax.models.sight import stream_order
from tfm_jax.ops.experts import places_per_expert
from tfm_jax.sharding.context import context_attention
from tfm_jax.sharding.order import ZIGZAG, context_size
from tfm_jax.sharding.strategy import BATCH_AXES, STAYING
from tfm_jax.training.compiled.flops import sequence_lengths
from tfm_jax.training.compiled.program import Program


def minimum_bytes(program: Program, microbatches: int) -> dict[str, float]:
  """Mesh axes -> bytes that one device sends per step in the compute dtype, with ring algorithms.

  Over the axes that split the batch, for each weight that they split too (fsdp): two all-gathers per microbatch
  (forward and backward) and one reduce-scatter of its gradient; embedding tables and the output layer need only one
  all-gather and one reduce-scatter per step. For each weight that they do not split: one all-reduce of its gradient.

  Over `model`: four all-reduces of the residual stream [B, T, D] per block (six with cross-attention), one more for
  each attention that remat computes again, one for the embeddings and one for the output layer. Per recurrent layer one
  all-gather of its output and one reduce-scatter of its gradient, together as much as one all-reduce; two all-reduces
  for the attention of its decoder.

  Over `context`, for each attention of a ring of c devices: a device sends c - 1 times its part of keys and values, as
  often again in the backward pass (and if remat computes the attention again), c - 1 times their gradients in float32,
  and once in the compute dtype. A causal stack also brings its stream into another order and back. With
  `sharding.attention=ulysses`: one all-to-all of queries, keys, values and output in each pass. Gradients of weights
  are also summed over `context`.

  Experts that are split over axes of the batch are not gathered: for each layer, four all-to-alls of the tokens in
  their places, and two more if remat computes the layer again.
  """
  model = program.model
  shape = model.placement.mesh.shape
  item = model.config.compute_dtype.itemsize
  total: dict[str, float] = {}
  context = model.placement.strategy.mesh_axes("seq")
  parts = context_size(model.placement)

  def add(axes: tuple[str, ...], times: float, size: float) -> None:
    n = math.prod(shape[axis] for axis in axes)
    if n > 1:
      key = ",".join(axis for axis in axes if shape[axis] > 1)
      total[key] = total.get(key, 0.0) + times * size * (n - 1) / n

  def add_weight(path: tuple, leaf: jax.ShapeDtypeStruct) -> None:
    axes = model.axes(path)
    spec = [(axis, _names(part)) for axis, part in zip(axes.names, model.placement.spec(axes.names), strict=True)]
    used = {name for _, part in spec for name in part}
    size = math.prod(leaf.shape) * item / math.prod(shape[name] for name in used if name not in BATCH_AXES)
    scattered = tuple(name for name in BATCH_AXES if name in used and shape[name] > 1)
    name = "/".join(str(key.key) for key in path)
    once = name.startswith("embed/") or name == "head/w"
    staying = {name for axis, part in spec if axis in STAYING for name in part if name in BATCH_AXES}
    gathered = tuple(name for name in scattered if name not in staying)
    add(gathered, 2 if once else 3 * microbatches, size / math.prod(shape[name] for name in staying))
    reduced = tuple(name for name in (*BATCH_AXES, *context) if name not in used)
    add(reduced, 2, size / math.prod(shape[name] for name in scattered))

  jax.tree.map_with_path(add_weight, model.shapes())
  c, rows = model.config, program.config.train.batch_size / model.placement.batch_shards
  sent_to = tuple(name for name in model.placement.strategy.mesh_axes("act_experts") if name in BATCH_AXES)
  if c.experts.count and c.experts.capacity and sent_to:
    lengths = sequence_lengths(c, program.fields)
    places = sum(n * _places(c, T) for n, T in zip((c.num_layers, c.decoder_depth), lengths, strict=False))
    add(sent_to, 6 if c.remat == "full" else 4, rows * places * c.embed_dim * item)
  if dict(model.placement.strategy.rules).get("heads") and shape["model"] > 1:
    again = 1 if c.remat == "full" else 0
    recurrent = find_family(model.family).cell is not None
    own, both = (1, 1) if recurrent else (4 + again, 6 + 2 * again)  # all-reduces per block
    lengths = sequence_lengths(c, program.fields)
    if model.encoder_decoder:
      S, T = lengths
      positions = c.num_layers * own * S + c.decoder_depth * both * T + S + 2 * T + (2 * T if recurrent else 0)
    else:
      (T,), predicted = lengths, (*program.fields["targets"].shape, 1)[0]
      positions = c.num_layers * own * T + T + predicted
    add(("model",), 2, rows * positions / parts * c.embed_dim * item)
  if parts > 1:
    total[",".join(context)] = total.get(",".join(context), 0.0) + _context_bytes(program, rows)
  return total


def _context_bytes(program: Program, rows: float) -> float:
  """Bytes that attention sends over `context` per step; `rows` on one device."""
  model, c = program.model, program.model.config
  st, lengths = model.placement, sequence_lengths(c, program.fields)
  n, by_heads, item = context_size(st), st.parts(("act_heads",))[0], c.compute_dtype.itemsize
  # (layers, queries, keys) of each stack's attention
  kinds = [(depth, T, T) for depth, T in zip((c.num_layers, c.decoder_depth), lengths, strict=False)]
  if model.encoder_decoder:
    kinds.append((c.decoder_depth, lengths[1], lengths[0]))
  passes = 3 if c.remat == "full" else 2
  ring = context_attention(st, attention_need(c)._replace(platform=st.platform, lengths=tuple(lengths))) == "ring"
  # There and back, in both passes, of each stack with another order.
  causal = [find_family(model.family).causal] if not model.encoder_decoder else [False, True]
  B = round(rows) * st.batch_shards
  moved = [T for T, own in zip(lengths, causal, strict=False) if stream_order(c, st, B, T, 0, own) == ZIGZAG]
  total = 4 * rows * sum(moved) / n * c.embed_dim * item
  for layers, T, S in kinds:
    keys_values = 2 * rows * S / n * c.kv_heads / by_heads * c.head_features
    queries = 2 * rows * T / n * c.num_heads / by_heads * c.head_features  # and the output
    if ring:
      total += layers * keys_values * (passes * (n - 1) * item + (n - 1) * 4 + item)
    else:
      total += layers * passes * (queries + keys_values) * item * (n - 1) / n
  return total


def _places(c: ModelConfig, tokens: int) -> int:
  """The places of all experts of a layer for the tokens of one row."""
  group = min(c.experts.group or tokens, tokens)
  count = c.experts.count
  return math.ceil(tokens / group) * count * places_per_expert(c.experts.capacity, group, count, c.experts.top_k)


def _names(part: Any) -> tuple[str, ...]:
  """The mesh axes in one entry of a PartitionSpec."""
  return (part,) if isinstance(part, str) else part or ()
