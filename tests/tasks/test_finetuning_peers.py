"""Ten fine-tuning steps equal those of transformers: the same weights, data and optimizer, no dropout.

The losses of transformers are in tests/golden/finetuning.json. `pytest -m peers` asks it again; TFM_WRITE_GOLDEN=1
writes the file anew.
"""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support.launching import environment
from tests.support.peers import peer_python
from tfm_jax.hf.importing import import_checkpoint
from tfm_jax.models.config import replaced
from tfm_jax.models.model import Model, labelled_fields
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.training.compiled.program import Program
from tfm_jax.training.config import Config, TrainConfig
from tfm_jax.training.load import initial_params, load_run
from tfm_jax.training.loss import make_loss
from tfm_jax.training.optimization.optimizer import OptimizerConfig, schedule

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "finetuning.json"
CASES = (
  "bert_sequence",
  "bert_regression",
  "bert_tokens",
  "bert_question",
  "roberta_sequence",
  "modernbert_cls",
  "vit",
  "t5_encoder_tokens",
  "t5_encoder",
)
# The heads of bare models, with a classifier that starts afresh here and is handed to the other side.
HEADS = {"t5_encoder": {"head.name": "sequence_classification", "head.num_labels": 3}}
STEPS, ROWS, LENGTH = 10, 8, 10
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=3, schedule="linear", weight_decay=0.0, grad_clip=1.0)


def batches_of(model: Model) -> list[dict[str, np.ndarray]]:
  """Random rows of unequal length, which one can learn: the labels depend on the first token, or pixel."""
  draw, fields = np.random.default_rng(0), labelled_fields(model.family, model.config, LENGTH, model.vocab_size)
  classes, head = model.config.head.num_labels, model.config.head.name
  out = []
  for step in range(STEPS):
    batch = {"rows": np.arange(step * ROWS, (step + 1) * ROWS, dtype=np.int32)}
    if "images" in fields:
      batch["images"] = draw.standard_normal((ROWS, *fields["images"].shape)).astype(np.float32)
      key = (batch["images"].reshape(ROWS, -1)[:, 0] * 100).astype(int)
    else:
      lengths = draw.integers(5, LENGTH + 1, ROWS)
      segments = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
      # RoBERTa numbers its positions by the ids that are no padding, id 1.
      batch["inputs"] = np.where(segments, draw.integers(5, model.vocab_size, segments.shape), 1).astype(np.int32)
      batch |= {"segment_ids": segments, "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))}
      if model.config.token_types > 1:
        batch["token_types"] = segments * (np.arange(LENGTH) >= 3).astype(np.int32)
      key = batch["inputs"][:, 1]
    batch["weights"] = np.ones(ROWS, np.float32)
    if head == "question_answering":
      start = key % 4
      batch["targets"] = np.stack([start, start + 1], 1).astype(np.int32)
    elif head == "token_classification":
      batch["targets"] = (batch["inputs"] % classes).astype(np.int32)
      batch["weights"] = (segments * (draw.random(segments.shape) < 0.7)).astype(np.float32)
    else:
      batch["targets"] = (key % 5 / 2).astype(np.float32) if classes == 1 else (key % classes).astype(np.int32)
    out.append(batch)
  return out


def ours(name: str, folder: Path) -> tuple[list[float], list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
  """The losses of ten steps of `Program.train_step`, the batches, and the classifier before the first step."""
  import_checkpoint(str(ROOT / "tests" / "golden" / "hf" / name), str(folder))
  run = load_run(folder, dtype="float32")
  changes = {"dropout": 0.0, "attention_dropout": 0.0} | HEADS.get(name, {})
  model = dataclasses.replace(run.model, config=replaced(run.model.config, changes))
  params = initial_params(RunDirectory(folder), model, seed=0)
  batches = batches_of(model)
  fields = labelled_fields(model.family, model.config, LENGTH, model.vocab_size)
  config = Config(
    family=model.family, model=model.config, optimizer=OPTIMIZER, train=TrainConfig(steps=STEPS, batch_size=ROWS)
  )
  fields = {name: field for name, field in fields.items() if name in batches[0]}
  program = Program(config, model, fields, make_loss(model, config.loss))
  classifier = {name: np.asarray(x) for name, x in params["classifier"].items()}
  state, step = program.init(params), jax.jit(program.train_step(1))
  losses = []
  for batch in batches:
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  return losses, batches, classifier


def theirs(
  name: str, batches: list[dict[str, np.ndarray]], classifier: dict[str, np.ndarray], folder: Path
) -> list[float]:
  """The losses of transformers. `classifier`: of a bare model."""
  np.savez(folder / "batches.npz", **{key: np.stack([batch[key] for batch in batches]) for key in batches[0]})
  rates = [float(schedule(OPTIMIZER, STEPS)(step)) for step in range(STEPS)]
  settings = dataclasses.asdict(OPTIMIZER) | {"rates": rates}
  if name in HEADS:
    settings["classifier"] = {key: x.tolist() for key, x in classifier.items()}
  script, model = ROOT / "tests" / "support" / "finetune_peer.py", ROOT / "tests" / "golden" / "hf" / name
  command = [str(peer_python()), str(script), str(model), str(folder / "batches.npz"), json.dumps(settings)]
  done = subprocess.run(command, env=environment(), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


# An encoder of each kind; the gradients of the other heads are compared in test_hf_models.py.
@pytest.mark.slow_but("bert_sequence")
@pytest.mark.parametrize("name", ["bert_sequence", "bert_question", "vit", "t5_encoder"])
def test_ten_steps_have_the_losses_of_transformers(name, tmp_path):
  losses, _, _ = ours(name, tmp_path / "run")
  np.testing.assert_allclose(losses, json.loads(GOLDEN.read_text())[name], rtol=1e-4)
  assert len({round(loss, 3) for loss in losses}) > 5  # something is learned


@pytest.mark.peers
@pytest.mark.skipif(peer_python() is None, reason="no torch and transformers: set TFM_PEERS_PYTHON")
@pytest.mark.parametrize("name", CASES)
def test_transformers_gives_these_losses_today(name, tmp_path):
  losses, batches, classifier = ours(name, tmp_path / "run")
  asked = theirs(name, batches, classifier, tmp_path)
  if os.environ.get("TFM_WRITE_GOLDEN"):
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    GOLDEN.write_text(json.dumps({**golden, name: [round(loss, 7) for loss in asked]}, indent=2, sort_keys=True) + "\n")
  np.testing.assert_allclose(losses, asked, rtol=1e-4)
