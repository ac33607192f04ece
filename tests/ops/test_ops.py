"""The array functions against plain oracles."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tfm_jax.ops import hashing, norms, positions
from tfm_jax.ops.activations import ACTIVATIONS, FUNCTIONS, GATED
from tfm_jax.ops.attention import attention, softmax
from tfm_jax.ops.broadcast import spread
from tfm_jax.ops.dropout import Noise, dropout
from tfm_jax.ops.linear import embed, linear, matmul
from tfm_jax.ops.masks import Mask

LINEARS = {
  "BTD,DCHK->BTCHK": ((2, 5, 8), (8, 3, 2, 4), (3, 2, 4)),
  "BTHK,HKD->BTD": ((2, 5, 2, 4), (2, 4, 8), (8,)),
  "BTD,DCF->BTCF": ((2, 5, 8), (8, 2, 12), (2, 12)),
  "BTF,FD->BTD": ((2, 5, 12), (12, 8), (8,)),
  "BTD,DE->BTE": ((2, 5, 8), (8, 8), (8,)),
}
MATMULS = {
  "BTHK,BSHK->BHTS": ((2, 5, 3, 4), (2, 6, 3, 4)),
  "BHTS,BSHK->BTHK": ((2, 3, 5, 6), (2, 6, 3, 4)),
}


def normal(shape, seed=0, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def close(actual, expected, dtype):
  scale = float(np.abs(np.asarray(expected, np.float32)).max())
  tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
  np.testing.assert_allclose(np.asarray(actual, np.float32), np.asarray(expected, np.float32), atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("spec", LINEARS)
def test_linear_and_its_gradients_equal_the_plain_einsum(spec, dtype):
  x, w, b = (normal(shape, i, dtype) for i, shape in enumerate(LINEARS[spec]))
  b = b.astype(jnp.float32)

  def plain(x, w, b):
    y = jnp.einsum(spec, x.astype(jnp.float32), w.astype(jnp.float32), precision="highest")
    return y + b.reshape((1,) * (y.ndim - b.ndim) + b.shape)

  y, pull = jax.vjp(lambda *a: linear(spec, *a, "cpu"), x, w, b)
  y_plain, pull_plain = jax.vjp(plain, x, w, b)
  assert y.dtype == dtype
  close(y, y_plain, dtype)
  dy = normal(y.shape, 7, dtype)
  for mine, theirs in zip(jax.jit(pull)(dy), pull_plain(dy.astype(jnp.float32)), strict=True):
    assert mine.dtype == theirs.dtype
    close(mine, theirs, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("spec", MATMULS)
def test_matmul_and_its_gradients_equal_the_plain_einsum(spec, dtype):
  a, b = (normal(shape, i, dtype) for i, shape in enumerate(MATMULS[spec]))
  y, pull = jax.vjp(lambda a, b: matmul(spec, a, b, "cpu"), a, b)
  plain = lambda a, b: jnp.einsum(spec, a.astype(jnp.float32), b.astype(jnp.float32), precision="highest")
  y_plain, pull_plain = jax.vjp(plain, a, b)
  assert y.dtype == jnp.float32
  close(y, y_plain, dtype)
  dy = normal(y.shape, 7)
  for mine, theirs in zip(jax.jit(pull)(dy), pull_plain(dy), strict=True):
    close(mine, theirs, dtype)


def test_embed_sums_its_gradient_in_float32():
  table = jnp.ones((4, 2), jnp.bfloat16)
  ids = jnp.zeros((1, 1000), jnp.int32)
  # In bfloat16 a running sum of ones stops at 256.
  gradient = jax.grad(lambda t: embed(t, ids).astype(jnp.float32).sum())(table)
  np.testing.assert_array_equal(np.asarray(gradient[0], np.float32), [1000, 1000])
  assert not np.asarray(gradient[1:], np.float32).any()


def test_what_is_spread_sums_its_gradient_in_float32():
  dy = normal((8, 128, 3), 0, jnp.bfloat16) + jnp.bfloat16(1)
  y, pull = jax.vjp(lambda x: spread(x, dy.shape), normal((1, 1, 3), 1, jnp.bfloat16))
  assert y.dtype == jnp.bfloat16 and y.shape == dy.shape and (y == y[:1, :1]).all()
  expected = np.asarray(dy, np.float64).sum((0, 1), keepdims=True)
  np.testing.assert_allclose(np.asarray(jax.jit(pull)(dy)[0], np.float64), expected, rtol=2**-8)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_gradients(name):
  x, gate, dy = normal((3, 7)), normal((3, 7), 1), normal((3, 7), 2)
  for mine, plain, inputs in (
    (ACTIVATIONS[name], FUNCTIONS[name], (x,)),
    (GATED[name], lambda x, gate: FUNCTIONS[name](x) * gate, (x, gate)),
  ):
    (y, pull), (y_plain, pull_plain) = jax.vjp(mine, *inputs), jax.vjp(plain, *inputs)
    close(y, y_plain, jnp.float32)
    for a, b in zip(pull(dy), pull_plain(dy), strict=True):
      close(a, b, jnp.float32)
  assert ACTIVATIONS[name](x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_compiled_step_keeps_only_the_input_of_an_activation(name):
  """And its output, for the gradient of the next weight. XLA would keep what both passes compute."""
  x = jax.ShapeDtypeStruct((512, 64), jnp.float32)

  def temporaries(layers):
    def loss(weights, x):
      for w in weights:
        x = ACTIVATIONS[name](x @ w)
      return x.sum()

    weights = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * layers
    return jax.jit(jax.grad(loss)).lower(weights, x).compile().memory_analysis().temp_size_in_bytes

  assert (temporaries(8) - temporaries(4)) / 4 < 2.5 * x.size * x.dtype.itemsize


def test_exact_gelu_is_the_normal_distribution():
  x = np.linspace(-4, 4, 41, dtype=np.float32)
  expected = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
  np.testing.assert_allclose(ACTIVATIONS["gelu"](jnp.asarray(x)), expected, atol=1e-6)


def test_norms_against_numpy():
  x, scale, bias = normal((2, 3, 16)) * 5 + 3, normal((16,), 1), normal((16,), 2)
  a = np.asarray(x, np.float64)
  layer = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6) * np.asarray(scale) + np.asarray(
    bias
  )
  np.testing.assert_allclose(norms.layer_norm(x, scale, bias, 1e-6), layer, rtol=1e-4, atol=1e-5)
  rms = a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(scale)
  np.testing.assert_allclose(norms.rms_norm(x, scale, 1e-6), rms, rtol=1e-4, atol=1e-5)


def noise(step=0, rows=4, seed=0, first=0):
  return Noise(jnp.uint32(seed), jnp.int32(step), jnp.arange(first, first + rows))


def test_dropout_keeps_the_right_share_and_the_mean():
  y = np.asarray(dropout(jnp.ones((64, 64, 64)), 0.1, noise(rows=64), 0, 0))
  assert abs((y == 0).mean() - 0.1) < 0.003
  np.testing.assert_allclose(y[y > 0], 1 / 0.9, rtol=1e-6)
  for axes in ((0, 1), (0, 2), (1, 2)):  # no row, position or feature is special
    assert abs((y == 0).mean(axes) - 0.1).max() < 0.03


def test_dropout_bits_differ_by_step_layer_site_row_and_seed_and_nothing_else():
  x = jnp.ones((4, 8, 16))
  base = np.asarray(dropout(x, 0.5, noise(), 0, 0))
  np.testing.assert_array_equal(base, dropout(x, 0.5, noise(), 0, 0))
  others = [
    dropout(x, 0.5, noise(step=1), 0, 0),
    dropout(x, 0.5, noise(), 1, 0),
    dropout(x, 0.5, noise(), 0, 1),
    dropout(x, 0.5, noise(first=4), 0, 0),
    dropout(x, 0.5, noise(seed=1), 0, 0),
    base[::-1],
  ]
  for other in others:
    assert 0.4 < (np.asarray(other) == base).mean() < 0.6
  # A row keeps its bits in whatever batch it stands.
  np.testing.assert_array_equal(base[2:], dropout(x[2:], 0.5, noise(rows=2, first=2), 0, 0))


def test_dropout_gradient_has_the_same_mask():
  x = normal((4, 8, 16))
  y, pull = jax.vjp(lambda x: dropout(x, 0.3, noise(), 0, 0), x)
  np.testing.assert_allclose(pull(jnp.ones_like(x))[0], np.where(np.asarray(y) == 0, 0, 1 / 0.7), rtol=1e-6)


def test_dropout_off_is_the_identity():
  x = normal((2, 3))
  assert dropout(x, 0.0, noise(), 0, 0) is x
  assert dropout(x, 0.5, None, 0, 0) is x


def test_hash_is_a_bijection_and_avalanches():
  h = np.asarray(hashing.mix(jnp.arange(2**16, dtype=jnp.uint32)))
  assert len(np.unique(h)) == 2**16
  flipped = np.asarray(hashing.mix(jnp.arange(2**16, dtype=jnp.uint32) ^ jnp.uint32(1)))
  assert abs(np.bitwise_count(h ^ flipped).mean() - 16) < 0.2


def dense(mask, queries, keys):
  return np.asarray(mask.dense(queries, keys)).astype(int)


def test_masks_as_matrices():
  segments = jnp.array([[1, 1, 2, 0]])
  of = lambda **fields: dense(Mask(query_segments_BT=segments, key_segments_BS=segments, **fields), 4, 4)[0]
  # Padding, the last row, sees every segment: its outputs are of no use, and equal those of others.
  same = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0]]
  np.testing.assert_array_equal(of(), same)
  causal = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0]]
  np.testing.assert_array_equal(of(causal=True), causal)
  np.testing.assert_array_equal(dense(Mask(causal=True), 3, 3)[0], np.tri(3))
  keys = jnp.array([[1, 2, 2, 0, 0]])  # of an encoder, which the decoder's queries see
  cross = [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
  across = Mask(query_segments_BT=segments, key_segments_BS=keys)
  np.testing.assert_array_equal(dense(across, 4, 5)[0], cross)
  assert Mask().dense(3, 5) is None
  near = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]])
  np.testing.assert_array_equal(dense(Mask(window=1), 4, 4)[0], near)
  np.testing.assert_array_equal(dense(Mask(causal=True, window=1), 4, 4)[0], np.tril(near))
  packed = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
  np.testing.assert_array_equal(of(causal=True, window=1), packed)


# Two queries at places 3 and 4, five keys at 1, ..., 5.
OFFSETS = {
  "causal": ({"causal": True}, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]),
  "window": ({"window": 1}, [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]),
  "causal window": ({"causal": True, "window": 1}, [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]),
  "both ways": ({}, [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("case", OFFSETS)
def test_masks_with_offsets_as_matrices(case, traced):
  """Traced or not: keys of a cache, parts of a sequence that devices share, windows that some layers have."""
  fields, expected = OFFSETS[case]
  mask = Mask(**{"window": 0} | fields, query_offset=3, key_offset=1)
  if traced:
    matrix = jax.jit(lambda mask: mask.dense(2, 5))(mask)
  else:
    matrix = mask.dense(2, 5)
  matrix = np.ones((1, 2, 5)) if matrix is None else np.asarray(matrix).astype(int)
  np.testing.assert_array_equal(matrix[0], expected)
  segments = Mask(**fields, query_segments_BT=jnp.array([[2, 0]]), key_segments_BS=jnp.array([[1, 2, 2, 2, 0]]))
  both = dense(dataclasses.replace(segments, query_offset=3, key_offset=1), 2, 5)[0]
  np.testing.assert_array_equal(both, np.array(expected) * [[0, 1, 1, 1, 0], [1, 1, 1, 1, 0]])


def test_attention_against_numpy():
  q, k, v = normal((2, 3, 2, 4)), normal((2, 5, 2, 4), 1), normal((2, 5, 2, 4), 2)
  mask = np.random.default_rng(3).random((2, 3, 5)) < 0.6
  mask[:, :, 0] = True
  bias = normal((2, 3, 5), 4)
  y = attention(q, k, v, mask_BTS=jnp.asarray(mask), bias_HTS=bias, scale=0.5, platform="cpu")
  scores = np.einsum("bthk,bshk->bhts", q, k) * 0.5 + np.asarray(bias)[None]
  scores = np.where(mask[:, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  np.testing.assert_allclose(y, np.einsum("bhts,bshk->bthk", weights, v), atol=1e-5)


def test_softmax_gradient():
  x, dy = normal((3, 7)), normal((3, 7), 1)
  mine = jax.vjp(lambda x: softmax(x, jnp.float32), x)[1](dy)[0]
  close(mine, jax.vjp(lambda x: jax.nn.softmax(x, -1), x)[1](dy)[0], jnp.float32)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_buckets_follow_the_paper(bidirectional):
  """32 buckets, 16 a sign if bidirectional; half of them exact, the others logarithmic up to 128, the last for all."""

  def bucket(distance):
    count, offset = 32, 0
    back = -distance  # how far the key stands before the query
    if bidirectional:
      count = 16
      offset, back = (16, -back) if back < 0 else (0, back)
    elif back < 0:
      back = 0
    exact = count // 2
    if back < exact:
      return offset + back
    grown = exact + int(math.log(back / exact) / math.log(128 / exact) * (count - exact) + 1e-6)
    return offset + min(grown, count - 1)

  distances = np.arange(-300, 301)
  expected = [bucket(int(d)) for d in distances]
  np.testing.assert_array_equal(positions.relative_buckets(distances, bidirectional, 32, 128), expected)


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 7), (6, 2), (1, 1)])
def test_relative_bias_is_the_table_at_each_distance(queries, keys):
  table = normal((32, 2))
  of = lambda table: positions.by_distance(positions.relative_bias(table, queries, keys, True), queries, keys)
  bias = of(table)
  distances = np.arange(keys)[None] - np.arange(queries)[:, None]
  buckets = positions.relative_buckets(distances, True, 32, 128)
  np.testing.assert_allclose(bias, np.moveaxis(np.asarray(table)[buckets], -1, 0), rtol=1e-6)
  gradient = jax.grad(lambda table: of(table).sum())(table)
  np.testing.assert_allclose(gradient[:, 0], np.bincount(buckets.ravel(), minlength=32), rtol=1e-6)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("traced", [True, False])
def test_relative_bias_with_offsets_is_a_part_of_the_whole(bidirectional, traced):
  """To the bit: a few queries, later than the first key, as those of a cache; also beyond the largest distance."""
  table, length = normal((8, 2)), 30

  def of(queries, keys, offset):
    return positions.by_distance(positions.relative_bias(table, queries, keys, bidirectional, 9, offset), queries, keys)

  whole = np.asarray(of(length, length, 0))
  run = jax.jit(of, static_argnums=(0, 1)) if traced else of
  for first, count in ((0, 30), (29, 1), (13, 4), (0, 1)):
    np.testing.assert_array_equal(run(count, length, -first), whole[:, first : first + count])
  np.testing.assert_array_equal(run(2, 5, 20 - 7), whole[:, 7:9, 20:25])  # and keys that begin at 20


def test_rotary_scores_depend_on_distance_alone_and_keep_norms():
  q, k = normal((1, 1, 1, 8)), normal((1, 1, 1, 8), 1)
  rates = positions.rotary_rates(8, 10_000.0)

  def score(i, j):
    at = lambda p: jnp.array([[p]])
    return float((positions.rotate(q, at(i), rates) * positions.rotate(k, at(j), rates)).sum())

  assert score(5, 3) == pytest.approx(score(12, 10), abs=1e-5)
  assert score(5, 3) != pytest.approx(score(5, 4), abs=1e-3)
  np.testing.assert_allclose(
    jnp.linalg.norm(positions.rotate(q, jnp.array([[9]]), rates)), jnp.linalg.norm(q), rtol=1e-6
  )
  np.testing.assert_array_equal(positions.rotate(q, jnp.array([[0]]), rates), q)


def test_sinusoids():
  table = positions.sinusoids(jnp.array([[0, 3, 500]]), 8)[0]
  np.testing.assert_allclose(table[1, [0, 4]], [math.sin(3), math.cos(3)], rtol=1e-6)
  np.testing.assert_allclose(table[1, 3], math.sin(3 / 10_000), rtol=1e-5)
  np.testing.assert_array_equal(table[0], [0] * 4 + [1] * 4)
  rates = 10_000.0 ** -(np.arange(4) / 3)
  np.testing.assert_allclose(table[2], np.r_[np.sin(500 * rates), np.cos(500 * rates)], atol=3e-5)
  assert positions.sinusoids(jnp.array([[3]]), 7).shape == (1, 1, 7)


@settings(max_examples=20)
@given(some.lists(some.integers(1, 5), min_size=1, max_size=4), some.integers(0, 3))
def test_positions_number_the_elements_in_row_major_order(shape, first):
  first = min(first, len(shape) - 1)
  index = np.broadcast_to(np.asarray(hashing.positions(tuple(shape), first)), shape)
  size = math.prod(shape[first:])
  np.testing.assert_array_equal(index.reshape(-1, size), np.tile(np.arange(size), (math.prod(shape[:first]), 1)))


def test_rotary_rates_are_stretched_where_they_should_be():
  plain = positions.rotary_rates(16, 500.0)
  np.testing.assert_allclose(positions.rotary_rates(16, 500.0, factor=4.0), plain / 4, rtol=1e-6)
  # Llama 3: of an original length of 64, waves shorter than 64 / 4 stay, and those longer than 64 / 1 are stretched.
  rates = positions.rotary_rates(16, 500.0, factor=8.0, original=64, low=1.0, high=4.0)
  waves = 2 * np.pi / plain
  np.testing.assert_allclose(rates[waves < 16], plain[waves < 16], rtol=1e-6)
  np.testing.assert_allclose(rates[waves > 64], plain[waves > 64] / 8, rtol=1e-6)
  between = (waves > 16) & (waves < 64)
  assert between.any() and (rates[between] < plain[between]).all() and (rates[between] > plain[between] / 8).all()
