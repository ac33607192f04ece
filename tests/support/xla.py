"""XLA's flags for tests."""

import os

# LLVM's optimizations are half of the time that tiny programs take to compile, and gain them nothing. XLA's own stay.
# So is one module of LLVM instead of many, which only pay where threads are free to compile them side by side.
CHEAP = {
  "--xla_backend_optimization_level": "0",
  "--xla_llvm_disable_expensive_passes": "true",
  "--xla_cpu_parallel_codegen_split_count": "1",
}


def xla_flags(devices: int) -> str:
  """XLA_FLAGS for a process with this many CPU devices: those of the environment, and where it sets none, `CHEAP`."""
  count = "--xla_force_host_platform_device_count"
  flags = dict(flag.partition("=")[::2] for flag in os.environ.get("XLA_FLAGS", "").split())
  return " ".join(
    f"{name}={value}" if value else name for name, value in (CHEAP | flags | {count: str(devices)}).items()
  )
