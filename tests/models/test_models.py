"""Models: counts and shapes, causality, isolation of padding and packed documents, remat, scan, initialisation."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import CASES, LENGTH, VARIANTS, VOCAB, make_batch, make_model, params_of, placement
from tfm_jax.errors import UserError
from tfm_jax.models import blocks
from tfm_jax.models.config import pad_vocab, param_axes
from tfm_jax.models.model import resolve_model
from tfm_jax.sharding.placement import single_device
from tfm_jax.sharding.strategy import STRATEGIES
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.config import load, resolve

ROOT = Path(__file__).parents[2]
SHAPES = Path(__file__).parents[1] / "golden" / "parameter_shapes.json"
# Counted on the reference implementations' own models, tied weights once, no padding of the vocabulary.
COUNTS = {
  "bert_base.py": 109_514_298,
  "bert_large.py": 335_174_458,
  "gpt2_small.py": 124_439_808,
  "gpt2_medium.py": 354_823_168,
  "gpt2_large.py": 774_030_080,
  "gpt2_xl.py": 1_557_611_200,
  "t5_small.py": 60_506_624,
  "t5_base.py": 222_903_552,
  "t5_large.py": 737_668_096,
  "t5_small.py:1.1": 76_961_152,
  "t5_base.py:1.1": 247_577_856,
  "t5_large.py:1.1": 783_150_080,
  "transformer_base.py": 63_082_496,
  "transformer_big.py": 214_245_376,
  "llama_1b.py": 1_235_814_400,
  "llama_1b.py:tinyllama": 1_100_048_384,
  "moe_small.py": 1_334_625_280,
  "vit_s16.py": 22_050_664 - 998 * (384 + 1),  # timm's with 1,000 classes, without 998 of them
  "roberta_base.py": 124_697_433,
  "modernbert_base.py": 149_655_232,
  "bert_phases.py": 110_106_428,
  "bart_base.py": 139_420_416 + 50_265,  # the bias of the output layer is no parameter there
}


def logits(variant, batch, params=None, **changes):
  model = make_model(variant, **changes)
  return np.asarray(jax.jit(model.logits)(params or params_of(variant), batch))


def everywhere(batch):
  """The batch with the head on every position."""
  dropped = ("mlm_positions", "targets", "weights") if "mlm_positions" in batch else ()
  return {name: x for name, x in batch.items() if name not in dropped}


@pytest.mark.parametrize("name", COUNTS)
def test_full_size_models_have_exactly_the_parameters_of_the_papers(name):
  config = resolve(load(str(ROOT / "configs" / name)))
  assert build_model(config, config.tokenizer.vocab_size, jax.devices()[:1]).parameter_count() == COUNTS[name]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_paths_and_shapes_are_the_committed_ones(variant):
  shapes = {
    "/".join(key.key for key in path): list(leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(make_model(variant).shapes())
  }
  assert shapes == json.loads(SHAPES.read_text())[variant]
  for path, shape in shapes.items():
    axes = param_axes(path)
    assert len(axes.names) == len(shape), path
    assert axes.layers == path.count("blocks/") + path.count("experts/")


def test_a_parameter_without_axes_is_an_error():
  with pytest.raises(KeyError, match="blocks/attn/other"):
    param_axes("blocks/attn/other")


@pytest.mark.slow_but("gpt", "lstm")
@pytest.mark.parametrize("variant", ["gpt", "llama", "t5", "transformer", "lstm", "gru", "gru_encoder_decoder"])
def test_decoders_see_nothing_that_comes_later(variant):
  batch = {k: v for k, v in make_batch(variant, rows=2).items() if "segment" not in k}
  name = "inputs" if "inputs" in batch else "decoder_inputs"
  before = logits(variant, batch)
  at = 7
  changed = {**batch, name: batch[name].copy()}
  changed[name][:, at] = (changed[name][:, at] + 1) % VOCAB
  after = logits(variant, changed)
  np.testing.assert_array_equal(before[:, :at], after[:, :at])
  assert (np.abs(before[:, at:] - after[:, at:]).max(-1) > 1e-6).all()


@pytest.mark.slow_but("bert")
@pytest.mark.parametrize("variant", ["bert", "rotary", "t5_encoder", "lstm_encoder"])
def test_encoders_see_everything(variant):
  batch = {k: v for k, v in everywhere(make_batch(variant, rows=2)).items() if "segment" not in k}
  changed = {**batch, "inputs": batch["inputs"].copy()}
  changed["inputs"][:, 7] = (changed["inputs"][:, 7] + 1) % VOCAB
  assert (np.abs(logits(variant, batch) - logits(variant, changed)).max(-1) > 1e-6).all()


@pytest.mark.parametrize("variant", CASES)
def test_segments_and_padding_are_isolated(variant):
  """Other tokens in the rest of the row change nothing in a segment, be it before or behind, on either side."""
  batch = everywhere(make_batch(variant, rows=2))
  compiled = jax.jit(make_model(variant).logits)
  before = np.asarray(compiled(params_of(variant), batch))
  segments = batch.get("segment_ids", batch.get("decoder_segment_ids"))[0]
  for segment in (1, 2):
    changed = dict(batch)
    for name, ids in batch.items():
      if name.endswith("inputs"):
        changed[name] = np.where(segments == segment, ids, (ids + 1) % VOCAB)
    after = np.asarray(compiled(params_of(variant), changed))
    kept = segments == segment
    np.testing.assert_array_equal(before[:, kept], after[:, kept])
    assert np.abs(before[:, ~kept] - after[:, ~kept]).max() > 1e-3
    assert np.isfinite(after).all()


@pytest.mark.parametrize("variant", CASES)
def test_a_packed_document_is_read_as_if_it_stood_alone(variant):
  batch = everywhere(make_batch(variant, rows=2))
  packed = logits(variant, batch)
  segments = batch.get("segment_ids", batch.get("decoder_segment_ids"))[0]
  second = segments == 2
  alone = {name: x[:, second] if x.ndim == 2 else x for name, x in batch.items()}
  np.testing.assert_allclose(packed[:, second], logits(variant, alone), atol=2e-5)


def test_token_types_matter_and_default_to_the_first():
  batch = everywhere(make_batch("bert", rows=2))
  types = np.zeros((2, LENGTH), np.int32)
  np.testing.assert_allclose(logits("bert", batch), logits("bert", batch | {"token_types": types}), atol=1e-6)
  assert np.abs(logits("bert", batch) - logits("bert", batch | {"token_types": types + 1})).max() > 1e-2


def test_gradients_of_what_all_tokens_share_are_summed_in_float32():
  """Of the first token type and of positions that all rows share: as exact as where each token looks its row up."""
  batch = everywhere(make_batch("bert", rows=64))
  del batch["segment_ids"], batch["positions"]
  weights = np.random.default_rng(0).standard_normal((64, LENGTH, 1)) + 1

  def gradient(dtype):
    model = make_model("bert", dtype=dtype)
    total = lambda params: (jnp.square(model.logits(params, batch)[..., :4]) * weights).sum()
    return jax.jit(jax.grad(total))(params_of("bert"))["embed"]

  exact, mine = gradient("float32"), gradient("bfloat16")
  for name in ("type", "position"):
    error = np.linalg.norm(np.asarray(mine[name] - exact[name])) / np.linalg.norm(np.asarray(exact[name]))
    assert error < 0.01, name


def test_only_masked_positions_go_through_the_head():
  batch = make_batch("bert", rows=2)
  full = logits("bert", everywhere(batch))
  picked = np.take_along_axis(full, batch["mlm_positions"][:, :, None], axis=1)
  np.testing.assert_allclose(logits("bert", batch), picked, atol=1e-5)


@pytest.mark.parametrize("variant", CASES)
def test_unrolled_equals_scanned(variant):
  batch = make_batch(variant, rows=2)
  np.testing.assert_allclose(logits(variant, batch), logits(variant, batch, scan=False), atol=2e-5)


@pytest.mark.parametrize(("most", "unrolled"), [(0, False), (1, False), (2, True)])
def test_a_cpu_unrolls_layers_that_are_few(most, unrolled, monkeypatch):
  monkeypatch.setattr(blocks, "UNROLLED_ON_CPU", most)
  model, batch = make_model("bert"), make_batch("bert")
  text = str(jax.make_jaxpr(lambda params: model.logits(params, batch))(params_of("bert")))
  assert ("unroll=2" in text, "unroll=1" in text) == (unrolled, not unrolled)
  create = str(jax.make_jaxpr(model.init)(jax.random.key(0)))
  assert "unroll=1" in create and "unroll=2" not in create  # it would only take longer to compile
  eight = make_model("bert", placement("dp", 8))
  assert "unroll=1" in str(jax.make_jaxpr(lambda params: eight.logits(params, batch))(params_of("bert")))


@pytest.mark.parametrize("variant", ["bert", "t5_1_1"])
def test_bfloat16_stays_close_to_float32(variant):
  batch = make_batch(variant, rows=2)
  a, b = logits(variant, batch), logits(variant, batch, dtype="bfloat16")
  assert np.abs(a - b).mean() < 0.03 * np.abs(a).mean() + 0.01


# The families themselves: test_step.py. Each variant has two strategies in turn.
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["llama", "rotary", "alibi", "deepnorm"])
def test_fresh_parameters_are_the_same_bits_under_every_strategy(variant):
  alone = jax.tree.map(np.asarray, jax.jit(make_model(variant).init)(jax.random.key(3)))
  turn = list(VARIANTS).index(variant)
  for strategy in {list(STRATEGIES)[(turn + shift) % len(STRATEGIES)] for shift in (0, len(STRATEGIES) // 2)}:
    model = make_model(variant, placement(strategy, 8))
    params = jax.jit(model.init, out_shardings=model.shardings())(jax.random.key(3))
    split = {"embed", "vocab"} & dict(STRATEGIES[strategy].rules).keys()
    assert params["embed"]["token"].sharding.is_fully_replicated == (not split)
    jax.tree.map(np.testing.assert_array_equal, alone, jax.tree.map(np.asarray, params))


def wide(family):
  """Fresh parameters of a model wide enough for statistics."""
  sizes = {"num_layers": 2, "embed_dim": 256, "num_heads": 4, "mlp_dim": 512}
  config = resolve_model(family, sizes)
  model = type(make_model("bert"))(family, config, single_device(), 1000)
  return jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0)))


def test_each_family_is_initialised_as_its_paper_says():
  std = lambda x: float(np.std(x))
  near = lambda value: pytest.approx(value, rel=0.03)
  bert = wide("bert")
  assert std(bert["blocks"]["attn"]["wq"]) == near(0.02) and std(bert["blocks"]["mlp"]["wo"]) == near(0.02)
  gpt = wide("gpt")
  assert std(gpt["blocks"]["attn"]["wq"]) == near(0.02) and std(gpt["embed"]["token"]) == near(0.02)
  assert std(gpt["blocks"]["attn"]["wo"]) == near(0.01) == std(gpt["blocks"]["mlp"]["wo"])  # 0.02 / sqrt(2 * 2)
  t5 = wide("t5")
  attn = t5["encoder"]["blocks"]["attn"]
  assert std(t5["embed"]["token"]) == near(1.0)
  assert std(attn["wk"]) == near(256**-0.5) and std(attn["wo"]) == near(256**-0.5)
  assert std(attn["wq"]) == near((256 * 64) ** -0.5)
  assert std(t5["decoder"]["blocks"]["mlp"]["wo"]) == near(512**-0.5)
  transformer = wide("transformer")
  wi = transformer["encoder"]["blocks"]["mlp"]["wi"]
  bound = (6 / (256 + 512)) ** 0.5
  assert std(wi) == near(bound / 3**0.5) and np.abs(wi).max() <= bound
  assert std(transformer["embed"]["token"]) == near(256**-0.5)
  for params in (bert, gpt, transformer):
    for path, x in jax.tree.leaves_with_path(params):
      name = path[-1].key
      if name == "scale":
        assert (x == 1).all()
      elif name.startswith("b"):
        assert not x.any()
  layers = bert["blocks"]["attn"]["wq"]
  assert abs(np.corrcoef(layers[0].ravel(), layers[1].ravel())[0, 1]) < 0.02
  values = bert["embed"]["token"].ravel() / 0.02
  kurtosis = float((values**4).mean() / (values**2).mean() ** 2)
  assert kurtosis == pytest.approx(2.9, abs=0.05) and abs(values.mean()) < 0.01


@pytest.mark.parametrize(
  ("changes", "names"),
  [
    ({"norm": "batch"}, "model.norm"),
    ({"dtype": "float16"}, "model.dtype"),
    ({"remat": "some"}, "model.remat"),
    ({"embed_dim": 30, "num_heads": 4}, "model.num_heads=4"),
    ({"dropout": 1.0}, "model.dropout"),
    ({"embed_dim": 9, "num_heads": 3, "positions": "rotary"}, "model.head_dim"),
    ({"num_layers": 0}, "num_layers"),
  ],
)
def test_impossible_models_are_refused_by_name(changes, names):
  with pytest.raises(UserError, match=names):
    resolve_model("bert", changes)


def test_vocabularies_are_padded_to_128():
  assert [pad_vocab(n) for n in (1, 128, 129, 30_522)] == [128, 128, 256, 30_592]


@pytest.mark.parametrize("family", ["bert", "gpt", "t5"])
def test_logits_have_the_width_of_the_vocabulary_not_of_its_table(family):
  """250 ids, in tables of 256 rows; numbers that are no logits never reach a caller."""
  model, batch = make_model(family), make_batch(family, rows=1)
  logits = jax.jit(model.logits)(params_of(family), batch)
  assert (logits.shape[-1], logits.dtype) == (VOCAB, jnp.float32)
  assert np.abs(logits).max() < 1e6


def test_rows_of_padding_are_finite_and_have_no_gradient():
  model = make_model("bert")
  batch = everywhere(make_batch("bert", rows=1))
  batch["segment_ids"] = batch["segment_ids"] * 0
  total = lambda p: jnp.square(model.logits(p, batch)).sum()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.jit(jax.grad(total))(params_of("bert"))))
