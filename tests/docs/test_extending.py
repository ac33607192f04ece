"""The examples of docs/extending.md, each taken from the page: one file and one table entry.

Families and heads are held by tests/models/test_families.py, kernels by tests/ops/test_attention_kernels.py.
"""

import json
import sqlite3

import jax
import numpy as np
import optax
import pytest

from tests.data import test_objectives
from tests.support.launching import ROOT, WORDS, exact_rows, rows, tiny, write_experiment
from tests.support.pages import add_example, examples
from tests.support.tiny import make_batch, make_model, make_program, placement
from tests.training.test_step import train
from tfm_jax.errors import UserError
from tfm_jax.models.config import PARAM_AXES
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.text.tokenizers.table import TokenizerConfig, load_tokenizer, train_tokenizer
from tfm_jax.training.config import Config, from_dict, resolve
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit

EXAMPLES = ("objective", "family", "head", "kernel", "strategy", "source", "tokenizer", "optimizer", "task")


def test_the_page_has_an_example_of_each():
  assert tuple(examples()) == EXAMPLES
  for name, example in examples().items():
    assert len(example.files) == (name != "strategy") and example.entries, name


@pytest.mark.parametrize("name", EXAMPLES)
def test_entries_fit_the_files_that_they_name(name):
  """The lines around an entry stand in the file, and nothing of the example is there yet."""
  example = examples()[name]
  for path in example.files:
    assert not (ROOT / path).exists() and (ROOT / path).parent.is_dir()
  for entry in example.entries:
    lines = (ROOT / entry.module).read_text(encoding="utf-8").splitlines()
    for line in entry.context:
      assert line in lines, line
    assert not set(entry.added) & set(lines)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_have_the_layout_of_the_package(name):
  for path, source in examples()[name].files.items():
    assert source.startswith('"""') and all(len(line) <= 120 for line in source.splitlines()), path


# An objective, a source, a tokenizer and an optimizer, in one run.


@pytest.fixture
def extended(monkeypatch):
  return {name: add_example(monkeypatch, name) for name in ("objective", "source", "tokenizer", "optimizer")}


def write_database(path, documents=300):
  """An SQLite file of random sentences."""
  draw = np.random.default_rng(0)
  with sqlite3.connect(path) as database:
    database.execute("create table documents (text text)")
    texts = [(" ".join(draw.choice(WORDS, 12)),) for _ in range(documents)]
    database.executemany("insert into documents values (?)", texts)
  database.close()
  return {text for (text,) in texts}


@pytest.mark.slow
def test_objective_source_tokenizer_and_optimizer_train_together(extended, tmp_path):
  write_database(tmp_path / "texts.db")
  changes = {"objective__name": "suffix", "data__source": "sqlite", "data__path": str(tmp_path / "texts.db")}
  changes |= {
    "tokenizer__kind": "words",
    "tokenizer__vocab_size": 100,
    "optimizer__name": "nadamw",
    "optimizer__learning_rate": 1e-3,
  }
  config = tiny(write_experiment(tmp_path / "tiny"), "gpt", train__steps=4, eval__every=0, **changes)
  result = fit(config, tmp_path / "run")
  first, *_, last = (row["loss"] for row in rows(tmp_path / "run") if row["split"] == "eval")
  assert last == result["loss"] < first
  run = load_run(tmp_path / "run")
  assert set(run.tokenizer.words) == set(WORDS) and run.tokenizer.kind == "words"
  assert "bits_per_byte" not in result  # the suffix is not the whole text


def test_the_objective_weighs_the_end_of_each_row_alone(extended):
  from tfm_jax.objectives.draws import Draws
  from tfm_jax.objectives.objective import ObjectiveConfig, Vocabulary
  from tfm_jax.objectives.plan import Rows
  from tfm_jax.objectives.table import make_objective

  objective = make_objective(ObjectiveConfig(name="suffix"), Vocabulary(50), 16)
  tokens = np.random.default_rng(0).integers(5, 50, (64, 17)).astype(np.int32)
  source = Rows(tokens, np.ones_like(tokens), np.broadcast_to(np.arange(17, dtype=np.int32), tokens.shape))
  arrays = objective.make(Draws.of(0, 0, np.arange(64)), source)
  weights = arrays["weights"]
  assert (np.diff(weights, axis=1) >= 0).all() and weights[:, -1].all()  # zeros, then ones
  assert len({int(n) for n in weights.sum(1)}) > 5
  np.testing.assert_array_equal(objective.make(Draws.of(0, 0, np.arange(64)), source)["weights"], weights)
  assert set(arrays) == set(objective.fields) - {"rows"}


def test_the_objective_passes_the_tests_of_all_objectives(extended):
  test_objectives.test_arrays_are_as_declared_and_padding_has_no_weight("suffix")
  test_objectives.test_a_row_depends_on_itself_alone("suffix")


def test_an_objective_serves_the_families_of_the_one_that_it_refines(extended):
  resolve(from_dict({"family": "llama", "objective": {"name": "suffix"}}))
  with pytest.raises(
    UserError, match=r"'suffix' does not fit family=bert: choose mlm or .* \(or, .* in tfm_jax/models/families/"
  ):
    resolve(from_dict({"family": "bert", "objective": {"name": "suffix"}}))


def test_the_source_reads_each_document_once(extended, tmp_path):
  texts = write_database(tmp_path / "texts.db")
  corpus = extended["source"].sqlite_corpus(str(tmp_path / "texts.db"), 0.2)
  train_part, held_out = ({text for (text,) in part} for part in (corpus.train(), corpus.evaluation()))
  assert train_part | held_out == texts and not train_part & held_out
  assert 0.1 < len(held_out) / len(texts) < 0.3


def test_the_tokenizer_is_saved_and_keeps_to_its_size(extended, tmp_path):
  tokenizer = train_tokenizer(TokenizerConfig(kind="words", vocab_size=8, sentinels=1), ["a b a c", "a b d"])
  assert tokenizer.vocab_size == 8 and tokenizer.words == ["a", "b"]
  tokenizer.save(tmp_path)
  ids = load_tokenizer(tmp_path).encode("b a zebra")
  assert ids.tolist() == [6, 5, 1] and tokenizer.decode(ids) == "b a <unk>"


def test_the_optimizer_is_that_of_optax(extended):
  batch = make_batch("gpt")
  program = make_program(make_model("gpt"), batch, name="nadamw", weight_decay=0.1, beta2=0.99, grad_clip=0.0)
  params = jax.jit(program.model.init)(jax.random.key(0))
  grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)
  is_matrix = jax.tree.map_with_path(lambda path, _: program.model.axes(path).is_matrix, params)
  theirs = optax.nadamw(1.0, b1=0.9, b2=0.99, weight_decay=0.1, mask=is_matrix)
  mine = program.tx
  ours, _ = jax.jit(mine.update)(grads, mine.init(params), params)
  expected, _ = jax.jit(theirs.update)(grads, theirs.init(params), params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-6), ours, expected)


# A strategy.


@pytest.mark.slow
def test_a_strategy(monkeypatch):
  add_example(monkeypatch, "strategy")
  model = make_model("gpt", placement("mlp_only", 8))
  assert model.placement.mesh.shape["model"] == 2 and model.placement.mesh.shape["data"] == 4
  assert tuple(model.shardings()["blocks"]["mlp"]["wi"].spec) == (None, None, "model")
  assert any("mlp" in axes for _, axes in PARAM_AXES)
  _, losses, _, _ = train("gpt", steps=2)
  _, losses_8, _, _ = train("gpt", "mlp_only", devices=8, steps=2)
  np.testing.assert_allclose(losses_8, losses, rtol=1e-5)


# A task.


def config_of(steps: int) -> Config:
  return from_dict(
    {
      "family": "vit",
      "model": {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "dtype": "float32", "init": "xavier"},
      "head": {"pooling": "mean"},
      "optimizer": {"learning_rate": 1e-2, "warmup_steps": 10, "schedule": "constant"},
      "train": {"steps": steps, "batch_size": 16, "log_every": 10},
      "eval": {"every": 50},
      "checkpoint": {"every": 50},
    }
  )


@pytest.fixture(scope="module")
def task():
  with pytest.MonkeyPatch.context() as patch:
    yield add_example(patch, "task").BrightQuarter


@pytest.fixture(scope="module")
def finished(task, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("task") / "run"
  return fit(config_of(100), workdir, task), workdir


@pytest.mark.slow
def test_a_task_without_text(task, finished):
  result, workdir = finished
  assert result["accuracy"] > 0.9 and result["f1"] > 0.8 and result["loss"] < 0.5
  assert not (workdir / "tokenizer").exists()
  run = load_run(workdir)
  assert run.tokenizer is None and run.config.model.head.num_labels == 4
  logits = jax.jit(run.model.logits)(run.params, task(run.config).batch(10_000, None))
  assert np.asarray(logits).argmax(-1).tolist() == json.loads((workdir / "quarters.json").read_text())


def test_every_held_out_set_has_records_of_its_own_and_one_without_weight_has_none(finished):
  result, workdir = finished
  records = exact_rows(workdir)
  assert {split for split, _ in records} == {"train", "eval", "eval_other"}
  assert {step for split, step in records if split == "eval_other"} == {0, 50, 100}
  last = {record["split"]: record for record in rows(workdir) if record["step"] == 100}
  assert last["eval"]["loss"] == result["loss"] != last["eval_other"]["loss"]


@pytest.mark.slow
def test_a_task_resumes_bit_for_bit(task, finished, tmp_path):
  fit(config_of(50), tmp_path / "run", task)
  fit(config_of(100), tmp_path / "run", task)
  assert {k: v for k, v in exact_rows(tmp_path / "run").items() if k[0] != "train"} == {
    k: v for k, v in exact_rows(finished[1]).items() if k[0] != "train"
  }
  assert RunDirectory(tmp_path / "run").starts()[1]["step"] == 50
  again = fit(config_of(100), tmp_path / "run", task)
  assert again["f1"] == finished[0]["f1"]
