"""Kernels for GPUs: attention in tiles against plain attention, and the programs that cuDNN's compiles to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import make_batch, make_model, placement
from tfm_jax.errors import UserError
from tfm_jax.ops import cudnn, linear, tiles
from tfm_jax.ops.attention import KERNELS, attend_dense, find_kernel
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.kernel import Need
from tfm_jax.ops.masks import Mask
from tfm_jax.ops.positions import by_distance
from tfm_jax.sharding import linear as sharded
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.config import from_dict, resolve

B, T, S, H, K = 2, 12, 8, 4, 6


def normal(shape, seed):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def segments(length):
  """Three segments, and padding at the end of the first row."""
  ids = np.sort(np.random.default_rng(3).integers(1, 4, (B, length)), axis=1)
  ids[0, -2:] = 0
  return jnp.asarray(ids, jnp.int32)


def run_of(kernel, mask, bias, options, queries, keys):
  """Output and gradients of a kernel, as a function of (q, k, v, bias by distance) and weights of the output."""

  def attend(q, k, v, bias):
    form = bias if bias is None or kernel is not attend_dense else by_distance(bias, queries, keys)
    prepared = mask.dense(queries, keys) if kernel is attend_dense else mask
    return kernel(q, k, v, mask=prepared, bias_HTS=form, scale=0.4, platform="cpu", **options)

  def results(q, k, v, bias, weights):
    y, pull = jax.vjp(attend, q, k, v, bias)
    return y, *pull(weights)

  return jax.jit(results)


CASES = {
  "both ways": (T, S, H, Mask(), False, 0.0),
  "causal, dropout, grouped": (T, T, 2, Mask(causal=True), False, 0.3),
  "causal, bias, segments": (T, T, H, Mask(True, 0, segments(T), segments(T)), True, 0.0),
  "across, bias, dropout": (T, S, 2, Mask(False, 0, segments(T), segments(S)), True, 0.2),
  "window": (T, T, H, Mask(window=2), False, 0.0),
  "causal, window, bias": (T, T, H, Mask(causal=True, window=3), True, 0.0),
  "prefix, traced window": (T, T, H, Mask(True, jnp.int32(4), prefix_BS=jnp.asarray(np.eye(B, T, 7))), False, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_attention_in_tiles_and_its_gradients_equal_plain_attention(case, monkeypatch):
  monkeypatch.setattr(tiles, "TILE", 4)
  queries, keys, kv_heads, mask, has_bias, rate = CASES[case]
  q, k, v = normal((B, queries, H, K), 1), normal((B, keys, kv_heads, K), 2), normal((B, keys, kv_heads, K), 3)
  bias = normal((H, queries + keys), 4) if has_bias else None
  noise = Noise(jnp.uint32(1), jnp.uint32(2), jnp.arange(5, 5 + B, dtype=jnp.uint32)) if rate else None
  options = {"dropout_rate": rate, "noise": noise, "layer": 3, "site": 1}
  # A row without any key has no result.
  dense = mask.dense(queries, keys)
  counted = jnp.ones((1, queries, 1, 1)) if dense is None else dense.any(-1)[:, :, None, None]
  weights = normal((B, queries, H, K), 5) * counted
  mine, plain = (
    run_of(kernel, mask, bias, options, queries, keys)(q, k, v, bias, weights)
    for kernel in (tiles.attend_tiles, attend_dense)
  )
  for a, b in zip(mine, plain, strict=True):
    if b is not None:
      a, b = (x * counted if x.shape == weights.shape else x for x in (a, b))
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
  text = str(jax.make_jaxpr(run_of(tiles.attend_tiles, mask, bias, options, queries, keys))(q, k, v, bias, weights))
  assert f",{queries},{keys}]" not in text and f",{4},{4}]" in text  # tiles, and no matrix


def test_tiles_that_are_known_to_be_empty_are_not_computed(monkeypatch):
  monkeypatch.setattr(tiles, "TILE", 2)
  x = jnp.zeros((1, 8, 1, 4))
  count = lambda **form: len(tiles.Tiles(tiles.Form(**form), 8, 8, x, x, x, None, tiles.Given()).starts(0))
  assert count(causal=False) == 16 and count(causal=True) == 10
  assert count(causal=True, window=2) == 7 and count(causal=False, window=1) == 10


@pytest.mark.slow_but("gpt")
@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_a_model_in_tiles_equals_plain_attention_on_many_devices(family, monkeypatch):
  """Dropout bits are those of the whole, where each device has some of the rows and heads."""
  monkeypatch.setattr(tiles, "TILE", 4)
  sizes = {"num_layers": 1, "attention_dropout": 0.2}
  batch = make_batch(family, rows=4)
  params = jax.jit(make_model(family, **sizes).init)(jax.random.key(1))
  noise = Noise(jnp.uint32(1), jnp.uint32(2), jnp.arange(4, dtype=jnp.uint32))

  def results(model):
    total = lambda params: (model.logits(params, batch, noise).astype(jnp.float32) ** 2).mean()
    return jax.jit(total if family == "gpt" else jax.value_and_grad(total))(params)

  st = placement("fsdp_tp", 8, model=2, data=4)
  mine, plain = results(make_model(family, st, attention="tiles", **sizes)), results(make_model(family, **sizes))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(np.abs(b).max(), 1e-6))
  jax.tree.map(close, mine, plain)


NEED = Need(platform="gpu", lengths=(256, 128), groups=4, heads=2, dtype="bfloat16", head_dim=64)
REFUSED = {
  "platform": ({"platform": "tpu"}, "needs a GPU, not a tpu"),
  "dtype": ({"dtype": "float32"}, "bfloat16, but model.dtype=float32"),
  "dropout": ({"dropout": 0.1}, r"no dropout of ours, .*attention_dropout=0\.1"),
  "odd heads": ({"head_dim": 20}, "a multiple of 8 features, not 20"),
  "wide heads": ({"head_dim": 136}, "up to 128 features, not 136"),
  "wide heads and a bias": ({"head_dim": 120, "bias": True}, "up to 112 features beside a bias, not 120"),
  "bias and window": ({"bias": True, "window": 4}, "no windows beside a bias, .*window.size=4"),
  "bias and prefix": ({"bias": True, "prefix": True}, "no prefixes beside a bias"),
  "mixed windows": ({"causal": True, "window": 4, "mixed": True}, "in all layers or in none"),
  "cache": ({"cache": True}, "cache of keys and values"),
  "cut": ({"cut": True}, "needs whole sequences"),
  "uneven": ({"uneven": True}, "rows that the devices divide"),
  "pipeline": ({"staged": True}, "not used in pipelines"),
  "lengths": ({"lengths": (256, 129)}, "even numbers of tokens, not 129"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cudnn_cannot_do_is_refused_in_one_line_and_auto_takes_another(case):
  changes, words = REFUSED[case]
  assert find_kernel("auto", NEED) is find_kernel("cudnn", NEED) is KERNELS["cudnn"]
  need = NEED._replace(**changes)
  with pytest.raises(UserError, match=f"^model.attention=cudnn .*{words}.*model.attention=auto$"):
    find_kernel("cudnn", need)
  other = find_kernel("auto", need._replace(logits=2**29))
  tiled = case in ("dtype", "dropout", "lengths", "pipeline") or "heads" in case or "window" in case or "bias" in case
  assert other is KERNELS["tiles" if tiled else "splash" if case == "platform" else "xla"]
  assert find_kernel("auto", need) is not KERNELS["tiles"]  # few logits


@pytest.mark.parametrize(("attention", "words"), [("cudnn", "needs a GPU, not a cpu"), ("tiles", "")])
def test_the_kernels_on_a_cpu(attention, words):
  sizes = {"num_layers": 1, "embed_dim": 32, "num_heads": 4, "attention": attention, "attention_dropout": 0.0}
  config = resolve(from_dict({"family": "gpt", "model": sizes, "objective": {"name": "causal"}}))
  if not words:
    assert build_model(config, 64, jax.devices()[:1]).config.attention == attention
    return
  with pytest.raises(UserError, match=rf"model\.attention={attention} {words}"):
    build_model(config, 64, jax.devices()[:1])


def plain_fused(q, k, v, bias=None, *, mask=None, scale, is_causal, implementation, local_window_size=None):
  """What cuDNN is asked for, by XLA."""
  assert implementation == "cudnn"
  options = {"mask": mask, "scale": scale, "is_causal": is_causal, "local_window_size": local_window_size}
  return XLA(q, k, v, bias, implementation="xla", **options)


XLA = jax.nn.dot_product_attention
FUSED = {name: case for name, case in CASES.items() if "dropout" not in name and "traced" not in name}
FUSED["bias, segments, across"] = (T, S, H, Mask(False, 0, segments(T), segments(S)), True, 0.0)
FUSED["causal, window, segments"] = (T, T, 2, Mask(True, 3, segments(T), segments(T)), False, 0.0)


@pytest.mark.parametrize("case", FUSED)
def test_what_cudnn_is_asked_for_is_plain_attention(case, monkeypatch):
  """Its arguments are given to XLA's form of the same function: cuDNN itself runs on GPUs alone."""
  monkeypatch.setattr(jax.nn, "dot_product_attention", plain_fused)
  queries, keys, kv_heads, mask, has_bias, _ = FUSED[case]
  q, k, v = normal((B, queries, H, K), 1), normal((B, keys, kv_heads, K), 2), normal((B, keys, kv_heads, K), 3)
  bias = normal((H, queries + keys), 4) if has_bias else None
  dense = mask.dense(queries, keys)
  counted = jnp.ones((1, queries, 1, 1)) if dense is None else dense.any(-1)[:, :, None, None]
  if mask.query_segments_BT is not None:
    counted = counted * (mask.query_segments_BT > 0)[:, :, None, None]
  weights = normal((B, queries, H, K), 5) * counted
  fused = lambda *args, mask, **others: cudnn.attend_cudnn(
    *args, mask=cudnn.prepare_cudnn(mask, queries, keys), **others
  )
  mine, plain = (
    run_of(kernel, mask, bias, {}, queries, keys)(q, k, v, bias, weights) for kernel in (fused, attend_dense)
  )
  for a, b in zip(mine, plain, strict=True):
    if b is not None:
      a, b = (x * counted if x.shape == weights.shape else x for x in (a, b))
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * np.abs(b).max())


def test_the_gradient_of_a_table_is_summed_where_its_rows_are():
  """As GPUs sum it: rows over `data`, and each device of `model` has a part of the vocabulary."""
  st = placement("fsdp_tp", 8, model=2, data=4)
  table, ids = normal((12, 6), 1), jnp.asarray(np.random.default_rng(2).integers(0, 12, (8, 5)))
  weights = normal((8, 5, 6), 3)
  mine = jax.jit(jax.grad(lambda table: (sharded._embed(table, ids, ("vocab", "embed"), st) * weights).sum()))(table)
  plain = jax.grad(lambda table: (linear.embed(table, ids) * weights).sum())(table)
  np.testing.assert_allclose(mine, plain, rtol=0, atol=1e-5)
