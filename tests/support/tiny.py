"""Tiny models and batches of every family, for the tests of the numerical core."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from tfm_jax.models.config import ModelConfig
from tfm_jax.models.families.table import FAMILIES
from tfm_jax.models.model import Model, admits, resolve_model
from tfm_jax.objectives.objective import Field
from tfm_jax.sharding.placement import Placement, make_mesh, single_device
from tfm_jax.sharding.strategy import ShardingConfig, find_strategy, mesh_sizes
from tfm_jax.training.compiled.program import Program
from tfm_jax.training.config import Config, TrainConfig
from tfm_jax.training.loss import LossConfig, make_loss
from tfm_jax.training.optimization.optimizer import OptimizerConfig

VOCAB = 250  # padded to 256
BATCH, LENGTH = 16, 16
SIZES = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "dtype": "float32", "max_positions": 32}
# Trained under every strategy: one of each kind, one with windows, one with experts, and recurrent ones.
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
  **{family: (family, {}) for family in ("bert", "gpt", "t5", "transformer")},
  "modernbert": ("modernbert", {"window.size": 3, "window.global_every": 2}),
  "experts": ("llama", {"experts.count": 8}),
  **{family: (family, {}) for family in ("lstm", "lstm_encoder", "gru_encoder_decoder")},
}
# What their presets leave out.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
  **TRAINED,
  "llama": ("llama", {}),
  "t5_1_1": ("t5", {"gated": True, "activation": "gelu_tanh", "tied": False}),
  "t5_encoder": ("t5_encoder", {}),
  "gru": ("gru", {}),
  "bart": ("bart", {}),
  "rotary": ("bert", {"positions": "rotary", "norm_order": "pre", "embed_norm": False, "norm": "rms", "bias": "none"}),
  "qwen3": ("qwen3", {"num_kv_heads": 2, "norm_order": "parallel"}),
  "alibi": ("gpt", {"positions": "alibi", "norm_order": "rezero"}),
  "deepnorm": ("transformer", {"norm_order": "deepnorm"}),
}
_SLOW = ("qwen3", "alibi", "deepnorm", "experts")
# The variants as cases of a test: the arrangements of the block are slow.
CASES = [pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ()) for name in VARIANTS]


def placement(strategy: str = "dp", devices: int = 1, **sizes: int) -> Placement:
  """A strategy, or a composition, on emulated devices."""
  if devices == 1:
    return single_device()
  config = ShardingConfig(strategy, **sizes)
  shape = mesh_sizes(config, devices, admits("bert", model_config("bert"), VOCAB))
  return Placement(find_strategy(strategy), make_mesh(shape, jax.devices()[:devices]))


def model_config(variant: str = "bert", **changes: Any) -> ModelConfig:
  """The resolved configuration of a variant."""
  family, own = VARIANTS[variant]
  return resolve_model(family, SIZES | own | changes)


def make_model(variant: str, st: Placement | None = None, **changes: Any) -> Model:
  """A model; dropout only if `dropout` and `attention_dropout` are given."""
  changes = {"dropout": 0.0, "attention_dropout": 0.0} | changes
  return Model(VARIANTS[variant][0], model_config(variant, **changes), st or single_device(), VOCAB)


@functools.cache
def params_of(variant: str) -> Any:
  """Fresh parameters with every array disturbed, so that zeros and ones hide nothing."""
  params = jax.jit(make_model(variant).init)(jax.random.key(1))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return tree.unflatten(noisy)


def make_batch(variant: str, seed: int = 0, rows: int = BATCH, length: int = LENGTH) -> dict[str, np.ndarray]:
  """Two segments and some padding in each row; random ids, targets and weights."""
  draw = np.random.default_rng(seed)
  first = length // 2 - 1
  segments = np.array([1] * first + [2] * (length - first - 2) + [0] * 2, np.int32)
  positions = np.array([*range(first), *range(length - first - 2), 0, 0], np.int32)
  both = {"segment_ids": np.tile(segments, (rows, 1)), "positions": np.tile(positions, (rows, 1))}

  def ids(width: int = length) -> np.ndarray:
    return draw.integers(5, VOCAB, (rows, width)).astype(np.int32)

  weights = (draw.random((rows, length)) < 0.8).astype(np.float32) * (both["segment_ids"] > 0)
  batch: dict[str, np.ndarray] = {"rows": np.arange(100, 100 + rows, dtype=np.int32)}
  family = FAMILIES[VARIANTS[variant][0]]
  two_sides = family.encoder_decoder
  if not (family.causal or two_sides):
    places = np.sort(draw.permuted(np.tile(np.arange(length - 2), (rows, 1)), axis=1)[:, :4], axis=1)
    ones = np.ones((rows, 4), np.float32)
    return {
      **batch,
      **both,
      "inputs": ids(),
      "mlm_positions": places.astype(np.int32),
      "targets": ids(4),
      "weights": ones,
    }
  if family.causal:
    return {**batch, **both, "inputs": ids(), "targets": ids(), "weights": weights.astype(np.float32)}
  sides = {f"{side}_{name}": x for side in ("encoder", "decoder") for name, x in both.items()}
  tokens = {"encoder_inputs": ids(), "decoder_inputs": ids(), "decoder_targets": ids()}
  return {**batch, **sides, **tokens, "decoder_weights": weights.astype(np.float32)}


def fields_of(batch: dict[str, Any]) -> dict[str, Field]:
  """Fields of a batch's shapes; their kinds are not known."""
  return {name: Field(x.shape[1:], x.dtype, "", ("batch",) + (None,) * (x.ndim - 1)) for name, x in batch.items()}


def make_program(
  model: Model,
  batch: dict[str, Any],
  *,
  loss: LossConfig | None = None,
  seed: int = 0,
  steps: int = 10,
  **optimizer: Any,
) -> Program:
  """The program of a model and of batches like this one; by default AdamW with warm-up and weight decay."""
  chosen = {"learning_rate": 1e-2, "warmup_steps": 3, "weight_decay": 0.01} | optimizer
  loss = loss or LossConfig()
  train = TrainConfig(steps=steps, batch_size=len(next(iter(batch.values()))))
  config = Config(
    family=model.family, seed=seed, model=model.config, loss=loss, optimizer=OptimizerConfig(**chosen), train=train
  )
  return Program(config, model, fields_of(batch), make_loss(model, loss))
