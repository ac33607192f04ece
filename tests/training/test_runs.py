"""The files of a run: its metrics, curves and traces, and what its log says."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from tests.support.launching import (
  EXACT,
  quick_fit,
  rows,
  state,
  tiny,
)
from tfm_jax.errors import UserError
from tfm_jax.models.config import pad_vocab
from tfm_jax.ops.losses import LossTerms
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.text.tokenizers.table import load_tokenizer
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.config import from_dict, resolve
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit
from tfm_jax.training.optimization.optimizer import schedule
from tfm_jax.training.pretraining import Pretraining

TIMES = {"tokens_per_second", "useful_tokens_per_second", "step_seconds", "data_wait_seconds", "tokens", "flop"}


# The run directory.


def test_the_directory(finished):
  config, _, workdir = finished
  files = {"config.json", "run.json", "tokenizer", "metrics.jsonl", "curves.html", "tensorboard", "checkpoints", "lock"}
  assert {path.name for path in workdir.iterdir()} == files
  assert (workdir / "lock").read_text() == ""
  assert any("tfevents" in path.name for path in (workdir / "tensorboard").iterdir())
  assert Checkpoints(workdir / "checkpoints").steps() == [5, 10, 12]
  assert from_dict(json.loads((workdir / "config.json").read_text())) == resolve(config)


def test_run_json_tells_of_each_start(finished):
  (start,) = json.loads((finished[2] / "run.json").read_text())
  assert set(start) >= {"versions", "devices", "mesh", "parameters", "microbatches", "git", "fingerprints"}
  assert start["devices"]["count"] == math.prod(start["mesh"].values()) == jax.device_count()
  assert set(start["fingerprints"]) == {"data", "tokenizer"}
  params = load_run(finished[2]).params
  padding = params["embed"]["token"].shape[0] - load_tokenizer(finished[2] / "tokenizer").vocab_size
  width = params["embed"]["token"].shape[1]
  assert start["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params)) - padding * width


def test_metrics_have_the_declared_keys(finished):
  for row in rows(finished[2]):
    if row["split"] == "train":
      assert set(row) == {"step", "split", "loss", "objective", "accuracy", "grad_norm", "learning_rate"} | TIMES
      assert row["step_seconds"] > 0 and row["data_wait_seconds"] >= 0
      assert row["tokens"] == row["step"] * 8 * 16 and row["flop"] > 100 * row["tokens"]
    else:
      assert set(row) == {"step", "split", "loss", "accuracy", "perplexity", "unigram_entropy", "bits_per_byte"}
    assert all(math.isfinite(value) for key, value in row.items() if key != "split")


def test_evaluation_at_the_start_at_intervals_and_at_the_end(finished):
  evaluated = [row for row in rows(finished[2]) if row["split"] == "eval"]
  assert [row["step"] for row in evaluated] == [0, 4, 8, 12]
  for row in evaluated:
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
  assert len({row["unigram_entropy"] for row in evaluated}) == 1
  assert evaluated[0]["loss"] == pytest.approx(math.log(256 + 5), abs=0.3)  # it knows nothing yet
  assert evaluated[-1]["loss"] < evaluated[0]["loss"]
  assert {key: value for key, value in evaluated[-1].items() if key not in ("step", "split")} == finished[1]


def test_bits_per_byte_of_bytes(finished):
  """A byte is a token, and each document has one more, its end."""
  with open(finished[0].data.path) as file:
    documents = file.read().split("\n\n")
  length = np.mean([len(document) for document in documents])
  row = rows(finished[2])[-1]
  assert row["bits_per_byte"] / (row["loss"] / math.log(2)) == pytest.approx((length + 1) / length, rel=0.01)


def test_rows_of_training_describe_their_own_step(experiment, finished, tmp_path):
  """With log_every=3 the records equal those of the same steps with log_every=1: no averages, no other step."""
  every = {row["step"]: row for row in rows(finished[2]) if row["split"] == "train"}
  quick_fit(
    dataclasses.replace(finished[0], train=dataclasses.replace(finished[0].train, log_every=3)), tmp_path / "run"
  )
  third = {row["step"]: row for row in rows(tmp_path / "run") if row["split"] == "train"}
  assert list(third) == [1, 3, 6, 9, 12]
  for step, row in third.items():
    for key in set(EXACT) & set(row):
      assert row[key] == every[step][key], (step, key)


def test_the_learning_rate_of_a_row_is_that_of_its_update(finished):
  config = finished[0]
  rate = schedule(config.optimizer, config.train.steps)
  for row in rows(finished[2]):
    if row["split"] == "train":
      assert row["learning_rate"] == pytest.approx(float(rate(row["step"] - 1)), rel=1e-6)
  assert max(row.get("learning_rate", 0) for row in rows(finished[2])) == pytest.approx(config.optimizer.learning_rate)


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_first_batch(experiment, tmp_path):
  """Without dropout, the record of step 1 has the loss of the initial model on batch 0, by a plain forward pass."""
  from tfm_jax.data.prepare import prepare

  config = tiny(experiment, "gpt", model__dropout=0.0, model__attention_dropout=0.0, optimizer__learning_rate=0.0)
  quick_fit(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2)), tmp_path / "run")
  run = load_run(tmp_path / "run")
  data = prepare(config.data, config.tokenizer, config.objective, config.seed).train(config.train.batch_size)
  for step in (0, 1):
    batch = data.batch(step)
    logits = np.asarray(run.model.logits(run.params, batch), np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(logp, batch["targets"][..., None], -1)[..., 0]
    expected = (nll * batch["weights"]).sum() / batch["weights"].sum()
    record = next(row for row in rows(tmp_path / "run") if (row["split"], row["step"]) == ("train", step + 1))
    assert record["loss"] == pytest.approx(expected, rel=1e-5)


def test_bits_per_byte_are_those_of_the_text_that_was_evaluated(experiment, tmp_path):
  """Documents of 2 and of 20 bytes have 3 and 21 tokens; only the bytes of the evaluated ones may be counted."""
  texts = ["ab" if n % 3 else "abcdefghij" * 2 for n in range(200)]
  (tmp_path / "held_out.txt").write_text("\n\n".join(texts))
  data = {"data__eval_path": str(tmp_path / "held_out.txt"), "data__packing": False, "data__seq_len": 32}
  config = resolve(tiny(experiment, "gpt", **data, eval__batches=1, train__batch_size=4))
  task = Pretraining(config)
  (batch,) = task.eval_streams["eval"](None)
  sizes = [len(texts[row]) for row in batch["rows"]]
  assert batch["weights"].sum(axis=1).tolist() == sizes  # all but the first byte, and the end
  text_bytes = sum(size * size / (size + 1) for size in sizes)
  bits = task.eval_metrics("eval", LossTerms({}, {"labels": (20.0, 10.0)}, {}), [])["bits_per_byte"]
  assert bits == pytest.approx(2 / math.log(2) * sum(sizes) / text_bytes, rel=1e-6)
  whole = sum(len(text) + 1 for text in texts) / sum(map(len, texts))
  assert abs(sum(sizes) / text_bytes - whole) > 0.01


@pytest.mark.parametrize("family", ["bert", "t5", "transformer"])
def test_bits_per_byte_only_where_each_token_is_predicted_once(experiment, family):
  terms = LossTerms({}, {"labels": (20.0, 10.0)}, {})
  metrics = Pretraining(resolve(tiny(experiment, family))).eval_metrics("eval", terms, [])
  assert ("bits_per_byte" in metrics) == (family == "transformer")
  assert metrics["perplexity"] == pytest.approx(math.exp(2)) and metrics["unigram_entropy"] > 0


@pytest.mark.slow
def test_a_resumed_run_has_its_whole_curve(experiment, copy, caplog):
  (copy / "curves.html").unlink()
  with caplog.at_level("INFO", "tfm_jax"):
    quick_fit(tiny(experiment, train__steps=14), copy)
  page = (copy / "curves.html").read_text()
  assert all(f"train, step {step}: " in page for step in range(1, 15))
  assert all(f"held-out, step {step}: " in page for step in (0, 4, 8, 12, 14))
  assert f"curves: {copy}/curves.html" in caplog.text


@pytest.mark.slow
def test_curves_are_written_at_each_evaluation(experiment, tmp_path, monkeypatch):
  pages = []
  monkeypatch.setattr(RunDirectory, "write_curves", lambda run, text: pages.append(text))
  quick_fit(tiny(experiment, train__steps=5), tmp_path / "run")
  assert ["train, step 4: " in page for page in pages] == [False, True, True, True]
  assert ['http-equiv="refresh"' in page for page in pages] == [True, True, True, False]


@pytest.mark.slow
def test_nothing_held_out(experiment, tmp_path, caplog):
  """The table of the corpus, the last lines and the page with the curves say so."""
  with caplog.at_level("INFO", "tfm_jax"):
    assert fit(tiny(experiment, train__steps=1, data__eval_fraction=0.0), tmp_path / "run") == {}
  assert "held out: nothing" in caplog.text
  assert any("nothing is held out, so there is no evaluation" in message for message in caplog.messages[-8:])
  page = (tmp_path / "run" / "curves.html").read_text()
  assert "Nothing is held out." in page and "With points" not in page
  assert {row["split"] for row in rows(tmp_path / "run")} == {"train"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sentencepiece", "gpt2"])
def test_a_vocabulary_that_the_text_cannot_fill(kind, experiment, tmp_path, monkeypatch):
  """The model has the size of the trained vocabulary, and a resumed run reads its own tokenizer, on any machine."""
  config = tiny(experiment, tokenizer__kind=kind, tokenizer__vocab_size=30_000, train__steps=1, eval__every=0)
  quick_fit(config, tmp_path / "run")
  run = load_run(tmp_path / "run")
  size = run.tokenizer.vocab_size
  assert run.model.vocab_size == size < 600
  assert run.params["embed"]["token"].shape[0] == pad_vocab(size)
  (start,) = json.loads((tmp_path / "run" / "run.json").read_text())
  assert start["parameters"] == run.model.parameter_count() == build_model(resolve(config), size).parameter_count()
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "another cache"))
  quick_fit(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2)), tmp_path / "run")
  assert int(state(tmp_path / "run")["step"]) == 2
  starts = json.loads((tmp_path / "run" / "run.json").read_text())
  assert starts[0]["fingerprints"] == starts[1]["fingerprints"]
  quick_fit(config, tmp_path / "other run")  # another run trains the same tokenizer again
  assert json.loads((tmp_path / "other run" / "run.json").read_text())[0]["fingerprints"] == start["fingerprints"]


@pytest.mark.slow
def test_a_trace_is_written(experiment, tmp_path):
  quick_fit(tiny(experiment, train__steps=6, eval__every=0, train__profile_at=2), tmp_path / "run")
  assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_trace_that_begins_at_the_last_step_is_ended(experiment, tmp_path):
  quick_fit(tiny(experiment, train__steps=3, train__profile_at=2), tmp_path / "run")
  assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_run_whose_loss_is_not_finite_stops_and_saves_nothing(experiment, tmp_path):
  config = tiny(experiment, optimizer__learning_rate=1e30, optimizer__grad_clip=0.0, train__steps=40)
  with pytest.raises(UserError, match=r"not finite in 10 steps in a row.*optimizer\.learning_rate"):
    quick_fit(config, tmp_path / "run")
  for step in Checkpoints(tmp_path / "run" / "checkpoints").steps():
    for leaf in jax.tree.leaves(state(tmp_path / "run", step)["params"]):
      assert np.isfinite(leaf).all()
