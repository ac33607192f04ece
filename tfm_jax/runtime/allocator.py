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
from typing import Any

log = logging.getLogger(__name__)

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8

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


def _after(event: str, duration_secs: float, **_: Any) -> None:
  """Called by JAX at the end of what it measures. Short compilations free little."""
  if event == _COMPILATION and duration_secs > 0.1:
    _give_back()


def _give_back() -> None:
  """Returns all free pages of the heap."""
  ctypes.CDLL(None).malloc_trim(0)


def _enabled() -> bool:
  return sys.platform == "linux" and os.environ.get("TFM_KEEP_MEMORY", "1") != "0"


def _set(parameter: int, value: int) -> bool:
  """Whether the C library has the parameter and took the value: glibc does, musl does not."""
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  return mallopt is not None and mallopt(parameter, value) == 1
