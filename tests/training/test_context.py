"""Sequences that devices share: the invariance contract, what is sent, and what is refused."""

import functools

import jax
import numpy as np
import pytest

from tests.support.tiny import make_batch, make_model, make_program
from tfm_jax.compare.program import build_program
from tfm_jax.errors import UserError
from tfm_jax.ops import tiles
from tfm_jax.sharding.placement import Placement, make_mesh, single_device
from tfm_jax.sharding.strategy import AXES, find_strategy
from tfm_jax.training.config import load, resolve
from tfm_jax.training.loss import LossConfig

STEPS = 10
DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1}


def placed(strategy="cp", attention="auto", **sizes):
  mesh = make_mesh(
    dict.fromkeys(AXES, 1) | sizes,
    jax.devices()[: int(np.prod(list(sizes.values())))],
  )
  return Placement(find_strategy(strategy), mesh, attention=attention)


@functools.cache
def train(variant, strategy="", attention="auto", sizes=()):
  """(initial parameters, losses, gradient norms) of a run with both dropouts, label smoothing and z-loss."""
  st = placed(strategy, attention, **dict(sizes)) if strategy else single_device()
  model = make_model(variant, st, **DROPOUT)
  batches = [make_batch(variant, seed) for seed in range(STEPS)]
  extras = LossConfig(label_smoothing=0.1, z_loss=1e-3)
  program = make_program(model, batches[0], loss=extras, seed=5, steps=STEPS)
  fresh = jax.jit(model.init, out_shardings=model.shardings())(jax.random.key(0))
  first = jax.tree.map(np.asarray, fresh)
  state, step = program.init(fresh), program.train_step(1)
  stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
  place = lambda x: jax.device_put(x, st.sharding((None, "batch", "seq")[: x.ndim]))
  state, metrics = jax.jit(lambda s, b: jax.lax.scan(step, s, b))(state, jax.tree.map(place, stacked))
  return first, np.asarray(metrics["objective"]), np.asarray(metrics["grad_norm"])


FOUR, THREE = (("data", 2), ("context", 4)), (("data", 2), ("model", 2), ("context", 2))
RUNS = [
  ("gpt", "cp", "auto", FOUR),
  ("t5", "cp", "auto", FOUR),
  ("bert", "cp", "auto", FOUR),
  ("modernbert", "cp", "auto", FOUR),
  ("experts", "cp", "auto", FOUR),
  ("t5", "tp+cp", "auto", THREE),
  ("bert", "cp+tp_sp", "auto", THREE),
  ("gpt", "fsdp+cp", "ulysses", FOUR),
]


@pytest.mark.slow_but("gpt-cp-auto-sizes0", "t5-cp-auto-sizes1")
@pytest.mark.parametrize(("variant", "strategy", "attention", "sizes"), RUNS)
def test_devices_that_share_sequences_train_like_one(variant, strategy, attention, sizes, monkeypatch):
  monkeypatch.setattr(tiles, "TILE", 2)
  first, losses, norms = train(variant)
  first_8, losses_8, norms_8 = train(variant, strategy, attention, sizes)
  jax.tree.map(np.testing.assert_array_equal, first, first_8)
  np.testing.assert_allclose(losses_8, losses, rtol=1e-5)
  np.testing.assert_allclose(norms_8, norms, rtol=1e-4)


REFUSED = {
  "a recurrent family": (
    "configs/lstm_lm.py",
    {},
    r"sharding\.context=4 cuts sequences.*family=lstm",
  ),
  "an odd length": (
    "configs/quickstart.py",
    {"data.seq_len": 126},
    r"data\.seq_len=126 .* 4 parts .*: choose 124 or 128$",
  ),
  "a causal length": (
    "configs/decoder.py",
    {"data.seq_len": 1012},
    r"seq_len=1012 .* 8 parts .*: choose 1008 or 1016$",
  ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shared_is_refused_in_one_line(case):
  path, changes, words = REFUSED[case]
  config = resolve(
    load(
      path,
      {"sharding.strategy": "cp", "sharding.context": 4, "train.batch_size": 8} | changes,
    )
  )
  with pytest.raises(UserError, match=words) as error:
    build_program(config, jax.devices())
  assert "\n" not in str(error.value)
