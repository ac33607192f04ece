"""How much memory a device has, and into how many microbatches a batch must be cut so that the train step fits."""

import logging
import math
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tfm_jax.errors import UserError
from tfm_jax.runtime.agreement import exchange
from tfm_jax.runtime.reporting.units import human_bytes
from tfm_jax.sharding.placement import Placement

log = logging.getLogger(__name__)

HOST_MEMORY = "pinned_host"  # its name in JAX
_USABLE = 0.9  # share of the free memory; the rest is for the runtime, and for what an estimate leaves out


def device_limit(device: jax.Device) -> int:
  """Bytes that a run may use on one device: an accelerator's memory, or a CPU device's share of what is free."""
  stats = device.memory_stats()
  if stats and stats.get("bytes_limit"):
    return int(stats["bytes_limit"] * _USABLE)
  share = sum(d.platform == device.platform for d in jax.local_devices())
  return int(_free_memory() * _USABLE) // share


def _free_memory() -> int:
  """Free bytes of the host, or of the control group that limits this process if that is less."""
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
  """Bytes in the memory of one device of a tree of `jax.ShapeDtypeStruct`s with shardings; not those on the host."""
  held = [x for x in jax.tree.leaves(tree) if x.sharding.memory_kind != HOST_MEMORY]
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in held)


def _limit_everywhere(device: jax.Device) -> int:
  """The smallest `device_limit` of all processes, which must all choose the same number of microbatches.

  CPU processes on one host share its memory.
  """
  limits = exchange((socket.gethostname(), device_limit(device))).values()
  hosts = [host for host, _ in limits] if device.platform == "cpu" else []
  return int(min(limit / max(hosts.count(host), 1) for host, limit in limits))


def peak_bytes(compiled: Any, platform: str) -> float:
  """Peak bytes that a compiled program needs on one device, as its compiler reports; 0 if it does not."""
  usage = compiled.memory_analysis()
  if usage is None:
    return 0.0
  peak = getattr(usage, "peak_memory_in_bytes", 0)
  if peak > 0 and platform != "cpu":  # the peak that XLA:CPU reports does not include temporaries
    return float(peak)
  # The sum of everything that is ever allocated. The donated state and the new state share their memory.
  total = usage.argument_size_in_bytes + usage.output_size_in_bytes - usage.alias_size_in_bytes
  return float(total + usage.temp_size_in_bytes)


class DoesNotFit(UserError):
  """The train step needs more memory than a device has.

  Attributes:
    microbatches: the number that was tried last.
    needed: bytes that this needs; infinite if the compiler does not report it.
  """

  def __init__(self, message: str, microbatches: int, needed: float) -> None:
    super().__init__(message)
    self.microbatches, self.needed = microbatches, needed


def choose_microbatches(
  placement: Placement,
  state: Any,
  batch_size: int,
  requested: int,
  compile_with: Callable[[int], Any],
  limit: float | None = None,
) -> tuple[int, Any]:
  """The smallest number of microbatches with which the train step fits a device, and the step compiled with it.

  Compiles with one microbatch first. From the peaks reported so far it predicts the smallest number that fits,
  compiles with that, and repeats until no smaller number is predicted to fit. All processes choose the same number:
  that of the process with the least memory.

  Args:
    placement: the strategy on its mesh.
    state: the training state as `jax.ShapeDtypeStruct`s with shardings.
    batch_size: rows of the global batch.
    requested: a number of microbatches to use without a choice; 0: choose.
    compile_with: number of microbatches -> compiled train step.
    limit: bytes of a device that is only described (a forecast); None: those of the devices at hand. Only a described
      device's limit is checked for a requested number: devices at hand report themselves that they are full.

  Returns:
    (number of microbatches, compiled train step).

  Raises:
    DoesNotFit: not even one row per device fits, or the requested number does not.
    UserError: the batch does not divide by its shards, or a shard by the requested number.
  """
  shards = placement.batch_shards
  if batch_size % shards:
    raise UserError(
      f"train.batch_size={batch_size} does not divide into the {shards} parts of {' x '.join(placement.batch_axes)}: "
      f"choose a multiple of {shards}"
    )
  rows = batch_size // shards
  if requested and rows % requested:
    raise UserError(
      f"train.microbatches={requested} does not divide the {rows} rows of each of the {shards} shards of the batch"
    )
  described = limit is not None
  limit = _limit_everywhere(placement.mesh.local_devices[0]) if limit is None else limit
  if requested:
    compiled, peak = _attempt(compile_with, requested, placement.platform)
    if compiled is None or (described and peak > limit):
      message = f"train.microbatches={requested}: {_comparison(peak, limit)}; ask for more"
      raise DoesNotFit(message, requested, peak)
    return requested, compiled
  fixed = bytes_per_device(state) + bytes_per_device(state.params)  # the gradient
  untried = [n for n in range(1, rows + 1) if rows % n == 0]
  peaks: dict[int, float] = {}
  best, count = None, 1
  while True:
    compiled, peaks[count] = _attempt(compile_with, count, placement.platform)
    fits = compiled is not None and peaks[count] <= limit
    log.info("microbatches: %d of %d rows per device: %s", count, rows // count, _comparison(peaks[count], limit))
    if fits:
      best = count, compiled
    untried = [n for n in untried if (n < count if fits else n > count)]
    hopeful = [n for n in untried if _predicted(n, peaks, fixed) <= limit]
    if best is not None and not hopeful:
      return best
    if not untried:
      raise DoesNotFit(
        f"not even one row of this model fits a device: {human_bytes(limit)} per device, {human_bytes(fixed)} for "
        f"state and gradients, {_peak_text(peaks[count])} with a row; choose a smaller model or data.seq_len, "
        f"model.remat=full, or a strategy that shards the parameters (sharding.strategy=fsdp) on more devices",
        count,
        peaks[count],
      )
    count = hopeful[0] if hopeful else untried[-1]


def _attempt(compile_with: Callable[[int], Any], count: int, platform: str) -> tuple[Any, float]:
  """(compiled step, largest peak of all processes); the step is None if the compiler ran out of memory."""
  compiled = None
  try:
    compiled = compile_with(count)
    peak = peak_bytes(compiled, platform)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    peak = _bytes_in(str(error))
  failed, peak = max((compiled is None, peak) for compiled, peak in exchange((compiled is not None, peak)).values())
  return (None if failed else compiled), peak


def _bytes_in(error: str) -> float:
  """The bytes in a compiler's error, such as "Used 41.23G of" or "(30.72G) exceeds"; infinite if there are none."""
  match = re.search(r"Used ([\d.]+)([KMGT]) of|\(([\d.]+)([KMGT])\) exceeds", error)
  if not match:
    return math.inf
  number, unit = (part for part in match.groups() if part)
  return float(number) * 1024.0 ** ("KMGT".index(unit) + 1)


def _predicted(count: int, peaks: dict[int, float], fixed: float) -> float:
  """The predicted peak with `count` microbatches: linear in the rows per microbatch.

  Two known peaks give the line; with one, its intercept is `fixed`. With none, twice as many microbatches as were tried
  are assumed to fit.
  """
  known = sorted((abs(1 / n - 1 / count), 1 / n, peak) for n, peak in peaks.items() if math.isfinite(peak))
  if not known:
    return 0.0 if count >= 2 * max(peaks) else math.inf
  _, share, peak = known[0]
  kept = min(fixed, peak)
  slope = (peak - kept) / share
  if len(known) > 1:
    _, other, other_peak = known[1]
    slope = max((peak - other_peak) / (share - other), 0.0)
  return peak + slope * (1 / count - share)


def _peak_text(peak: float) -> str:
  """A number of bytes, or that it is not known."""
  return human_bytes(peak) if math.isfinite(peak) else "more than the compiler can tell"


def _comparison(peak: float, limit: float) -> str:
  """The peak and the limit in words."""
  return f"needs {_peak_text(peak)} of {human_bytes(limit)}" if peak else "the compiler does not report its memory"
