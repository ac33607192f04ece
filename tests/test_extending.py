"""What a user adds is one file and one row: here a strategy and a task; others stand with what they extend."""

import dataclasses
import json

import jax
import made_up_strategy
import numpy as np
import pytest
from launching import exact_rows, rows
from made_up_task import BrightQuarter
from test_step import train
from tiny import make_model, placement

from tfm_jax.sharding.strategy import STRATEGIES
from tfm_jax.training.config import Config, from_dict
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit
from tfm_jax.training.run_directory import RunDirectory


def test_a_strategy(monkeypatch):
  monkeypatch.setitem(STRATEGIES, "mlp_only", made_up_strategy.STRATEGY)
  model = make_model("gpt", placement("mlp_only", 8))
  assert model.placement.mesh.shape["model"] == 2 and model.placement.mesh.shape["data"] == 4
  assert tuple(model.shardings()["blocks"]["mlp"]["wi"].spec) == (None, None, "model")
  _, losses, _, _ = train("gpt", steps=2)
  _, losses_8, _, _ = train("gpt", "mlp_only", devices=8, steps=2)
  np.testing.assert_allclose(losses_8, losses, rtol=1e-5)


def config_of(steps: int) -> Config:
  return from_dict({
    "family": "vit",
    "model": {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "dtype": "float32", "init": "xavier"},
    "head": {"pooling": "mean"},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 10, "schedule": "constant"},
    "train": {"steps": steps, "batch_size": 16, "log_every": 10},
    "eval": {"every": 50},
    "checkpoint": {"every": 50},
  })  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("task") / "run"
  return fit(config_of(100), workdir, BrightQuarter), workdir


def test_a_task_without_text(finished):
  result, workdir = finished
  assert result["accuracy"] > 0.9 and result["f1"] > 0.8 and result["loss"] < 0.5
  assert not (workdir / "tokenizer").exists()
  run = load_run(workdir)
  assert run.tokenizer is None and run.config.model.head.num_labels == 4
  logits = jax.jit(run.model.logits)(run.params, BrightQuarter(run.config).batch(10_000, None))
  assert np.asarray(logits).argmax(-1).tolist() == json.loads((workdir / "guesses.json").read_text())


def test_every_held_out_set_has_rows_of_its_own_and_one_without_weight_has_none(finished):
  result, workdir = finished
  found = exact_rows(workdir)
  assert {split for split, _ in found} == {"train", "eval", "eval_other"}
  assert {step for split, step in found if split == "eval_other"} == {0, 50, 100}
  last = {row["split"]: row for row in rows(workdir) if row["step"] == 100}
  assert last["eval"]["loss"] == result["loss"] != last["eval_other"]["loss"]


def test_a_task_resumes_bit_for_bit(finished, tmp_path):
  fit(config_of(50), tmp_path / "run", BrightQuarter)
  fit(config_of(100), tmp_path / "run", BrightQuarter)
  assert {k: v for k, v in exact_rows(tmp_path / "run").items() if k[0] != "train"} == {
    k: v for k, v in exact_rows(finished[1]).items() if k[0] != "train"
  }
  assert RunDirectory(tmp_path / "run").starts()[1]["step"] == 50
  again = fit(dataclasses.replace(config_of(100)), tmp_path / "run", BrightQuarter)
  assert again["f1"] == finished[0]["f1"]
