"""One table of architectures: equal parameters and FLOPs, the loss by place, going on, and the page."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.launching import EXPERIMENT, ROOT, write_text
from tests.support.refusal import refusal
from tests.tasks.test_sweep_page import Page
from tfm_jax.compare.program import build_program
from tfm_jax.models.heads.head import Output
from tfm_jax.runtime.command import Flags
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.tasks.architectures import __main__ as command
from tfm_jax.tasks.architectures import runs
from tfm_jax.tasks.architectures.page import architectures_page, row, terminal_table, to_json
from tfm_jax.tasks.architectures.plan import FLOPS, PARAMETERS, make_plan, parameter_count
from tfm_jax.tasks.architectures.runs import Measures, Result, _place_sums, loss_by_place, measured, scores_of
from tfm_jax.training.config import load
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit
from tfm_jax.training.pretraining import Pretraining

VARIANTS = """

KINDS = {"encoder": ("bert", "mlm"), "encoder_decoder": ("t5", "span_corruption"), "lstm": ("lstm", "causal")}


def get_config(variant):
  name, _, of_task = variant.partition("-")
  c = tiny("gpt").unlock()
  c.family, c.objective.name = KINDS[name]
  c.model.update({"mlp_dim": 0, "num_heads": 1, "num_layers": 1})
  c.tokenizer.sentinels = 10
  if of_task:
    c.data.update({"source": "text", "path": "TABLE", "eval_path": "TABLE", "target_len": 16})
    c.task.name = "sst2"
    if name == "encoder_decoder":
      c.objective.name = "seq2seq"
      c.task.update({"name": "text_to_text", "source_task": "sst2"})
    c.train.update({"steps": 2})
  return c.lock()
"""

OTHER = """

same = get_config


def get_config(variant):
  c = same(variant).unlock()
  c.data.seq_len = 8 if variant == "lstm" else 16
  return c.lock()
"""


@pytest.fixture
def experiment(tmp_path):
  """An experiment file with three architectures and the task `words`."""
  text = write_text(tmp_path / "text.txt")
  table = tmp_path / "table.tsv"
  lines = [f"the {word} sat\t{n % 2}\n" for n, word in enumerate(["cat", "dog"] * 8)]
  table.write_text("".join(["sentence\tlabel\n", *lines]))
  source = EXPERIMENT.replace("def get_config(", "def tiny(").replace("TEXT", str(text))
  path = tmp_path / "several.py"
  path.write_text(source + VARIANTS.replace("TABLE", str(table)))
  return str(path)


def test_the_plan_has_equal_parameters_and_equal_flops(experiment):
  overrides = {"train.steps": "200", "model.dropout": "0.25", "sharding.data": "8"}
  plan = make_plan(experiment, overrides, ["encoder", "encoder_decoder", "lstm"], ["words"], 2)
  equal = {kind: [entry for entry in plan.entries if entry.equal == kind] for kind in (PARAMETERS, FLOPS)}
  first = plan.entries[0]
  assert [entry.name for entry in equal[FLOPS]] == ["encoder", "encoder_decoder", "lstm"]
  assert first.config.model.embed_dim == 32 and plan.metrics == {"words": "accuracy"}
  for entry in plan.entries:
    model = build_program(entry.config).model
    assert model.parameter_count() == entry.parameters == pytest.approx(first.parameters, rel=0.06)
    for change in (-2, 2):  # the nearest
      other = dataclasses.replace(entry.config.model, embed_dim=entry.config.model.embed_dim + change)
      other = dataclasses.replace(model, config=other).parameter_count()
      assert abs(entry.parameters - first.parameters) <= abs(other - first.parameters)
    tuned = entry.tuned["words"]
    assert tuned.model.embed_dim == entry.config.model.embed_dim
    assert (tuned.train.steps, tuned.model.dropout) == (2, 0.25)  # the steps of a task are the file's own
  for entry in equal[FLOPS]:
    assert entry.step_flops * entry.steps == pytest.approx(first.step_flops * 200, rel=0.01)
  assert {entry.steps for entry in equal[PARAMETERS]} == {200}
  assert equal[PARAMETERS][0].folder == equal[FLOPS][0].folder  # the same run


def test_the_parameters_that_lstm_lm_states_are_those_of_its_models():
  path = ROOT / "configs" / "lstm_lm.py"
  for variant in ("lstm", "gru", "gpt"):
    assert f"{variant.upper()} {parameter_count(load(f'{path}:{variant}')):,}" in path.read_text()


def test_mistakes_are_told_before_anything_starts(experiment, tmp_path):
  out = tmp_path / "out"
  for message, flags in [
    ("--seeds=0: a whole number", {"seeds": "0"}),
    ("--tasks=a,a: names, each once", {"tasks": "a,a"}),
    ("must be on a file system of this host", {"out": "gs://bucket/table"}),
    ("KeyError: rnn", {"architectures": "rnn"}),
  ]:
    assert message in refusal(command.main, Flags({"config": experiment, "out": str(out), **flags}, {}))
  assert not out.exists()
  keys = {"model.head_dim": "8"}
  changed = experiment.replace("several", "changed")
  Path(changed).write_text(Path(experiment).read_text() + OTHER)
  assert "has another data.seq_len than the first" in refusal(make_plan, changed, {}, ["encoder", "lstm"], ["words"], 1)
  assert "they follow the width" in refusal(make_plan, experiment, keys, ["encoder", "lstm"], ["words"], 1)


def test_scores_cover_all_held_out_examples_also_of_a_task_that_generates(experiment, tmp_path, monkeypatch):
  config = load(f"{experiment}:encoder_decoder-words")
  labels = ("positive", "positive", "negative", "positive", None)
  rows = [{"prediction": "positive", "label": label} for label in labels]

  def fit(config, workdir, task):
    run = RunDirectory(workdir)
    run.create()
    run.write_predictions(rows)
    return {"accuracy": 0.5}  # of the examples that evaluations generate for

  monkeypatch.setattr(runs, "fit", fit)
  found = scores_of(config, tmp_path / "run")
  assert found["metrics"]["accuracy"] == 0.75 and found["examples"] == 4
  monkeypatch.setattr(runs, "fit", None)
  assert scores_of(config, tmp_path / "run") == found  # as it is stored


@pytest.mark.slow
def test_the_command_trains_tunes_and_goes_on(experiment, tmp_path, capsys):
  out = tmp_path / "out"
  flags = {"config": experiment, "architectures": "encoder_decoder,lstm", "tasks": "words", "seeds": "2"}
  run = lambda: command.main(Flags(flags | {"out": str(out)}, {"train.steps": "4"}))
  run()
  content = json.loads((out / "architectures.json").read_text())
  assert [(r["architecture"], r["equal"]) for r in content["rows"]] == [
    (name, equal) for equal in ("parameters", "flops") for name in ("encoder_decoder", "lstm")
  ]
  for r in content["rows"]:
    assert len(r["scores"]["words"]) == 2 and r["tokens_per_second"] > 0 and r["memory_bytes"] > 0
    assert ("bits_per_byte" in r["metrics"]) == (r["architecture"] == "lstm")
    places = r["loss_by_place"]
    mean = sum(p["loss"] * p["targets"] for p in places) / sum(p["targets"] for p in places)
    assert mean == pytest.approx(r["metrics"]["loss"], rel=1e-4)
  Page((out / "architectures.html").read_text())
  assert "Equal FLOPs:" in capsys.readouterr().out
  stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/*/metrics.jsonl")}
  assert len(stamps) == len(list(out.glob("*/*")))
  next(out.glob("lstm*/words_1/result.json")).unlink()
  run()  # trains nothing again
  assert stamps == {path: path.stat().st_mtime_ns for path in out.glob("*/*/metrics.jsonl")}


def test_the_page_shows_what_was_measured(experiment):
  plan = make_plan(experiment, {}, ["encoder", "lstm"], ["words"], 2)
  places = [(0, 0, 5.0, 8.0), (1, 1, 4.5, 8.0), (2, 3, 4.25, 16.0)]
  results = []
  for number, entry in enumerate(plan.entries):
    metrics = {"loss": 4.5, "bits_per_byte": 2.25} if entry.name == "lstm" else {"loss": 3.25}
    measures = Measures(metrics, [(0, 6.0), (12, 4.5)], 12_345.0, 0.5, 3 * 2.0**20, places)
    results.append(Result(entry, measures, {"words": [0.5, 0.75 + number / 100]}, {"words": 1872}))
  shown = terminal_table(plan, results).splitlines()[2:5]
  assert [line.split()[0] for line in shown] == ["architecture", "encoder", "lstm"]
  first, second = row(plan, results[0]), row(plan, results[1])
  assert first[-3:] == ["3.250", "-", "62.5 ± 17.7"] and second[-3:-1] == ["4.500", "2.250"]
  assert first[-5:-3] == ["12.3k", "3 MiB"] and first[7] == "6s"
  text = architectures_page(plan, results)
  Page(text)
  for said in (
    "Equal parameters, steps and rows",
    "Equal FLOPs",
    "words: accuracy",
    "words (accuracy of 1,872 examples)",
    "62.5 ± 17.7",
    "Loss and the place",
    "both sides of an encoder-decoder",
    "the command tunes none",
    "An encoder reads what follows too",
  ):
    assert said in text
  content = json.loads(to_json(plan, results))["rows"]
  assert content[0]["loss_by_place"][2] == {"first": 2, "last": 3, "loss": 4.25, "targets": 16.0}
  assert content[-1]["scores"]["words"] == [0.5, 0.78]


def before(segments, targets):
  """Of the targets at these columns, the tokens of their documents before them."""
  return [sum(segments[q] == segments[column] for q in range(column)) for column in targets]


@pytest.mark.parametrize("kind", ["masked", "causal", "decoder"])
def test_the_place_of_a_target_is_the_number_of_tokens_before_it(kind):
  draw = np.random.default_rng(0)
  segments = [1, 1, 1, 2, 2, 2, 2, 2, 0, 0]  # of ten tokens, the last of which a causal model does not read
  columns = {"masked": [1, 4, 7], "causal": [1, 2, 4, 5, 6, 7], "decoder": [0, 1, 2, 3]}[kind]
  count = {"masked": 3, "causal": 9, "decoder": 4}[kind]
  batch = {"targets": draw.integers(0, 5, (2, count)), "weights": np.ones((2, count), np.float32)}
  batch |= {"inputs": np.zeros((2, 9), np.int32), "positions": np.tile([0, 1, 2, 0, 1, 2, 3, 4, 0], (2, 1))}
  places = before(segments, columns)
  if kind == "masked":
    batch["mlm_positions"] = np.tile(columns, (2, 1))
  elif kind == "causal":
    batch["weights"][:, [2, 7, 8]] = 0  # what follows are the next document and padding
  else:  # a start symbol, and then the targets as inputs
    batch = {"decoder_targets": batch["targets"], "decoder_weights": batch["weights"]}
    batch["decoder_inputs"] = np.zeros((2, 4), np.int32)
    places = [0, 1, 2, 3]
  logits = draw.normal(size=(2, count, 5)).astype(np.float32)
  side = "decoder_" if kind == "decoder" else ""
  expected = np.zeros((2, len(batch[f"{side}inputs"][0]) + 1))
  for number, targets in enumerate(batch[f"{side}targets"]):
    used = np.flatnonzero(batch[f"{side}weights"][number])
    for place, column in zip(places, used, strict=True):
      probability = np.exp(logits[number, column].astype(np.float64))
      expected[:, place] += -np.log(probability[targets[column]] / probability.sum()), 1
  found = _place_sums(Oracle(), jnp.asarray(logits), jax.tree.map(jnp.asarray, batch))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


class Oracle:
  """A model whose logits are its parameters, if they are asked for row by row: together they may not fit."""

  placement = None

  def apply(self, params, batch):
    return {"logits": Output(params, None)}

  def logits(self, params, batch):
    raise AssertionError("all logits at once")


@pytest.mark.slow
def test_what_is_measured_is_of_the_model_that_is_loaded(experiment, tmp_path):
  keys = {"eval.metric": "loss", "eval.every": "1", "train.steps": "4", "train.microbatches": "2"}
  keys |= {"train.batch_size": "16", "optimizer.schedule": "constant", "optimizer.learning_rate": "2.0"}
  config = load(f"{experiment}:lstm", keys)
  metrics = fit(config, tmp_path)
  measures = measured(tmp_path, metrics)
  losses = [loss for step, loss in measures.curve if step]
  assert measures.metrics["loss"] == min(losses) < losses[-1]
  mean = sum(loss * count for *_, loss, count in measures.places) / sum(count for *_, count in measures.places)
  assert mean == pytest.approx(measures.metrics["loss"], rel=1e-4)
  assert fit(config, tmp_path) == metrics and RunDirectory(tmp_path).starts()[-1]["microbatches"] == 0
  assert measured(tmp_path, metrics).memory == measures.memory  # of the program that was trained by the first start


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder", "lstm"])
def test_the_loss_by_place_is_that_of_a_loop_over_targets(experiment, tmp_path, name):
  workdir = tmp_path / "run"
  fit(load(f"{experiment}:{name}", {"train.steps": "2"}), workdir)
  run = load_run(workdir)
  task = Pretraining(run.config, workdir / "tokenizer")
  losses: dict[int, list[float]] = {}
  for batch in task.eval_streams["eval"](None):
    logits = np.asarray(run.model.logits(run.params, batch), np.float64)
    for b, p in zip(*np.nonzero(batch["weights"]), strict=True):
      at = batch["mlm_positions"][b, p] if "mlm_positions" in batch else p + 1
      row_logits = logits[b, p]
      top = row_logits.max()
      nll = top + math.log(np.exp(row_logits - top).sum()) - row_logits[batch["targets"][b, p]]
      document = batch["segment_ids"][b, at if "mlm_positions" in batch else p]
      place = int((batch["segment_ids"][b, :at] == document).sum())
      losses.setdefault(0 if place == 0 else 1 << (place.bit_length() - 1), []).append(nll)
  found = loss_by_place(run.model, run.params, task)
  assert [first for first, *_ in found] == sorted(losses)
  for first, last, loss, targets in found:
    assert targets == len(losses[first]) and last <= max(2 * first - 1, first)
    assert loss == pytest.approx(np.mean(losses[first]), rel=1e-4)
