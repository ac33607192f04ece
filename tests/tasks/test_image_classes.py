"""Classes of pictures: which they are, and what is predicted and evaluated of them."""

import dataclasses

import numpy as np
import pytest

from tests.support.image_data import quarters, write_folders, write_idx, write_quarters
from tests.support.image_tasks import OF_TASKS, config_of, task_of
from tests.support.refusal import refusal
from tfm_jax.tasks.evaluate import evaluate
from tfm_jax.tasks.images.classification import ImageClassification
from tfm_jax.tasks.table import find_task
from tfm_jax.training.load import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pictures")
  return {"path": str(write_quarters(folder, 256)), "eval_path": str(write_quarters(folder, 36, "test", seed=1))}


@pytest.mark.parametrize("name", ["image_classification", "image_text"])
def test_numbers_of_classes_may_begin_anywhere_and_have_gaps(name, tmp_path):
  pixels, labels = quarters(40)
  write_idx(tmp_path / "a-labels-idx1-ubyte", 3 * labels + 1)
  path = str(write_idx(tmp_path / "a-images-idx3-ubyte", pixels))
  task = task_of(name, {"path": path, "eval_path": path}, head={"labels": "", "num_labels": 2})
  assert task.config.model.head.labels == "1|4|7|10"
  if name == "image_classification":
    np.testing.assert_array_equal(next(task.eval_streams["eval"](None))["targets"], labels[:32])
  # Those that `head.labels` names by number need not all be there.
  write_idx(tmp_path / "a-labels-idx1-ubyte", np.where(labels == 2, np.uint8(3), labels))
  task = task_of(name, {"path": path, "eval_path": path})
  assert task.config.model.head.labels == OF_TASKS[name]["head"]["labels"]
  if name == "image_classification":
    assert set(next(task.eval_streams["eval"](None))["targets"]) == {0, 1, 3}


@pytest.mark.parametrize("name", ["image_classification", "image_text"])
def test_pictures_without_known_classes_are_classified_but_nothing_to_learn_from(name, data, tmp_path, caplog):
  pytest.importorskip("PIL")
  pixels, _ = quarters(6)
  folder = write_folders(tmp_path, pixels, ["photos"] * 6) / "photos"
  task = task_of(name, data)
  for path in (str(folder), str(write_idx(tmp_path / "a-images-idx3-ubyte", pixels))):
    images = task.opened(task.config, path, "--data")
    assert not task.arrays(images, np.arange(6), np.ones(6, bool), None)["weights"].any()
    found = task.class_predictions(images, np.arange(6), np.full((6, 4), 0.25))
    assert [row["label"] for row in found] == [None] * 6
    assert list(found[0]["probabilities"]) == task.classes and task.scores(found) == {}
    assert "no picture has one of the classes of data.path" in refusal(task_of, name, data | {"eval_path": path})
  assert "pictures of photos have no class of the model" in caplog.text
  configure = lambda path: refusal(find_task(name).configure, config_of(name, {"path": str(path)}))
  assert "all of the class 'photos': put those of each class into a folder" in configure(folder)
  assert "have no classes" in configure(tmp_path / "a-images-idx3-ubyte")


def test_of_many_classes_the_likeliest_are_listed_and_the_label(tmp_path):
  write_idx(tmp_path / "a-labels-idx1-ubyte", np.arange(60, dtype=np.uint8))
  path = str(write_idx(tmp_path / "a-images-idx3-ubyte", quarters(60)[0]))
  task = task_of("image_classification", {"path": path, "eval_path": path}, head={"labels": "", "num_labels": 2})
  images = task.opened(task.config, path, "data.path")
  p = np.random.default_rng(0).dirichlet(np.ones(60), size=60)
  for n, row in enumerate(task.class_predictions(images, np.arange(60), p)):
    best = set(np.argsort(p[n])[-20:])
    assert row["probabilities"] == {str(c): round(p[n, c], 6) for c in sorted(best | {n})}
    assert row["prediction"] == str(p[n].argmax()) and row["label"] == str(n)


def test_pictures_that_a_run_held_out_by_a_share_are_evaluated(data, monkeypatch):
  task = task_of("image_classification", {"path": data["path"], "eval_fraction": 0.1})
  anything = lambda task, model, params, images, index: task.class_predictions(images, index, np.ones((len(index), 4)))
  monkeypatch.setattr(ImageClassification, "predict", anything)
  run = Run(task.config, None, None, None, 0)
  images = task.opened(task.config, data["path"], "data.path")
  assert [row["id"] for row in evaluate(run).predictions] == [images.names[n] for n in task.held_out]
  everything = dataclasses.replace(task.config.data, eval_fraction=0.0)
  run = dataclasses.replace(run, config=dataclasses.replace(task.config, data=everything))
  assert "the run held out none of data.path=" in refusal(evaluate, run)
  run = dataclasses.replace(run, config=dataclasses.replace(task.config, family="bert"))
  assert "family=bert reads no images" in refusal(evaluate, run)
