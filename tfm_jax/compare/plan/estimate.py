"""The formulas by which a plan estimates a train step from shapes alone: its memory, and its time by a roofline.

Memory on one device is the sum of
- the state, from the shardings of the strategy: parameters, optimizer state, averages;
- float32 gradients of the trained parameters, as the strategy splits them; twice with microbatches, whose sum is kept
  beside the current ones;
- activations stored for the backward pass, per token and block, in the compute dtype:
    remat=full  D          the input of the block (Chen et al. 2016)
    remat=dots  D + L      and the outputs of its linears but the last
    remat=none  4 D + M    the stream and its norm before each sub-layer; queries, keys, values and what attention makes
                           of them; the inputs and the outputs of the activation. Plain attention also keeps its weights
- temporaries: the weights of two blocks, gathered; and the larger of what one block computes, and what the loss does:
  its table, gathered, with its gradient, logits in the compute dtype, and one tile of them in float32.

Time on one device is the sum of
- matrix products at the efficiency of `runtime.chips`, with the exposed traffic of `forecast.tpu`, or by the tiles of
  `forecast.gpu`: three per linear and microbatch, and a fourth where remat computes it again; splash attention at
  `SPLASH_EFFICIENCY`: nine products of queries and keys (two forward, seven backward), and two more with remat; cuDNN's
  by its rule in `forecast.gpu`;
- memory traffic at `HBM_EFFICIENCY`: passes over activations (`PASSES`), stored activations, logits, the optimizer;
- collectives: `compiled.minimum` at the speed of the links, and the latency of each hop. Those of weights that are
  gathered and scattered overlap with products, up to `OVERLAP` of their time; all others are exposed;
- the bubble of a pipeline: `sharding.pipeline.Schedule`.

`OVERLAP`, `UNFUSED`, the numbers of kernels and what is stored were set after the first compiled programs were seen.
`tests/compare/test_plan_estimates.py` holds the result against others.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

from tfm_jax.compare.compiled.products import ATTENTION_TILE, Attention, Gemm
from tfm_jax.compare.forecast import gpu, tpu
from tfm_jax.compare.plan.linears import Linear, Placed
from tfm_jax.compare.plan.torus import Wires
from tfm_jax.models.families.table import find_family
from tfm_jax.runtime.chips import Gpu, Tpu
from tfm_jax.runtime.trees import flat
from tfm_jax.sharding.strategy import STAYING
from tfm_jax.training.optimization.lora import axes_of

# Passes over the residual stream in the forward pass of a sub-layer: a norm (two reads, a write) and a residual (a
# read). The backward pass has twice as many.
PASSES = 4
# XLA:GPU fuses less into a kernel than XLA:TPU: the traffic of what is not a product, as a multiple.
UNFUSED = 1.6
# Kernels of a GPU per block and microbatch, and per step outside the blocks: each takes `forecast.gpu.LAUNCH_SECONDS`.
BLOCK_KERNELS, STEP_KERNELS = 80, 250
# The share of gathers and scatters of weights that the compiler hides behind products: seen in compiled programs.
OVERLAP = 0.8
SPLASH_TILE = 512  # queries and keys of a tile of splash attention
LOSS_TILE_BYTES = 256 * 2**20  # float32 logits that the loss has at a time
LOGITS_TRAFFIC = 16  # bytes read and written per logit: bfloat16 and float32, forward and backward


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What a train step is expected to need on one device, in bytes and seconds. `bound_by` as in a forecast."""

  state: float
  gradients: float
  activations: float
  temporaries: float
  compute: float
  hbm: float
  communication: float
  hidden: float
  bound_by: str

  @property
  def memory(self) -> float:
    """Bytes at the peak."""
    return self.state + self.gradients + self.activations + self.temporaries

  @property
  def seconds(self) -> float:
    """Of a step."""
    return self.compute + self.hbm + self.communication


@dataclasses.dataclass(frozen=True)
class Step:
  """One train step of a program on paper, on one device of a chip.

  Attributes:
    placed: the program on its mesh.
    linears: of all blocks.
    keys: number of tokens that cross-attention reads.
    fused: whether attention is a kernel that keeps no weights of it: splash attention, or cuDNN's.
    chip: the constants of the device.
    remat, microbatches, scan: keys of the config.
  """

  placed: Placed
  linears: Sequence[Linear]
  keys: int
  fused: bool
  chip: Tpu | Gpu
  remat: str
  microbatches: int
  scan: bool

  def estimate(self, sent: Mapping[str, float], along: Mapping[str, Wires]) -> Estimate:
    """The estimate.

    Args:
      sent: mesh axes -> bytes that one device sends per step, as `compiled.minimum.minimum_bytes`.
      along: mesh axis -> what connects the devices along it.
    """
    p, count = self.placed, self.microbatches
    splash_seconds, weights_bytes = self.attention()
    compute = self.products() + splash_seconds + self.rest()
    # Parameters and moments are read and written once per step, gradients are read twice; microbatches add theirs up.
    traffic = 3 * p.trained + 2 * p.moments + (2 * p.trained * count if count > 1 else 0)
    traffic += 3 * p.params * count  # float32 is read, bfloat16 written, forward and backward
    traffic += (4 if self.scan else 2) * self.stored() * count  # a loop copies what it stores once more
    traffic += self.streams() + weights_bytes + LOGITS_TRAFFIC * self.logits() * count
    hbm = traffic / self.bandwidth
    if isinstance(self.chip, Gpu):
      blocks = sum(self.layers(linear) for linear in self.linears if linear.attends)
      hbm = UNFUSED * hbm + (BLOCK_KERNELS * blocks * count + STEP_KERNELS) * gpu.LAUNCH_SECONDS
    exposed, hidden = self.communication(sent, along, compute)
    pipeline = p.program.schedule(count)
    bubble = pipeline.iterations / pipeline.work if pipeline else 1.0
    parts = {"compute": compute * bubble, "hbm": hbm * bubble}
    parts |= {f"communication over {axes}": seconds * bubble for axes, seconds in exposed.items()}
    return Estimate(
      p.state,
      p.gradients * (2 if count > 1 else 1),
      self.stored(),
      self.temporaries(),
      parts["compute"],
      parts["hbm"],
      sum(exposed.values()) * bubble,
      hidden,
      max(parts, key=lambda name: parts[name]),
    )

  # --- shares of this device

  @functools.cached_property
  def shape(self) -> dict[str, int]:
    """Mesh axis -> size."""
    return dict(self.placed.program.placement.mesh.shape)

  @functools.cached_property
  def bandwidth(self) -> float:
    """Bytes/s of streaming operations."""
    return self.chip.hbm * (gpu if isinstance(self.chip, Gpu) else tpu).HBM_EFFICIENCY

  @functools.cached_property
  def item(self) -> int:
    """Bytes of a number in the compute dtype."""
    return int(self.placed.program.model.config.compute_dtype.itemsize)

  @functools.cached_property
  def rows(self) -> float:
    """Rows of a microbatch on this device; of sequences that are cut, as whole ones."""
    program = self.placed.program
    rows = program.config.train.batch_size / program.placement.batch_shards / self.microbatches
    return rows / self.parts("seq")

  @functools.cached_property
  def stream(self) -> float:
    """Width of the residual stream; of tokens that are cut between the linears, as whole ones."""
    between = self.parts("stream") / self.parts("seq")
    return self.placed.program.model.config.embed_dim / (self.parts("act_embed") * between)

  @functools.cached_property
  def batch_axes(self) -> set[str]:
    """The mesh axes that split rows."""
    return set(self.placed.program.placement.batch_axes)

  def parts(self, axis: str | None) -> int:
    """Parts into which one logical axis is cut."""
    return math.prod(self.shape[name] for name in self.placed.program.placement.strategy.mesh_axes(axis))

  def kept(self, names: Sequence[str | None], shape: Sequence[int]) -> list[float]:
    """The lengths of a weight on this device when it is used: gathered over the axes that split the batch."""
    of = self.placed.program.placement.strategy.mesh_axes
    cut = lambda axis: math.prod(
      self.shape[name] for name in of(axis) if name not in self.batch_axes or axis in STAYING
    )
    return [n / cut(axis) for axis, n in zip(names, shape, strict=True)]

  def sides(self, linear: Linear) -> tuple[float, float, float]:
    """(inputs, outputs, experts) of a linear on this device."""
    kept, middle = self.kept(linear.names, linear.shape), linear.experts + linear.inputs
    experts = math.prod(kept[: linear.experts])
    return math.prod(kept[linear.experts : middle]), linear.outputs * math.prod(kept[middle:]), experts

  def layers(self, linear: Linear) -> float:
    """Blocks that this device computes on its rows: a stage of a pipeline has as many more rows as it has fewer."""
    return linear.layers

  # --- time

  def products(self) -> float:
    """Seconds of the blocks' linears, forward and backward, and again where remat computes them again."""
    total = 0.0
    for linear in self.linears:
      inputs, outputs, experts = self.sides(linear)
      tokens = self.rows * linear.tokens * linear.reach * (experts / linear.shape[0] if linear.experts else 1)
      tokens *= self.parts("experts") if linear.experts else 1  # tokens of other devices come to these experts
      last = linear.closes and "attn" not in linear.path and "cross" not in linear.path
      count = 3 + (self.remat == "full" and not last)
      traffic = self.item * (tokens * inputs + tokens * outputs + experts * inputs * outputs) / self.bandwidth
      if isinstance(self.chip, Gpu):
        forward, backward = self.gemm(tokens, outputs, inputs), self.gemm(tokens, inputs, outputs)
        seconds = forward * (count - 2) + backward + self.gemm(inputs, outputs, tokens)
        total += max(seconds, count * traffic) * self.layers(linear) * self.microbatches
        continue
      units = 2 * tokens * inputs * outputs / (self.chip.peak * self.chip.matrix)
      exposed = min(traffic, tpu.EXPOSED_BYTES / self.bandwidth)
      total += count * max(units + exposed, traffic) * self.layers(linear) * self.microbatches
    return total

  def gemm(self, m: float, n: float, k: float) -> float:
    """Seconds of a product of [m, k] and [k, n] on a GPU."""
    assert isinstance(self.chip, Gpu)
    gemm = Gemm(1, max(round(m), 1), max(round(n), 1), max(round(k), 1), self.item)
    return gpu.gemm_seconds(self.chip, gemm) + gpu.LAUNCH_SECONDS

  def attentions(self) -> list[tuple[float, int, int, int, bool]]:
    """(blocks and heads of this device, features of a head, queries, keys, causal) of each kind of attention layer."""
    found, causal = [], find_family(self.placed.program.model.family).causal
    for linear in self.linears:
      if linear.attends:
        cross, decoder = "cross/" in linear.path, linear.path.startswith("decoder")
        heads = self.layers(linear) * linear.shape[-2] / self.parts("act_heads")
        sees = not cross and (decoder or (causal and not linear.path.startswith("encoder")))
        found.append((heads, linear.shape[-1], linear.tokens, self.keys if cross else linear.tokens, sees))
    return found

  def attention(self) -> tuple[float, float]:
    """(seconds of the products of queries and keys, bytes of plain attention weights), in all microbatches."""
    again, seconds, traffic = self.remat != "none", 0.0, 0.0
    for heads, width, queries, keys, causal in self.attentions():
      weights = self.rows * self.microbatches * heads * queries * keys
      if self.fused:
        tiles = max(keys / (ATTENTION_TILE if isinstance(self.chip, Gpu) else SPLASH_TILE), 1.0)
        share = (tiles + 1) / (2 * tiles) if causal else 1.0
        if isinstance(self.chip, Gpu):
          forward, backward = (Attention(weights * share, width, products) for products in (2, 5))
          seconds += (1 + again) * gpu.attention_seconds(self.chip, forward)
          seconds += gpu.attention_seconds(self.chip, backward)
        else:
          seconds += (9 + 2 * again) * 2 * weights * width * share / (self.chip.peak * tpu.SPLASH_EFFICIENCY)
      else:
        seconds += (6 + 2 * again) * 2 * weights * width / (self.chip.peak * self.chip.matrix)
        # Logits in float32 and weights in the compute dtype are written and read, and their gradients.
        traffic += 2 * (4 + self.item) * (2 + again) * weights
    return seconds, traffic

  def rest(self) -> float:
    """Seconds of the products outside the blocks, of the output layer above all."""
    program = self.placed.program
    rows, inside = program.config.train.batch_size, 0.0
    for linear in self.linears:
      experts = program.model.config.experts.top_k if linear.experts else 1
      matrix = math.prod(linear.shape[linear.experts :]) * linear.outputs
      inside += 6 * rows * linear.tokens * experts * matrix * linear.layers
    for heads, width, queries, keys, _ in self.attentions():
      inside += 12 * rows * heads * self.parts("act_heads") * width * queries * keys
    share = max(program.flops.full - inside, 0.0) / program.placement.mesh.size
    return share / (self.chip.peak * self.chip.matrix)

  def streams(self) -> float:
    """Bytes read and written by what is not a product, in all microbatches: three times the forward pass, or four."""
    total = 0.0
    for linear in self.linears:
      passes = PASSES * self.stream if linear.closes else sum(self.made(linear))
      total += self.item * linear.tokens * passes * self.layers(linear)
    return total * self.rows * self.microbatches * (3 if self.remat == "none" else 4)

  def communication(
    self, sent: Mapping[str, float], along: Mapping[str, Wires], compute: float
  ) -> tuple[dict[str, float], float]:
    """(mesh axes -> seconds of exposed collectives, seconds of hidden ones)."""
    strategy = self.placed.program.placement.strategy
    gathered = {axis for name, axes in strategy.rules for axis in axes if name in ("embed", "mlp", "heads", "experts")}
    gathered &= self.batch_axes
    exposed: dict[str, float] = {}
    hidden, hideable = 0.0, compute
    for key, size in sent.items():
      axes = key.split(",")
      wires = [along[axis] for axis in axes if axis in along]
      if not wires or not size:
        continue
      links, hops, slices = sum(w.links for w in wires), sum(w.hops for w in wires), max(w.slices for w in wires)
      n = math.prod(self.shape[axis] for axis in axes)
      whole, within = size * n / (n - 1), n // slices
      link, network, hop, begin = self.wiring()
      seconds = whole * (within - 1) / within / (links * link)
      if slices > 1:
        seconds += whole * (slices - 1) / slices / within / network + begin
      overlaps = set(axes) <= gathered
      # Weights: two gathers and a scatter each. Otherwise an exchange per linear, or one for all gradients.
      times = 3 if overlaps else 0 if set(axes) <= self.batch_axes else 2
      seconds += hops * hop * max(times * sum(map(self.layers, self.linears)) * self.microbatches, 1)
      if overlaps:
        covered = min(OVERLAP * seconds, hideable)
        hideable, hidden, seconds = hideable - covered, hidden + covered, seconds - covered
      exposed[key] = seconds
    return exposed, hidden

  def wiring(self) -> tuple[float, float, float, float]:
    """(bytes/s of a link, and of the network; seconds of a hop, and to begin on the network)."""
    if isinstance(self.chip, Gpu):
      _, near, far, _ = gpu.PROTOCOLS[-1]
      return self.chip.link * gpu.LINK_EFFICIENCY, self.chip.network * gpu.NETWORK_EFFICIENCY, near, far
    return self.chip.link, self.chip.network, tpu.HOP_SECONDS, tpu.NETWORK_SECONDS

  # --- memory

  def made(self, linear: Linear) -> tuple[float, float]:
    """(outputs of a linear, what attention or the activation makes of them), in numbers per token on this device."""
    _, outputs, _ = self.sides(linear)
    if linear.closes:
      return self.stream * linear.reach, 0.0
    each = outputs / linear.outputs  # queries alone, or one side of a gate
    return outputs * linear.reach, each * linear.reach

  def stored_by(self, remat: str) -> float:
    """Bytes of activations that the blocks of this device store for the backward pass of one row."""
    total = 0.0
    for linear in self.linears:
      outputs, makes = self.made(linear)
      ends = self.stream if linear.closes else 0.0
      block = ends if "mlp" in linear.path else 0.0  # one linear per block
      whole = 2 * ends + makes + (0 if ends else outputs)
      numbers = {"full": block, "dots": block or outputs, "none": whole}[remat]
      total += self.item * linear.tokens * numbers * self.layers(linear)
    if remat == "none" and not self.fused:
      total += sum(self.item * heads * queries * keys for heads, _, queries, keys, _ in self.attentions())
    return total

  def stored(self) -> float:
    """Bytes of activations that are stored for the backward pass of one microbatch."""
    return self.rows * self.stored_by(self.remat)

  def logits(self) -> float:
    """Logits of one microbatch; 0 if the head predicts no ids."""
    fields = self.placed.program.fields
    targets = [field for name, field in fields.items() if name.endswith("targets")]
    if not targets or not any(field.kind == "ids" for field in fields.values()):
      return 0.0
    classes = self.placed.program.model.vocab_size / self.parts("act_vocab")
    return self.rows * math.prod(targets[-1].shape) * classes

  def temporaries(self) -> float:
    """Bytes that are neither state nor stored activations."""
    gathered = sum(2 * self.item * math.prod(self.sides(linear)) for linear in self.linears)
    outside = {path: leaf for path, leaf in flat(self.placed.program.shapes).items() if "blocks/" not in path}
    tables = (math.prod(self.kept(axes_of(path).names, leaf.shape)) for path, leaf in outside.items())
    logits = self.logits()
    loss = self.item * (2 * max(tables, default=0.0) + logits) + min(4 * logits, LOSS_TILE_BYTES)
    depth = max((self.layers(linear) for linear in self.linears), default=1.0)
    return gathered + max(loss, self.rows * self.stored_by("none") / depth)
