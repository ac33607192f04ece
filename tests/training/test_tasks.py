"""Tasks end to end: classification of texts from a table, from scratch and on a frozen encoder, resumed and sharded."""

import json
import random
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest

from tests.support.launching import exact_rows, quick_fit, rows, tiny
from tfm_jax.errors import UserError
from tfm_jax.runtime.trees import flat
from tfm_jax.tasks.table import find_task
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.config import load
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit

GOOD, BAD = ("fine", "lovely", "bright", "warm"), ("dull", "awful", "grey", "cold")
OTHER = ("film", "plot", "scene", "actor", "music", "the", "a", "of")
TASK = find_task("sequence_classification")


def write_table(path, count, seed):
  """A table with named labels; each text has two words of its class among neutral ones."""
  draw = random.Random(seed)
  lines = ["sentence\tlabel"]
  for _ in range(count):
    name = draw.choice(("good", "bad"))
    words = draw.choices(OTHER, k=draw.randint(1, 4)) + draw.choices(GOOD if name == "good" else BAD, k=2)
    draw.shuffle(words)
    lines.append(f"{' '.join(words)}\t{name}")
  path.write_text("\n".join(lines) + "\n")
  return str(path)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tables")
  return {
    "data__path": write_table(folder / "train.tsv", 400, 0),
    "data__eval_path": write_table(folder / "dev.tsv", 45, 1),
  }


def config_of(experiment, tables, **overrides):
  common = {"task__name": "sequence_classification", "data__source": "tsv", "data__seq_len": 48, "eval__batches": 0}
  return tiny(experiment, "bert", **(tables | common | {"train__log_every": 1} | overrides))


@pytest.fixture(scope="module")
def finished(experiment, tables, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished") / "run"
  result = fit(config_of(experiment, tables, train__steps=120, eval__every=60, checkpoint__every=60), workdir, TASK)
  return result, workdir


@pytest.mark.slow
def test_a_class_is_learned_and_every_held_out_row_is_predicted_in_order(finished, tables):
  result, workdir = finished
  assert result["accuracy"] > 0.9
  predictions = [json.loads(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()]
  labels = [line.split("\t")[1] for line in Path(tables["data__eval_path"]).read_text().splitlines()[1:]]
  assert [row["label"] for row in predictions] == labels
  assert result["accuracy"] == pytest.approx(
    np.mean([row["prediction"] == row["label"] for row in predictions]), abs=1e-6
  )
  for row in predictions:
    assert set(row["probabilities"]) == {"good", "bad"} and sum(row["probabilities"].values()) == pytest.approx(
      1, abs=1e-5
    )
    assert row["probabilities"][row["prediction"]] == max(row["probabilities"].values())


def test_the_run_knows_its_classes(finished):
  run = load_run(finished[1])
  assert run.config.model.head.labels == "bad|good" and run.config.model.head.num_labels == 2
  assert run.tokenizer is not None


def test_a_finished_run_says_its_result_again(finished, experiment, tables):
  result, workdir = finished
  assert fit(config_of(experiment, tables, train__steps=120), workdir, TASK) == pytest.approx(result)


@pytest.mark.slow
def test_a_head_on_a_frozen_encoder_under_fsdp_resumes_bit_for_bit(experiment, tables, tmp_path):
  """The frozen encoder keeps its parameters and has no moments, and a resumed run equals an uninterrupted one."""
  pretrained = tmp_path / "pretrained"
  quick_fit(tiny(experiment, "bert", train__steps=2, data__seq_len=48), pretrained)
  overrides = {"init_from": str(pretrained), "optimizer__frozen": "embed|blocks", "sharding__strategy": "fsdp"}
  overrides |= {"eval__every": 2, "checkpoint__every": 2}
  for workdir, stops in ((tmp_path / "whole", (4,)), (tmp_path / "parts", (2, 4))):
    for steps in stops:
      # A schedule that does not depend on the number of steps: the run is lengthened.
      fit(config_of(experiment, tables, train__steps=steps, optimizer__schedule="constant", **overrides), workdir, TASK)
  assert exact_rows(tmp_path / "whole") == exact_rows(tmp_path / "parts")
  source, run = load_run(pretrained), load_run(tmp_path / "parts")
  before, after = flat(source.params), flat(run.params)
  for path in after:
    if path.startswith(("embed", "blocks")):
      np.testing.assert_array_equal(after[path], before[path], err_msg=path)
  assert not np.array_equal(after["classifier/w"], 0 * np.asarray(after["classifier/w"]))
  with Checkpoints(tmp_path / "parts" / "checkpoints") as checkpoints:
    stored = checkpoints.shapes(4, "opt_state")
  assert any("classifier/w" in path for path in stored)
  assert not any("blocks" in path or "embed" in path for path in stored)


@pytest.mark.slow
def test_what_is_frozen_must_come_from_somewhere(experiment, tables, tmp_path):
  pretrained = tmp_path / "pretrained"
  quick_fit(tiny(experiment, "bert", train__steps=1, data__seq_len=48), pretrained)
  config = config_of(experiment, tables, init_from=str(pretrained), optimizer__frozen="classifier", train__steps=1)
  with pytest.raises(
    UserError, match=r"optimizer\.frozen .* leaves classifier/b, classifier/w untrained, which .* does not have"
  ):
    fit(config, tmp_path / "run", TASK)


@pytest.mark.slow
def test_the_encoder_of_a_t5_learns_a_task(experiment, tables, tmp_path, caplog):
  """As docs/tasks.md says: its decoder and output layer are left behind, and what is not its encoder is refused."""
  quick_fit(tiny(experiment, "t5", train__steps=2, data__seq_len=48, model__tied=False), tmp_path / "t5")
  changes = {"family": "t5_encoder", "init_from": str(tmp_path / "t5"), "head.pooling": "mean"}
  changes |= {"task.name": "sequence_classification", "train.steps": 2, "optimizer.learning_rate": 0.0}
  changes |= {key.replace("__", "."): path for key, path in tables.items()}
  caplog.set_level("INFO", logger="tfm_jax")
  fit(load(str(tmp_path / "t5"), changes), tmp_path / "run", TASK)
  assert f"starting from the encoder of {tmp_path / 't5'}, step 2" in caplog.text
  assert "left behind: head/w" in caplog.text and "starting afresh: classifier/b, classifier/w" in caplog.text
  source, params = flat(load_run(tmp_path / "t5").params), flat(load_run(tmp_path / "run").params)
  for path in params.keys() - {"classifier/b", "classifier/w"}:
    original = path if path == "embed/token" else f"encoder/{path}"
    np.testing.assert_array_equal(params[path], source[original], err_msg=path)
  assert "relative/table" in params and "decoder/relative/table" in source
  with pytest.raises(UserError, match=r"blocks/\S+ has shape \(2, "):
    fit(load(str(tmp_path / "t5"), changes | {"model.num_layers": 1}), tmp_path / "other", TASK)
  assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("bar", "sentence\tlabel\nx\ta|b\ny\tc\n", "must not contain"),
    ("one", "sentence\tlabel\nx\ta\ny\ta\n", "two classes"),
  ],
)
def test_labels_that_cannot_be(experiment, tables, tmp_path, name, text, message):
  (tmp_path / "train.tsv").write_text(text)
  overrides = {"data__path": str(tmp_path / "train.tsv"), "data__eval_path": "", "data__eval_fraction": 0.0}
  with pytest.raises(UserError, match=message):
    fit(config_of(experiment, tables, **overrides), tmp_path / "run", TASK)
  assert not (tmp_path / "run").exists()


def test_an_unknown_task_is_named():
  with pytest.raises(UserError, match=r"task\.name='sst' is not one of sequence_classification"):
    find_task("sst")


def test_the_config_of_sst2_is_one_of_this_task():
  assert find_task(load("configs/sst2.py").task.name) is TASK


class Predicting(TASK):
  """Classification whose accuracy is computed again, from the predictions."""

  predicts = True
  seen: ClassVar[list] = []

  def eval_metrics(self, split, totals, predictions):
    batches = list(self.eval_streams[split](None))
    self.seen.append(predictions)
    pairs = [
      (row, weight)
      for batch, predicted in zip(batches, predictions, strict=True)
      for row, weight in zip(predicted["class"] == batch["targets"], batch["weights"], strict=True)
    ]
    return {"predicted": sum(row * weight for row, weight in pairs) / sum(weight for _, weight in pairs)}


@pytest.mark.slow_but("1-dp")
@pytest.mark.parametrize(("microbatches", "strategy"), [(1, "dp"), (2, "fsdp")])
def test_a_task_that_predicts_gets_the_predictions_of_every_row_in_order(
  experiment, tables, tmp_path, microbatches, strategy
):
  settings = {"train__steps": 6, "train__batch_size": 16, "train__microbatches": microbatches}
  Predicting.seen.clear()
  fit(config_of(experiment, tables, sharding__strategy=strategy, **settings), tmp_path / "run", Predicting)
  records = [record for record in rows(tmp_path / "run") if record["split"] == "eval"]
  assert [record["step"] for record in records] == [0, 4, 6]
  for record in records:
    assert record["predicted"] == pytest.approx(record["accuracy"], abs=1e-6)
  assert len(Predicting.seen) == 3
  run = load_run(tmp_path / "run")
  streamed = Predicting(run.config, tmp_path / "run" / "tokenizer").eval_streams["eval"](None)
  for batch, predicted in zip(streamed, Predicting.seen[-1], strict=True):
    expected = jax.device_get(jax.jit(run.model.predict)(run.params, batch))
    np.testing.assert_allclose(predicted["probabilities"], expected["probabilities"], atol=1e-5)
