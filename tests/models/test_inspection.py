"""Hidden states and attention weights of every layer, against the model's own output and a plain computation."""

import jax
import numpy as np
import pytest

from tests.support.hf_cases import CASES
from tests.support.hf_compare import GOLDEN, read_expected
from tests.support.hf_compare import make_batch as make_hf_batch
from tests.support.pages import add_example
from tests.support.tiny import SIZES, VOCAB, make_batch, make_model, params_of, placement
from tfm_jax.errors import UserError
from tfm_jax.hf.importing import import_checkpoint
from tfm_jax.models.model import Model, resolve_model
from tfm_jax.models.networks.network import side
from tfm_jax.sharding.placement import single_device
from tfm_jax.training.load import load_run


def model_of(variant, **changes):
  """The variant's model with the head that returns the hidden states."""
  return make_model(variant, **{"head.name": "none"} | changes)


def inspect(name, model, params, batch, side=""):
  """`Model.hidden_states` or `Model.attention_weights`, compiled."""
  return np.asarray(jax.jit(lambda p, b: getattr(model, name)(p, b, side))(params, batch))


def hidden_states(*arguments):
  return inspect("hidden_states", *arguments)


def attention_weights(*arguments):
  return inspect("attention_weights", *arguments)


@pytest.mark.parametrize(("variant", "scan"), [("bert", True), ("gpt", False), ("modernbert", True)])
def test_the_last_hidden_state_is_the_output(variant, scan):
  model, batch = model_of(variant, scan=scan, remat="full"), make_batch(variant, rows=2)
  both = jax.jit(lambda p, b: (model.hidden_states(p, b), model.outputs(p, b)["hidden"]))
  states, output = (np.asarray(x) for x in both(params_of(variant), batch))
  assert states.shape == (3, 2, 16, 32) and states.dtype == np.float32
  np.testing.assert_allclose(states[-1], output, atol=1e-5)
  assert np.abs(np.diff(states, axis=0)).max((1, 2, 3)).min() > 1e-2


@pytest.mark.parametrize("variant", ["t5", "transformer"])
def test_each_side_of_an_encoder_decoder_has_hidden_states(variant):
  model, params, batch = make_model(variant), params_of(variant), make_batch(variant, rows=2)
  encoder_batch = {key: x for key, x in batch.items() if key.startswith("encoder_")}

  @jax.jit
  def everything(params):
    encoder = model.hidden_states(params, encoder_batch, "encoder"), model.encode(params, side(batch, "encoder")).h_BSD
    return *encoder, model.hidden_states(params, batch), model.logits(params, batch)

  encoder, memory, decoder, logits = map(np.asarray, everything(params))
  np.testing.assert_allclose(encoder[-1], memory, atol=1e-5)
  scale = 32**-0.5 if model.config.scale_output == "always" else 1.0
  np.testing.assert_allclose(decoder[-1] * scale @ np.asarray(params["embed"]["token"])[:VOCAB].T, logits, atol=1e-4)


SIDES = {"encoder": ("encoder_", "encoder_"), "decoder": ("decoder_", "decoder_"), "cross": ("decoder_", "encoder_")}


@pytest.mark.parametrize(
  ("variant", "which"), [("bert", ""), ("gpt", ""), ("modernbert", ""), *(("t5", which) for which in SIDES)]
)
def test_attention_weights_sum_to_one_over_the_keys_that_may_be_seen(variant, which):
  batch = make_batch(variant, rows=2)
  weights = attention_weights(make_model(variant), params_of(variant), batch, which)
  assert weights.shape == (2, 2, 4, 16, 16) and weights.dtype == np.float32
  queries, keys = (batch[f"{prefix}segment_ids"] for prefix in SIDES.get(which, ("", "")))
  seen = (queries[:, :, None] == keys[:, None, :]) & (keys != 0)[:, None, :]
  distance = np.arange(16)[:, None] - np.arange(16)
  if variant == "gpt" or which == "decoder":
    seen &= distance >= 0
  real = np.broadcast_to((queries > 0)[:, None, :, None], weights.shape[1:])
  for layer, w in enumerate(weights):
    near = abs(distance) <= 3 if variant == "modernbert" and layer % 2 else True  # its window; layer 0 sees all
    allowed = np.broadcast_to((seen & near)[:, None], w.shape)
    assert (w[real & ~allowed] == 0).all() and (w[real & allowed] > 0).all()
    np.testing.assert_allclose(w.sum(-1)[real[..., 0]], 1, atol=1e-5)
  assert (weights[..., (keys == 0).all(0)] == 0).all(), "a key that is padding has a weight"


@pytest.mark.parametrize(("variant", "scan"), [("gpt", False), ("llama", True), ("modernbert", True)])
def test_the_weights_explain_what_the_attention_of_the_first_block_adds(variant, scan):
  """With feed-forward layers that add nothing: x + (weights @ v) wo, in numpy."""
  groups = {"num_kv_heads": 2} if variant == "llama" else {}
  model = model_of(variant, scan=scan, **groups)
  params = jax.tree.map(np.asarray, params_of(variant))
  attn, norm = params["blocks"]["attn"], params["blocks"]["attn_norm"]
  attn |= {name: attn[name][:, :, ::2] for name in ("wk", "wv") if groups}
  params["blocks"]["mlp"] = jax.tree.map(np.zeros_like, params["blocks"]["mlp"])
  batch = make_batch(variant, rows=2)
  both = jax.jit(lambda p: (model.hidden_states(p, batch), model.attention_weights(p, batch)))
  states, weights = map(np.asarray, both(params))
  x = y = states[0]
  if model.config.first_norm:
    x = x - (x.mean(-1, keepdims=True) if model.config.norm == "layer" else 0)
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + model.config.norm_epsilon)
    x, y = x * norm["scale"][0] + (norm["bias"][0] if "bias" in norm else 0), states[0]
  v = np.einsum("btd,dhk->bthk", x, attn["wv"][0]) + (attn["bv"][0] if "bv" in attn else 0)
  v = np.repeat(v, 4 // v.shape[2], axis=2)
  added = np.einsum("bhts,bshk,hkd->btd", weights[0], v, attn["wo"][0]) + (attn["bo"][0] if "bo" in attn else 0)
  real = batch["segment_ids"] > 0
  np.testing.assert_allclose(states[1][real], (y + added)[real], atol=2e-5)


def test_a_query_that_sees_no_key_gives_no_key_a_weight():
  """Padding in front of a causal row."""
  batch = {"inputs": np.ones((1, 5), np.int32), "segment_ids": np.array([[0, 0, 1, 1, 1]])}
  weights = attention_weights(make_model("gpt"), params_of("gpt"), batch)
  sums = weights.sum(-1)
  assert (sums[..., :2] == 0).all()
  np.testing.assert_allclose(sums[..., 2:], 1, atol=1e-6)


def test_a_later_token_changes_no_earlier_state_of_a_decoder():
  params, batch = params_of("gpt"), {k: x for k, x in make_batch("gpt", rows=2).items() if k == "inputs"}
  changed = {"inputs": batch["inputs"].copy()}
  changed["inputs"][:, 9] = (changed["inputs"][:, 9] + 1) % VOCAB
  for inspect in (hidden_states, attention_weights):
    a, b = (inspect(make_model("gpt"), params, x) for x in (batch, changed))
    axis = 2 if a.ndim == 4 else 3
    at = lambda x, part, axis=axis: np.take(x, part, axis)
    np.testing.assert_array_equal(at(a, range(9)), at(b, range(9)))
    assert np.abs(at(a, range(9, 16)) - at(b, range(9, 16))).max() > 1e-5


def test_a_mesh_gives_what_one_device_gives():
  batch = make_batch("gpt", rows=8)
  alone, cut = make_model("gpt"), make_model("gpt", placement("fsdp_tp", 8))
  params = jax.device_put(params_of("gpt"), cut.shardings())
  for inspect in (hidden_states, attention_weights):
    np.testing.assert_allclose(inspect(cut, params, batch), inspect(alone, params_of("gpt"), batch), atol=2e-5)


def test_images_have_states_and_weights():
  sizes = {key: x for key, x in SIZES.items() if key != "max_positions"}
  config = resolve_model("vit", sizes | {"image.height": 8, "image.width": 8, "image.patch": 4, "head.name": "none"})
  model = Model("vit", config, single_device(), 0)
  params = jax.jit(model.init)(jax.random.key(0))
  batch = {"images": np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)}
  states, weights = hidden_states(model, params, batch), attention_weights(model, params, batch)
  np.testing.assert_allclose(states[-1], jax.jit(model.outputs)(params, batch)["hidden"], atol=1e-5)
  assert weights.shape == (2, 2, 4, 5, 5)
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def test_a_family_with_an_attention_of_its_own_shows_its_weights(monkeypatch):
  add_example(monkeypatch, "family")
  config = resolve_model("unit", SIZES | {"dropout": 0.0, "attention_dropout": 0.0})
  model = Model("unit", config, single_device(), VOCAB)
  params = jax.jit(model.init)(jax.random.key(0))
  batch = {"inputs": make_batch("gpt", rows=2)["inputs"]}
  before = attention_weights(model, params, batch)
  np.testing.assert_allclose(before.sum(-1), 1, atol=1e-5)
  params["blocks"]["attn"]["scale"] = 3 * params["blocks"]["attn"]["scale"]  # of the unit queries
  assert np.abs(attention_weights(model, params, batch) - before).max() > 1e-3


@pytest.mark.parametrize("name", ["bert_model", "modernbert_model"])
def test_the_hidden_states_of_an_imported_model_end_in_those_of_transformers(name, tmp_path):
  import_checkpoint(GOLDEN / name, tmp_path / "run")
  run = load_run(tmp_path / "run", dtype="float32")
  expected = read_expected(GOLDEN / name)
  states = hidden_states(run.model, run.params, make_hf_batch(CASES[name], expected.inputs))
  assert len(states) == CASES[name].options.get("num_hidden_layers", 2) + 1
  real = expected.inputs["attention_mask"] > 0
  np.testing.assert_allclose(states[-1][real], expected.outputs["hidden"][real], atol=5e-5)


def test_a_side_that_does_not_exist_is_refused_in_one_line():
  batch = make_batch("gpt", rows=1)
  with pytest.raises(UserError, match=r"^side='encoder' is for encoder-decoders: family=gpt has one stack$"):
    make_model("gpt").hidden_states(params_of("gpt"), batch, "encoder")
  batch = make_batch("t5", rows=1)
  with pytest.raises(UserError, match=r"^side='cross' is not one of decoder, encoder$"):
    make_model("t5").hidden_states(params_of("t5"), batch, "cross")
  with pytest.raises(UserError, match=r"^side='both' is not one of decoder, encoder, cross$"):
    make_model("t5").attention_weights(params_of("t5"), batch, "both")
