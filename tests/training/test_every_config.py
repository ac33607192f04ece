"""Every experiment file and its variants, at a small size, under every strategy."""

import dataclasses
import functools
import importlib
from typing import Any

import jax
import numpy as np
import pytest

from tests.training.test_experiment_files import EXPERIMENTS
from tfm_jax.compare.program import build_program, random_batch, with_strategy
from tfm_jax.models.families.table import find_family
from tfm_jax.models.model import admits
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.sharding.strategy import STRATEGIES
from tfm_jax.tasks.table import find_task
from tfm_jax.training.config import Config, from_dict, load, resolve, to_dict

LENGTH, ROWS, STEPS = 32, 8, 10
# What all configs have instead of their sizes and rates. A value of 0 or None, for "none" or "the default", stays.
SIZES: dict[str, Any] = {
  "model.num_layers": 2,
  "model.decoder_layers": 2,
  "model.embed_dim": 32,
  "model.num_heads": 4,
  "model.num_kv_heads": 2,
  "model.head_dim": 8,
  "model.mlp_dim": 64,
  "model.embedding_dim": 16,
  "model.vocab_size": 250,
  "model.max_positions": 2 * LENGTH,
  "model.dropout": 0.1,
  "model.attention_dropout": 0.1,
  "window.size": 4,
  "experts.count": 8,
  "experts.top_k": 2,
  "image.height": 8,
  "image.width": 8,
  "image.patch": 4,
  "head.num_labels": 3,
  "data.target_len": LENGTH,
  "optimizer.learning_rate": 3e-3,
  "optimizer.warmup_steps": 2,
  "optimizer.weight_decay": 0.01,
  "optimizer.beta2": 0.98,
  "optimizer.epsilon": 1e-6,
  "optimizer.final_fraction": 0.1,
  "optimizer.grad_clip": 1.0,
}


def small(path: str) -> Config:
  """A config with what decides its program, at a small size; equal for configs that differ in sizes and data alone."""
  config = load(path)
  values = to_dict(config)
  for key, size in SIZES.items():
    section, _, name = key.partition(".")
    values[section][name] = values[section][name] and size
  values["model"]["dtype"], values["optimizer"]["warmup_fraction"] = "float32", 0.0
  values["head"] |= {"name": getattr(find_task(config.task.name), "head_name", config.model.head.name), "labels": ""}
  values["objective"] = {"name": config.objective.name}
  values["data"] = {"seq_len": LENGTH, "target_len": values["data"]["target_len"]}
  values["tokenizer"] = {"vocab_size": 250}
  values["train"] = {"batch_size": ROWS, "steps": STEPS, "microbatches": 1, "ema": config.train.ema}
  for name in ("task", "augment", "eval", "checkpoint", "sharding"):
    del values[name]
  return resolve(dataclasses.replace(from_dict(values), init_from="", init_layers=""))


@functools.cache
def programs() -> dict[str, dict[str, Config]]:
  """File -> variant -> small config; only those that no earlier file or variant has."""
  known, found = set(), {}
  for path in EXPERIMENTS:
    found[path.stem] = {}
    for variant in ("", *getattr(importlib.import_module(f"configs.{path.stem}"), "VARIANTS", ())):
      config = small(f"{path}:{variant}" if variant else str(path))
      # The fine-tuning of each of the architectures is that of other files.
      if config not in known and "-" not in variant:
        found[path.stem][variant] = config
        known.add(config)
  return found


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """A run directory that a student can name, without parameters."""
  run = RunDirectory(tmp_path_factory.mktemp("teacher"))
  config = programs()["bert_base"][""]
  run.write_config(to_dict(dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=250))))
  return str(run.path)


def configs_of(file: str, teacher: str) -> list[Config]:
  """The small configs of a file."""
  of = lambda config: dataclasses.replace(config.distill, teacher=config.distill.teacher and teacher)
  return [dataclasses.replace(config, distill=of(config)) for config in programs()[file].values()]


def strategies_of(config: Config) -> list[str]:
  """The strategies that split the model of a config differently, but sequences whole: those are in test_context.

  Recurrent layers form no pipeline.
  """
  lengths, recurrent = admits(config.family, config.model, 250), find_family(config.family).cell
  whole = {name: s for name, s in STRATEGIES.items() if "context" not in s.used_axes}
  serving = {name: s for name, s in whole.items() if not (recurrent and s.mesh_axes("layers"))}
  applied = lambda rules: tuple(rule for rule in rules if lengths.get(rule[0], True))
  rules = {name: (applied(s.rules), s.preset, applied(s.state)) for name, s in serving.items()}
  return [name for n, name in enumerate(rules) if rules[name] not in list(rules.values())[:n]]


FILES = [path.stem for path in EXPERIMENTS]


@pytest.mark.parametrize("file", FILES)
def test_every_strategy_splits_the_state_of_every_config(file, teacher):
  for config in configs_of(file, teacher):
    first = build_program(config, jax.devices())
    for strategy in strategies_of(config):
      program = build_program(with_strategy(config, strategy), jax.devices())
      # Traced once for all strategies.
      program.__dict__.update(shapes=first.shapes, frozen=first.frozen, tx=first.tx)
      for leaf in jax.tree.leaves((program.state, program.batch_shapes)):
        leaf.sharding.shard_shape(leaf.shape)  # raises if it does not divide
      split = [leaf for leaf in jax.tree.leaves(program.state) if not leaf.sharding.is_fully_replicated]
      # The single head of a small generator cannot be split by tp, a single layer not by pp.
      assert bool(split) == (strategy != "dp") or strategy in ("tp", "tp_sp", "pp"), strategy


BY_DEFAULT = ("quickstart", "sst2")


@functools.cache
def of_each_kind() -> list[str]:
  """A file of each family, and one that fine-tunes: what others of the kind differ in is tested by its own tests."""
  kinds: dict[str, str] = {}
  for file in (*BY_DEFAULT, *FILES):
    for config in list(programs()[file].values())[:1]:
      kinds.setdefault(config.family, file)
  return list(dict.fromkeys((*BY_DEFAULT, *kinds.values())))


@pytest.mark.slow_but(*BY_DEFAULT)
@pytest.mark.parametrize("file", of_each_kind())
def test_a_config_of_each_kind_takes_ten_steps(file, teacher):
  for config in configs_of(file, teacher)[:1]:
    strategies = strategies_of(config)
    # Each file has another; what families do under all of them is tested elsewhere.
    losses = ten_losses(with_strategy(config, strategies[FILES.index(file) % len(strategies)]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def ten_losses(config: Config) -> list[float]:
  """Of ten steps on one random batch."""
  program = build_program(config, jax.devices())
  state = program.init()
  batch, step, losses = program.put(random_batch(program.fields, ROWS)), program.compile(1), []
  for _ in range(STEPS):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  return losses
