"""The machine, the code and the settings that figures depend on."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Variables that change the speed of one side or the other.
_PREFIXES = (
  *(
    "XLA_",
    "JAX_",
    "PJRT_",
    "TF_",
    "TFM_KEEP_MEMORY",
    "TFM_TUNE_XLA",
    "TORCH",
    "CUDA_",
    "NVIDIA_TF32",
    "LD_PRELOAD",
    "GLIBC_",
    "MALLOC_",
  ),
  *("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_"),
)


def describe() -> dict[str, Any]:
  """The machine, the revision and the environment, as they are stored beside figures."""
  return {
    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "revision": revision(),
    "system": platform.platform(),
    "processor": _processor(),
    "cores": cores(),
    "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    "load_average": list(os.getloadavg()),
    "environment": flags(),
  }


def flags() -> dict[str, str]:
  """The variables of the environment that change the speed."""
  return {name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)}


def cores() -> int:
  """The cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def backend() -> str:
  """What JAX runs on: cpu, gpu or tpu. Another process asks it, so that this one leaves the devices alone."""
  code = "from tfm_jax.runtime.devices import first_device; print(first_device().platform)"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  return done.stdout.strip() or "cpu"


def revision() -> str:
  """The git revision of the code, with -dirty if files differ from it."""
  command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return "unknown"


def _processor() -> str:
  """The name of the processor, and what of its vector units matters here."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
  units = facts.get("flags", "").split()
  known = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in units]
  return f"{facts.get('model name', platform.machine())} ({', '.join(known)})"
