"""Tasks on pictures: classes, pixels as tokens, and pictures with captions."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.image_data import quarters, write_idx, write_quarters
from tests.support.image_tasks import OF_TASKS, config_of, program_of, task_of
from tests.support.launching import exact_rows
from tests.support.refusal import refusal
from tfm_jax.models.heads.contrastive import CONTRASTIVE, Temperature
from tfm_jax.models.heads.head import Output
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import LossConfig
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.sharding.strategy import STRATEGIES
from tfm_jax.tasks.evaluate import evaluate, write
from tfm_jax.tasks.images.modeling import ImageModeling
from tfm_jax.tasks.table import find_task
from tfm_jax.training import loss as training_loss
from tfm_jax.training.config import resolve
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pictures")
  return {"path": str(write_quarters(folder, 256)), "eval_path": str(write_quarters(folder, 36, "test", seed=1))}


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
  """Finished runs by task, each trained when it is first asked for."""
  finished = {}

  def run(name):
    if name not in finished:
      workdir = tmp_path_factory.mktemp(name) / "run"
      finished[name] = (fit(config_of(name, data), workdir, find_task(name)), workdir)
    return finished[name]

  return run


# Classification.


def test_a_vision_transformer_learns_from_files_and_is_evaluated(runs, data, tmp_path):
  result, workdir = runs("image_classification")
  assert result["accuracy"] > 0.9 and result["log_loss"] < 0.5
  rows = [json.loads(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()]
  _, labels = quarters(36, seed=1)
  assert [row["label"] for row in rows] == ["abcd"[n] for n in labels]
  assert set(rows[0]) == {"prediction", "label", "probabilities", "id"} and rows[3]["id"] == "test-images-idx3-ubyte#3"
  evaluation = evaluate(load_run(workdir))
  assert evaluation.scores["accuracy"] == pytest.approx(result["accuracy"])
  write(str(tmp_path / "out"), evaluation)
  assert (tmp_path / "out" / "predictions.jsonl").read_text() == (workdir / "predictions.jsonl").read_text()
  wrong = evaluation.predictions[0] | {"label": "d", "prediction": "a"}
  page = dataclasses.replace(evaluation, predictions=[wrong, *evaluation.predictions[1:]])._repr_html_()
  assert page.count('<img class="thumbnail" src="data:image/png;base64,') >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TASKS)
def test_a_run_resumes_bit_for_bit(name, runs, data, tmp_path):
  kind = find_task(name)
  fit(config_of(name, data, steps=30), tmp_path / "run", kind)
  fit(config_of(name, data), tmp_path / "run", kind)
  of = lambda workdir: {key: row for key, row in exact_rows(workdir).items() if key[1] >= 40}
  assert of(tmp_path / "run") == of(runs(name)[1]) and of(tmp_path / "run")
  assert RunDirectory(tmp_path / "run").starts()[1]["step"] == 30


def test_batches_are_a_function_of_the_step_and_mixtures_of_their_row(data):
  task = task_of("image_classification", data, augment={"crop": "shift", "pad": 1, "flip": True, "mixup": 0.4})
  ((_, whole),) = task.train_batches(7, 8, None)
  ((_, part),) = task.train_batches(7, 8, np.array([3, 9]))
  for name, array in whole.items():
    np.testing.assert_array_equal(part[name], array[[3, 9]], name)
  assert set(whole) == set(task.fields) and 0.05 < (whole["shares"] * (1 - whole["shares"])).mean() < 0.2
  assert (whole["targets"] != whole["other_targets"]).mean() > 0.5
  held_out = next(task.eval_streams["eval"](None))
  assert (held_out["shares"] == 1).all()
  pixels, _ = quarters(36, seed=1)
  np.testing.assert_allclose(held_out["images"][5, :, :, 0], pixels[5] / 127.5 - 1, atol=1e-6)


def test_the_loss_of_mixtures_is_that_of_soft_labels(data):
  task = task_of("image_classification", data, augment={"mixup": 0.4})
  program = program_of(task)
  params = jax.jit(program.model.init)(jax.random.key(0))
  ((_, batch),) = task.train_batches(0, 1, None)
  batch["weights"][4] = 0
  log_p = jax.nn.log_softmax(program.model.logits(params, {"images": batch["images"]}))
  of = lambda name: np.asarray(log_p)[np.arange(32), batch[name]]
  expected = -(batch["shares"] * of("targets") + (1 - batch["shares"]) * of("other_targets"))
  means = task.loss(program.model)(params, batch, None).means()
  assert float(means["loss"]) == pytest.approx(np.delete(expected, 4).mean(), rel=1e-5)


def test_mixtures_keep_the_losses_of_experts_and_of_second_masks(data, monkeypatch):
  config = {"augment": {"mixup": 0.4}, "model": {"dropout": 0.5}, "experts": {"count": 2}, "loss": {"r_drop": 1.0}}
  task = task_of("image_classification", data, **config)
  model = program_of(task).model
  ((_, batch),) = task.train_batches(0, 1, None)
  noise = Noise(np.uint32(0), np.int32(0), batch["rows"])
  compared = []
  monkeypatch.setattr(training_loss, "_r_drop", lambda terms, other, *_: compared.append((terms, other)) or terms)
  terms = jax.eval_shape(lambda params: task.loss(model)(params, batch, noise), model.shapes())
  assert set(terms.objective) == {"labels", "balance", "router_z"} and "dropped" in terms.metrics
  assert len(compared) == 1


def test_the_same_pictures_elsewhere_are_the_same_data(data, tmp_path):
  folder = tmp_path / "elsewhere"
  moved = {"path": str(write_quarters(folder, 256)), "eval_path": str(write_quarters(folder, 36, "test", seed=1))}
  assert task_of("image_classification", moved).fingerprints == task_of("image_classification", data).fingerprints
  other = {"path": data["path"], "eval_path": "", "eval_fraction": 0.1}
  assert task_of("image_classification", other).fingerprints != task_of("image_classification", data).fingerprints


def test_mistakes_are_one_line(runs, data, tmp_path):
  configure = lambda name, **sections: refusal(find_task(name).configure, config_of(name, data, **sections))
  assert "augment.stored=6" in configure("image_classification", augment={"stored": 6})
  assert "augment.area=0" in configure("image_classification", augment={"area": 0.0})
  assert "augment.mixup=0.4 mixes classes" in configure("image_text", augment={"mixup": 0.4})
  assert "set the size" in configure("image_modeling", image={"height": 0})
  assert "model.vocab_size=0" in configure("image_modeling", model={"vocab_size": 0})
  assert "family=vit is no decoder" in configure("image_modeling", family="vit", image={"patch": 4})
  message = configure("image_text", family="bert", model={"max_positions": 512})
  assert message == "family=bert reads no images: task.name=image_text needs family=clip"
  assert "train.microbatches=2" in configure("image_text", train={"microbatches": 2})
  assert "has no {}" in configure("image_text", task={"captions": "a photo"})
  assert "augment.crop='middle' is not one of none, shift, resized" in refusal(
    resolve, config_of("image_classification", data, augment={"crop": "middle"})
  )
  write_idx(tmp_path / "a-labels-idx1-ubyte", np.full(5, 7, np.uint8))
  path = str(write_idx(tmp_path / "a-images-idx3-ubyte", quarters(5)[0]))
  run = load_run(runs("image_classification")[1])
  assert "head.labels has 4 names" in refusal(evaluate, run, path)
  assert "--beams is for tasks on text" in refusal(lambda: evaluate(run, beams=2))


# Pixels.


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
  """Pictures whose rows are all equal to their first one."""
  draw = np.random.default_rng(0)
  folder = tmp_path_factory.mktemp("stripes")
  paths = {}
  for name, count in (("path", 256), ("eval_path", 36)):
    rows = draw.integers(0, 4, (count, 1, 8)).astype(np.uint8) * 85
    paths[name] = str(write_idx(folder / f"{name}-images-idx3-ubyte", np.repeat(rows, 8, axis=1)))
  return paths


@pytest.mark.slow
def test_a_decoder_learns_to_complete_pictures(stripes, tmp_path):
  config = config_of("image_modeling", stripes, steps=400, model={"num_layers": 2}, optimizer={"learning_rate": 5e-3})
  result = fit(config, tmp_path / "run", ImageModeling)
  # Of 64 pixels the 8 first ones are free, with two bits each.
  bits = result["bits_per_pixel"]
  assert 0.25 <= bits < 0.5 and bits == pytest.approx(result["loss"] / math.log(2))
  run = load_run(tmp_path / "run")
  task = ImageModeling.of_run(run.config, None)
  images = task.opened(run.config, stripes["eval_path"], "data.eval_path")
  ids = task.palette.encode(images.pixels[:4]).reshape(4, -1)
  drawn = task.complete(run.model, run.params, ids[:, :32], samples=2)
  assert drawn.shape == (4, 2, 64) and (drawn[:, :, :32] == ids[:, None, :32]).all()
  assert (drawn == ids[:, None]).mean() > 0.9
  assert (tmp_path / "run" / "completions.png").read_bytes()[:4] == b"\x89PNG"
  evaluation = evaluate(run)
  assert evaluation.scores["bits_per_pixel"] == pytest.approx(result["bits_per_pixel"], rel=1e-4)
  names = {path.rpartition("/")[2] for path in write(str(tmp_path / "out"), evaluation)}
  assert names == {"predictions.jsonl", "scores.json", "completions.png", "samples.png"}


def test_tokens_are_the_palettes_pixels_after_the_symbol_that_begins_a_picture(stripes):
  task = task_of("image_modeling", stripes)
  batch = next(task.eval_streams["eval"](None))
  images = task.opened(task.config, stripes["eval_path"], "data.eval_path")
  np.testing.assert_array_equal(batch["targets"] * 85, images.pixels[:32].reshape(32, 64))
  assert (batch["inputs"][:, 0] == 4).all() and (batch["inputs"][:, 1:] == batch["targets"][:, :-1]).all()
  *_, last = task.eval_streams["eval"](None)
  assert last["weights"].sum() == 4 * 64 and last["weights"][:4].all()


def test_pictures_that_are_completed_are_spread_over_all(stripes, monkeypatch):
  task, completed = task_of("image_modeling", stripes), []

  def complete(model, params, ids, samples):
    completed.append(ids)
    return np.zeros((len(ids), samples, 64), np.int32)

  monkeypatch.setattr(task, "complete", complete)
  images = task.opened(task.config, stripes["eval_path"], "data.eval_path")
  task.pictures(None, None, images, np.arange(36))
  np.testing.assert_array_equal(completed[0] * 85, images.pixels[[0, 4, 9, 13, 18, 22, 27, 31]].reshape(8, 64)[:, :32])


# Pictures and captions.


def clip_oracle(images, texts, scale):
  """The loss of the paper's pseudocode, in numpy."""
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  y = scale * unit(images) @ unit(texts).T
  nll = lambda y: np.mean(np.log(np.exp(y - y.max(1, keepdims=True)).sum(1)) + y.max(1) - np.diag(y))
  return (nll(y) + nll(y.T)) / 2


@pytest.fixture(scope="module")
def pairs(data):
  task = task_of("image_text", data, task={"captions": "a photo, {}|{}"})
  return task, next(task.train_batches(0, 1, None))[1]


def test_the_contrastive_loss_against_numpy_and_blank_rows_are_no_candidates(pairs):
  task, batch = pairs
  model = program_of(task).model
  params = jax.jit(model.init)(jax.random.key(0))
  params["temperature"]["log_scale"] = jnp.float32(1.2)
  weights = np.ones(32, np.float32)
  weights[[3, 31]] = 0
  outputs = model.outputs(params, batch)
  assert float(outputs["scale"]) == pytest.approx(math.exp(1.2))
  real = weights > 0
  means = task.loss(model)(params, batch | {"weights": weights}, None).means()
  expected = clip_oracle(np.asarray(outputs["image"])[real], np.asarray(outputs["text"])[real], math.exp(1.2))
  assert float(means["loss"]) == pytest.approx(expected, rel=1e-5)
  # At its bound, the factor can still fall.
  outputs = {name: Output(jnp.asarray(rows)) for name, rows in (("image", jnp.eye(2)), ("text", jnp.eye(2)[::-1]))}
  temperature = Temperature(model.config, model.placement)

  def loss(log_scale):
    scale = temperature.apply({"params": {"log_scale": log_scale}})
    terms = CONTRASTIVE.loss(
      model.config, model.placement, outputs | {"scale": Output(scale)}, {"weights": jnp.ones(2)}, LossConfig()
    )
    return terms.means()["objective"], scale

  (_, scale), slope = jax.value_and_grad(loss, has_aux=True)(jnp.float32(9.0))
  assert float(scale) == pytest.approx(100) and float(slope) == pytest.approx(100)


def test_texts_are_read_up_to_their_end_and_only_by_the_text_tower(pairs):
  task, batch = pairs
  model = program_of(task).model
  params = jax.jit(model.init)(jax.random.key(0))
  predict = jax.jit(model.predict)
  whole = predict(params, batch)
  ends = batch["segment_ids"].sum(1) - 1
  assert (batch["inputs"][np.arange(32), ends] == task.tokenizer.eos_id).all()
  padded = np.where(batch["segment_ids"] == 0, np.int32(77), batch["inputs"])
  np.testing.assert_array_equal(predict(params, batch | {"inputs": padded})["text_vectors"], whole["text_vectors"])
  other = predict(params, batch | {"images": batch["images"] * 0})
  np.testing.assert_array_equal(other["text_vectors"], whole["text_vectors"])
  assert (np.asarray(other["image_vectors"]) != np.asarray(whole["image_vectors"])).any(1).all()
  assert {task.tokenizer.decode(ids[:end]) for ids, end in zip(batch["inputs"], ends, strict=True)} >= {
    "top left",
    "a photo, bottom right",
  }


def losses(program, task, steps=3):
  """Loss and gradient norm of each step."""
  state, step = program.init(), program.compile(1)
  found = []
  for _, batch in task.train_batches(0, steps, None):
    state, metrics = step(state, program.put(batch, None))
    found.append((float(metrics["loss"]), float(metrics["grad_norm"])))
  return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "cp"])  # patches: an odd number
def test_the_loss_is_over_the_global_batch_under_every_strategy(strategy, data):
  task = task_of("image_text", data, model={"dropout": 0.1})
  one = losses(program_of(task), task)
  task.config = dataclasses.replace(task.config, sharding=dataclasses.replace(task.config.sharding, strategy=strategy))
  program = program_of(task, devices=8)
  assert program.placement.mesh.size == 8
  several = losses(program, task)
  np.testing.assert_allclose(several[:, 0], one[:, 0], rtol=1e-5)
  np.testing.assert_allclose(several[:, 1], one[:, 1], rtol=1e-4)


@pytest.mark.slow
def test_zero_shot_classes_are_those_of_the_pictures(runs, data, tmp_path):
  result, workdir = runs("image_text")
  assert result["zero_shot_accuracy"] > 0.9
  evaluation = evaluate(load_run(workdir))
  assert evaluation.scores["accuracy"] == pytest.approx(result["zero_shot_accuracy"])
  # Only two classes, under other numbers: what they are called is in head.labels by number.
  pixels, labels = quarters(40, seed=2)
  some = np.isin(labels, (1, 3))
  write_idx(tmp_path / "some-labels-idx1-ubyte", labels[some])
  other = evaluate(load_run(workdir), str(write_idx(tmp_path / "some-images-idx3-ubyte", pixels[some])))
  assert set(other.predictions[0]["probabilities"]) == {"top right", "bottom right"} and other.scores["accuracy"] > 0.9
