"""Strategies as data: mesh sizes, specs, and what is refused."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.support.tiny import model_config, placement
from tfm_jax.compare.program import with_strategy
from tfm_jax.errors import UserError
from tfm_jax.models.model import admits
from tfm_jax.sharding.strategy import (
  AXES,
  STRATEGIES,
  UNSIZED,
  ShardingConfig,
  Strategy,
  find_strategy,
  mesh_sizes,
)
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.config import load, resolve

BERT = admits("bert", model_config(embed_dim=768, num_heads=12, mlp_dim=3072), 30_522)


@pytest.mark.parametrize(
  ("strategy", "devices", "expected"),
  [
    ("dp", 8, {"data": 8}),
    ("fsdp", 8, {"data": 8}),
    ("tp", 8, {"data": 2, "model": 4}),
    ("hsdp", 8, {"replica": 2, "data": 4}),
    ("hsdp", 5, {"replica": 5}),
    ("fsdp_tp_stream", 8, {"data": 2, "model": 4}),
    ("fsdp_tp", 8, {"data": 2, "model": 4}),
    ("fsdp_tp", 4, {"data": 2, "model": 2}),
    ("tp", 3, {"data": 3}),
    ("pp", 8, {"data": 4, "stage": 2}),
    ("fsdp", 5, {"replica": 5}),
    ("fsdp", 512, {"data": 256, "replica": 2}),
    ("tp", 1, {}),
    ("zero2", 8, {"data": 8}),
    ("zero1", 512, {"data": 256, "replica": 2}),
    ("tp_sp", 8, {"data": 2, "model": 4}),
    ("cp", 8, {"data": 2, "context": 4}),
  ],
)
def test_free_sizes_are_the_largest_that_the_model_admits(strategy, devices, expected):
  sizes = mesh_sizes(ShardingConfig(strategy), devices, BERT)
  assert sizes == dict.fromkeys(AXES, 1) | expected


@given(
  some.sampled_from(list(STRATEGIES)), some.integers(1, 600), some.sampled_from([1, 3, 8, 12]), some.integers(1, 40)
)
def test_sizes_always_multiply_to_the_devices_and_divide_the_model(strategy, devices, heads, width):
  limits = admits("bert", model_config(embed_dim=width * heads, num_heads=heads, mlp_dim=64), 1000)
  sizes = mesh_sizes(ShardingConfig(strategy), devices, limits)
  assert math.prod(sizes.values()) == devices and tuple(sizes) == AXES
  for name, axes in STRATEGIES[strategy].rules:
    for length in limits.get(name, ()):
      assert length % math.prod(sizes[axis] for axis in axes) == 0


@pytest.mark.parametrize(
  ("config", "names"),
  [
    (ShardingConfig("tp", model=5), "sharding.model=5"),
    (ShardingConfig("fsdp", data=3), "8 devices"),
    (ShardingConfig("fsdp", data=5), "sharding.data=5"),
    (ShardingConfig("tp", model=-1), "sharding.model=-1"),
    (ShardingConfig("dp", data=2, replica=2), "too many"),
    (ShardingConfig("zero"), "sharding.strategy='zero'"),
    (ShardingConfig("fsdp", context=8), "sharding.context=8 .*fsdp.*sharding.strategy to cp"),
    (ShardingConfig("tp", stage=2), "sharding.stage=2 .*tp.*sharding.strategy to pp"),
    (ShardingConfig("pp", stage=8), "sharding.stage=8 does not divide 2, .*one of layers, embed; choose one of 1, 2,"),
    (ShardingConfig("dp", model=2), "sharding.model=2 .*dp.*sharding.strategy to tp, fsdp_tp"),
  ],
)
def test_impossible_sizes_are_refused_by_name(config, names):
  with pytest.raises(UserError, match=names):
    mesh_sizes(config, 8, BERT)


def test_explicit_sizes_are_taken():
  sizes = mesh_sizes(ShardingConfig("fsdp_tp", model=2, data=2), 8, BERT)
  assert (sizes["model"], sizes["data"], sizes["replica"]) == (2, 2, 2)


def test_an_unused_axis_may_be_set_to_one():
  assert mesh_sizes(ShardingConfig("fsdp", model=1, context=1, stage=1), 8, BERT)["data"] == 8


def test_an_axis_is_free_as_soon_as_a_strategy_uses_it(monkeypatch):
  ring = Strategy((*STRATEGIES["fsdp"].rules, ("seq", ("context",))))
  monkeypatch.setitem(STRATEGIES, "ring", ring)
  sizes = mesh_sizes(ShardingConfig("ring", context=2), 8, BERT)
  assert (sizes["context"], sizes["data"]) == (2, 4)


def test_compare_refuses_an_unused_axis():
  config = with_strategy(load("configs/quickstart.py"), "fsdp:context=2")
  with pytest.raises(UserError, match=r"sharding\.context=2"):
    build_model(resolve(config), 300)


def test_hsdp_replicates_across_slices():
  sizes = mesh_sizes(ShardingConfig("hsdp"), 32, BERT, slices=4)
  assert (sizes["replica"], sizes["data"]) == (4, 8)


def test_specs_name_mesh_axes_once():
  st = placement("fsdp_tp", 8)
  assert tuple(st.spec(("layers", "embed", "heads", None))) == (None, "data", "model", None)
  assert tuple(st.spec(("batch", "seq", "act_mlp"))) == (("replica", "data"), None, "model")
  assert tuple(st.spec(("vocab", "heads"))) == ("model", None)


def test_strategies_share_their_axes_and_split_the_batch_alike():
  for name, strategy in STRATEGIES.items():
    assert find_strategy(name) is strategy
    assert strategy.mesh_axes("batch") == ("replica", "data", *strategy.mesh_axes("layers"))
    assert all(set(axes) <= set(AXES) for _, axes in strategy.rules)
    parameters = {axis for axis, _ in strategy.of_state.rules if axis not in UNSIZED and not axis.startswith("act_")}
    assert parameters <= {"layers", "embed", "heads", "kv_heads", "mlp", "vocab", "experts"}


@pytest.fixture
def ring(monkeypatch):
  """A row that cuts sequences, everywhere, beside one that cuts them between the linears."""
  cut = (("seq", ("context",)), ("stream", ("context",)))
  first = {"ring": Strategy((BATCH, *cut), preset=(("context", -1),))}
  last = {"stream": Strategy((BATCH, ("stream", ("model",))), preset=(("model", 2),))}
  monkeypatch.setattr("tfm_jax.sharding.strategy.STRATEGIES", first | STRATEGIES | last)


@pytest.mark.parametrize(
  ("parts", "row"), [("tp+fsdp", "fsdp_tp"), ("fsdp+ep", "fsdp_ep"), ("dp+fsdp", "fsdp"), ("dp+tp", "tp")]
)
def test_a_composition_is_the_row_that_splits_the_same(parts, row):
  assert find_strategy(parts) == STRATEGIES[row]


def test_a_composition_splits_what_its_parts_split_in_the_order_of_the_table(ring):
  both = find_strategy("stream+ring")
  assert both == find_strategy("ring+stream")
  assert both.mesh_axes("stream") == ("context", "model") and both.mesh_axes("seq") == ("context",)
  assert dict(both.preset) == {"context": -1, "model": 2}


@given(some.lists(some.sampled_from(list(STRATEGIES)), min_size=2, max_size=4, unique=True))
def test_a_composition_splits_over_every_mesh_axis_of_its_parts_in_any_order(parts):
  try:
    both = find_strategy("+".join(parts))
  except UserError:
    return
  assert both == find_strategy("+".join(reversed(parts)))
  for axis in dict(both.rules):
    assert set(both.mesh_axes(axis)) == {a for part in parts for a in STRATEGIES[part].mesh_axes(axis)}


@pytest.mark.parametrize(
  ("strategy", "devices", "expected"),
  [
    ("fsdp+tp+ring", 8, {"model": 2, "context": 2, "data": 2}),
    ("fsdp+tp+ring", 4, {"context": 2, "data": 2}),
    ("fsdp+tp+ring", 32, {"model": 4, "context": 4, "data": 2}),
    ("tp+ring", 8, {"model": 2, "context": 2, "data": 2}),
    ("hsdp+tp", 8, {"replica": 2, "model": 2, "data": 2}),
    ("ring", 8, {"context": 8}),
    ("fsdp_tp", 8, {"model": 4, "data": 2}),
  ],
)
def test_each_free_axis_leaves_two_for_every_later_one(ring, strategy, devices, expected):
  assert mesh_sizes(ShardingConfig(strategy), devices, BERT) == dict.fromkeys(AXES, 1) | expected


def test_lengths_are_divided_by_all_axes_that_split_them(monkeypatch):
  rules = (BATCH, ("mlp", ("data", "model")))
  monkeypatch.setitem(STRATEGIES, "both", Strategy(rules, preset=(("model", 4),)))
  sizes = mesh_sizes(ShardingConfig("both"), 16, {"mlp": (8,)})
  assert (sizes["model"], sizes["data"], sizes["replica"]) == (4, 2, 2)
  with pytest.raises(UserError, match=r"sharding\.model=4 does not divide 8"):
    mesh_sizes(ShardingConfig("both", model=4, data=4), 16, {"mlp": (8,)})


@pytest.mark.parametrize(
  ("name", "reason"),
  [
    ("fsdp+fsdp", "sharding.strategy='fsdp+fsdp': fsdp is there 2 times: write it once"),
    ("zero1+fsdp", "fsdp splits all that zero1 splits: leave zero1 out"),
    ("zero1+zero2", "zero2 splits all that zero1 splits: leave zero1 out"),
    ("tp_sp+tp", "tp_sp splits all that tp splits: leave tp out"),
    ("tp_sp+fsdp_tp_stream", "both split the residual stream over model"),
    ("fsdp+hsdp", "hsdp splits all that fsdp splits: leave fsdp out"),
    ("cp+pp", "pp and cp do not go together: the stages of a pipeline cannot pass keys and values around"),
    ("tp+fsdp_tp", "fsdp_tp splits all that tp splits: leave tp out"),
    ("fsdp+pt", "sharding.strategy='fsdp+pt': 'pt' is not one of dp, fsdp, tp,"),
    ("fsdp,tp", "or several joined by +, as fsdp+tp"),
  ],
)
def test_parts_that_do_not_go_together_are_refused(name, reason):
  with pytest.raises(UserError, match=re.escape(reason)) as error:
    find_strategy(name)
  assert "\n" not in str(error.value)


def test_compositions_are_written_wherever_strategies_are():
  config = load("configs/quickstart.py", {"sharding.strategy": "tp+fsdp", "sharding.model": 2})
  assert with_strategy(config, "fsdp_tp").sharding.model == 2  # the same strategy, whose sizes hold
  assert with_strategy(config, "fsdp+tp:model=4").sharding == ShardingConfig("fsdp+tp", model=4)
  assert dict(placement("fsdp+tp", 8).mesh.shape)["model"] == 4
  with pytest.raises(UserError, match=r"sharding\.strategy='fsdp\+cup': 'cup' is not"):
    resolve(load("configs/quickstart.py", {"sharding.strategy": "fsdp+cup"}))


BATCH = ("batch", ("replica", "data"))


@pytest.mark.parametrize(
  ("rules", "preset", "culprit"),
  [
    ((BATCH, ("mlp", ("modle",))), (), "rule maps 'mlp' to ('modle',)"),
    ((BATCH, ("mlp", "model")), (), "rule maps 'mlp' to 'model': write a tuple"),
    ((BATCH, ("mlp", ("model",))), (("modle", 2),), "preset is for 'modle': write a mesh axis, one of replica"),
    ((BATCH, ("mlp", ("model",)), ("mlp", ("data",))), (), "2 rules for 'mlp'"),
    ((BATCH, ("mlp", ("model",))), ("model", 4), "preset=('model', 4), in which 'model' is no pair: write preset=((\""),
    ((BATCH, ("mlp", ("model",))), (("model", "4"),), "preset for 'model' is '4': write its largest size"),
    ((BATCH, ("mlp", ("model",))), (("model", 0),), "preset for 'model' is 0"),
    (((BATCH,), ("mlp", ("model",))), (), "is no pair: write rules=(*_BATCH, "),
    ([BATCH], (), "rules=[('batch', ('replica', 'data'))]: write rules=(*_BATCH, "),
    ((("mlp", ("model",)),), (), "with rules for mlp does not split the batch over replica and data: begin its rules"),
    ((("batch", ("data",)),), (), "does not split the batch over replica and data"),
    ((), (), "with rules for nothing does not split the batch"),
  ],
)
def test_a_malformed_strategy_is_refused(rules, preset, culprit):
  with pytest.raises(UserError, match=re.escape(culprit)) as error:
    Strategy(rules, preset)
  assert "\n" not in str(error.value)


def test_a_rule_for_no_logical_axis_is_refused(monkeypatch):
  monkeypatch.setitem(STRATEGIES, "mlp_onyl", Strategy((BATCH, ("mpl", ("model",)))))
  with pytest.raises(UserError, match="mlp_onyl has a rule for 'mpl', which is no logical axis: batch, seq, stream, "):
    mesh_sizes(ShardingConfig("mlp_onyl"), 8, {"mlp": (64,)})
