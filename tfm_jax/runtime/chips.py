"""Constants of devices: peak FLOP/s and, for TPUs, what forecasts need. None is fitted to a measured run."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """A device as JAX counts them (v4, v5p: one chip, whose two cores act as one; tpu7x: half a chip).

  Attributes:
    kinds: its names in JAX (`device_kind`), which must match exactly.
    peak: dense bfloat16 FLOP/s, from the vendor's data sheet.
    hbm: memory bandwidth in bytes/s, from the data sheet.
    memory: bytes that a program may use, from the compiler's message when a program does not fit.
    clock: cycles/s, which turn the compiler's cycles into seconds: the peak divided by the FLOPs that its matrix units
      do per cycle (128 x 128 each; v6e and tpu7x 256 x 256).
    unit: rows, and columns, of a matrix unit.
    link: bytes/s of one link between chips of a slice, in one direction, from the data sheet.
    ring: the length from which an axis of the slice is a ring; shorter ones are lines.
    network: bytes/s per chip between slices: the network of its host, divided by the host's chips.
    host: bytes/s between a chip and its host, in one direction: PCIe, as in Austin et al., "How to Scale Your Model".
    matrix: the fraction of the peak that large matrix products reach. tpu7x: Google measured 956 TFLOP/s for products
      of size 32,768. Others: large products with nothing fused into them take between 0.88 and 0.97, by the compiler's
      cycles. When the default was set, two runs of the calibration were known (v5e, one slice), whose best fits are
      0.88 and 0.96.
    per_chip: devices of a chip.
  """

  kinds: tuple[str, ...]
  peak: float
  hbm: float = 0.0
  memory: int = 0
  clock: float = 0.0
  unit: int = 0
  link: float = 0.0
  ring: int = 0
  network: float = 0.0
  host: float = 16e9
  matrix: float = 0.92
  per_chip: int = 1


_GIB = 2**30
TPUS = {
  "v4": Chip(("TPU v4",), 275e12, 1.2e12, int(30.75 * _GIB), 1.05e9, 128, 45e9, 4, 6.25e9),
  "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 0.81e12, int(15.75 * _GIB), 1.5e9, 128, 50e9, 16, 3.125e9),
  "v5p": Chip(("TPU v5", "TPU v5p"), 459e12, 2.77e12, int(95.73 * _GIB), 1.75e9, 128, 100e9, 4, 6.25e9),
  "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 1.64e12, int(31.24 * _GIB), 1.75e9, 256, 100e9, 16, 12.5e9, 32e9),
  "tpu7x": Chip(
    ("TPU7x",), 1153.5e12, 3.7e12, int(94.74 * _GIB), 2.2e9, 256, 100e9, 4, 12.5e9, matrix=956 / 1153.5, per_chip=2
  ),
}
# NVIDIA's data sheets, dense (half of the figures with sparsity): the H100 has 989 as SXM, 835 as NVL, 756 as PCIe.
GPUS = (
  Chip(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"), 312e12),
  Chip(("NVIDIA H100 PCIe",), 756e12),
  Chip(("NVIDIA H100 NVL", "NVIDIA H200 NVL"), 835e12),
  Chip(("NVIDIA H100 80GB HBM3", "NVIDIA H200"), 989e12),
  Chip(("NVIDIA B200",), 2250e12),
)


def peak_flops(device: jax.Device) -> float | None:
  """The peak of a device in dense bfloat16 FLOP/s; None if unknown, as for CPUs."""
  return next((chip.peak for chip in (*TPUS.values(), *GPUS) if device.device_kind in chip.kinds), None)
