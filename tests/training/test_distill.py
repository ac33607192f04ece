"""Distillation: the losses beside plain formulas, a teacher that nothing changes, and runs that learn from another."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from tests.support.launching import SHORT_RUN, exact_rows, quick_fit, tiny, write_untrained_run
from tests.support.refusal import refusal
from tests.support.tiny import VOCAB, make_batch, make_model, make_program, model_config, params_of, placement
from tfm_jax.errors import UserError
from tfm_jax.models.heads.head import Output
from tfm_jax.models.heads.terms import class_terms
from tfm_jax.ops.losses import LossConfig, SoftTargets, Unembedding
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.runtime.trees import flat, nested
from tfm_jax.sharding.placement import single_device
from tfm_jax.text.tokenizers.table import load_tokenizer
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.compiled.program import Program
from tfm_jax.training.config import from_dict, load, resolve, to_dict
from tfm_jax.training.distill import DistillConfig
from tfm_jax.training.load import initial_params, load_run, teacher_entry
from tfm_jax.training.teacher import make_teacher, read_teacher

DISTILL = DistillConfig(teacher="runs/teacher", temperature=2.0, soft=5.0, hard=2.0, cosine=1.0)


def taught(variant, strategy="dp", devices=1, distill=DISTILL, theirs=None, **changes) -> Program:
  """The program of a student of one layer, whose teacher has two."""
  student = make_model(variant, placement(strategy, devices), num_layers=1, **changes)
  program = make_program(student, make_batch(variant))
  config = model_config(variant, **(theirs or {}))
  teacher = make_teacher(student.family, config, VOCAB, distill, student, program.fields)
  return dataclasses.replace(program, config=dataclasses.replace(program.config, distill=distill), teacher=teacher)


def teachers_params(program, variant):
  return jax.device_put(jax.device_get(params_of(variant)), program.teacher.model.shardings())


# The losses.


@pytest.mark.parametrize(
  "variant", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt", "transformer"))]
)
def test_the_losses_are_those_of_plain_formulas(variant):
  """Logits and hidden states of both models, and the definitions in float64."""
  program, batch = taught(variant), make_batch(variant, rows=4)
  student, teacher = program.model, program.teacher.model

  def objective(theirs, params, batch):
    terms = program.loss(params, program.teacher.teach(theirs, batch), None)
    return sum(value for value, _ in terms.objective.values()), terms

  @jax.jit
  def everything(params, theirs, batch):
    pairs = ((student, params), (teacher, theirs))
    arrays = [[m.logits(p, batch) for m, p in pairs], [m.hidden_states(p, batch)[-1] for m, p in pairs]]
    return *jax.grad(objective, has_aux=True)(theirs, params, batch), arrays

  params = jax.jit(student.init)(jax.random.key(5))
  gradient, terms, arrays = jax.device_get(everything(params, params_of(variant), batch))
  assert not any(x.any() for x in jax.tree.leaves(gradient))  # that of the teacher
  (y, z), (x, h) = jax.tree.map(lambda a: a.astype(np.float64), arrays)
  side = "decoder_" if student.encoder_decoder else ""
  weights, targets, real = (batch[f"{side}{name}"] for name in ("weights", "targets", "segment_ids"))
  log = lambda a: a - np.log(np.exp(a).sum(-1, keepdims=True))
  nll = -(weights * np.take_along_axis(log(y), targets[..., None], -1)[..., 0]).sum()
  soft = -(weights[..., None] * np.exp(log(z / 2)) * log(y / 2)).sum()
  entropy = -(weights[..., None] * np.exp(log(z / 2)) * log(z / 2)).sum()
  distance = (1 - (x * h).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(h, axis=-1))[real > 0]
  expected = {"labels": 2 * nll + 5 * 4 * soft, "cosine": distance.sum()}
  assert {name: float(value) for name, (value, _) in terms.objective.items()} == pytest.approx(expected, rel=1e-5)
  assert terms.objective["cosine"][1] == len(distance) and terms.objective["labels"][1] == weights.sum()
  means = terms.means()
  assert means["loss"] == pytest.approx(nll / weights.sum(), rel=1e-5)  # reports know no teacher
  assert means["divergence"] == pytest.approx((soft - entropy) / weights.sum(), rel=1e-4)
  assert means["cosine_distance"] == pytest.approx(distance.mean(), rel=1e-5)


def test_classes_of_rows_are_taught_as_well():
  """One vector per row, and a teacher of another width."""
  draw = np.random.default_rng(0)
  h, w, their_h, their_w = (
    draw.standard_normal(shape).astype(np.float32) for shape in ((4, 8), (3, 8), (4, 5), (3, 5))
  )
  targets, weights = np.array([0, 1, 2, 1]), np.array([0, 0.5, 1, 2], np.float32)
  output = Output(h, Unembedding(w, None), 3, soft=SoftTargets(their_h, Unembedding(their_w, None), 2.0, 5.0, 2.0))
  terms = class_terms(single_device(), "labels", output, targets, weights, LossConfig())
  log_q, log_q_soft, log_p = (jax.nn.log_softmax(x) for x in (h @ w.T, h @ w.T / 2, their_h @ their_w.T / 2))
  nll, soft = -log_q[np.arange(4), targets], -(np.exp(log_p) * log_q_soft).sum(-1)
  assert float(terms.objective["labels"][0]) == pytest.approx(
    float((weights * (2 * nll + 5 * 4 * soft)).sum()), rel=1e-5
  )
  assert float(terms.loss["labels"][0]) == pytest.approx(float((weights * nll).sum()), rel=1e-5)


def test_an_evaluation_knows_no_teacher():
  program, batch = taught("bert"), make_batch("bert")
  terms = jax.eval_shape(program.eval_step(1), program.model.shapes(), batch)
  assert terms.objective.keys() == terms.loss.keys() == {"labels"} and terms.metrics.keys() == {"accuracy"}


# The step.


def run(program, variant, microbatches=1, steps=3):
  """(records, the last state) of a few steps, with dropout."""
  state = program.init(None, teachers_params(program, variant))
  compiled = program.compile(microbatches)
  records = []
  for seed in range(steps):
    state, metrics = compiled(state, program.put(make_batch(variant, seed)))
    records.append({name: float(value) for name, value in metrics.items()})
  return records, state


@pytest.mark.slow
@pytest.mark.parametrize(
  ("strategy", "microbatches"),
  [("fsdp_tp", 2), ("hsdp", 1)],
)
def test_every_strategy_learns_like_one_device(strategy, microbatches):
  dropout = {"dropout": 0.1, "attention_dropout": 0.1}
  alone, _ = run(taught("bert", **dropout), "bert")
  program = taught("bert", strategy, 8, **dropout)
  records, state = run(program, "bert", microbatches)
  for one, other in zip(alone, records, strict=True):
    assert one.keys() == other.keys() >= {"loss", "objective", "divergence", "cosine_distance", "grad_norm"}
    for name in one:
      assert one[name] == pytest.approx(other[name], rel=1e-4 if name == "grad_norm" else 1e-5), name
  assert "teacher" not in {name for name, tree in program.stored(state).items() if jax.tree.leaves(tree)}
  for path, x in flat(state.teacher).items():
    np.testing.assert_array_equal(x, flat(params_of("bert"))[path], err_msg=path)
    assert x.sharding == flat(program.teacher.model.shardings())[path]
  assert jax.tree.structure(state.opt_state) == jax.tree.structure(program.tx.init(program.trained))
  if strategy == "fsdp_tp":
    assert not state.teacher["blocks"]["attn"]["wq"].sharding.is_fully_replicated


def test_the_teachers_forward_pass_is_counted():
  """Two products per weight and token of the teacher's blocks, and one pass of its output layer."""
  program = taught("gpt", distill=dataclasses.replace(DISTILL, cosine=0.0))
  plain = dataclasses.replace(program, teacher=None)
  tokens, rows, length = 16 * 16, 16, 16
  blocks = sum(x.size for path, x in flat(params_of("gpt")).items() if "/w" in path)
  attention = 2 * 2 * 2 * rows * length * length * 32  # two products in each of two layers
  assert program.flops.full - plain.flops.full == 2 * tokens * (blocks + 256 * 32) + attention


# What cannot be.


@pytest.mark.parametrize(
  ("theirs", "distill", "message"),
  [
    ({"embed_dim": 64}, {}, r"distill\.cosine=1 compares hidden states, .*embed_dim=64 where the student has 32: set"),
    ({}, {"soft": 0.0, "cosine": 0.0}, r"teacher=runs/teacher has nothing to teach: set distill\.soft or distill\."),
    ({"head.name": "token_classification"}, {}, r"head\.name=token_classification and the student has lm: both"),
  ],
)
def test_a_teacher_that_cannot_teach(theirs, distill, message):
  with pytest.raises(UserError, match=message):
    taught("bert", distill=dataclasses.replace(DISTILL, **distill), theirs=theirs)


def test_a_teacher_of_another_kind_vocabulary_or_length():
  student = make_model("bert")
  fields = {"inputs": make_program(student, make_batch("bert")).fields["inputs"]._replace(kind="ids")}
  other = lambda family, config, size=VOCAB: refusal(make_teacher, family, config, size, DISTILL, student, fields)
  assert "is a decoder and the student is an encoder: choose models" in other("gpt", model_config("gpt"))
  assert "is an encoder-decoder and" in other("t5", model_config("t5"))
  assert "has 251 ids and the student has 250: both must read the same" in other("bert", model_config("bert"), 251)
  short = other("bert", model_config("bert", max_positions=8))
  assert short == "distill.teacher=runs/teacher has 8 positions, and rows have 16 tokens: cut data.seq_len"


def test_a_loss_that_learns_from_no_teacher():
  head = {"head.name": "replaced_token_detection"}
  batch = {name: make_batch("bert")[name] for name in ("inputs", "rows")}
  batch |= {"targets": np.zeros((16, 16), np.int32), "weights": np.ones((16, 16), np.float32)}
  student = make_model("bert", **head)
  program = make_program(student, batch)
  teacher = make_teacher("bert", model_config("bert", **head), VOCAB, DISTILL, student, program.fields)
  program = dataclasses.replace(program, teacher=teacher)
  with pytest.raises(UserError, match=r"distill\.teacher: this loss does not learn from a teacher"):
    program.compile(1)


def test_r_drop_and_pairs_without_token_types(tmp_path):
  run = RunDirectory(tmp_path / "teacher")
  run.create()
  run.write_config(to_dict(from_dict({"family": "bert"})))
  distill = {"distill": {"teacher": str(tmp_path / "teacher")}}
  assert refusal(read_teacher, from_dict(distill | {"loss": {"r_drop": 1.0}})).endswith("set loss.r_drop=0")
  pairs = from_dict(distill | {"family": "distilbert", "task": {"texts": 2}})
  message = "tells the texts of a pair apart by token types, and batches of family=distilbert have none: set model."
  assert message in refusal(read_teacher, pairs)
  read_teacher(from_dict(distill | {"family": "bert", "task": {"texts": 2}}))


# Runs.

SETTINGS = SHORT_RUN | {"train__steps": 4}


@pytest.fixture(scope="module")
def teacher(experiment, tmp_path_factory):
  """A run of three layers."""
  workdir = tmp_path_factory.mktemp("teacher") / "run"
  write_untrained_run(tiny(experiment, model__num_layers=3), workdir, step=2)
  return workdir


def student(experiment, teacher, **overrides):
  learns = {"distill__teacher": str(teacher), "distill__soft": 5.0, "distill__hard": 2.0, "distill__cosine": 1.0}
  return tiny(experiment, **(SETTINGS | learns | overrides))


@pytest.fixture(scope="module")
def finished(experiment, teacher, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("student") / "run"
  quick_fit(student(experiment, teacher, init_from=str(teacher), init_layers="2"), workdir)
  return workdir


def test_a_checkpoint_has_no_teacher_and_the_run_loads_without_it(finished):
  with Checkpoints(finished / "checkpoints") as checkpoints:
    assert set(checkpoints.shapes(4, "params")) == set(flat(load_run(finished).params))
    assert not checkpoints.shapes(4, "teacher")
  (start,) = json.loads((finished / "run.json").read_text())
  assert start["teacher"].keys() == {"path", "step", "fingerprint"} and start["teacher"]["step"] == 2
  records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
  assert all(("divergence" in record) == (record["split"] == "train") for record in records)


def test_a_resumed_student_equals_an_uninterrupted_one_although_its_teacher_moved_and_went_on(
  finished, teacher, experiment, tmp_path
):
  shutil.copytree(teacher, tmp_path / "teacher")
  start = {"init_from": str(teacher), "init_layers": "2"}
  quick_fit(student(experiment, tmp_path / "teacher", **start, train__steps=2), tmp_path / "run")
  write_untrained_run(tiny(experiment, model__num_layers=3), tmp_path / "teacher", step=5, seed=1)
  (tmp_path / "teacher").rename(tmp_path / "moved")
  quick_fit(student(experiment, tmp_path / "moved", **start), tmp_path / "run")
  assert exact_rows(tmp_path / "run") == exact_rows(finished)
  jax.tree.map(np.testing.assert_array_equal, load_run(tmp_path / "run").params, load_run(finished).params)
  # Another teacher at the same step, and none any more.
  write_untrained_run(tiny(experiment, model__num_layers=3), tmp_path / "other", step=2, seed=1)
  with pytest.raises(UserError, match=r"other has another checkpoint 2 than when the run in .*/run was started, or no"):
    quick_fit(student(experiment, tmp_path / "other", **start, train__steps=6), tmp_path / "run")
  with pytest.raises(UserError, match=r"/run holds a run with other settings of distill\.teacher: set them back"):
    quick_fit(student(experiment, "", **start, train__steps=6), tmp_path / "run")


def test_a_branch_has_the_teacher_of_its_source_at_the_same_step(experiment, teacher, tmp_path):
  shutil.copytree(teacher, tmp_path / "teacher")
  source, new = RunDirectory(tmp_path / "source"), RunDirectory(tmp_path / "new")
  source.create()
  source.append_start({"teacher": teacher_entry(source, student(experiment, tmp_path / "teacher"))})
  write_untrained_run(tiny(experiment, model__num_layers=3), tmp_path / "teacher", step=5, seed=1)
  step = lambda teacher, **settings: teacher_entry(new, student(experiment, teacher, **settings))["step"]
  assert step(tmp_path / "teacher") == 5 and step(tmp_path / "teacher", branch_from=str(source.path)) == 2
  write_untrained_run(tiny(experiment, model__num_layers=3), tmp_path / "other", step=3)
  assert step(tmp_path / "other", branch_from=str(source.path)) == 3
  shutil.rmtree(tmp_path / "teacher" / "checkpoints" / "2")
  with pytest.raises(UserError, match=r"than when the run in .*/source was started, or none: .* another distill\.tea"):
    step(tmp_path / "teacher", branch_from=str(source.path))


def test_a_teacher_that_is_missing_or_reads_another_vocabulary(experiment, teacher, tmp_path):
  with pytest.raises(UserError, match=r"distill\.teacher=.*/nowhere is not a run directory: it has no config\.json"):
    quick_fit(student(experiment, tmp_path / "nowhere"), tmp_path / "run")
  write_untrained_run(tiny(experiment, tokenizer__kind="char"), tmp_path / "char")
  with pytest.raises(UserError, match=r"has another tokenizer than the student, .*: set tokenizer\.path=.*/tokenizer"):
    quick_fit(student(experiment, teacher, init_from=str(tmp_path / "char")), tmp_path / "run")
  assert not (tmp_path / "run").exists()


# What a student starts from.


def started(config, source, layers=""):
  """(initial parameters by path, the model) of a run that starts from another one."""
  model = build_model(resolve(config), load_tokenizer(source / "tokenizer").vocab_size, jax.devices()[:1])
  return flat(initial_params(RunDirectory(source), model, 0, layers=layers)), model


@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_a_student_takes_the_layers_that_are_named(experiment, family, tmp_path):
  """Of an encoder-decoder those of each stack that is deeper; the other one is taken whole."""
  depth = {"model__num_layers": 3, "model__decoder_layers": 2} if family == "t5" else {"model__num_layers": 3}
  write_untrained_run(tiny(experiment, family, **depth), tmp_path / "source")
  own, _ = started(tiny(experiment, family, **(depth | {"model__num_layers": 2})), tmp_path / "source", "0, 2")
  theirs = flat(load_run(tmp_path / "source").params)
  assert own.keys() == theirs.keys()
  cut = "encoder/blocks/" if family == "t5" else "blocks/"
  assert any(path.startswith(cut) for path in own)
  for path, x in own.items():
    expected = theirs[path][np.array([0, 2])] if path.startswith(cut) else theirs[path]
    np.testing.assert_array_equal(x, expected, err_msg=path)


@pytest.mark.parametrize(
  ("layers", "depth", "message"),
  [
    ("0,3", 2, r"init_layers=0,3: expected numbers from 0 to 2 with commas, the layers of init_from"),
    ("a", 2, r"init_layers=a: expected numbers from 0 to 2"),
    ("0", 2, r"init_layers=0 has 1 layers, and the model 2"),
    ("0", 3, r"init_layers=0 chooses among the layers of init_from, and the model is as deep: leave it empty"),
  ],
)
def test_layers_that_nothing_can_start_from(layers, depth, message, experiment, teacher):
  with pytest.raises(UserError, match=message):
    started(tiny(experiment, model__num_layers=depth), teacher, layers)


def test_layers_of_no_run(experiment, tmp_path):
  with pytest.raises(UserError, match=r"init_layers=0 chooses layers of another run: set init_from"):
    quick_fit(tiny(experiment, **SETTINGS, init_layers="0"), tmp_path / "run")


def test_a_student_without_token_types_starts_as_its_teacher(experiment, tmp_path):
  """All tokens are of the first text, whose vector moves into the positions."""
  config = tiny(experiment, "bert", model__max_positions=16, model__dtype="float32")
  theirs = write_untrained_run(config, tmp_path / "bert")
  source = load_run(tmp_path / "bert").params
  shape = {"model.num_layers": 2, "model.embed_dim": 32, "model.num_heads": 4, "model.mlp_dim": 64}
  shape |= {"model.max_positions": 16, "model.dtype": "float32", "family": "distilbert"}
  own, model = started(load(f"{experiment}:bert", shape), tmp_path / "bert")
  assert "type" in source["embed"] and "embed/type" not in own
  batch = {"inputs": np.arange(10, 26, dtype=np.int32)[None]}
  expected = jax.jit(theirs.logits)(source, batch)
  np.testing.assert_allclose(jax.jit(model.logits)(nested(own), batch), expected, atol=1e-5)
