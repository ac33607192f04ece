"""JAX's backends: without chips, the libraries of TPUs and GPUs, which forecasts need, print nothing."""

import fnmatch
import os
import subprocess
import sys

import jax
import pytest

from tests.support.launching import ROOT, environment, write_experiment
from tfm_jax.runtime import devices

CODE = """
from tfm_jax.runtime.devices import all_devices
print(all_devices()[0].platform, "libtpu.so" in open("/proc/self/maps").read())
"""


def test_the_libraries_of_tpus_and_gpus_print_nothing():
  # JAX sets the second itself, in each process.
  hidden = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK")
  env = {name: value for name, value in os.environ.items() if name not in hidden}
  env["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # it is silent where another process has its lock
  done = subprocess.run([sys.executable, "-c", CODE], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  told = [line for line in done.stderr.splitlines() if any(name in line.lower() for name in ("tpu", "cuda", "plugin"))]
  assert not told, done.stderr
  platform, loaded = done.stdout.split()
  assert loaded == str(platform == "tpu")


@pytest.mark.parametrize(
  ("variables", "files", "replaced"),
  [
    ({"TPU_SKIP_MDS_QUERY": "1"}, [], True),
    ({}, [], False),  # JAX saw chips
    ({"TPU_SKIP_MDS_QUERY": "1"}, ["/dev/accel0"], False),
    ({"TPU_SKIP_MDS_QUERY": "1"}, ["/dev/vfio/0"], False),
    ({"TPU_SKIP_MDS_QUERY": "1"}, ["/dev/vfio/vfio"], True),  # the module is loaded, and no device has it
    ({"TPU_SKIP_MDS_QUERY": "1", "JAX_FORCE_TPU_INIT": "1"}, [], False),
  ],
)
def test_the_backend_is_replaced_only_on_a_machine_without_chips(variables, files, replaced, monkeypatch):
  for name in ("TPU_SKIP_MDS_QUERY", "JAX_FORCE_TPU_INIT"):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  registered = []
  monkeypatch.setattr(devices.glob, "glob", lambda pattern: fnmatch.filter(files, pattern))
  monkeypatch.setattr(devices, "register_backend_factory", lambda name, *_, **__: registered.append(name))
  devices._leave_the_tpu_library_alone()
  assert registered == ["tpu"] * replaced


@pytest.mark.parametrize(
  ("may", "variables", "files", "expected"),
  [
    (True, {}, [], True),
    (True, {"TPU_SKIP_MDS_QUERY": "1"}, ["/dev/accel0"], True),
    (True, {"TPU_SKIP_MDS_QUERY": "1"}, [], False),
    (False, {}, ["/dev/accel0"], False),  # JAX_PLATFORMS=cpu, or no TPU library
  ],
)
def test_runs_are_on_tpus_where_there_are_chips_that_jax_may_use(may, variables, files, expected, monkeypatch):
  monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(devices.glob, "glob", lambda pattern: fnmatch.filter(files, pattern))
  monkeypatch.setattr(devices, "may_use_tpu", lambda: may)
  assert devices.runs_on_tpus() == expected


def test_a_tpu_that_is_requested_explicitly_and_missing_is_named():
  code = "from tfm_jax.runtime.devices import all_devices; all_devices()"
  env = os.environ | {"JAX_PLATFORMS": "tpu"}
  done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
  if done.returncode:  # this machine has none
    assert "this machine has no TPU chips" in done.stderr.splitlines()[-1]


PAIR = """
from tfm_jax.runtime.devices import prepare_backends
prepare_backends()
import jax, jax.numpy as jnp
ones = jnp.ones(1000)
text = jax.jit(lambda x, y: (x * y + 1, x - y)).lower(ones, ones).compile().as_text()
print("(f32[1000]{0}, f32[1000]{0}) fusion(" in text)
"""


@pytest.mark.parametrize(("setting", "together"), [("1", True), ("0", False)])
def test_results_of_the_same_inputs_are_computed_in_one_pass_unless_switched_off(setting, together):
  env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "TFM_TUNE_XLA": setting}
  done = subprocess.run([sys.executable, "-c", PAIR], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == str(together and jax.__version_info__ >= (0, 12))


@pytest.mark.slow
def test_training_from_python_configures_backends_before_they_start(tmp_path):
  """As train.py does. Asking which process this is starts them."""
  experiment = write_experiment(tmp_path / "experiment")
  code = f"""
from jax._src import xla_bridge
from tfm_jax.runtime import devices
prepare = devices.prepare_backends
def observed():
  print("started" if xla_bridge.backends_are_initialized() else "not started")
  prepare()
devices.prepare_backends = observed
import tfm_jax
tfm_jax.fit(tfm_jax.load({str(experiment)!r}, {{"train.steps": 1}}), {str(tmp_path / "run")!r})
"""
  done = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[0] == "not started"


def test_options_that_the_user_has_set_stay(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=128")
  monkeypatch.delenv("TFM_TUNE_XLA", raising=False)
  monkeypatch.setitem(devices._CPU_FLAGS, "xla_other", "1")
  for _ in range(2):  # it may be called again
    devices._tune_cpu_programs()
  flags = os.environ["XLA_FLAGS"].split()
  assert flags[0] == "--xla_cpu_prefer_vector_width=128" and flags[-1] == "--xla_other=1"
  assert len(flags) == len(devices._CPU_FLAGS)


@pytest.mark.parametrize(("flags", "count"), [("", 1), ("--xla_force_host_platform_device_count=8", 8)])
def test_emulated_devices_have_threads_and_time_to_wait_for_each_other(flags, count, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", flags)
  monkeypatch.delenv("PJRT_NPROC", raising=False)
  devices._prepare_emulated_devices()
  assert os.environ.get("PJRT_NPROC") == (None if count == 1 else "32")
  timeout = "xla_cpu_collective_call_terminate_timeout_seconds"
  assert (timeout in os.environ["XLA_FLAGS"]) == (count > 1)
  monkeypatch.setenv("XLA_FLAGS", chosen := f"{flags} --{timeout}=5")
  devices._prepare_emulated_devices()
  assert os.environ["XLA_FLAGS"] == chosen
