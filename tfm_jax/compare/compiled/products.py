"""FLOPs of the matrix products in a compiled program: a multiplication and an addition count as two."""

import math
import re
from typing import NamedTuple

import numpy as np

from tfm_jax.compare.compiled.hlo import Computation, Instruction, Module, shape_bytes

# Kernels of splash attention -> number of [queries, keys] x head products that they compute.
_SPLASH_PRODUCTS = (("dkv", 4), ("dq", 3), ("fwd", 2))


def executed_flops(module: Module, computation: str | None = None, unit: int = 1) -> float:
  """FLOPs of one execution of the program, or of one of its computations, on one device; loops are multiplied out.

  With a `unit`, feature axes are rounded up to whole tiles of a matrix unit of that size.
  """
  return sum(times * flops(i, where, unit) for i, where, times in module.executed(computation))


def flops(i: Instruction, where: Computation, unit: int = 1) -> float:
  """FLOPs of one dot, convolution (as XLA:TPU writes dots), attention kernel or cuBLAS call; 0 for others."""
  if i.op == "custom-call":
    if "tpu_custom_call" in i.rest:
      return splash_flops(i, where)
    if attention := fused_attention(i, where):
      return attention.flops
    if gemm := gemm_of(i, where):
      return gemm.flops
    if "__cudnn$conv" in i.rest:
      return _cudnn_convolution_flops(i, where)
    return 0.0
  if i.op not in ("dot", "convolution") or not i.shapes:
    return 0.0
  dims = [where.by_name[name].shapes[0][1] for name in i.operands[:2] if name in where.by_name]
  if len(dims) < 2:
    return 0.0
  if i.op == "convolution":
    return _convolution_flops(i, dims[0], dims[1], unit)
  match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
  contracted = math.prod(dims[0][int(n)] for n in match[1].split(",") if n) if match else 1
  return 2.0 * math.prod(i.shapes[0][1]) * contracted


def _convolution_flops(i: Instruction, lhs: tuple[int, ...], rhs: tuple[int, ...], unit: int) -> float:
  """2 x batch x input features x output features x the pairs of output and window positions that meet an input."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
  if not labels:
    return 0.0
  out = i.shapes[0][1]
  features = [-(-rhs[labels[2].index(letter)] // unit) * unit for letter in "io"]
  total = 2.0 * lhs[labels[1].index("b")] * features[0] * features[1]
  groups = re.search(r"batch_group_count=(\d+)", i.rest)
  total /= int(groups[1]) if groups else 1
  match = re.search(r"window=\{([^}]*)\}", i.rest)
  window = dict(part.split("=") for part in match[1].split()) if match else {}
  for axis in range(len(labels[1]) - 2):
    letter = str(axis)
    extents = [shape[text.index(letter)] for shape, text in ((lhs, labels[1]), (rhs, labels[2]), (out, labels[3]))]
    total *= _window_pairs(window, axis, *extents)
  return total


def _window_pairs(window: dict[str, str], axis: int, lhs: int, rhs: int, out: int) -> int:
  """Pairs (output position, window position) on one spatial axis that read an input, not padding or dilation."""

  def value(name: str, default: str) -> str:
    return window[name].split("x")[axis] if name in window else default

  stride, low = int(value("stride", "1")), int(value("pad", "0_0").split("_")[0])
  lhs_dilation, rhs_dilation = int(value("lhs_dilate", "1")), int(value("rhs_dilate", "1"))
  read = np.arange(out)[:, None] * stride + np.arange(rhs)[None, :] * rhs_dilation - low
  return int(((read >= 0) & (read <= (lhs - 1) * lhs_dilation) & (read % lhs_dilation == 0)).sum())


def splash_flops(i: Instruction, where: Computation) -> float:
  """FLOPs of one execution of a splash attention kernel, without the tiles that a causal mask leaves empty.

  The kernel has an operand that lists the tiles to compute. Its first arrays of numbers are queries and keys, [heads,
  positions, head dimension], with the batch before them unless that is 1.
  """
  products = next((n for name, n in _SPLASH_PRODUCTS if name in i.name), 0)
  shapes = [s for name in i.operands if (o := where.by_name.get(name)) for s in o.shapes[:1]]
  arrays = [dims for dtype, dims, _ in shapes if len(dims) in (3, 4) and dtype in ("bf16", "f32")]
  if len(arrays) < 2 or not products:
    return 0.0
  tiles = next((dims[-1] for dtype, dims, _ in shapes if dtype == "s8" and len(dims) == 3), 0)
  share = (tiles + 1) / (2 * tiles) if tiles else 1.0
  return 2.0 * products * math.prod(arrays[0]) * arrays[1][-2] * share


class Gemm(NamedTuple):
  """A matrix product of cuBLAS, [batch, m, k] x [batch, k, n]; `item`: bytes of a number that it reads."""

  batch: int
  m: int
  n: int
  k: int
  item: int

  @property
  def flops(self) -> float:
    """FLOPs."""
    return 2.0 * self.batch * self.m * self.n * self.k


def gemm_of(i: Instruction, where: Computation) -> Gemm | None:
  """The matrix product of a call of cuBLAS; None for other instructions."""
  if i.op != "custom-call" or "__cublas$" not in i.rest:
    return None
  shapes = [where.by_name[name].shapes[0] for name in i.operands[:2] if name in where.by_name]
  if len(shapes) < 2:
    return None
  dims: dict[str, list[int]] = {}
  for side in ("lhs", "rhs"):
    for kind in ("contracting", "batch"):
      found = re.search(rf'"{side}_{kind}_dimensions"\s*:\s*\[([^\]]*)\]', i.rest)
      dims[f"{side} {kind}"] = [int(n) for n in re.findall(r"\d+", found[1])] if found else []
  lengths = lambda side, kind: math.prod(shapes[side == "rhs"][1][n] for n in dims[f"{side} {kind}"])
  batch, k = lengths("lhs", "batch"), lengths("lhs", "contracting")
  m, n = (math.prod(shape[1]) // max(batch * k, 1) for shape in shapes)
  return Gemm(batch, m, n, k, shape_bytes((shapes[0][0], (1,), 0)))


class Attention(NamedTuple):
  """A call of cuDNN's attention: `pairs` of queries and keys of all heads and rows, without what a mask leaves empty.

  `width`: features of a head. `products`: matrix products of queries and keys: 2 forward, 5 backward.
  """

  pairs: float
  width: int
  products: int

  @property
  def flops(self) -> float:
    """FLOPs."""
    return 2.0 * self.products * self.pairs * self.width


ATTENTION_TILE = 128  # queries, and keys, of a tile of cuDNN's attention


def fused_attention(i: Instruction, where: Computation) -> Attention | None:
  """The attention of a call of cuDNN; None for other instructions."""
  if i.op != "custom-call" or "__cudnn$fmha" not in i.rest:
    return None
  found = re.search(r'"intermediate_tensor_shape"\s*:\s*\{.*?"dimensions"\s*:\s*\[([^\]]*)\]', i.rest)
  query = where.by_name.get(i.operands[0])
  if found is None or query is None:
    return None
  *outer, T, S = (int(n) for n in re.findall(r"\d+", found[1]))
  share = 1.0
  if re.search(r'"mask_type"\s*:\s*"[A-Z_]*CAUSAL', i.rest):
    tiles = max(-(-S // ATTENTION_TILE), 1)
    share = (tiles + 1) / (2 * tiles)
  window = re.search(r'"sliding_window_length"\s*:\s*"?(\d+)', i.rest)
  if window and 0 < int(window[1]) < S:
    share = min(share, (int(window[1]) + ATTENTION_TILE) / S)
  return Attention(math.prod(outer) * T * S * share, query.shapes[0][1][-1], 5 if "Backward" in i.rest else 2)


def _cudnn_convolution_flops(i: Instruction, where: Computation) -> float:
  """FLOPs of a convolution by cuDNN, forward or either backward: each pairs the same outputs and window positions."""
  shapes = [where.by_name[name].shapes[0][1] for name in i.operands[:2] if name in where.by_name]
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
  if len(shapes) < 2 or not labels:
    return 0.0
  data, kernel, out = shapes[0], shapes[1], i.shapes[0][1]
  if "convBackwardFilter" in i.rest:
    data, kernel, out = data, out, kernel
  elif "convBackwardInput" in i.rest:
    data, kernel, out = out, kernel, data
  return 2.0 * math.prod(out) * math.prod(kernel) / kernel[labels[2].index("o")]
