"""Floating-point operations of a training step, and what the devices could do in the meantime."""

from typing import NamedTuple

import jax

from tfm_jax.models.config import ModelConfig
from tfm_jax.objectives.objective import Fields

# Dense bfloat16 TFLOP/s of one device, as JAX names it: the vendors' data sheets.
PEAK_TFLOPS = {
  "NVIDIA A100": 312.0, "NVIDIA H100": 989.0, "NVIDIA H200": 989.0, "NVIDIA B200": 2250.0,
  "TPU v4": 275.0, "TPU v5 lite": 197.0, "TPU v5e": 197.0, "TPU v5p": 459.0, "TPU v5": 459.0, "TPU v6 lite": 918.0,
  "TPU v6e": 918.0, "TPU7x": 2307.0,
}  # fmt: skip

FORMULA = "6 x weights x tokens + 12 x layers x heads x head_dim x queries x keys (attention)"


class Flops(NamedTuple):
  """Of one row, forward and backward: every multiplication and addition counts as one each.

  `full` counts attention as if every query saw every key; `causal` counts half of it where the model is causal.
  Embedding look-ups count nothing; the output layer counts for the positions that go through it.
  """

  full: float
  causal: float


def row_flops(config: ModelConfig, vocab_size: int, fields: Fields, transform: bool) -> Flops:
  """FLOPs of a training step on one row, from the shapes of the batch's fields.

  `transform`: a dense layer D -> D stands before the output layer (BERT).
  """
  c = config
  D, HK, GK, F = c.embed_dim, c.num_heads * c.head_features, c.kv_heads * c.head_features, c.mlp_features
  attention, mlp = 2 * D * (HK + GK), (3 if c.gated else 2) * D * F
  head = D * vocab_size + transform * D * D

  def dots(queries: int, keys: int) -> int:
    return 12 * HK * queries * keys

  if "inputs" in fields:
    (T,) = fields["inputs"][0]
    P = fields["targets"][0][0]
    linear = 6 * (c.num_layers * (attention + mlp) * T + head * P)
    square = c.num_layers * dots(T, T)
    causal = square / 2 if P == T else square
    return Flops(linear + square, linear + causal)
  (S,), (T,) = fields["encoder_inputs"][0], fields["decoder_inputs"][0]
  N, M = c.num_layers, c.decoder_depth
  linear = 6 * (N * (attention + mlp) * S + M * ((attention + mlp + 2 * D * HK) * T + 2 * D * GK * S) + head * T)
  others = N * dots(S, S) + M * dots(T, S)
  return Flops(linear + others + M * dots(T, T), linear + others + M * dots(T, T) / 2)


def peak_flops(device: jax.Device) -> float | None:
  """The device's peak in FLOP/s for dense bfloat16, None where it is not known (a CPU)."""
  names = sorted((name for name in PEAK_TFLOPS if device.device_kind.startswith(name)), key=len)
  return PEAK_TFLOPS[names[-1]] * 1e12 if names else None
