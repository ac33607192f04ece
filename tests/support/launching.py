"""Runs of a tiny model for the end-to-end tests: in this process, or in one of its own."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.support.xla import xla_flags
from tfm_jax.data.prepare import objective_fields
from tfm_jax.models.model import Model
from tfm_jax.objectives.objective import Vocabulary
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.text.tokenizers.table import load_tokenizer
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.compiled.program import Program, build_program
from tfm_jax.training.config import Config, from_dict, load, resolve, to_dict
from tfm_jax.training.loop import fit
from tfm_jax.training.pretraining import Pretraining

ROOT = Path(__file__).parents[2]
EXACT = (
  "loss",
  "objective",
  "accuracy",
  "perplexity",
  "bits_per_byte",
  "unigram_entropy",
  "grad_norm",
  "learning_rate",
)

EXPERIMENT = """
from configs import base

FAMILIES = {"bert": "mlm", "gpt": "causal", "t5": "span_corruption", "transformer": "seq2seq"}


def get_config(family="gpt"):
  c = base.get_config()
  c.family, c.objective.name = family, FAMILIES[family]
  c.model.update({"num_layers": 2, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "dtype": "float32"})
  c.model.update({"dropout": 0.1, "attention_dropout": 0.1})
  c.tokenizer.kind = "byte"
  c.tokenizer.sentinels = 10 if family == "t5" else 0
  c.data.update({"source": "text", "path": "TEXT", "seq_len": 16})
  c.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 2, "weight_decay": 0.01})
  c.train.update({"batch_size": 8, "steps": 12, "log_every": 1})
  c.eval.update({"every": 4, "batches": 2})
  c.checkpoint.every = 5
  return c.lock()
"""

WORDS = "the cat sat on a mat and saw that all the dogs of the town ran after one small grey bird".split()  # noqa: SIM905


# Overrides of `tiny` for a run of one layer that is evaluated and saved every two steps.
SHORT_RUN = {
  "model__num_layers": 1,
  "optimizer__schedule": "constant",
  "eval__every": 2,
  "eval__batches": 1,
  "checkpoint__every": 2,
}


def write_text(path: Path, lines: int = 400, seed: int = 0) -> Path:
  """A text file of random sentences."""
  draw = np.random.default_rng(seed)
  text = "\n\n".join(" ".join(draw.choice(WORDS, 8)) + "." for _ in range(lines))
  path.write_text(text + "\n", encoding="utf-8")
  return path


def write_experiment(folder: Path) -> Path:
  """An experiment file `tiny.py[:FAMILY]` and its text, in a new folder."""
  folder.mkdir(parents=True)
  text = write_text(folder / "text.txt")
  path = folder / "tiny.py"
  path.write_text(EXPERIMENT.replace("TEXT", str(text)))
  return path


def environment(devices: int = 1) -> dict[str, str]:
  """For a process with so many CPU devices, that shares the compiled programs of this one."""
  cache = jax.config.jax_compilation_cache_dir
  extra = {
    "XLA_FLAGS": xla_flags(devices),
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return os.environ | extra | ({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {})


def train(*arguments: str, devices: int = 1, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
  """`python train.py ARGUMENTS`, run to its end."""
  command = [sys.executable, "train.py", *arguments]
  return subprocess.run(
    command, cwd=ROOT, env=environment(devices) | (env or {}), capture_output=True, text=True, timeout=300
  )


def free_port() -> int:
  """A port that nobody listens on."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def rows(workdir: Path) -> list[dict[str, Any]]:
  """metrics.jsonl."""
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def exact_rows(workdir: Path) -> dict[tuple[str, int], dict[str, float]]:
  """(split, step) -> what a resumed run must repeat bit for bit. Each (split, step) must stand once."""
  found = {}
  for row in rows(workdir):
    assert (row["split"], row["step"]) not in found, row
    found[row["split"], row["step"]] = {key: row[key] for key in EXACT if key in row}
  return found


def state(workdir: Path, step: int | None = None) -> Any:
  """The stored TrainState of a run, as numpy arrays, read on one device."""
  run = RunDirectory(workdir)
  config: Config = from_dict(run.read_config())
  config = dataclasses.replace(config, sharding=type(config.sharding)())
  abstract = program_of(config, load_tokenizer(run.tokenizer).vocab_size, jax.devices()[:1]).state
  with Checkpoints(run.checkpoints) as checkpoints:
    step = checkpoints.latest() if step is None else step
    assert step is not None
    return jax.device_get(checkpoints.restore(step, abstract._asdict()))


def program_of(config: Config, vocab_size: int, devices: Any) -> Program:
  """The program of a run's configuration on these devices."""
  vocabulary = Vocabulary(vocab_size, sentinel_ids=tuple(range(100)))
  return build_program(config, vocab_size, objective_fields(config.objective, config.data, vocabulary), devices)


def assert_same_state(a: Any, b: Any) -> None:
  """Equal bit for bit."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)


def tiny(experiment: Path, family: str = "gpt", **overrides: Any) -> Config:
  """The configuration of the tiny experiment; `train__steps=5` stands for train.steps."""
  return load(f"{experiment}:{family}", {key.replace("__", "."): value for key, value in overrides.items()})


def write_untrained_run(config: Config, workdir: Path, step: int = 0, seed: int = 0) -> Model:
  """A run directory with fresh parameters as the checkpoint of a step: nothing is compiled for training. Its model."""
  config, run = resolve(config), RunDirectory(workdir)
  tokenizer = Pretraining(config).tokenizer
  model = build_model(config, tokenizer.vocab_size, jax.devices()[:1])
  with Checkpoints(run.checkpoints) as checkpoints:
    checkpoints.save(step, {"params": jax.jit(model.init)(jax.random.key(seed))})
  tokenizer.save(run.tokenizer)
  run.write_config(to_dict(config))
  return model


class WithoutSamples(Pretraining):
  """Pre-training without the samples at the end, which cost time and matter to few tests."""

  def report(self, model: Any, params: Any, metrics: Any, run: Any) -> list[str]:
    return []


def quick_fit(config: Config, workdir: Path) -> dict[str, float]:
  """`fit` without samples."""
  return fit(config, workdir, WithoutSamples)
