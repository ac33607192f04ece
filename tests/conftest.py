"""Eight CPU devices for every test, and one cache of compiled programs for all of them and their subprocesses."""

import gc
import logging
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.support.xla import xla_flags

if "PYTEST_XDIST_WORKER" in os.environ:
  os.environ.pop("LD_PRELOAD", None)  # the allocator of .ci/run is for tests; processes that they start are as users'

# Before JAX starts.
os.environ["XLA_FLAGS"] = xla_flags(devices=8)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TFM_KEEP_MEMORY"] = "0"  # one heap for all threads would slow compilation down
if "TFM_CACHE_DIR" not in os.environ:
  _folder = tempfile.TemporaryDirectory(prefix="tfm_jax-")
  os.environ["TFM_CACHE_DIR"] = _folder.name

import jax
import pytest
from hypothesis import settings

from tests.support.launching import write_experiment
from tfm_jax.models import blocks
from tfm_jax.runtime.devices import prepare_backends

jax.config.update("jax_numpy_rank_promotion", "raise")
# Processes of pytest-xdist have a cache each: JAX's is not safe to write side by side.
_cache = Path(os.environ["TFM_CACHE_DIR"]) / "xla" / os.environ.get("PYTEST_XDIST_WORKER", "")
jax.config.update("jax_compilation_cache_dir", str(_cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

prepare_backends()

# Hypothesis would fail a test whose examples take long, as they do on a busy machine.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Layers are scanned here, as on accelerators; processes that tests start unroll them, as users' do.
blocks.UNROLLED_ON_CPU = 0

# A compiled program is some memory maps of its process. Linux allows 65,530, and mmap fails beyond: the compiler dies.
_MAPS = 25_000


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
  """The experiment file of a module's tiny runs, `tiny.py[:FAMILY]`, with its text beside it."""
  return write_experiment(tmp_path_factory.mktemp("experiment") / "new")


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
  """Lets go of the compiled programs of a process that has many."""
  yield
  maps = Path("/proc/self/maps")
  if maps.exists() and len(maps.read_bytes().splitlines()) > _MAPS:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True, scope="module")
def _own_logging():
  """Undoes what a module does to logging: commands set it up for their process, and lm-eval when it starts.

  Otherwise caplog of later modules is empty.
  """
  before, disabled = _loggers(), logging.root.manager.disable
  yield
  for name in _loggers():
    logger = logging.getLogger(name or None)
    fresh = ([], logging.NOTSET, True, False)  # of one that the module has made
    handlers, logger.level, logger.propagate, logger.disabled = before.get(name, fresh)
    logger.handlers[:] = handlers
  logging.disable(disabled)  # also forgets which levels were found to be enabled


def _loggers():
  """Name -> (handlers, level, propagation, whether it is disabled) of the root logger and of ours."""
  names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "tfm_jax"]
  loggers = {name: logging.getLogger(name or None) for name in ("", *names)}
  return {name: (list(x.handlers), x.level, x.propagate, x.disabled) for name, x in loggers.items()}


def pytest_collection_finish():
  """What was imported stays: garbage collection, a twentieth of the time of a trace, need not look at it again."""
  gc.collect()
  gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before fixtures, which may be what takes long
def pytest_runtest_setup(item):
  """Slow tests begin until TFM_SLOW_TESTS_UNTIL, in seconds since 1970; the summary counts those that come later."""
  until = float(os.environ.get("TFM_SLOW_TESTS_UNTIL", "inf"))
  if item.get_closest_marker("slow") and time.time() > until:
    pytest.skip("NOT TESTED: this machine is too slow for all slow tests, see TFM_SLOW_TESTS_UNTIL in .ci/run")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m does not select
def pytest_collection_modifyitems(items):
  """`slow_but("a", "b")`: of a parametrized test, the cases with these ids run by default, and the others are slow.

  Files of short tests alone come first: what is broken there is known early, and they meet no process that others have
  used. Then those with many slow tests, so that the last ones are short.
  """
  for item in items:
    for marker in item.iter_markers("slow_but"):
      if item.callspec.id not in marker.args:
        item.add_marker(pytest.mark.slow)
  tests = Counter(item.path for item in items)
  slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
  items.sort(key=lambda item: (slow[item.path] > 0, -slow[item.path], -tests[item.path], item.path))
