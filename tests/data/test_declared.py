"""The first batch is compared with what its objective or task declares, before anything is compiled."""

import numpy as np
import pytest

from tests.support.launching import tiny, write_experiment
from tests.support.pages import add_example
from tfm_jax.errors import UserError
from tfm_jax.objectives.causal import CausalLanguageModel
from tfm_jax.objectives.objective import FLOAT, INT, Field, check_arrays
from tfm_jax.objectives.table import OBJECTIVES
from tfm_jax.training.config import from_dict
from tfm_jax.training.loop import fit

FIELDS = {
  "inputs": Field((4,), INT, "ids", ("batch", "seq"), 10),
  "weights": Field((4,), FLOAT, "weights", ("batch", "seq")),
}
IDS, ONES = np.zeros((2, 4), INT), np.ones((2, 4), FLOAT)


def test_arrays_as_declared_pass():
  check_arrays({"inputs": IDS + 9, "weights": ONES}, FIELDS, 2, "x")
  check_arrays({"inputs": IDS[:0], "weights": ONES[:0]}, FIELDS, None, "x")
  check_arrays({"scores": IDS - 5}, {"scores": Field((4,), INT, "ids", ("batch", "seq"))}, 2, "x")  # of no known range


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"inputs": IDS, "weights": ONES > 0}, "x: weights is bool[2,4], declared float32[2,4]"),
    ({"inputs": IDS[:, 1:], "weights": ONES}, "x: inputs is int32[2,3], declared int32[2,4]"),
    ({"inputs": IDS[:1], "weights": ONES}, "x: inputs is int32[1,4], declared int32[2,4]"),
    ({"inputs": IDS[0, 0], "weights": ONES}, "x: inputs is int32[], declared int32[2,4]"),
    ({"inputs": IDS + 10, "weights": ONES}, "x: inputs has values from 10 to 10, declared 0 to 9"),
    ({"inputs": IDS - 1, "weights": ONES}, "x: inputs has values from -1 to -1, declared 0 to 9"),
    ({"inputs": IDS}, "x: the batch has no weights, which `fields` declares"),
    ({"inputs": IDS, "weights": None}, "x: the batch has no weights, which `fields` declares"),
    ({"inputs": IDS.tolist(), "weights": ONES}, "x: inputs is of type list, not an array"),
    ({"inputs": IDS, "weights": ONES, "more": IDS}, "which `fields` does not declare: inputs, weights"),
    (None, "x: a batch is None, not a dictionary of arrays"),
  ],
)
def test_other_arrays_are_named(arrays, message):
  with pytest.raises(UserError) as error:
    check_arrays(arrays, FIELDS, 2, "x")
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def uncompiled(monkeypatch):
  def compile_step(*_):
    pytest.fail("it was compiled")

  monkeypatch.setattr("tfm_jax.training.loop.choose_microbatches", compile_step)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda arrays: arrays["targets"].__iadd__(300), r"targets has values from 3\d\d to \d+, declared 0 to "),
    (lambda arrays: arrays.update(weights=arrays["weights"] > 0), r"weights is bool\[8,16\], declared float32\[8,16\]"),
    (lambda arrays: arrays.pop("weights"), "the batch has no weights"),
    (lambda arrays: arrays.update(more=arrays["weights"]), "the batch has more, which"),
  ],
)
def test_an_objective_that_makes_other_arrays(change, message, tmp_path, monkeypatch, uncompiled):
  class Wrong(CausalLanguageModel):
    def make(self, draws, source, target=None):
      arrays = super().make(draws, source, target)
      change(arrays)
      return arrays

  monkeypatch.setitem(OBJECTIVES, "wrong", Wrong)
  config = tiny(write_experiment(tmp_path / "tiny"), "gpt", objective__name="wrong")
  with pytest.raises(UserError, match=rf"^objective\.name=wrong: {message}"):
    fit(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("first", "message"),
  [(0, r"^BrightQuarter: targets has values"), (20_000, r"^BrightQuarter, eval_other: targets has values")],
)
def test_a_task_that_makes_other_arrays(first, message, tmp_path, monkeypatch, uncompiled):
  task = add_example(monkeypatch, "task").BrightQuarter
  plain = task.batch

  def batch(self, step, *arguments):
    arrays = plain(self, step, *arguments)
    return arrays | {"targets": arrays["targets"] + 4} if step == first else arrays

  monkeypatch.setattr(task, "batch", batch)
  with pytest.raises(UserError, match=message):
    fit(from_dict({"family": "vit", "train": {"batch_size": 8, "steps": 2}}), tmp_path / "run", task)
