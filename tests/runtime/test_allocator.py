"""Freed memory is kept where JAX computes on CPUs, and the user can switch that off."""

import os
import subprocess
import sys

import pytest

from tests.support.launching import ROOT
from tfm_jax.runtime import allocator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")

# A block as large as those of a training step, allocated and freed by another thread than the main one.
CODE = """
import ctypes, threading
from tfm_jax.runtime import allocator

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def use(size=100 << 20):
  block = libc.malloc(size)
  ctypes.memset(block, 1, size)
  libc.free(block)

def resident():
  return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

allocator.prepare()
allocator.keep_freed_memory()
before = resident()
thread = threading.Thread(target=use)
thread.start()
thread.join()
print(resident() - before)
"""


@pytest.mark.parametrize(("setting", "kept"), [("", True), ("1", True), ("0", False)])
def test_freed_memory_stays_with_the_process_unless_switched_off(setting, kept):
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "TFM_KEEP_MEMORY": setting or "1"}
  if not setting:
    del env["TFM_KEEP_MEMORY"]
  done = subprocess.run([sys.executable, "-c", CODE], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  assert (int(done.stdout) > 90) == kept


def test_memory_that_a_later_compilation_frees_goes_back():
  """Also what was kept before it; the next step takes it again."""
  compile_first = """
import jax
names = []
jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: names.append(name))
jax.jit(lambda x: x + 1)(1.0)
assert allocator._COMPILATION in names
before = resident()
"""
  compile_again = """
kept = resident()
jax.monitoring.record_event_duration_secs(allocator._COMPILATION, 1.0)
print(kept - before, kept - resident())
"""
  code = CODE.replace("before = resident()\n", compile_first).replace("print(resident() - before)\n", compile_again)
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "TFM_KEEP_MEMORY": "1"}
  done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  kept, returned = map(int, done.stdout.split())
  assert kept > 90 and returned > 90


def test_what_the_heap_has_grown_by_goes_back_after_a_step_and_what_is_used_again_stays():
  steps = """
heap = allocator.Heap()
use()  # the first step makes the heap grow
grown = resident()
heap.settle()
settled = resident()
use()  # the second finds its block where the first had it
again = resident()
heap.settle()
print(grown - before, settled - before, again - before, resident() - before)
"""
  code = CODE[: CODE.index("thread = ")] + steps
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "TFM_KEEP_MEMORY": "1"}
  done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  grown, settled, again, after = map(int, done.stdout.split())
  assert grown > 90 and settled < 10 and again > 90 and after > 90


@pytest.mark.parametrize(
  ("platforms", "files", "arenas"), [("cpu", ["/dev/nvidia0"], 1), ("", [], 1), ("", ["/dev/nvidia0"], 0)]
)
def test_a_machine_with_accelerators_keeps_a_heap_per_thread(platforms, files, arenas, monkeypatch):
  calls = []
  monkeypatch.setenv("TFM_KEEP_MEMORY", "1")
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  monkeypatch.setattr(allocator.glob, "glob", lambda pattern: files if "nvidia" in pattern else [])
  monkeypatch.setattr(allocator, "_set", lambda *call: calls.append(call))
  allocator.prepare()
  assert len(calls) == arenas
