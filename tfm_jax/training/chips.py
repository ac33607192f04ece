"""What is taken for granted of devices: the peak, and of TPUs the constants of forecasts, none fitted to a run."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """A device as JAX sees it (v4, v5p: a chip of two cores that act as one; tpu7x: half a chip).

  Attributes:
    kinds: what JAX calls it. Names that are not here are other devices, however much they look like these.
    peak: dense bfloat16 FLOP/s: the vendor's data sheet.
    hbm: bytes a second of its memory: the data sheet.
    memory: bytes that a program may use: what the compiler names when a program does not fit.
    clock: cycles a second, by which the compiler's cycles become seconds: the peak divided by the multiplications and
      additions of its matrix units in a cycle (128 x 128 each; v6e and tpu7x 256 x 256).
    unit: rows and columns of a matrix unit.
    link: bytes a second of one link in one direction, between chips of a slice: the data sheet.
    ring: the extent from which an axis of the slice closes to a ring; shorter ones are lines.
    network: bytes a second of the network between slices, for one chip: that of its host, shared by the host's chips.
    matrix: the share of the peak that large matrix products reach. tpu7x: Google's own, of 32,768, reach 956 TFLOP/s.
      Others: between 0.88 and 0.97 by the compiler's cycles of large ones that have nothing fused into them; two runs
      of the calibration were known when it was set (v5e, one slice): they would want 0.88 and 0.96.
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
  matrix: float = 0.92


_GIB = 2**30
TPUS = {
  "v4": Chip(("TPU v4",), 275e12, 1.2e12, int(30.75 * _GIB), 1.05e9, 128, 45e9, 4, 6.25e9),
  "v5e": Chip(("TPU v5 lite", "TPU v5e"), 197e12, 0.81e12, int(15.75 * _GIB), 1.5e9, 128, 50e9, 16, 3.125e9),
  "v5p": Chip(("TPU v5", "TPU v5p"), 459e12, 2.77e12, int(95.73 * _GIB), 1.75e9, 128, 100e9, 4, 6.25e9),
  "v6e": Chip(("TPU v6 lite", "TPU v6e"), 918e12, 1.64e12, int(31.24 * _GIB), 1.75e9, 256, 100e9, 16, 12.5e9),
  "tpu7x": Chip(("TPU7x",), 1153.5e12, 3.7e12, int(94.74 * _GIB), 2.2e9, 256, 100e9, 4, 12.5e9, 956 / 1153.5),
}
# NVIDIA's data sheets, dense (half of what is said with sparsity): the H100 has 989 as SXM, 835 as NVL, 756 as PCIe.
GPUS = (
  Chip(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"), 312e12),
  Chip(("NVIDIA H100 PCIe",), 756e12),
  Chip(("NVIDIA H100 NVL", "NVIDIA H200 NVL"), 835e12),
  Chip(("NVIDIA H100 80GB HBM3", "NVIDIA H200"), 989e12),
  Chip(("NVIDIA B200",), 2250e12),
)


def peak_flops(device: jax.Device) -> float | None:
  """The device's peak in FLOP/s for dense bfloat16, None where it is not known (a CPU)."""
  return next((chip.peak for chip in (*TPUS.values(), *GPUS) if device.device_kind in chip.kinds), None)
