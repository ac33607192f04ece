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


def row_flops(config: ModelConfig, vocab_size: int, fields: Fields) -> Flops:
  """FLOPs of a training step on one row, from the shapes of the batch's fields."""
  c = config
  D, HK, GK, F = c.embed_dim, c.num_heads * c.head_features, c.kv_heads * c.head_features, c.mlp_features
  attention, mlp = 2 * D * (HK + GK), (3 if c.gated else 2) * D * F
  E = c.embed_features
  wide = E if c.head.transform else D  # what the output layer sees
  head = wide * vocab_size + c.head.transform * D * wide
  if c.head.name not in ("lm", "pretraining"):
    labels = {"question_answering": 2, "replaced_token_detection": 1}.get(c.head.name, c.head.num_labels)
    dense = int(c.head.classifier_transform or c.head.name == "replaced_token_detection")
    dense += c.head.name == "sequence_classification" and c.head.pooler != "none"
    head = D * labels + dense * D * D

  def dots(queries: int, keys: int) -> int:
    return 12 * HK * queries * keys

  if "inputs" in fields or "images" in fields:
    T = sequence_lengths(c, fields)[0]
    # Positions that go through the head; rows have one.
    P = T if c.head.name == "question_answering" else (*fields["targets"].shape, 1)[0]
    linear = 6 * (c.num_layers * (attention + mlp) * T + head * P + (E != D) * E * D * T)
    linear += 6 * c.patches * c.image.patch**2 * c.image.channels * D
    square = c.num_layers * dots(T, T)
    causal = square / 2 if P == T else square
    return Flops(linear + square, linear + causal)
  (S,), (T,) = fields["encoder_inputs"].shape, fields["decoder_inputs"].shape
  N, M = c.num_layers, c.decoder_depth
  linear = 6 * (N * (attention + mlp) * S + M * ((attention + mlp + 2 * D * HK) * T + 2 * D * GK * S) + head * T)
  others = N * dots(S, S) + M * dots(T, S)
  return Flops(linear + others + M * dots(T, T), linear + others + M * dots(T, T) / 2)


def sequence_lengths(config: ModelConfig, fields: Fields) -> list[int]:
  """Positions of each stack that one row brings: tokens, or the patches of an image and the class vector."""
  patches = [config.patches + 1 for field in fields.values() if field.kind == "pixels"]
  return patches + [field.shape[0] for field in fields.values() if field.kind == "ids"]


def peak_flops(device: jax.Device) -> float | None:
  """The device's peak in FLOP/s for dense bfloat16, None where it is not known (a CPU)."""
  names = sorted((name for name in PEAK_TFLOPS if device.device_kind.startswith(name)), key=len)
  return PEAK_TFLOPS[names[-1]] * 1e12 if names else None
