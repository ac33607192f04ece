"""BERT's two phases in one run: short rows first, then long ones; each batch is a function of its step alone."""

import numpy as np
import pytest

from tests.support.launching import WithoutSamples, exact_rows, quick_fit, rows, tiny, write_experiment
from tfm_jax.errors import UserError
from tfm_jax.training.config import resolve
from tfm_jax.training.loop import fit
from tfm_jax.training.pretraining import Pretraining

PHASES = {"data__first_seq_len": 16, "data__first_steps": 4, "data__seq_len": 32, "data__document": "file"}
PAIRS = {"objective__name": "nsp", "head__name": "pretraining", "data__document": "block", "eval__batches": 1}


def two_phases(tmp_path, **changes):
  folder = tmp_path / "experiment"
  experiment = folder / "tiny.py" if folder.exists() else write_experiment(folder)
  return tiny(experiment, "bert", model__num_layers=1, **PHASES | PAIRS | changes)


def test_rows_are_short_first_and_a_batch_is_a_function_of_its_step(tmp_path):
  task = Pretraining(resolve(two_phases(tmp_path)))
  batches = dict(task.train_batches(0, 8, None))
  assert [batches[step]["inputs"].shape[1] for step in range(8)] == [16] * 4 + [32] * 4
  assert task.lengths == (16, 32) and task.fields["mlm_positions"].shape == (5,)
  for start in (0, 3, 4, 6):
    for step, batch in task.train_batches(start, 8, np.array([1, 5])):
      for name, array in batch.items():
        np.testing.assert_array_equal(array, batches[step][name][[1, 5]], err_msg=name)
  for step, batch in batches.items():
    slots = 3 if step < 4 else 5  # ceil(5 * 16 / 32), one of them without use
    assert batch["weights"].shape == (8, slots)
    real = (batch["segment_ids"] > 0).sum(axis=1)
    assert (batch["weights"].sum(axis=1) <= np.maximum(np.round(0.15 * real), 1)).all()
    assert (batch["weights"].sum(axis=1) > 0).any()


@pytest.mark.slow
def test_a_run_goes_through_both_phases_and_is_resumed_in_either(tmp_path):
  config = two_phases(tmp_path, train__steps=7, checkpoint__every=3, eval__every=3)
  result = quick_fit(config, tmp_path / "whole")
  assert {"loss_labels", "loss_next_sentence", "next_sentence_accuracy", "perplexity"} <= result.keys()
  assert result["perplexity"] == pytest.approx(np.exp(result["loss_labels"]), rel=1e-5)
  assert result["loss"] == pytest.approx(result["loss_labels"] + result["loss_next_sentence"], rel=1e-5)
  splits = {row["split"] for row in rows(tmp_path / "whole")}
  assert splits == {"train", "eval", "eval_first"}

  class Stopped(WithoutSamples):
    def train_batches(self, start, stop, rows):
      for step, batch in super().train_batches(start, stop, rows):
        if step == 5 and start == 0:
          raise KeyboardInterrupt
        yield step, batch

  with pytest.raises(KeyboardInterrupt):
    fit(config, tmp_path / "parts", Stopped)
  fit(config, tmp_path / "parts", Stopped)
  assert exact_rows(tmp_path / "parts") == exact_rows(tmp_path / "whole")


@pytest.mark.parametrize(
  ("changes", "culprit"),
  [
    ({"data__first_seq_len": 64}, r"data\.first_seq_len=64 must lie between"),
    ({"data__first_seq_len": 0}, r"data\.first_seq_len=0 must lie between"),
  ],
)
def test_impossible_phases_are_refused(tmp_path, changes, culprit):
  with pytest.raises(UserError, match=culprit):
    resolve(two_phases(tmp_path, **changes))


def test_phases_are_refused_where_a_row_has_two_sides(tmp_path):
  config = resolve(
    tiny(write_experiment(tmp_path / "t5"), "t5", data__first_seq_len=8, data__first_steps=2, data__seq_len=16)
  )
  with pytest.raises(UserError, match=r"data\.first_steps=2 is for objectives with one text per row"):
    Pretraining(config)
