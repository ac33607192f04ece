"""FLOPs of matrix products in compiled programs: loops, dots, convolutions, attention."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.programs import program
from tfm_jax.compare.compiled import hlo
from tfm_jax.compare.compiled.products import executed_flops


def test_products_of_a_compiled_program():
  def layers(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=3)[0].sum()

  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 32), (32, 32))]
  one_way = 2 * 64 * 32 * 32 * 3
  assert executed_flops(hlo.parse(jax.jit(layers).lower(*arrays).compile().as_text())) == one_way
  both = jax.jit(jax.grad(layers, (0, 1))).lower(*arrays).compile().as_text()
  assert executed_flops(hlo.parse(both)) == 3 * one_way


def product(shapes, line):
  """FLOPs of one product of operands of these shapes."""
  lines = [f"  %x{n} = bf16[{','.join(map(str, shape))}] parameter({n})" for n, shape in enumerate(shapes)]
  return executed_flops(hlo.parse(program("\n".join([*lines, f"  ROOT %y = {line}"]))))


def test_dots_by_hand():
  contract = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
  assert product([(3, 5), (5, 7)], f"bf16[3,7]{{1,0}} dot(%x0, %x1), {contract}") == 2 * 3 * 5 * 7
  batched = "lhs_batch_dims={0}, lhs_contracting_dims={2,3}, rhs_batch_dims={0}, rhs_contracting_dims={2,3}"
  assert product([(2, 3, 5, 7), (2, 4, 5, 7)], f"f32[2,3,4] dot(%x0, %x1), {batched}") == 2 * 2 * 3 * 4 * 35
  assert product([(3, 5), (3, 5)], "bf16[3,5] add(%x0, %x1)") == 0


def shape_of(labels, sizes):
  return tuple(sizes[letter] for letter in labels)


@pytest.mark.parametrize(
  ("labels", "lhs", "rhs", "window"),
  [
    ("bf_io->bf", {"b": 6, "f": 5}, {"i": 5, "o": 7}, {}),  # a plain matrix product
    ("b0f_0io->b0f", {"b": 6, "0": 1, "f": 5}, {"0": 2, "i": 5, "o": 7}, {"size": 2, "pad": (1, 1)}),
    ("b0f_0io->b0f", {"b": 6, "0": 3, "f": 5}, {"0": 2, "i": 5, "o": 7}, {"size": 2, "pad": (1, 1)}),
    ("b0f_0io->b0f", {"b": 3, "0": 4, "f": 5}, {"0": 4, "i": 5, "o": 2}, {"size": 4}),
    (
      "0bf_0oi->0bf",
      {"0": 3, "b": 4, "f": 5},
      {"0": 3, "o": 2, "i": 5},
      {"size": 3, "pad": (2, 2), "stride": 2, "lhs_dilate": 3},
    ),
    (
      "0bf_0io->0bf",
      {"0": 8, "b": 4, "f": 5},
      {"0": 8, "i": 5, "o": 2},
      {"size": 8, "stride": 7, "pad": (0, 0), "lhs_dilate": 8},
    ),
    ("b0f_0io->b0f", {"b": 2, "0": 9, "f": 3}, {"0": 3, "i": 3, "o": 4}, {"size": 3, "pad": (2, 0), "rhs_dilate": 2}),
    ("0fb_0io->0bf", {"0": 5, "f": 3, "b": 2}, {"0": 2, "i": 3, "o": 4}, {"size": 2, "stride": 2}),
  ],
)
def test_convolutions_count_what_they_multiply(labels, lhs, rhs, window):
  """Compared with a convolution of ones, whose results are the numbers of products."""
  shapes = [shape_of(part, sizes) for part, sizes in zip(re.split("_|->", labels)[:2], (lhs, rhs), strict=True)]
  spatial = "0" in lhs
  low, high = window.get("pad", (0, 0))
  ones = jax.lax.conv_general_dilated(
    *(np.ones(shape, np.float32) for shape in shapes),
    window_strides=(window.get("stride", 1),) * spatial,
    padding=((low, high),) * spatial,
    lhs_dilation=(window.get("lhs_dilate", 1),) * spatial,
    rhs_dilation=(window.get("rhs_dilate", 1),) * spatial,
    dimension_numbers=tuple(part.translate(str.maketrans("bfio", "NCIO")) for part in re.split("_|->", labels)),
  )
  written = " ".join(f"{name}={f'{low}_{high}' if name == 'pad' else value}" for name, value in window.items())
  line = f"bf16[{','.join(map(str, ones.shape))}]{{1,0}} convolution(%x0, %x1)"
  line += f", window={{{written} rhs_reversal=1}}" if window else ""
  assert ones.sum() > 0
  assert product(shapes, f"{line}, dim_labels={labels}") == 2 * float(ones.sum())


@pytest.mark.parametrize("rows", [(), (1,), (3,)])  # the compiler drops a batch of one
@pytest.mark.parametrize(("name", "products"), [("fwd_segmented_residuals", 2), ("dq_no_residuals", 3), ("dkv", 4)])
def test_splash_attention_counts_the_tiles_that_its_mask_leaves(rows, name, products):
  heads, queries, keys, width = 4, 2048, 1024, 128
  written = lambda kind, *shape: f"{kind}[{','.join(map(str, shape))}]"
  array = lambda length: written("bf16", *rows, heads, length, width)
  for tiles, share in (([written("s8", 1, 4, 4)], 5 / 8), ([], 1.0)):
    shapes = [*tiles, array(queries), array(keys), array(keys), written("f32", *rows, heads, 8, queries)]
    lines = [f"  %x{n} = {shape} parameter({n})" for n, shape in enumerate(shapes)]
    call = f"custom-call({', '.join(f'%x{n}' for n in range(len(shapes)))})"
    lines.append(f'  ROOT %splash_mha_{name}.1 = {array(queries)} {call}, custom_call_target="tpu_custom_call"')
    expected = 2 * products * math.prod(rows) * heads * queries * keys * width * share
    assert executed_flops(hlo.parse(program("\n".join(lines)))) == expected
