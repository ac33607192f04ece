"""Families and heads: each is one file and one entry, others are refused, and axes are declared once."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.launching import ROOT
from tests.support.pages import add_example
from tests.support.refusal import refusal
from tests.support.tiny import SIZES, VARIANTS, VOCAB, make_model, placement
from tfm_jax.compare.program import build_program, fields_of, random_batch
from tfm_jax.errors import UserError
from tfm_jax.models.config import ModelConfig, param_axes, replaced
from tfm_jax.models.config import fields_of as keys_of
from tfm_jax.models.families.table import FAMILIES
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.layers import Layer
from tfm_jax.models.model import Model, heads_of, labelled_fields, resolve_model
from tfm_jax.objectives.table import OBJECTIVES
from tfm_jax.ops.losses import LossConfig, total
from tfm_jax.runtime.trees import flat
from tfm_jax.sharding.placement import single_device
from tfm_jax.training.config import from_dict, resolve
from tfm_jax.training.loss import make_loss

PLAIN = SIZES | {"dropout": 0.0, "attention_dropout": 0.0}


def test_the_model_has_no_more_fields_than_a_reader_can_keep():
  assert len(dataclasses.fields(ModelConfig)) <= 40
  assert all(type(None) not in getattr(kind, "__args__", ()) for kind in keys_of(ModelConfig).values())


def test_entries_of_families_name_what_exists():
  for name, family in FAMILIES.items():
    assert set(family.heads) <= set(HEADS) and set(family.objectives) <= set(OBJECTIVES), name
    assert family.preset.head.name in heads_of(name)
    assert resolve_model(name) == resolve_model(name, {"head.name": family.preset.head.name})


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_objectives_that_are_not_in_the_entry_are_refused_in_one_line(family):
  for head in sorted(set(HEADS) - set(heads_of(family))):
    with pytest.raises(UserError, match=rf"^head\.name={head} is not for family={family}: choose .*$"):
      resolve_model(family, {"head.name": head})
  for objective in sorted(set(OBJECTIVES) - set(FAMILIES[family].objectives)) if "lm" in heads_of(family) else ():
    config = from_dict({"family": family, "objective": {"name": objective}})
    message = refusal(resolve, config)
    assert message.startswith(f"objective.name='{objective}' does not fit family={family}: choose ")
    assert all((ROOT / path).exists() for path in re.findall(r"tfm_jax/[\w./]+", message))


def test_a_decoder_predicts_no_masked_tokens():
  for family in ("gpt", "llama"):
    with pytest.raises(UserError, match=r"head\.name=pretraining"):
      from_dict({"family": family, "head": {"name": "pretraining"}})


# Axes.


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_gather_each_weight_by_the_axes_of_its_path(variant, monkeypatch):
  seen = {}

  def axes(self, name):
    one = original(self, name)
    seen["/".join((*self.path, name))] = one.names
    return one

  original = Layer.axes
  monkeypatch.setattr(Layer, "axes", axes)
  paths = flat(jax.eval_shape(make_model(variant, scan=False).init, jax.random.key(0)))
  matrices = {path for path in paths if param_axes(path).is_matrix}
  assert matrices <= set(seen)
  for path, names in seen.items():
    assert names == param_axes(path).names[path.count("blocks/") :]


# The family of docs/extending.md: one file and one entry.


@pytest.fixture
def family(monkeypatch):
  add_example(monkeypatch, "family")
  return "unit"


@pytest.mark.slow
def test_a_family_with_an_attention_of_its_own_is_one_file_and_one_entry(family):
  config = resolve_model(family, PLAIN)
  model = Model(family, config, single_device(), VOCAB)
  params = jax.jit(model.init)(jax.random.key(0))
  assert params["blocks"]["attn"]["scale"].shape == (2, 8) and not model.encoder_decoder
  batch = random_batch(causal_fields(family), 4)
  gradient = jax.jit(jax.grad(lambda params: total(make_loss(model, LossConfig())(params, batch, None).objective)))
  for path, x in flat(gradient(params)).items():
    assert np.isfinite(x).all() and np.abs(x).max() > 0, path
  larger = jax.tree.map(lambda x: x, params)
  larger["blocks"]["attn"]["scale"] = 3 * params["blocks"]["attn"]["scale"]
  logits = jax.jit(model.logits)
  before, after = logits(params, batch), logits(larger, batch)
  assert np.abs(before - after)[..., :VOCAB].max() > 1e-4
  changed = batch | {"inputs": np.concatenate([batch["inputs"][:, :-1], batch["inputs"][:, -1:] - 1], axis=1)}
  np.testing.assert_array_equal(logits(params, changed)[:, :-1], before[:, :-1])  # causal, as its entry says


def causal_fields(family):
  """The fields of its objective."""
  tree = {"family": family, "objective": {"name": "causal"}, "data": {"seq_len": 16}}
  return fields_of(resolve(from_dict(tree | {"tokenizer": {"vocab_size": VOCAB}})))


def test_a_made_up_family_has_its_place_on_a_mesh(family):
  config = resolve_model(family, PLAIN)
  alone = Model(family, config, single_device(), VOCAB)
  model = Model(family, config, placement("fsdp_tp", 8), VOCAB)
  params = jax.jit(model.init, out_shardings=model.shardings())(jax.random.key(3))
  same = jax.jit(alone.init)(jax.random.key(3))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), params, same)


def test_a_made_up_family_is_refused_what_its_row_does_not_name(family):
  with pytest.raises(UserError, match="does not fit family=unit: choose causal"):
    resolve(from_dict({"family": family}))
  with pytest.raises(UserError, match="is not for family=unit: choose lm or none or"):
    resolve_model(family, {"head.name": "pretraining"})


# The head of docs/extending.md: one file and one entry.


@pytest.fixture
def head(monkeypatch):
  add_example(monkeypatch, "head")
  return "multi_label"


@pytest.mark.slow
def test_a_head_is_one_file_and_one_entry(head):
  tree = {
    "family": "bert",
    "model": PLAIN,
    "head": {"name": head, "num_labels": 5},
    "data": {"seq_len": 12},
    "tokenizer": {"vocab_size": VOCAB},
    "train": {"batch_size": 8},
  }
  program = build_program(from_dict(tree), jax.devices()[:1])
  assert program.fields["targets"].shape == (5,)
  batch = random_batch(program.fields, 8)
  state, metrics = program.compile(2)(program.init(), program.put(batch))
  assert 0 < metrics["loss"] < 2 and 0 <= metrics["accuracy"] <= 1
  predicted = program.model.predict(state.params, batch)
  assert predicted["holds"].shape == (8, 5) and ((predicted["probabilities"] > 0.5) == predicted["holds"]).all()
  assert not program.frozen  # every parameter is trained, the head's too


# What heads predict.


def prediction(name, outputs, batch=None, **changes):
  config = resolve_model("bert", {"head.name": name, **changes})
  arrays = {key: jnp.asarray(y, jnp.float32) for key, y in outputs.items()}
  return {key: np.asarray(x) for key, x in HEADS[name].predict(config, arrays, batch or {}).items()}


def test_classes_and_their_probabilities():
  predicted = prediction("sequence_classification", {"logits": np.log([[0.2, 0.7, 0.1], [0.5, 0.2, 0.3]])})
  np.testing.assert_array_equal(predicted["class"], [1, 0])
  np.testing.assert_allclose(predicted["probabilities"], [[0.2, 0.7, 0.1], [0.5, 0.2, 0.3]], rtol=1e-5)
  predicted = prediction("sequence_classification", {"logits": [[1.5], [-2.0]]}, **{"head.num_labels": 1})
  np.testing.assert_array_equal(predicted["value"], [1.5, -2.0])
  predicted = prediction("token_classification", {"logits": np.log([[[0.2, 0.8], [0.9, 0.1]]])})
  np.testing.assert_array_equal(predicted["classes"], [[1, 0]])
  np.testing.assert_allclose(predicted["probabilities"][0, :, 1], [0.8, 0.1], rtol=1e-5)


def test_replaced_tokens_and_the_likeliest_ones():
  predicted = prediction("replaced_token_detection", {"logits": [[0.0, np.log(3.0), -1.0]]})
  np.testing.assert_array_equal(predicted["replaced"], [[False, True, False]])
  np.testing.assert_allclose(predicted["probabilities"][0, :2], [0.5, 0.75], rtol=1e-6)
  predicted = prediction("pretraining", {"logits": np.log([[[0.1, 0.9]]]), "next_sentence": np.log([[0.75, 0.25]])})
  np.testing.assert_array_equal(predicted["tokens"], [[1]])
  np.testing.assert_allclose([predicted["probabilities"][0, 0], predicted["follows"][0]], [0.9, 0.75], rtol=1e-5)


def test_an_answer_ends_where_it_starts_or_later_and_lies_in_no_padding():
  start, end = [0.1, 0.2, 0.6, 0.1], [0.5, 0.1, 0.2, 0.2]
  logits = np.log(np.stack([start, end], -1))[None]
  predicted = prediction("question_answering", {"logits": logits})
  # Alone the likeliest are 2 and 0: of the spans that do not end before they start, 2..2 and 2..3 are.
  assert (predicted["start"][0], predicted["end"][0]) == (2, 2)
  np.testing.assert_allclose(predicted["probability"], [0.6 * 0.2], rtol=1e-5)
  predicted = prediction("question_answering", {"logits": logits}, {"segment_ids": jnp.asarray([[1, 1, 0, 0]])})
  assert (predicted["start"][0], predicted["end"][0]) == (0, 0)
  np.testing.assert_allclose(predicted["probability"], [(0.1 / 0.3) * (0.5 / 0.6)], rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "family"),
  [(name, family) for family in ("bert", "t5_encoder", "clip") for name in sorted(heads_of(family))],
)
def test_every_head_predicts_what_can_be_written_down(name, family):
  model = Model(family, resolve_model(family, PLAIN | {"head.name": name}), single_device(), VOCAB)
  batch = random_batch(labelled_fields(family, model.config, 12, VOCAB), 3)
  params = jax.eval_shape(model.init, jax.random.key(0))
  predicted = jax.eval_shape(model.predict, params, batch)
  assert predicted and all(x.shape[0] == 3 for x in predicted.values())


def test_a_change_of_one_field_keeps_the_others():
  config = resolve_model("modernbert")
  changed = replaced(config, {"window.size": 3, "num_layers": 2})
  assert changed.window.global_every == config.window.global_every and changed.window.size == 3
  assert changed.num_layers == 2 and changed.head == config.head
