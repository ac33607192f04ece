"""What a sweep tries: grids, lists, random points, and points that depend on results."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.refusal import refusal
from tfm_jax.tasks.sweeps import adaptive
from tfm_jax.tasks.sweeps.space import Dimension, point_name, space_of, value_text
from tfm_jax.training.config import parse_value


def test_a_grid_is_every_combination_and_the_last_key_changes_fastest():
  space = space_of(
    {"optimizer.learning_rate": [1e-4, 1], "model.dropout": (0.0, 0.1), "train.batch_size": range(8, 17, 8)}
  )
  assert len(space.points) == space.count == 8
  assert space.points[:3] == (
    {"optimizer.learning_rate": 1e-4, "model.dropout": 0.0, "train.batch_size": 8},
    {"optimizer.learning_rate": 1e-4, "model.dropout": 0.0, "train.batch_size": 16},
    {"optimizer.learning_rate": 1e-4, "model.dropout": 0.1, "train.batch_size": 8},
  )
  assert isinstance(space.points[-1]["optimizer.learning_rate"], float)
  assert [dict(p) for p in space_of({"seed": [3, 4]}).points] == [{"seed": 3}, {"seed": 4}]
  assert len(space_of({"model.num_layers": [1, 2, 3]}, limit=2).points) == 2


def test_a_list_is_its_points():
  space = space_of([{"model.num_layers": 2}, {"model.num_layers": 4, "model.dropout": 0.1}, {}])
  assert space.points == ({"model.num_layers": 2}, {"model.num_layers": 4, "model.dropout": 0.1}, {})
  assert space.dimensions["model.num_layers"].values == (2, 4)


RANDOM = {
  "optimizer.learning_rate": ("log", 1e-5, 1e-3),
  "model.dropout": ("uniform", 0.0, 0.3),
  "model.num_layers": ("int", 1, 4),
  "train.batch_size": [16, 32],
}


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), count=st.integers(1, 30))
def test_random_points_are_inside_different_and_those_of_a_longer_sweep(seed, count):
  points = space_of({"random": count, "seed": seed, **RANDOM}).points
  longer = space_of({"random": count + 3, "seed": seed, **RANDOM}).points
  fewer_keys = {key: RANDOM[key] for key in list(RANDOM)[:2]}
  assert longer[:count] == points and len({json.dumps(point) for point in points}) == count
  for point, part in zip(points, space_of({"random": count, "seed": seed, **fewer_keys}).points, strict=True):
    assert 1e-5 <= point["optimizer.learning_rate"] <= 1e-3 and 0 <= point["model.dropout"] <= 0.3
    assert point["model.num_layers"] in range(1, 5) and point["train.batch_size"] in (16, 32)
    assert part == {key: point[key] for key in part}
    assert float(f"{point['model.dropout']:.3g}") == point["model.dropout"]


def test_draws_fill_their_ranges_evenly():
  points = space_of({"random": 2000, **RANDOM}).points
  rates = np.log10([point["optimizer.learning_rate"] for point in points])
  assert np.histogram(rates, 4, (-5, -3))[0] == pytest.approx(500, abs=90)
  dropouts = [point["model.dropout"] for point in points]
  assert np.histogram(dropouts, 4, (0, 0.3))[0] == pytest.approx(500, abs=90)
  layers = [point["model.num_layers"] for point in points]
  assert np.bincount(layers)[1:] == pytest.approx(500, abs=90)
  assert abs(np.corrcoef(rates, dropouts)[0, 1]) < 0.08
  assert space_of({"random": 5, "seed": 1, **RANDOM}).points != points[:5]


def test_a_small_space_gives_each_point_once():
  space = space_of(
    {"random": 50, "model.num_layers": [1, 2, 3], "seed": [0, 1]}
  )  # a list: the key of the configuration
  assert space.count == len(space.points) == 6


@pytest.mark.parametrize(
  ("space", "message"),
  [
    (
      {"optimizer.learningrate": [1e-4]},
      r"config\.optimizer\.learningrate does not exist; did you mean .*learning_rate",
    ),
    ({"model.dropout": []}, r"the list of model\.dropout is empty"),
    ({"model.dropout": 0.1}, r"model\.dropout needs a list of values, not 0\.1: write \[0\.1\]"),
    ({"model.dropout": "ab"}, "needs a list of values"),
    ({"model.dropout": [0.1, "a"]}, r"config\.model\.dropout='a' is of type str"),
    ({"optimizer.name": ["adamw", "lamb"]}, "'lamb' is not one of adamw"),
    ({"train.batch_size": [-8]}, "must be a number of at least 0"),
    ({"model.dropout": [0.1, 0.1]}, r"model\.dropout has 0\.1 twice"),
    ({"model.dropout": ("uniform", 0.0, 0.1)}, 'needs "random": N'),
    ({"random": 0, **RANDOM}, "'random' is the number of points"),
    ({"random": 3, "optuna": 3, **RANDOM}, "has both 'random' and 'optuna'"),
    ({"random": 3}, r"get_sweep\(\) is empty"),
    ({"random": 3, "model.dropout": ("log", 0.0, 0.1)}, "needs 0 < low < high"),
    ({"random": 3, "model.dropout": ("uniform", 0.1)}, r'is \("uniform", low, high\)'),
    ({"random": 3, "model.num_layers": ("log", 1, 4)}, "is of type int: it needs a list, or"),
    ({"random": 3, "optimizer.name": ("uniform", 1, 4)}, "is of type str: it needs a list, not"),
    ([{"model.dropout": 0.1}, {"model.dropout": 0.1}], "points 1 and 2 are the same"),
    ({}, "is empty"),
    ([], "is empty"),
    ("model.dropout", "must return a dict of lists or a list of dicts"),
  ],
)
def test_a_wrong_space_is_one_line(space, message):
  assert re.search(message, refusal(space_of, space))


def test_names_are_readable_and_depend_on_their_point_alone():
  point = {"optimizer.learning_rate": 3e-4, "train.batch_size": 32, "optimizer.name": "adam"}
  assert point_name(point) == "learning_rate=0.0003_batch_size=32_optimizer.name=adam"
  strange = {"data.path": "/a b/../c", "model.scan": False, "model.dropout": None}
  assert "/" not in point_name(strange) and " " not in point_name(strange)
  assert point_name(strange) != point_name(strange | {"data.path": "/a:b/../c"})
  assert len(point_name({f"optimizer.{name * 9}": 1.0 for name in "abcdefghij"})) < 140
  for key, value in [("model.scan", False), ("model.dropout", 1e-7), ("model.dropout", None), ("train.steps", 3)]:
    assert parse_value(key, value_text(value)) == value


DIMENSIONS = {
  "optimizer.learning_rate": Dimension("log", (1e-5, 1e-1)),
  "model.num_layers": Dimension("int", (1, 8)),
  "optimizer.name": Dimension("choice", ("adamw", "sgd")),
}


def distance(point):
  """Smallest at 1e-3, four layers and adamw."""
  rate = np.log10(point["optimizer.learning_rate"]) + 3
  return float(rate**2 + (point["model.num_layers"] - 4) ** 2 / 4 + (point["optimizer.name"] != "adamw"))


def test_adaptive_points_depend_on_results_alone_and_come_closer():
  pytest.importorskip("optuna", reason="pip install -e '.[sweep]'")
  results = []
  for _ in range(40):
    point = adaptive.propose(DIMENSIONS, results, False, 0)
    results.append((point, distance(point)))
  assert len({json.dumps(point) for point, _ in results}) == 40
  scores = [score for _, score in results]
  assert np.mean(scores[-10:]) < 0.5 * np.mean(scores[:10])
  assert adaptive.propose(DIMENSIONS, results[:20], False, 0) == results[20][0]
  opposite = [(point, -score) for point, score in results[:20]]
  assert adaptive.propose(DIMENSIONS, opposite, True, 0) == results[20][0]
  foreign = [({"model.dropout": 0.1}, 1.0), ({**results[0][0], "model.num_layers": 99}, 0.0)]
  assert adaptive.propose(DIMENSIONS, [*foreign, (results[0][0], None)], False, 0) not in [results[0][0], None]
  two = {"optimizer.name": DIMENSIONS["optimizer.name"]}
  assert adaptive.propose(two, [({"optimizer.name": name}, 1.0) for name in ("adamw", "sgd")], False, 0) is None
