"""Pipelines: a step in stages is a step on one device, whatever surrounds the stages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import make_batch, make_model, make_program
from tests.training.test_step import alone, train
from tfm_jax.errors import UserError
from tfm_jax.sharding.pipeline import Schedule, pipelined, schedule
from tfm_jax.sharding.placement import Placement, make_mesh
from tfm_jax.sharding.strategy import AXES, ShardingConfig, find_strategy
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.config import load, resolve


def staged(stage, model=1, pipeline=0, strategy="pp", rounds=1):
  """A pipeline on eight devices; the rest of them splits the batch."""
  sizes = dict.fromkeys(AXES, 1) | {"stage": stage, "model": model, "data": 8 // stage // model}
  return Placement(find_strategy(strategy), make_mesh(sizes), pipeline, rounds)


CASES = [
  ("gpt", {}, {"stage": 4}),
  ("gpt", {}, {"stage": 2, "rounds": 2}),
  ("gpt", {"num_layers": 8, "remat": "full"}, {"stage": 2, "rounds": 2, "model": 2, "strategy": "fsdp+tp+pp"}),
  ("t5", {"num_layers": 4, "remat": "dots"}, {"stage": 2, "rounds": 2, "strategy": "fsdp+pp"}),
  ("bert", {}, {"stage": 2, "model": 2, "strategy": "tp_sp+pp"}),
  ("modernbert", {"window.size": 3, "window.global_every": 2}, {"stage": 2, "strategy": "zero2+pp"}),
  ("experts", {}, {"stage": 4, "strategy": "fsdp+pp"}),
]
NAMES = [f"{variant}-{'-'.join(map(str, sizes.values()))}" for variant, _, sizes in CASES]


@pytest.mark.slow_but(*NAMES[:2])
@pytest.mark.parametrize(("variant", "changes", "sizes"), CASES, ids=NAMES)
def test_a_pipeline_trains_like_one_device(variant, changes, sizes):
  changes = {"num_layers": 4} | changes
  first, losses, norms, _ = alone(variant, num_layers=changes["num_layers"])
  first_8, losses_8, norms_8, state = train(variant, st=staged(**sizes), **changes)
  jax.tree.map(np.testing.assert_array_equal, first, first_8)
  np.testing.assert_allclose(losses_8, losses, rtol=1e-5)
  np.testing.assert_allclose(norms_8, norms, rtol=1e-4)
  weight = state.params.get("encoder", state.params)["blocks"]["attn"]["wq"]
  assert weight.addressable_shards[0].data.shape[0] == changes["num_layers"] // sizes["stage"]


@pytest.mark.parametrize(("stages", "microbatches", "rounds"), [(4, 8, 1), (4, 4, 2), (2, 8, 2), (2, 4, 4)])
def test_what_a_stage_computes_without_a_microbatch_reaches_nothing(stages, microbatches, rounds):
  """Small integers in float32 are exact, and so is the comparison with layers one after the other."""
  st, draw = staged(stages, model=4 // stages, strategy="tp+pp"), np.random.default_rng(0)
  integers = lambda *shape: draw.integers(-2, 3, shape).astype(np.float32)
  layers, x, rows, weights = np.sign(integers(8, 3)), integers(16, 3), integers(16, 1), integers(8, 16)

  def layer(x, now, rows):
    w, index = now
    x = x * w[None] + (index + 1) * rows
    return x % 64, x.sum(1)

  def run(layers, first, x, rows):
    depth = len(layers)
    return jax.lax.scan(lambda x, now: layer(x, now, rows), x, (layers, first + jnp.arange(depth)))

  def total(stack):
    def loss(layers, x, rows):
      y, sums = stack(layers, x, rows)
      return (y**2).sum() + (weights * sums).sum(), (y, sums)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(layers, x, rows)

  assert schedule(st, 16) == Schedule(stages, 8)
  plain = total(lambda layers, x, rows: run(layers, 0, x, rows))
  plan = Schedule(stages, microbatches, rounds)
  jax.tree.map(np.testing.assert_array_equal, plain, total(lambda *args: pipelined(run, st, plan, *args)))


@pytest.mark.parametrize(
  ("pipeline", "rows", "expected"),
  [
    (0, 128, Schedule(4, 16)),  # four times the stages
    (0, 24, Schedule(4, 12)),  # as far as the rows divide
    (8, 128, Schedule(4, 8)),
    (0, 8, Schedule(4, 4)),
    (0, 12, None),  # not as many rows in each part of the batch
  ],
)
def test_the_schedule_follows_from_rows_and_stages(pipeline, rows, expected):
  assert schedule(staged(4, pipeline=pipeline), rows) == expected


def test_the_bubble_is_that_of_gpipe_and_with_rounds_that_of_a_circular_schedule():
  assert Schedule(4, 8, 4).bubble == pytest.approx((4 - 1) / (4 * 8 + 4 - 1))
  assert Schedule(4, 16).bubble == pytest.approx((4 - 1) / (16 + 4 - 1)) and Schedule(2, 2).bubble == 1 / 3


@pytest.mark.parametrize(
  ("sharding", "config", "message"),
  [
    ({"stage": 4}, "quickstart.py", "sharding.stage=4 does not divide 2, .* layers"),
    ({"stage": 2, "pipeline": 3}, "quickstart.py", "sharding.pipeline=3 is not a multiple of the 2 stages"),
    ({"stage": 2, "pipeline": 24}, "quickstart.py", "sharding.pipeline=24: its microbatches do not divide the 16 rows"),
    ({"stage": 1, "pipeline": 4}, "quickstart.py", "sharding.pipeline=4 .* one stage here"),
    ({"stage": 1, "rounds": 2}, "quickstart.py", "sharding.rounds=2 .* one stage here, set it to 1"),
    (
      {"stage": 2, "rounds": 2},
      "quickstart.py",
      "sharding.rounds=2 times 2 stages do not divide the 2 layers: .* of 1$",
    ),
    ({"stage": 2, "rounds": 0}, "quickstart.py", "sharding.rounds=0 is no number of rounds"),
    ({"stage": 2}, "lstm_lm.py:lstm", "family=lstm are recurrent and form no pipeline"),
  ],
)
def test_an_impossible_pipeline_is_refused_in_a_line(sharding, config, message):
  changes = {"train.batch_size": 64, "model.num_layers": 2, "model.embed_dim": 64}
  config = load(f"configs/{config}", changes)
  config = dataclasses.replace(resolve(config), sharding=ShardingConfig("pp", **sharding))
  with pytest.raises(UserError, match=message) as error:
    build_model(config, 300)
  assert "\n" not in str(error.value)


def test_a_checkpoint_of_a_pipeline_is_one_of_any_strategy(tmp_path):
  """Stored as stacked layers in their order, and restored under one device and back."""
  programs = [make_program(make_model("gpt", st, num_layers=4), make_batch("gpt")) for st in (staged(4), None)]
  first = programs[0].init()._asdict()
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, first)
    checkpoints.wait()
    single = checkpoints.restore(1, programs[1].state._asdict())
    checkpoints.save(2, single)
    checkpoints.wait()
    back = checkpoints.restore(2, programs[0].state._asdict())
  jax.tree.map(np.testing.assert_array_equal, first, single)
  jax.tree.map(np.testing.assert_array_equal, first, back)
  jax.tree.map(lambda x, y: x.sharding == y.sharding or pytest.fail(str(x.sharding)), first, back)


def test_idle_stages_are_not_counted_as_work_of_the_model():
  programs = [make_program(make_model("gpt", st, num_layers=4), make_batch("gpt")) for st in (staged(4), None)]
  assert programs[0].flops == pytest.approx(programs[1].flops, rel=1e-9)


def test_one_row_and_hidden_states_need_no_pipeline():
  """They are computed by the plain scan, with the layers gathered."""
  results = []
  for st in (staged(4), None):
    model = make_model("gpt", st, num_layers=4)
    params = jax.jit(model.init, out_shardings=model.shardings())(jax.random.key(0))
    batch = make_batch("gpt", rows=1)
    results.append(jax.jit(lambda p, model=model, batch=batch: model.hidden_states(p, batch))(params))
  np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
