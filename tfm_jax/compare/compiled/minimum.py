"""The analytic minimum: the fewest bytes that one device has to send per step under a strategy."""

import math

import jax

from tfm_jax.models.config import ModelConfig, attention_need
from tfm_jax.models.families.table import find_family
from tfm_jax.models.sight import stream_order
from tfm_jax.ops.experts import places_per_expert
from tfm_jax.sharding.context import context_attention
from tfm_jax.sharding.order import ZIGZAG, context_size
from tfm_jax.sharding.placement import names
from tfm_jax.sharding.strategy import STAYING
from tfm_jax.training.compiled.flops import sequence_lengths
from tfm_jax.training.compiled.program import Program


def minimum_bytes(program: Program, microbatches: int) -> dict[str, float]:
  """Mesh axes -> bytes that one device sends per step in the compute dtype, with ring algorithms.

  Over the axes that split the batch, for each weight that they split too (fsdp): two all-gathers per microbatch
  (forward and backward) and one reduce-scatter of its gradient; embedding tables and the output layer need only one
  all-gather and one reduce-scatter per step. For each weight that they do not split: one all-reduce of its gradient.
  Where its optimizer state alone is split (zero1), also one all-gather of the new weight, in its own dtype; where its
  gradient is too (zero2), a reduce-scatter per microbatch in place of the all-reduce.

  Over `model`: four all-reduces of the residual stream [B, T, D] per block (six with cross-attention), one more for
  each attention that remat computes again, one for the embeddings, one for the output layer and one for the encoder's
  output. If the stream is split along the sequence, an all-gather and a reduce-scatter, together as much, take the
  place of each; remat gathers once more what each linear reads, and the output layer reads all positions. Per
  recurrent layer one all-gather of its output and one reduce-scatter of its gradient, together as much as one
  all-reduce; two all-reduces for the attention of its decoder.

  Over `stage`, in each iteration of a pipeline, forward and backward: the residual stream of a microbatch, and a row of
  waiting ones, unless each stage has but one; of encoder-decoders also an all-gather of the encoder's output and a
  reduce-scatter of its gradient. Each iteration gathers weights and reduces the stream, also in stages that have no
  microbatch. With several rounds a layer that another stage works on is sent there, and its gradient back.

  Over `context`, for each attention of a ring of c devices: a device sends c - 1 times its part of keys and values, as
  often again in the backward pass (and if remat computes the attention again), c - 1 times their gradients in float32,
  and once in the compute dtype. A causal stack also brings its stream into another order and back. With
  `sharding.attention=ulysses`: one all-to-all of queries, keys, values and output in each pass. Gradients of weights
  are also summed over `context`.

  Experts that are split over axes of the batch are not gathered: for each layer, four all-to-alls of the tokens in
  their places, and two more if remat computes the layer again.
  """
  model = program.model
  shape, batch = model.placement.mesh.shape, model.placement.batch_axes
  plan = program.schedule(microbatches)
  # How often a layer is worked on; how many microbatches that is, with those that are none.
  iterations, more = (plan.iterations / plan.rounds, plan.iterations / plan.work) if plan else (1, 1.0)
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
    spec = [(axis, names(part)) for axis, part in zip(axes.names, model.placement.spec(axes.names), strict=True)]
    used = {name for _, part in spec for name in part}
    if plan and axes.layers:
      own = math.prod(leaf.shape) * leaf.dtype.itemsize / math.prod(shape[name] for name in used)
      total["stage"] = total.get("stage", 0.0) + 2 * microbatches * plan.elsewhere * own
    size = math.prod(leaf.shape) * item / math.prod(shape[name] for name in used if name not in batch)
    scattered = tuple(name for name in batch if name in used and shape[name] > 1)
    name = "/".join(str(key.key) for key in path)
    once = name.startswith("embed/") or name == "head/w"
    staying = {name for axis, part in spec if axis in STAYING for name in part if name in batch}
    gathered = tuple(name for name in scattered if name not in staying)
    times = microbatches * (iterations if axes.layers else 1)
    add(gathered, 2 if once else 3 * times, size / math.prod(shape[name] for name in staying))
    size /= math.prod(shape[name] for name in scattered)
    of_state = {name for part in model.placement.of_state.spec(axes.names) for name in names(part)}
    by_state = tuple(name for name in batch if name in of_state - used and shape[name] > 1)
    add(by_state, leaf.dtype.itemsize / item, size)
    if model.placement.strategy.gradients:
      add(by_state, 1 if once else times, size)
      size, used = size / math.prod(shape[name] for name in by_state), used.union(by_state)
    add(tuple(name for name in (*batch, *context) if name not in used), 2, size)

  jax.tree.map_with_path(add_weight, model.shapes())
  c, rows = model.config, program.config.train.batch_size / model.placement.batch_shards
  sent_to = tuple(name for name in model.placement.strategy.mesh_axes("act_experts") if name in batch)
  if c.experts.count and c.experts.capacity and sent_to:
    lengths = sequence_lengths(c, program.fields)
    places = sum(n * _places(c, T) for n, T in zip((c.num_layers, c.decoder_depth), lengths, strict=False))
    add(sent_to, 6 if c.remat == "full" else 4, more * rows * places * c.embed_dim * item)
  if dict(model.placement.strategy.rules).get("heads") and shape["model"] > 1:
    by_sequence = "model" in model.placement.strategy.mesh_axes("stream")
    recurrent = find_family(model.family).cell is not None
    # All-reduces that remat computes again, in a block without and with cross-attention.
    again: dict[str, tuple[float, float]] = {"full": (1, 2)}
    if by_sequence:
      again = {"dots": (1, 1.5), "full": (1.5, 2.5)}
    repeated, repeated_cross = again.get(c.remat, (0, 0))
    own, both = (1, 1) if recurrent else (4 + repeated, 6 + repeated_cross)
    lengths = sequence_lengths(c, program.fields)
    if model.encoder_decoder:
      S, T = lengths
      blocks = c.num_layers * own * S + c.decoder_depth * both * T
      others = 2 * S + 2 * T + (2 * T if recurrent else 0)
    else:
      (T,), predicted = lengths, (*program.fields["targets"].shape, 1)[0]
      blocks, others = c.num_layers * own * T, T + (T if by_sequence else predicted)
    add(("model",), 2, rows * (more * blocks + others) / parts * c.embed_dim * item)
  if plan:
    lengths = sequence_lengths(c, program.fields)
    row = c.embed_dim * item * rows * plan.stages  # bytes of all rows of a stage, per position
    sends = 2 * (1 + (plan.microbatches > plan.stages))
    total["stage"] = total.get("stage", 0.0) + sends * plan.iterations / plan.microbatches * row * sum(lengths)
    if model.encoder_decoder:
      add(("stage",), 2, row * lengths[0])
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
  passes = 2 if c.remat == "none" else 3  # attention is computed again where its output is not kept
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
