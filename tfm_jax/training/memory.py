"""How much memory a device has for a run, and into how many microbatches a batch must be cut to fit."""

import logging
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.objectives.objective import Fields
from tfm_jax.training.agreement import exchange
from tfm_jax.training.flops import sequence_lengths
from tfm_jax.training.tracking import human_bytes

log = logging.getLogger(__name__)

_USABLE = 0.9  # of what is free: the rest is for the runtime, and for what an estimate leaves out


def device_limit(device: jax.Device) -> int:
  """Bytes that one device may use: what the accelerator reports, or this device's share of the CPU's free memory."""
  stats = device.memory_stats()
  if stats and stats.get("bytes_limit"):
    return int(stats["bytes_limit"] * _USABLE)
  share = sum(d.platform == device.platform for d in jax.local_devices())
  return int(_free_memory() * _USABLE) // share


def _free_memory() -> int:
  """Bytes that the system leaves, and the control groups of this process."""
  free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
  meminfo = Path("/proc/meminfo")
  if meminfo.exists():
    values = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = [int(values["MemAvailable"].split()[0]) * 1024]
  for limit, used in (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
  ):
    if Path(limit).exists() and Path(limit).read_text().strip().isdigit():
      free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
  return max(min(free), 0)


def bytes_per_device(tree: Any) -> int:
  """Bytes that one device holds of a tree of shapes with shardings."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def row_bytes(model: Model, fields: Fields) -> int:
  """An estimate of the bytes of activations that one row needs in a training step, on one device.

  What is kept of all blocks for the backward pass, counted in values of the compute dtype (with remat of one block,
  and the inputs of the others), what one block needs while it is computed, and the output layer: float32 logits and
  their gradient.
  """
  c = model.config
  D, HK, F, item = c.embed_dim, c.num_heads * c.head_features, c.mlp_features, c.compute_dtype.itemsize
  lengths = sequence_lengths(c, fields)
  split = model.placement.mesh.shape["model"]

  def kept(queries: int, keys: int, attentions: int) -> float:
    """Inputs of the norms, linears and activations, and the attention weights before and after dropout."""
    linear = queries * (4 * D + 2 * D * attentions + (4 * HK * attentions + (3 if c.gated else 2) * F) / split) * item
    weights = queries * keys * c.num_heads / split * item
    return linear + weights * (2 if c.attention_dropout else 1)

  def working(queries: int, keys: int) -> float:
    """What one block needs while it is computed: float32 logits and their gradient, twice its widest layer."""
    return queries * keys * c.num_heads / split * 12 + queries * (4 * D + 4 * F / split) * item

  if len(lengths) == 1:
    T, targets = lengths[0], math.prod(fields["targets"].shape)
    stacks = [(c.num_layers, T, kept(T, T, 1), working(T, T))]
  else:
    S, T = lengths
    targets = T
    crossing = T * S * c.num_heads / split * item * (2 if c.attention_dropout else 1)
    decoder = kept(T, T, 2) + crossing
    stacks = [(c.num_layers, S, kept(S, S, 1), working(S, S)), (c.decoder_depth, T, decoder, working(T, max(S, T)))]
  total = max(need for *_, need in stacks)
  for depth, length, one, _ in stacks:
    total += depth * one if c.remat == "none" else depth * length * D * item + one
  return int(total + targets * model.vocab_size / split * (4 + item))


def _limit_everywhere(device: jax.Device) -> int:
  """`device_limit` of the process that has least, as all must choose the same; those of a host share its memory."""
  mine = socket.gethostname(), device_limit(device)
  told = exchange(mine).values()
  hosts = [host for host, _ in told] if device.platform == "cpu" else []
  return int(min(limit / max(hosts.count(host), 1) for host, limit in told))


def _peak_bytes(usage: Any) -> float:
  """What a compiled program needs of a device; 0 if the compiler does not say."""
  if usage is None:
    return 0
  # State in and out share their memory (it is donated).
  total = usage.argument_size_in_bytes + usage.output_size_in_bytes - usage.alias_size_in_bytes
  return float(total + usage.temp_size_in_bytes)


def choose_microbatches(
  model: Model,
  state: Any,
  fields: Fields,
  batch_size: int,
  asked: int,
  compile_with: Callable[[int], Any],
) -> tuple[int, Any]:
  """(number of microbatches, the compiled train step): the fewest that fit a device.

  First by estimate, then by what the compiler says of the compiled step. Several processes choose as the one with the
  least memory has to.

  Args:
    model: the model.
    state: the training state as shapes with shardings.
    fields: the batch's fields, of one row.
    batch_size: global rows.
    asked: a number that is wanted; 0: to be chosen.
    compile_with: number of microbatches -> compiled train step.

  Raises:
    UserError: not even one row a device fits.
  """
  shards = model.placement.batch_shards
  if batch_size % shards:
    raise UserError(
      f"train.batch_size={batch_size} does not divide into the {shards} parts of replica x data: "
      f"choose a multiple of {shards}"
    )
  rows = batch_size // shards
  if asked:
    if rows % asked:
      raise UserError(
        f"train.microbatches={asked} does not divide the {rows} rows of each of the {shards} shards of the batch"
      )
    return asked, compile_with(asked)
  limit = _limit_everywhere(model.placement.mesh.local_devices[0])
  kept = bytes_per_device(state)
  fixed = kept + bytes_per_device(state.params) * 2  # the gradient, and the weights in the compute dtype
  one = row_bytes(model, fields)
  choices = [n for n in range(1, rows + 1) if rows % n == 0]
  needed = next((n for n in choices if fixed + rows // n * one <= limit), rows)
  said = f"{human_bytes(limit)} a device, {human_bytes(fixed)} for state and gradients, {human_bytes(one)} a row"
  for count in (n for n in choices if n >= needed):
    compiled, peak = None, math.inf
    try:
      compiled = compile_with(count)
      peak = _peak_bytes(compiled.memory_analysis())
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
    peak = max(exchange(peak).values())
    if peak <= limit:
      shown = human_bytes(peak) if peak else "unknown"
      log.info("microbatches: %d of %d rows a device (%s; compiled: %s)", count, rows // count, said, shown)
      return count, compiled
    shown = f"compiled: {human_bytes(peak)}" if math.isfinite(peak) else "the compiler says"
    log.info("microbatches: %d do not fit (%s)", count, shown)
  raise UserError(
    f"not even one row of this model fits a device: {said}; choose a smaller model or data.seq_len, model.remat=full, "
    f"or a strategy that shards the parameters (sharding.strategy=fsdp) on more devices"
  )
