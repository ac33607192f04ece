"""Arrangements of the block, ALiBi and normalised queries and keys, against plain loops and their papers' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.plain_decoder import forward
from tests.support.tiny import LENGTH, VOCAB, make_batch, make_model
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model, resolve_model
from tfm_jax.models.residual import deepnorm
from tfm_jax.models.sight import Sight
from tfm_jax.ops import positions
from tfm_jax.ops.attention import KERNELS
from tfm_jax.ops.masks import Mask
from tfm_jax.sharding.placement import single_device

CASES = {
  "pre, learned": ("gpt", {}),
  "rezero, alibi": ("gpt", {"norm_order": "rezero", "positions": "alibi", "num_kv_heads": 2}),
  "deepnorm": ("gpt", {"norm_order": "deepnorm"}),
  "parallel, normed queries": ("qwen3", {"norm_order": "parallel", "num_kv_heads": 2}),
}


def disturbed(model, seed=0):
  """Parameters of which none is zero or one."""
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda x: np.float32(0.3) * draw.standard_normal(x.shape, np.float32), model.shapes())


@pytest.mark.slow_but("rezero, alibi", "parallel, normed queries")
@pytest.mark.parametrize("case", CASES)
def test_packed_rows_equal_plain_loops(case):
  variant, changes = CASES[case]
  model = make_model(variant, **changes)
  params, batch = disturbed(model), make_batch(variant, rows=2)
  mine = np.asarray(jax.jit(model.logits)(params, batch))
  expected = forward(model.config, params, batch)[0][..., :VOCAB]
  real = batch["segment_ids"] != 0
  np.testing.assert_allclose(mine[real], expected[real], atol=2e-5 * np.abs(expected).max())


# ALiBi.


def test_slopes_are_those_of_the_paper():
  np.testing.assert_array_equal(positions.alibi_slopes(8), 1 / np.array([2, 4, 8, 16, 32, 64, 128, 256], np.float32))
  assert positions.alibi_slopes(16)[0] == pytest.approx(2**-0.5) and positions.alibi_slopes(1) == 2.0**-8
  twelve = positions.alibi_slopes(12)
  np.testing.assert_allclose(twelve[8:], [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5], rtol=1e-6)  # of sixteen: 1st, 3rd, ...
  np.testing.assert_array_equal(twelve[:8], positions.alibi_slopes(8))


def test_encoders_see_both_sides_alike():
  bias_HTS = positions.alibi_bias(2, jnp.arange(3) + 5, jnp.arange(4) + 4)
  np.testing.assert_allclose(bias_HTS[1], -(2.0**-8) * np.array([[1, 0, 1, 2], [2, 1, 0, 1], [3, 2, 1, 0]]))


def test_a_cache_that_forgets_what_no_window_reaches_keeps_distances():
  """Columns are filled again from the front, so that they are no longer in the order of the tokens."""
  model = make_model("gpt", positions="alibi", **{"window.size": 3})
  params, ids = disturbed(model), make_batch("gpt", rows=2)["inputs"]
  full = np.asarray(jax.jit(model.logits)(params, {"inputs": ids}))
  step = jax.jit(lambda ids, cache: model.decode(params, {"inputs": ids}, cache))
  cache = model.init_cache(params, 2, 5)
  for t in range(LENGTH):
    outputs, cache = step(ids[:, t : t + 1], cache)
    np.testing.assert_allclose(outputs["logits"][:, 0], full[:, t], atol=1e-5 * np.abs(full).max(), err_msg=str(t))


def test_a_kernel_without_biases_refuses():
  with pytest.raises(UserError, match=r"model.attention=splash adds no bias to the logits, as .*alibi do"):
    resolve_model("gpt", {"positions": "alibi", "attention_dropout": 0.0, "attention": "splash"})


# DeepNorm.


def test_constants_are_those_of_the_paper():
  assert deepnorm("", 100, 0) == pytest.approx((200**0.25, 800**-0.25))
  assert deepnorm("encoder", 6, 3) == pytest.approx((0.81 * (6**4 * 3) ** 0.0625, 0.87 * (6**4 * 3) ** -0.0625))
  assert deepnorm("decoder", 6, 3) == pytest.approx((9**0.25, 36**-0.25))


def test_deepnorm_starts_with_smaller_values_and_outputs():
  sizes = {"num_layers": 3, "decoder_layers": 2, "embed_dim": 128, "num_heads": 4, "mlp_dim": 256}
  fresh = lambda **changes: jax.tree.map(
    np.asarray,
    jax.jit(Model("transformer", resolve_model("transformer", sizes | changes), single_device(), 300).init)(
      jax.random.key(0)
    ),
  )
  plain, deep = fresh(), fresh(norm_order="deepnorm")
  for side, beta in (("encoder", 0.87 * (3**4 * 2) ** -0.0625), ("decoder", 24**-0.25)):
    for part, names in (("attn", "wq wk wv wo"), ("mlp", "wi wo"), ("cross", "wq wk wv wo")):
      for name in names.split() if part in deep[side]["blocks"] else ():
        factor = 1 if name in ("wq", "wk") else beta
        mine, before = (tree[side]["blocks"][part][name] for tree in (deep, plain))
        np.testing.assert_allclose(mine, before * factor, rtol=1e-6, err_msg=f"{side} {part} {name}")
  np.testing.assert_array_equal(plain["embed"]["token"], deep["embed"]["token"])


# ReZero.


def test_fresh_blocks_change_nothing_and_learn_at_once():
  model = make_model("gpt", norm_order="rezero")
  params, batch = jax.jit(model.init)(jax.random.key(0)), make_batch("gpt", rows=2)
  states = jax.jit(model.hidden_states)(params, batch)
  np.testing.assert_array_equal(states[0], states[-1])
  gradient = jax.jit(jax.grad(lambda p: jnp.square(model.logits(p, batch)[..., :3]).sum()))(params)["blocks"]
  assert (np.abs(gradient["gain"]) > 0).all() and not np.any(gradient["attn"]["wq"])
  assert not any("norm" in name for name in params["blocks"]) and "final_norm" not in params


# QK-norm.


@pytest.mark.slow_but("qwen3")
@pytest.mark.parametrize("variant", ["qwen3", "llama"])
def test_larger_queries_and_keys_do_not_sharpen_attention(variant):
  model = make_model(variant, num_layers=1)
  params, batch = disturbed(model), make_batch(variant, rows=2)
  larger = jax.tree.map(lambda x: x, params)
  larger["blocks"]["attn"]["wq"] = 50 * params["blocks"]["attn"]["wq"]
  before, after = (jax.jit(model.attention_weights)(p, batch) for p in (params, larger))
  assert (np.abs(before - after).max() < 1e-4) == (variant == "qwen3")


def test_another_order_of_norms_is_refused():
  with pytest.raises(UserError, match=r"model\.norm_order='middle' is not one of pre, post, parallel, "):
    resolve_model("gpt", {"norm_order": "middle"})


@pytest.mark.parametrize("order", ["pre", "post", "deepnorm"])
def test_only_where_a_norm_is_left_out_it_is_not_counted(order):
  whole, without = (make_model("bert", norm_order=order, first_norm=first).parameter_count() for first in (True, False))
  assert whole - without == (2 * 32 if order == "pre" else 0)  # scale and bias


def test_a_mask_that_stays_data_has_the_window_of_its_layer():
  """In a scan over blocks, which of them are global is known at run time."""
  sight = Sight(KERNELS["xla"], True, (8, 8), Mask(True), Mask(True, window=3))
  windows = jax.vmap(lambda is_global: sight.of_layer(is_global).window)(jnp.asarray([True, False]))
  assert windows.tolist() == [0, 3]
