"""The C library's allocator on CPUs: memory that a step frees is kept for the next one.

By default glibc returns large blocks to the system at once, and the next step pays for each page anew: 250,000 page
faults per step of a BERT of four layers, 5 % of its time. `TFM_KEEP_MEMORY=0` leaves the allocator as it is.
"""

import ctypes
import functools
import glob
import logging
import os
import sys
import time
from typing import Any

log = logging.getLogger(__name__)

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8

_GROWN = 32 * 2**20  # bytes of growth after which a heap is trimmed
_PAUSE, _PAUSE_EVERY = 1e-3, 0.2  # seconds

_COMPILATION = "/jax/core/compile/backend_compile_duration"  # of JAX's monitoring

_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def prepare() -> None:
  """One heap for all threads, if this process computes on CPUs: only that heap can keep large blocks.

  Has no effect on threads that have allocated already, so it comes before JAX's backends start.
  """
  if _enabled() and (os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(glob.glob, _ACCELERATORS))):
    _set(_ARENA_MAX, 1)


@functools.cache
def keep_freed_memory() -> None:
  """From now on freed memory stays with this process. To be called after a first compilation.

  What this and later compilations have freed goes back to the system: it is several times a small model's step.
  """
  if _enabled() and _set(_MMAP_MAX, 0) and _set(_TRIM_THRESHOLD, -1):
    import jax  # late: commands import this module before they need JAX

    _give_back()
    jax.monitoring.register_event_duration_secs_listener(_after)
    log.info("memory that a step frees is kept for the next one; TFM_KEEP_MEMORY=0 returns it to the system")


class Heap:
  """The heap of a process that takes steps, kept from holding several blocks for the temporaries of one.

  It came to hold up to five: a step that begins before the last one has freed its block needs another, and a hole that
  is a little too small is not used again. See benchmarks/README.md.
  """

  def __init__(self) -> None:
    self._end = _end_of_heap()
    self._paused_at = 0.0

  def settle(self) -> None:
    """To be called after each step, when its results are ready and before the next one begins.

    What a step holds is freed shortly after its results are ready: that is waited for, for at most 0.5 % of the time.
    If the heap has grown all the same, its holes are returned to the system; those that are used again come back.
    """
    if time.monotonic() > self._paused_at + _PAUSE_EVERY:
      time.sleep(_PAUSE)
      self._paused_at = time.monotonic()
    if _enabled() and (end := _end_of_heap()) > self._end + _GROWN:
      _give_back()
      self._end = end


def _end_of_heap() -> int:
  """The address at which the heap ends; 0 where it is not told."""
  sbrk = getattr(ctypes.CDLL(None), "sbrk", None) if sys.platform == "linux" else None
  if sbrk is None:
    return 0
  sbrk.argtypes, sbrk.restype = [ctypes.c_long], ctypes.c_void_p
  return sbrk(0) or 0


def _after(event: str, duration_secs: float, **_: Any) -> None:
  """Called by JAX at the end of what it measures. Short compilations free little."""
  if event == _COMPILATION and duration_secs > 0.1:
    _give_back()


def _give_back() -> None:
  """Returns all free pages of the heap, where the C library can: glibc can, musl cannot."""
  if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
    trim(0)


def _enabled() -> bool:
  return sys.platform == "linux" and os.environ.get("TFM_KEEP_MEMORY", "1") != "0"


def _set(parameter: int, value: int) -> bool:
  """Whether the C library has the parameter and took the value: glibc does, musl does not."""
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  return mallopt is not None and mallopt(parameter, value) == 1
