"""Devices by name, to compile for without having them: TPU slices as "v5e:16x16", hosts of GPUs as "h100:8"."""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any

import jax

from tfm_jax.errors import UserError
from tfm_jax.runtime.chips import CHIPS, GPUS, TPUS, Chip, Gpu

# The options that programs for GPUs are compiled with: collectives overlap as the scheduler finds best, products are
# calls of cuBLAS, and nothing is tuned by trials, since there is no device to try on.
GPU_OPTIONS = {
  "xla_gpu_enable_latency_hiding_scheduler": True,
  "xla_gpu_enable_triton_gemm": False,
  "xla_gpu_autotune_level": 0,
}
# JAX's allocator takes this share of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
ALLOCATED, ALLOCATED_VARIABLE = 0.75, "XLA_PYTHON_CLIENT_MEM_FRACTION"
# The compilers: package that must be there, and what it compiles for.
_COMPILERS = {"libtpu": "TPU", "jax_cuda13_plugin": "GPU"}


def parse_topology(topology: str) -> tuple[str, str, int]:
  """(chip, shape, slices) of "v5e:16x16" or, for several slices, "4*v5e:16x16"; of "4*h100:8" the slices are hosts.

  Raises UserError.
  """
  slices, star, rest = topology.partition("*")
  if not star:
    slices, rest = "1", topology
  name, _, shape = rest.partition(":")
  whole = slices.isdigit() and int(slices) >= 1 and shape.replace("x", "").isdigit()
  if name not in CHIPS or not whole or (name in GPUS and not shape.isdigit()):
    raise UserError(
      f"--topology={topology} is unknown: write GENERATION:AxB[xC], as v5e:16x16 or v5p:8x8x8, or N*v5e:16x16 for N "
      f"slices; generations: {', '.join(TPUS)}; or GPUs as h100:8, N*h100:8 for N hosts of eight: {', '.join(GPUS)}"
    )
  if name in GPUS and not 1 <= int(shape) <= GPUS[name].node:
    node = GPUS[name].node
    raise UserError(
      f"--topology={topology}: NVLink joins at most {node} {name} GPUs: write {name}:N with N from 1 to {node}, or "
      f"N*{name}:{node} for several hosts"
    )
  return name, shape, int(slices)


def chip_count(topology: str) -> int:
  """Number of chips, all slices or hosts together. Raises UserError."""
  _, shape, slices = parse_topology(topology)
  return slices * math.prod(int(extent) for extent in shape.split("x"))


def chip_of(topology: str) -> Chip:
  """The constants of a topology's devices; of a GPU's memory the share that JAX's allocator takes. Raises UserError."""
  chip = CHIPS[parse_topology(topology)[0]]
  if not isinstance(chip, Gpu):
    return chip
  share = os.environ.get(ALLOCATED_VARIABLE) or str(ALLOCATED)
  try:
    return dataclasses.replace(chip, memory=int(chip.memory * min(max(float(share), 0.0), 1.0)))
  except ValueError:
    raise UserError(f"{ALLOCATED_VARIABLE}={share} is not a number: write 0.75 for three quarters") from None


def compiler_options(topology: str) -> dict[str, Any]:
  """The options to compile with for these devices. Raises UserError."""
  return dict(GPU_OPTIONS) if isinstance(chip_of(topology), Gpu) else {}


def needs_compiler(topology: str) -> None:
  """Raises UserError if the compiler for a topology is not installed."""
  package = "jax_cuda13_plugin" if isinstance(chip_of(topology), Gpu) else "libtpu"
  if importlib.util.find_spec(package) is None:
    kind = _COMPILERS[package]
    raise UserError(
      f"--topology={topology} needs the {kind} compiler ({package}): pip install -e '.[forecast]' installs it; no "
      f"{kind} is needed"
    )


def topology_devices(topology: str) -> tuple[Chip, Sequence[jax.Device]]:
  """The chip's constants, and device descriptions to compile for; the devices need not exist. Raises UserError."""
  name, shape, slices = parse_topology(topology)
  chip = chip_of(topology)
  needs_compiler(topology)
  options: dict[str, Any]
  if isinstance(chip, Gpu):
    # Slices (what NVLink joins), processes of each, GPUs of each process.
    options = {"topology_name": "", "topology": f"{slices}x1x{shape}", "target_config": target_config(GPUS[name])}
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # of libraries that compiling does not need
  else:
    options = {"topology_name": f"{name}:{shape}"} | ({"num_slices": slices} if slices > 1 else {})
    if name == "v4":
      options["chip_config_name"] = "megacore"  # two cores form one device, as on TPU VMs
  from jax.experimental import topologies

  platform = "cuda" if isinstance(chip, Gpu) else "tpu"
  try:
    description = topologies.get_topology_desc(platform=platform, **options)
  except Exception as error:  # its type depends on whether the compiler or the name is at fault
    message = " ".join(str(error).split())
    if "INVALID_ARGUMENT" in message:
      raise UserError(
        f"--topology={topology}: the compiler knows no such devices ({message.split(': ', 1)[-1]})"
      ) from error
    raise UserError(
      f"--topology={topology} needs a compiler that does not start here ({message}); pip install -e '.[forecast]' "
      f"installs it"
    ) from error
  return chip, description.devices


def target_config(gpu: Gpu) -> str:
  """The description of a GPU that XLA's compiler reads, a `GpuTargetConfigProto` as text."""
  block = 2**16  # registers, of a core and of a block
  figures = {
    "threads_per_warp": 32,
    "threads_per_block_limit": 1024,
    "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "registers_per_core_limit": block,
    "registers_per_block_limit": block,
    "shared_memory_per_block": 48 * 1024,
    "shared_memory_per_block_optin": gpu.shared - 1024,
    "shared_memory_per_core": gpu.shared,
    "core_count": gpu.cores,
    "fpus_per_core": gpu.fpus,
    "clock_rate_ghz": gpu.clock / 1e9,
    "memory_bandwidth": round(gpu.hbm),
    "device_memory_size": gpu.memory,
    "l2_cache_size": gpu.cache,
  }
  major, minor = gpu.capability
  lines = " ".join(f"{name}: {value}" for name, value in figures.items())
  return (
    f"gpu_device_info {{ {lines} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
    f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 28 patch: 1 }} runtime_version {{ major: 13 }} '
    f'device_description_str: "{gpu.kinds[0]}"'
  )
