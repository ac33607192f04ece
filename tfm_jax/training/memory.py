"""How much memory a device has for a run, and into how many microbatches a batch must be cut to fit."""

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
from tfm_jax.sharding.placement import Placement
from tfm_jax.training.agreement import exchange
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


def _limit_everywhere(device: jax.Device) -> int:
  """`device_limit` of the process that has least, as all must choose the same; those of a host share its memory."""
  mine = socket.gethostname(), device_limit(device)
  told = exchange(mine).values()
  hosts = [host for host, _ in told] if device.platform == "cpu" else []
  return int(min(limit / max(hosts.count(host), 1) for host, limit in told))


def peak_bytes(compiled: Any, platform: str) -> float:
  """What a compiled program needs of a device at its fullest moment, by its compiler; 0 if that does not say."""
  usage = compiled.memory_analysis()
  if usage is None:
    return 0.0
  peak = getattr(usage, "peak_memory_in_bytes", 0)
  if peak > 0 and platform != "cpu":  # XLA:CPU leaves the temporaries out of its peak
    return float(peak)
  # All that is ever alive. State in and out share their memory (it is donated).
  total = usage.argument_size_in_bytes + usage.output_size_in_bytes - usage.alias_size_in_bytes
  return float(total + usage.temp_size_in_bytes)


class DoesNotFit(UserError):
  """A step that needs more than a device has: with so many microbatches, so many bytes (infinite: not said)."""

  def __init__(self, message: str, microbatches: int, needed: float) -> None:
    super().__init__(message)
    self.microbatches, self.needed = microbatches, needed


def choose_microbatches(
  placement: Placement,
  state: Any,
  batch_size: int,
  asked: int,
  compile_with: Callable[[int], Any],
  limit: float | None = None,
) -> tuple[int, Any]:
  """(number of microbatches, the compiled train step): the fewest that fit a device by what the compiler says.

  The whole batch is tried first. The number that should fit is predicted from the peaks so far, compiled, and the
  prediction mended, until no smaller number should fit. Several processes choose as the one with the least memory.

  Args:
    placement: the strategy on its mesh.
    state: the training state as shapes with shardings.
    batch_size: global rows.
    asked: a number that is wanted; 0: to be chosen.
    compile_with: number of microbatches -> compiled train step.
    limit: bytes of a described device; None: what the devices here have, against which `asked` is not held.

  Raises:
    DoesNotFit: not even one row a device fits, or not what was asked for.
    UserError: the batch does not divide so.
  """
  shards = placement.batch_shards
  if batch_size % shards:
    raise UserError(
      f"train.batch_size={batch_size} does not divide into the {shards} parts of replica x data: "
      f"choose a multiple of {shards}"
    )
  rows = batch_size // shards
  if asked and rows % asked:
    raise UserError(
      f"train.microbatches={asked} does not divide the {rows} rows of each of the {shards} shards of the batch"
    )
  described = limit is not None
  limit = _limit_everywhere(placement.mesh.local_devices[0]) if limit is None else limit
  if asked:
    compiled, peak = _attempt(compile_with, asked, placement.platform)
    if compiled is None or (described and peak > limit):
      raise DoesNotFit(f"train.microbatches={asked}: {_compared(peak, limit)}; ask for more", asked, peak)
    return asked, compiled
  fixed = bytes_per_device(state) + bytes_per_device(state.params)  # the gradient
  untried = [n for n in range(1, rows + 1) if rows % n == 0]
  peaks: dict[int, float] = {}
  best, count = None, 1
  while True:
    compiled, peaks[count] = _attempt(compile_with, count, placement.platform)
    fits = compiled is not None and peaks[count] <= limit
    log.info("microbatches: %d of %d rows a device: %s", count, rows // count, _compared(peaks[count], limit))
    if fits:
      best = count, compiled
    untried = [n for n in untried if (n < count if fits else n > count)]
    hopeful = [n for n in untried if _predicted(n, peaks, fixed) <= limit]
    if best is not None and not hopeful:
      return best
    if not untried:
      raise DoesNotFit(
        f"not even one row of this model fits a device: {human_bytes(limit)} a device, {human_bytes(fixed)} for state "
        f"and gradients, {_said(peaks[count])} with a row; choose a smaller model or data.seq_len, model.remat=full, "
        f"or a strategy that shards the parameters (sharding.strategy=fsdp) on more devices", count, peaks[count],
      )  # fmt: skip
    count = hopeful[0] if hopeful else untried[-1]


def _attempt(compile_with: Callable[[int], Any], count: int, platform: str) -> tuple[Any, float]:
  """(the compiled step, None if it is too large for the compiler; what it needs on the process that needs most)."""
  compiled = None
  try:
    compiled = compile_with(count)
    peak = peak_bytes(compiled, platform)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    peak = _needed(str(error))
  failed, peak = max((compiled is None, peak) for compiled, peak in exchange((compiled is not None, peak)).values())
  return (None if failed else compiled), peak


def _needed(error: str) -> float:
  """The bytes that a compiler's error names, as "Used 41.23G of" or "(30.72G) exceeds"; infinite if it names none."""
  named = re.search(r"Used ([\d.]+)([KMGT]) of|\(([\d.]+)([KMGT])\) exceeds", error)
  if not named:
    return math.inf
  number, unit = (part for part in named.groups() if part)
  return float(number) * 1024.0 ** ("KMGT".index(unit) + 1)


def _predicted(count: int, peaks: dict[int, float], fixed: float) -> float:
  """What a step in so many parts should need: a part that stays, and one that each row brings.

  From two peaks both follow; with one, what stays is `fixed`. Where no peak is known, half the rows are hoped to fit.
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


def _said(peak: float) -> str:
  return human_bytes(peak) if math.isfinite(peak) else "more than the compiler says"


def _compared(peak: float, limit: float) -> str:
  return f"needs {_said(peak)} of {human_bytes(limit)}" if peak else "the compiler does not say what it needs"
