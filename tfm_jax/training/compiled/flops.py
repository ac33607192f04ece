"""Floating-point operations of a training step, counted from its jaxpr, so that any architecture is counted alike."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.extend.core import ClosedJaxpr, primitives  # type: ignore[attr-defined]
from jax.interpreters.partial_eval import dce_jaxpr

from tfm_jax.models.config import ModelConfig
from tfm_jax.objectives.objective import Fields
from tfm_jax.ops.experts import SHARE
from tfm_jax.ops.masks import CAUSAL

CONVENTION = "the matrix products of forward and backward pass, recomputation not counted"


class Flops(NamedTuple):
  """Floating-point operations: each multiplication and each addition of matrix products and convolutions counts as one.

  Of experts only those count that a token uses. Everything else counts nothing, such as reading a table by index (T5
  reads its relative positions by a product).

  Attributes:
    full: counts attention as if every query saw every key; mfu uses this.
    causal: counts half of the products in the name scope `ops.masks.CAUSAL`.
  """

  full: float
  causal: float

  def __add__(self, other: "Flops") -> "Flops":  # type: ignore[override]
    return Flops(self.full + other.full, self.causal + other.causal)

  def times(self, n: int) -> "Flops":
    """The operations of n executions."""
    return Flops(self.full * n, self.causal * n)


def count(loss: Callable[[Any, Any, None], Any], params: Any, batch: Any) -> Flops:
  """FLOPs of the gradient of `loss(params, batch, None)` with respect to `params`, from shapes alone.

  Operations whose result is not used are not counted, and neither is the recomputation of `jax.checkpoint`.

  Args:
    loss: returns any pytree of arrays; all of them are differentiated.
    params: the trained parameters as shapes; frozen ones belong to `batch`.
    batch: all other inputs as shapes, of the global batch.
  """
  forward, results = jax.make_jaxpr(lambda p, b: loss(p, b, None), return_shape=True)(params, batch)
  plain = core.jaxpr_as_fun(ClosedJaxpr(_without_remat(forward.jaxpr), forward.consts))
  leaves, others = jax.tree.leaves(params), jax.tree.leaves(batch)

  def gradient(params: list, others: list, cotangents: list) -> Any:
    return jax.vjp(lambda params: plain(*params, *others), params)[1](cotangents)

  program = jax.make_jaxpr(gradient)(leaves, others, jax.tree.leaves(results)).jaxpr
  return _of_jaxpr(dce_jaxpr(program, [True] * len(program.outvars))[0])


def _inner(params: dict[str, Any]) -> list[Any]:
  """The jaxprs among an equation's parameters."""
  parts = [part for value in params.values() for part in (value if isinstance(value, tuple) else (value,))]
  return [getattr(part, "jaxpr", part) for part in parts if hasattr(getattr(part, "jaxpr", part), "eqns")]


def _without_remat(jaxpr: Any) -> Any:
  """The jaxpr with plain calls in place of `jax.checkpoint`, so that nothing is computed twice."""

  def plain(value: Any) -> Any:
    if type(value) is tuple:  # the branches of a condition
      return tuple(plain(part) for part in value)
    if isinstance(value, ClosedJaxpr):
      return ClosedJaxpr(_without_remat(value.jaxpr), value.consts)
    return _without_remat(value) if isinstance(value, core.Jaxpr) else value

  def rewritten(equation: Any) -> Any:
    params = {name: plain(value) for name, value in equation.params.items()}
    if equation.primitive is primitives.remat_p:
      body = ClosedJaxpr(params["jaxpr"], ())
      return equation.replace(primitive=primitives.closed_call_p, params={"call_jaxpr": body})
    return equation.replace(params=params)

  return jaxpr.replace(eqns=[rewritten(equation) for equation in jaxpr.eqns])


def _of_jaxpr(jaxpr: Any, scope: str = "") -> Flops:
  """The operations of a jaxpr inside a name scope."""
  total = Flops(0.0, 0.0)
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    inside = f"{scope}/{equation.source_info.name_stack}"
    products = _PRODUCTS[name](equation) if name in _PRODUCTS else 0.0
    total += _counted(products, inside)
    if name == "pallas_call" and products:
      continue
    inner = [_of_jaxpr(part, inside) for part in _inner(equation.params)]
    if name == "cond":
      total += max(inner)
    else:  # a while loop counts once: how often it runs is not known
      total += sum(inner, Flops(0.0, 0.0)).times(_repetitions(equation))
  return total


def _counted(flops: float, scope: str) -> Flops:
  """Both counts of products in a name scope, of which only a share may be needed (`ops.experts.share_scope`)."""
  names = re.split(r"[/()]", scope)
  for part, whole in set(re.findall(rf"{SHARE}(\d+)_of_(\d+)", scope)):
    flops = flops * int(part) / int(whole)
  return Flops(flops, flops / 2 if CAUSAL in names else flops)


def _repetitions(equation: Any) -> int:
  """How often the inner jaxpr runs: steps of a scan, cells of a kernel's grid, devices of a `shard_map`."""
  params = equation.params
  if equation.primitive.name == "shard_map":
    own = params["jaxpr"]
    pairs = zip([*equation.invars, *equation.outvars], [*own.invars, *own.outvars], strict=True)
    return max(whole.aval.size // max(part.aval.size, 1) for whole, part in pairs)
  return math.prod(params["grid_mapping"].grid) if "grid_mapping" in params else params.get("length", 1)


def _dot(equation: Any) -> float:
  """The operations of a `dot_general`."""
  (summed, _), _ = equation.params["dimension_numbers"]
  shape = equation.invars[0].aval.shape
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in summed)


def _convolution(equation: Any) -> float:
  """The operations of a convolution: each result is a sum over all axes of the kernel but that of output features."""
  kernel, axes = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / kernel[axes[0]]


def _splash_products(equation: Any) -> float:
  """The operations of one of the three kernels of splash attention, 0 for other kernels.

  Each counts as two products of queries x keys x head features. The forward kernel has two. The two backward kernels
  have four that the gradient needs, and recompute others. Tiles that the mask leaves out are counted nevertheless.
  """
  if "splash" not in str(equation.params.get("name_and_src_info", equation.params.get("name", ""))):
    return 0.0
  arrays = [x.aval.shape for x in equation.invars if jax.numpy.issubdtype(x.aval.dtype, jax.numpy.floating)]
  return 2.0 * 2.0 * math.prod(arrays[0]) * arrays[1][-2]


def _cudnn_products(products: int) -> Callable[[Any], float]:
  """The operations of cuDNN's attention with so many products of queries x keys x head features that are needed."""

  def count(equation: Any) -> float:
    q_BTHK, k_BSGK = (x.aval.shape for x in equation.invars[:2])
    return 2.0 * products * math.prod(q_BTHK) * k_BSGK[1]

  return count


_PRODUCTS: dict[str, Callable[[Any], float]] = {
  "dot_general": _dot,
  "conv_general_dilated": _convolution,
  "pallas_call": _splash_products,
  "dot_product_attention_fwd_wrapper": _cudnn_products(2),
  "dot_product_attention_bwd_wrapper": _cudnn_products(4),
}


def sequence_lengths(config: ModelConfig, fields: Fields) -> list[int]:
  """Positions of one row in each stack: tokens (of all choices), or the patches of an image and the class vector."""
  patches = [config.patches + 1 for field in fields.values() if field.kind == "pixels"]
  return patches + [math.prod(field.shape) for field in fields.values() if field.kind == "ids"]
