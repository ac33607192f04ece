"""Constants of devices: peak FLOP/s, and what forecasts need. None is fitted to a measured run."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """A device as JAX counts them (v4, v5p: one chip, whose two cores act as one; tpu7x: half a chip).

  Attributes:
    kinds: its names in JAX (`device_kind`), which must match exactly.
    peak: dense bfloat16 FLOP/s, from the vendor's data sheet.
    hbm: memory bandwidth in bytes/s, from the data sheet.
    memory: bytes that a program may use: of a TPU from the compiler's message when a program does not fit; of a GPU
      what the device reports, of which JAX's allocator takes a share (`forecast.topology.chip_of`).
    link: bytes/s in one direction, from the data sheet: of one link between chips of a TPU slice; of all NVLinks of a
      GPU together.
    network: bytes/s per chip between slices or hosts: the network of a host, divided by its chips.
    host: bytes/s between a chip and its host, in one direction: PCIe (for TPUs as in Austin et al., "How to Scale Your
      Model"), or NVLink-C2C.
    per_chip: devices of a chip.
  """

  kinds: tuple[str, ...]
  peak: float
  hbm: float = 0.0
  memory: int = 0
  link: float = 0.0
  network: float = 0.0
  host: float = 16e9
  per_chip: int = 1


@dataclasses.dataclass(frozen=True)
class Tpu(Chip):
  """A TPU.

  Attributes:
    clock: cycles/s, which turn the compiler's cycles into seconds: the peak divided by the FLOPs that its matrix units
      do per cycle (128 x 128 each; v6e and tpu7x 256 x 256).
    unit: rows, and columns, of a matrix unit.
    ring: the length from which an axis of the slice is a ring; shorter ones are lines.
    matrix: the fraction of the peak that large matrix products reach. tpu7x: Google measured 956 TFLOP/s for products
      of size 32,768. Others: large products with nothing fused into them take between 0.88 and 0.97, by the compiler's
      cycles. When the default was set, two runs of the calibration were known (v5e, one slice), whose best fits are
      0.88 and 0.96.
  """

  clock: float = 0.0
  unit: int = 0
  ring: int = 0
  matrix: float = 0.92


@dataclasses.dataclass(frozen=True)
class Gpu(Chip):
  """A GPU by NVIDIA; the defaults are those of the H100 and the H200.

  Attributes:
    node: the number of GPUs that NVLink joins: those of a host, or of a rack.
    capability: its compute capability, major and minor.
    cores: streaming multiprocessors.
    clock: cycles/s of these at most.
    cache: bytes of the L2 cache.
    shared: bytes of shared memory per core; a block may use 1,024 less.
    fpus: float32 units per core.
    sharp: whether the switches add up what the GPUs of a node send (NVLink SHARP).
  """

  node: int = 8
  capability: tuple[int, int] = (9, 0)
  cores: int = 132
  clock: float = 1.98e9
  cache: int = 50 * 2**20
  shared: int = 233_472
  fpus: int = 128
  sharp: bool = True


_GIB = 2**30
TPUS = {
  "v4": Tpu(("TPU v4",), 275e12, 1.2e12, int(30.75 * _GIB), link=45e9, network=6.25e9, clock=1.05e9, unit=128, ring=4),
  "v5e": Tpu(
    ("TPU v5 lite", "TPU v5e"),
    197e12,
    0.81e12,
    int(15.75 * _GIB),
    link=50e9,
    network=3.125e9,
    clock=1.5e9,
    unit=128,
    ring=16,
  ),
  "v5p": Tpu(
    ("TPU v5", "TPU v5p"),
    459e12,
    2.77e12,
    int(95.73 * _GIB),
    link=100e9,
    network=6.25e9,
    clock=1.75e9,
    unit=128,
    ring=4,
  ),
  "v6e": Tpu(
    ("TPU v6 lite", "TPU v6e"),
    918e12,
    1.64e12,
    int(31.24 * _GIB),
    link=100e9,
    network=12.5e9,
    host=32e9,
    clock=1.75e9,
    unit=256,
    ring=16,
  ),
  "tpu7x": Tpu(
    ("TPU7x",),
    1153.5e12,
    3.7e12,
    int(94.74 * _GIB),
    link=100e9,
    network=12.5e9,
    clock=2.2e9,
    unit=256,
    ring=4,
    matrix=956 / 1153.5,
    per_chip=2,
  ),
}
# Those with NVLink. Peak, bandwidth and links: NVIDIA's data sheets, dense (half of the figures with sparsity). Cores,
# clock, cache and memory: what the devices report, as in openxla/xla (xla/backends/gpu/target_config/specs). Network:
# the cards of a DGX, one per GPU, 200 Gb/s with the A100 and 400 Gb/s since. Host: PCIe 4 and 5, of the GB200 half of
# Grace's NVLink-C2C.
GPUS = {
  "a100": Gpu(
    ("NVIDIA A100-SXM4-80GB",),
    312e12,
    2.039e12,
    85_100_068_864,
    link=300e9,
    network=25e9,
    host=32e9,
    capability=(8, 0),
    cores=108,
    clock=1.41e9,
    cache=40 * 2**20,
    shared=167_936,
    fpus=64,
    sharp=False,
  ),
  "h100": Gpu(("NVIDIA H100 80GB HBM3",), 989e12, 3.35e12, 84_942_979_072, link=450e9, network=50e9, host=64e9),
  "h200": Gpu(("NVIDIA H200",), 989e12, 4.8e12, 151_397_597_184, link=450e9, network=50e9, host=64e9),
  "b200": Gpu(
    ("NVIDIA B200",),
    2250e12,
    8e12,
    191_514_411_008,
    link=900e9,
    network=50e9,
    host=64e9,
    capability=(10, 0),
    cores=148,
    clock=1.965e9,
    cache=132_644_864,
  ),
  "gb200": Gpu(
    ("NVIDIA GB200",),
    2500e12,
    8e12,
    197_897_748_480,
    link=900e9,
    network=50e9,
    host=225e9,
    node=72,
    capability=(10, 0),
    cores=152,
    clock=2.062e9,
    cache=135_528_448,
  ),
}
# GPUs whose peak alone is needed.
OTHERS = (
  Chip(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"), 312e12),
  Chip(("NVIDIA H100 PCIe",), 756e12),
  Chip(("NVIDIA H100 NVL", "NVIDIA H200 NVL"), 835e12),
)
CHIPS: dict[str, Chip] = {**TPUS, **GPUS}


def peak_flops(device: jax.Device) -> float | None:
  """The peak of a device in dense bfloat16 FLOP/s; None if unknown, as for CPUs."""
  return next((chip.peak for chip in (*CHIPS.values(), *OTHERS) if device.device_kind in chip.kinds), None)
