"""JAX's devices, with its backends configured before they start."""

import glob
import os
import re

import jax
from jax.extend.backend import register_backend_factory

from tfm_jax.cache import cache_dir
from tfm_jax.runtime import allocator
from tfm_jax.runtime.processes import may_use_tpu


def prepare_backends() -> None:
  """Configures JAX's backends. Has no effect once they have started."""
  allocator.prepare()
  _tune_cpu_programs()
  _prepare_emulated_devices()
  _leave_the_tpu_library_alone()
  _leave_the_gpu_compiler_alone()


def use_compilation_cache() -> None:
  """Keeps compiled programs under `cache_dir()`, unless JAX is configured to keep them elsewhere."""
  if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def all_devices() -> list[jax.Device]:
  """The devices of all processes."""
  prepare_backends()
  return jax.devices()


def first_device() -> jax.Device:
  """The first device of this process."""
  prepare_backends()
  return jax.local_devices()[0]


def runs_on_tpus() -> bool:
  """Whether JAX would compute on TPU chips of this machine. No backend is started: the chips stay free for others."""
  return may_use_tpu() and _has_tpu_chips()


# Vectors are as wide as the processor has them, where it has 512 bits.
_CPU_FLAGS = {"xla_cpu_prefer_vector_width": "512"}
if jax.__version_info__ >= (0, 12):
  # XLA:CPU writes several results in one pass over what they share, such as a parameter and its moments: XLA has this
  # fusion and leaves it off. The compiler of jax 0.9.2 ends the process on some programs with it, such as our head's.
  _CPU_FLAGS["xla_backend_extra_options"] = "xla_cpu_use_multi_output_fusion=true"


def _tune_cpu_programs() -> None:
  """Sets XLA:CPU's options in `XLA_FLAGS`, but for those that are set there, unless `TFM_TUNE_XLA=0`.

  A step of BERT takes 9 % less time with them, and its compilation 25 % less; see benchmarks/README.md.
  """
  if os.environ.get("TFM_TUNE_XLA", "1") != "0":
    flags = os.environ.get("XLA_FLAGS", "")
    new = [f"--{name}={value}" for name, value in _CPU_FLAGS.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join(filter(None, [flags, *new]))


def _prepare_emulated_devices() -> None:
  """Gives emulated CPU devices more threads, which prevents deadlocks, and more time to wait for each other.

  A collective blocks its thread until all devices have joined it, and XLA's pool has one thread per device. If two
  collectives are ready at once, devices that start them in different orders would wait for each other forever. And XLA
  ends the process if a device comes 40 seconds after the first one, as may happen where all of them share a few cores.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  flag = re.search(r"xla_force_host_platform_device_count=(\d+)", flags)
  devices = max(int(flag[1]) if flag else 1, jax.config.jax_num_cpu_devices)  # type: ignore[attr-defined]
  if devices > 1:
    os.environ.setdefault("PJRT_NPROC", str(4 * devices))
    if "collective_call_terminate_timeout" not in flags:
      os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_collective_call_terminate_timeout_seconds=600".strip()


def _leave_the_tpu_library_alone() -> None:
  """Keeps JAX from starting the TPU library on a machine without TPU chips.

  The library is installed for its compiler, which forecasts use and which needs no backend. Started without chips, it
  writes several lines of errors to stderr and takes a lock of the whole machine.
  """
  if not _has_tpu_chips() and "JAX_FORCE_TPU_INIT" not in os.environ:
    register_backend_factory("tpu", _no_chips, priority=300, fail_quietly=True)  # JAX's own priority


def _leave_the_gpu_compiler_alone() -> None:
  """Keeps JAX from looking for CUDA's libraries on a machine without GPUs.

  The plugin is installed for its compiler, which forecasts use. Where JAX does not find the libraries, it writes a
  traceback. The files are those by which JAX itself tells whether there is a GPU.
  """
  if not any(map(os.path.exists, ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"))):
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def _has_tpu_chips() -> bool:
  """Whether this machine has TPU chips."""
  # On import, JAX looks for chips on the PCI bus and sets this variable if it finds none. Chips of a generation that
  # is newer than this JAX are recognised by their device files.
  return "TPU_SKIP_MDS_QUERY" not in os.environ or bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def _no_chips() -> None:
  """A backend that cannot start."""
  raise RuntimeError("this machine has no TPU chips")
