"""Heads: their losses count every dot, reach every parameter, and are the same on every mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import SIZES, placement
from tests.training.test_flops import dots
from tfm_jax.compare.program import random_batch
from tfm_jax.errors import UserError
from tfm_jax.models.config import replaced
from tfm_jax.models.heads.head import of_head
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import Model, heads_of, labelled_fields, resolve_model
from tfm_jax.ops.losses import LossConfig, total
from tfm_jax.sharding.placement import single_device
from tfm_jax.training.compiled import flops
from tfm_jax.training.loss import make_loss

VOCAB, LENGTH, ROWS = 250, 12, 8
PLAIN = {"dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}
IMAGES = {"image.height": 8, "image.width": 12, "image.patch": 4, "max_positions": 0}
WINDOWS = {"window.size": 2, "window.global_every": 2}
CASES = {
  "bert rows": ("bert", {"head.name": "sequence_classification", "head.num_labels": 3}),
  "bert number": ("bert", {"head.name": "sequence_classification", "head.num_labels": 1}),
  "distilbert tokens": ("distilbert", {"head.name": "token_classification", "head.num_labels": 5}),
  "roberta answers": ("roberta", {"head.name": "question_answering"}),
  "electra replaced": ("electra", {"head.name": "replaced_token_detection", "embedding_dim": 16}),
  "modernbert mean": ("modernbert", {"head.name": "sequence_classification", "head.pooling": "mean", "window.size": 2}),
  "modernbert tokens": (
    "modernbert",
    {"head.name": "token_classification", "window.size": 2, "window.global_every": 2},
  ),
  "t5 encoder rows": ("t5_encoder", {"head.name": "sequence_classification", "head.num_labels": 3}),
  "t5 encoder answers": ("t5_encoder", {"head.name": "question_answering"}),
  "vit": ("vit", {"head.name": "sequence_classification", "head.num_labels": 10, **IMAGES}),
}
# One case of each head; the others are slow.
SLOW = ("bert number", "modernbert mean", "modernbert tokens", "t5 encoder answers")
SELECTED = [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES]


def make(case, st=None):
  family, changes = CASES[case]
  config = resolve_model(family, SIZES | PLAIN | changes)
  return Model(family, config, st or single_device(), 0 if config.image.patch else VOCAB)


@functools.cache
def fields(case):
  return labelled_fields(CASES[case][0], make(case).config, LENGTH, VOCAB)


def batch_of(case):
  batch = random_batch(fields(case), ROWS)
  if "segment_ids" in batch:
    batch["segment_ids"][:, -2:] = 0
  return batch


@functools.cache
def params_of(case):
  """Fresh parameters, disturbed: a classifier of zeros hides what comes before it."""
  fresh = jax.jit(make(case).init)(jax.random.key(0))
  return jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), fresh)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(model, params, batch):
  def mean(params):
    return total(make_loss(model, LossConfig())(params, batch, None).objective)

  return jax.value_and_grad(mean)(params)


def test_every_head_that_has_targets_has_a_loss():
  assert {name for name, head in HEADS.items() if head.loss} == set(HEADS) - {"none", "pooled"}
  assert {name for name, head in HEADS.items() if head.learns_from_objective} == {"lm", "pretraining", "electra"}
  config = resolve_model("bert", {**SIZES, "head.name": "none"})
  with pytest.raises(ValueError, match=r"head\.name=none"):
    make_loss(Model("bert", config, single_device(), VOCAB), LossConfig())


@pytest.mark.parametrize("case", CASES)
def test_every_dot_is_counted(case):
  model, batch = make(case), batch_of(case)
  loss = make_loss(model, LossConfig())
  program = jax.make_jaxpr(jax.grad(lambda params: total(loss(params, batch, None).objective)))(model.shapes())
  # Only the gradient of the pixels, which the linear has among its dots, is of no use to anybody.
  unused = 2 * ROWS * 6 * (4 * 4 * 3) * 32 if case == "vit" else 0
  assert dots(program.jaxpr) - unused == flops.count(loss, model.shapes(), batch).full


@pytest.mark.slow_but("bert rows")
@pytest.mark.parametrize("case", SELECTED)
def test_every_parameter_has_a_gradient(case):
  _, gradient = loss_and_gradient(make(case), params_of(case), batch_of(case))
  for path, x in jax.tree.leaves_with_path(gradient):
    assert np.isfinite(x).all() and np.abs(x).max() > 0, path


@pytest.mark.slow_but("vit")
@pytest.mark.parametrize("case", [case for case in CASES if case not in SLOW])
def test_a_mesh_changes_nothing(case):
  loss, gradient = loss_and_gradient(make(case), params_of(case), batch_of(case))
  model = make(case, placement("fsdp_tp", 8))
  params = jax.device_put(params_of(case), model.shardings())
  batch = jax.device_put(batch_of(case), model.placement.sharding(("batch",)))
  loss_8, gradient_8 = loss_and_gradient(model, params, batch)
  np.testing.assert_allclose(loss_8, loss, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max())), gradient_8, gradient)


@pytest.mark.parametrize("case", [case for case in CASES if case != "vit"])
def test_padding_counts_for_nothing(case):
  """Other tokens in the padding change no row's class and no other token's."""
  model, batch = make(case), batch_of(case)
  changed = batch | {"inputs": np.where(batch["segment_ids"] == 0, (batch["inputs"] + 1) % VOCAB, batch["inputs"])}
  before, after = (np.asarray(model.logits(params_of(case), b)) for b in (batch, changed))
  if before.shape[:2] == batch["inputs"].shape:
    before, after = before[batch["segment_ids"] > 0], after[batch["segment_ids"] > 0]
  np.testing.assert_allclose(before, after, atol=1e-6)


@pytest.mark.slow
def test_gradients_of_what_all_images_share_are_summed_in_float32():
  model = make("vit")
  batch = {name: x[:1].repeat(2048, 0) for name, x in batch_of("vit").items()}
  batch["images"] = np.random.default_rng(0).standard_normal(batch["images"].shape).astype(np.float32)
  half = dataclasses.replace(model, config=dataclasses.replace(model.config, dtype="bfloat16"))
  exact, mine = (loss_and_gradient(m, params_of("vit"), batch)[1]["embed"] for m in (model, half))
  for name in ("position", "class"):
    assert np.linalg.norm(mine[name] - exact[name]) < 0.007 * np.linalg.norm(exact[name]), name


def test_windows_reach_as_far_as_they_say():
  """One local layer: a token is seen from `window` places away, and from no further."""
  config = resolve_model(
    "modernbert", SIZES | PLAIN | {"num_layers": 1, "window.size": 2, "window.global_every": 0, "head.name": "none"}
  )
  model = Model("modernbert", config, single_device(), VOCAB)
  params = jax.jit(model.init)(jax.random.key(0))
  ids = np.arange(LENGTH, dtype=np.int32)[None] + 5
  other = ids.copy()
  other[0, 6] += 50
  hidden = jax.jit(lambda ids: model.outputs(params, {"inputs": ids})["hidden"])
  moved = np.abs(hidden(ids) - hidden(other)).max(-1)[0] > 1e-7
  np.testing.assert_array_equal(moved, np.abs(np.arange(LENGTH) - 6) <= 2)


@pytest.mark.slow
def test_global_layers_see_everything():
  config = make("modernbert tokens").config
  for layers, everywhere in ((1, True), (2, True)):
    one = replaced(config, {"num_layers": layers, "head.name": "none"})
    model = Model("modernbert", one, single_device(), VOCAB)
    params = jax.jit(model.init)(jax.random.key(0))
    ids = np.arange(LENGTH, dtype=np.int32)[None] + 5
    other = ids.copy()
    other[0, 0] += 50
    hidden = jax.jit(lambda ids, model=model, params=params: model.outputs(params, {"inputs": ids})["hidden"])
    assert (np.abs(hidden(ids) - hidden(other)).max(-1)[0] > 1e-7).all() == everywhere


def test_a_regression_is_the_squared_error():
  case = "bert number"
  batch = batch_of(case)
  batch["targets"] = np.linspace(-1, 2, ROWS, dtype=np.float32)
  terms = make_loss(make(case), LossConfig())(params_of(case), batch, None)
  y = np.asarray(make(case).logits(params_of(case), batch))[:, 0]
  np.testing.assert_allclose(total(terms.loss), np.square(y - batch["targets"]).mean(), rtol=1e-5)


def test_the_names_of_the_heads_parameters_are_complete():
  """Whatever differs between two heads of a model belongs to a head, so another run may start without it."""
  base = make("bert rows").config
  trees = [
    {p[0].key for p, _ in jax.tree.leaves_with_path(Model("bert", c, single_device(), VOCAB).shapes())}
    for c in (replaced(base, {"head.name": head}) for head in heads_of("bert"))
  ]
  assert all(of_head(path) for path in set.union(*trees) - set.intersection(*trees))
  assert not any(of_head(path) for path in set.intersection(*trees))
  towers = Model("clip", resolve_model("clip", SIZES | PLAIN), single_device(), VOCAB).shapes()
  assert {name for name in towers if not of_head(name)} == {"image", "text"} and len(towers) == 5


@pytest.mark.parametrize(
  ("family", "changes", "names"),
  [
    ("bert", {"head.name": "classify"}, "head.name"),
    ("t5", {"head.name": "token_classification"}, "family=t5"),
    ("vit", {"head.name": "lm", **IMAGES}, "family=vit"),
    ("bert", {"head.labels": "a|b|c"}, "head.labels"),
    ("vit", {**IMAGES, "head.name": "none", "image.width": 13}, "image.width"),
    ("vit", {**IMAGES, "positions": "rotary"}, "model.positions=rotary"),
    ("clip", {**IMAGES, "head.name": "contrastive", "positions": "alibi"}, "model.positions=alibi"),
    ("vit", {**IMAGES, "image.patch": 0}, "image.patch=0"),
    ("lstm", {"experts.count": 4}, "experts.count=4"),
    ("gpt", {"embedding_dim": 16}, "model.embedding_dim"),
    ("modernbert", {"attention": "splash"}, "window.size"),
    ("bert", {"head.pooler": "sigmoid"}, "head.pooler"),
    ("bert", {"head.num_labels": 0}, "head.num_labels"),
  ],
)
def test_impossible_heads_are_refused_by_name(family, changes, names):
  with pytest.raises(UserError, match=names):
    resolve_model(family, SIZES | PLAIN | changes)
