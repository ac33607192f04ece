"""Comparing strategies: requests, batches, minima, shard maps."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.support.launching import tiny
from tfm_jax.compare.compiled.minimum import minimum_bytes
from tfm_jax.compare.compiled.result import result_of
from tfm_jax.compare.compiled.shard_map import shard_map_of
from tfm_jax.compare.measure import COMPARED, measure_reference
from tfm_jax.compare.program import build_program, random_batch, vocabulary_size, with_strategy
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import ROWS, along_row
from tfm_jax.sharding.strategy import STRATEGIES, ShardingConfig
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer
from tfm_jax.training.compiled.memory import bytes_per_device


def programs(experiment, strategy, family="gpt", **overrides):
  """The program of the tiny model under a strategy on eight devices."""
  config = with_strategy(tiny(experiment, family, **overrides), strategy)
  return build_program(config, jax.devices())


# --- names of strategies


def test_strategies_are_written_as_a_name_and_sizes(experiment):
  config = tiny(experiment, sharding__strategy="fsdp_tp", sharding__model=2)
  of = lambda name: with_strategy(config, name).sharding
  assert of("fsdp_tp") == ShardingConfig("fsdp_tp", model=2)  # the config's own sizes
  assert of("tp") == ShardingConfig("tp")  # no other strategy has them
  assert of("fsdp_tp:data=4") == ShardingConfig("fsdp_tp", data=4)
  assert of("hsdp:replica=2:data=4") == ShardingConfig("hsdp", replica=2, data=4)
  assert dataclasses.replace(with_strategy(config, "tp:model=2"), sharding=config.sharding) == config


@pytest.mark.parametrize("name", ["tp:model", "tp:model=", "tp:model=x", "tp:model=-2", "tp:heads=2", "tp:", "tp=2:4"])
def test_text_that_is_no_size_is_refused(experiment, name):
  with pytest.raises(UserError, match="is not NAME or NAME:AXIS=SIZE"):
    with_strategy(tiny(experiment), name)


# --- vocabularies


@pytest.mark.parametrize(
  ("tokenizer", "size"),
  [
    ({"kind": "sentencepiece", "vocab_size": 3000}, 3000),
    ({"kind": "byte", "vocab_size": 30_522}, 261),  # the recipe's size is that of another tokenizer
    ({"kind": "byte", "vocab_size": 0, "sentinels": 100}, 361),
    ({"kind": "char", "vocab_size": 30_522}, 100),
  ],
)
def test_the_vocabulary_has_the_size_that_training_would_have(experiment, tokenizer, size):
  config = tiny(experiment, **{f"tokenizer__{key}": value for key, value in tokenizer.items()})
  assert vocabulary_size(config) == size


def test_a_tokenizer_at_a_path_has_its_own_size(experiment, tmp_path):
  train_tokenizer(TokenizerConfig(kind="char"), ["abc"]).save(tmp_path / "saved")
  config = tiny(experiment, tokenizer__path=str(tmp_path / "saved"), tokenizer__kind="", tokenizer__vocab_size=30_522)
  assert vocabulary_size(config) == 5 + 3


def test_a_vocabulary_without_a_size_is_refused(experiment):
  with pytest.raises(UserError, match=r"tokenizer\.vocab_size=0: compare reads no corpus"):
    vocabulary_size(tiny(experiment, tokenizer__kind="sentencepiece", tokenizer__vocab_size=0))


# --- batches


@pytest.mark.parametrize("family", ["bert", "gpt", "t5", "transformer"])
def test_random_batches_have_the_declared_shapes_and_lie_in_the_vocabulary(experiment, family):
  program = programs(experiment, "dp", family)
  batch = random_batch(program.fields, 8, 3)
  assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
    name: ((8, *field.shape), field.dtype) for name, field in program.fields.items()
  }
  ids = [x for name, x in batch.items() if name.endswith(("inputs", "targets"))]
  assert len(ids) >= 2
  for x in ids:
    assert x.min() >= 0 and x.max() < program.model.vocab_size and len(np.unique(x)) > 10
  for name, x in batch.items():
    if name.endswith(("weights", "segment_ids")):
      assert (x == 1).all()
    elif name == "mlm_positions":
      assert (np.diff(x, axis=1) > 0).all() and x.max() < 16
    elif name.endswith("positions"):
      assert (x == np.arange(x.shape[1])).all()


@settings(max_examples=30)
@given(some.integers(0, 50), some.integers(0, 50), some.integers(1, 40), some.integers(11, 300))
def test_rows_of_different_steps_are_different_rows(first, second, rows, vocabulary):
  fields = {"inputs": along_row(6, "ids", vocabulary), "weights": along_row(6, "weights"), "rows": ROWS}
  one, other = (random_batch(fields, rows, step) for step in (first, second))
  assert len(np.unique(one["rows"])) == rows
  if first == second:
    jax.tree.map(np.testing.assert_array_equal, one, other)
  else:
    assert not set(one["rows"].tolist()) & set(other["rows"].tolist())


def test_batches_are_the_same_on_every_mesh(experiment):
  batches = [random_batch(programs(experiment, name).fields, 8, 1) for name in ("dp", "fsdp_tp")]
  config = tiny(experiment)
  batches.append(random_batch(build_program(with_strategy(config, "dp"), jax.devices()[:1]).fields, 8, 1))
  for other in batches[1:]:
    jax.tree.map(np.testing.assert_array_equal, batches[0], other)
  assert not np.array_equal(batches[0]["inputs"], random_batch(programs(experiment, "dp").fields, 8, 2)["inputs"])


@pytest.mark.slow
def test_the_reference_is_one_device_whatever_mesh_the_config_has(experiment):
  reference = measure_reference(tiny(experiment, sharding__strategy="dp", sharding__data=8, train__batch_size=8))
  assert all(len(reference[name]) == COMPARED for name in ("losses", "grad_norms"))


# --- the least that must be sent

# Two blocks of embed 32, 4 heads of 8, mlp 64, RMSNorm, no biases; 261 ids padded to 384, tied; float32.
PLAIN = {"model__norm": "rms", "model__bias": "none", "model__positions": "rotary", "train__batch_size": 8}
BLOCKS = 2 * (4 * 32 * 32 + 2 * 32 * 64) * 4
TABLE = 384 * 32 * 4
NORMS = (2 * 2 * 32 + 32) * 4
ROUTED = 2 * (4 * 32 * 32 + 32 * 8) * 4  # attention and router, without the experts
EXPERTS = 2 * 8 * 2 * 32 * 64 * 4
SENT = 8 * 5 * 32 * 4  # of the one row of a device: 5 places of each of 8 experts, for 16 tokens with 2 experts each
STREAM = 4 * 16 * 32 * 4  # half of the batch's rows, 16 tokens


@pytest.mark.parametrize(
  ("strategy", "changes", "expected"),
  [
    ("dp", {}, {"data": 2 * 7 / 8 * (BLOCKS + TABLE + NORMS)}),
    ("fsdp", {}, {"data": 7 / 8 * (3 * BLOCKS + 2 * TABLE + 2 * NORMS)}),
    ("tp", {}, {"data": 2 / 2 * ((BLOCKS + TABLE) / 4 + NORMS), "model": 2 * 3 / 4 * (2 * 4 + 2) * STREAM}),
    (
      "tp",
      {"model__remat": "full"},
      {"data": 2 / 2 * ((BLOCKS + TABLE) / 4 + NORMS), "model": 2 * 3 / 4 * (2 * 5 + 2) * STREAM},
    ),
    (
      "fsdp_tp",
      {},
      {"data": 1 / 2 * ((3 * BLOCKS + 2 * TABLE) / 4 + 2 * NORMS), "model": 2 * 3 / 4 * (2 * 4 + 2) * STREAM},
    ),
    (
      "hsdp",
      {},
      {
        "data": 3 / 4 * (3 * BLOCKS + 2 * TABLE),
        "replica": 2 / 2 * (BLOCKS + TABLE) / 4,
        "replica,data": 2 * 7 / 8 * NORMS,
      },
    ),
    ("fsdp", {"experts__count": 8}, {"data": 7 / 8 * (3 * (ROUTED + EXPERTS) + 2 * TABLE + 2 * NORMS)}),
    # The gradient is summed, or scattered once per microbatch, and what is updated in pieces is gathered.
    ("zero1", {}, {"data": 7 / 8 * (3 * (BLOCKS + TABLE) + 2 * NORMS)}),
    ("zero2", {}, {"data": 7 / 8 * (2 * (BLOCKS + TABLE) + 2 * NORMS)}),
    ("zero1", {"model__dtype": "bfloat16"}, {"data": 7 / 8 * ((2 / 2 + 1) * (BLOCKS + TABLE) + 2 / 2 * NORMS)}),
    ("tp_sp", {}, {"data": 2 / 2 * ((BLOCKS + TABLE) / 4 + NORMS), "model": 3 / 4 * (2 * 8 + 4) * STREAM}),
    (
      "tp_sp",  # remat gathers what attention and mlp read, and scatters the output of attention
      {"model__remat": "full"},
      {"data": 2 / 2 * ((BLOCKS + TABLE) / 4 + NORMS), "model": 3 / 4 * (2 * (8 + 3) + 4) * STREAM},
    ),
    (
      "ep",
      {"experts__count": 8},
      {"data": 7 / 8 * (2 * (ROUTED + TABLE + NORMS) + 2 * 4 * SENT)},
    ),
    ("fsdp_ep", {"experts__count": 8}, {"data": 7 / 8 * (3 * ROUTED + 2 * TABLE + 2 * NORMS + 2 * 4 * SENT)}),
  ],
)
def test_minimum_bytes_by_hand(experiment, strategy, changes, expected):
  minimum = minimum_bytes(programs(experiment, strategy, **PLAIN, **changes), 1)
  assert minimum == pytest.approx(expected)


def test_each_microbatch_gathers_and_scatters_the_blocks_anew(experiment):
  program = programs(experiment, "fsdp", **PLAIN)
  more = minimum_bytes(program, 2)["data"] - minimum_bytes(program, 1)["data"]
  assert more == pytest.approx(7 / 8 * 3 * BLOCKS)


def test_a_circular_pipeline_sends_its_layers_to_the_stages_that_work_on_them(experiment):
  """In two rounds half of the layers: stage 0 has parts 0 and 1 of four, and works on 0 and 2."""
  sizes = {"model__num_layers": 4, "train__batch_size": 16}
  row, layers = 16 * 32 * 4, 2 * BLOCKS + 4 * 2 * 32 * 4
  for rounds, iterations, moved in ((1, 4 + 1, 0.0), (2, 2 * 4 + 1, 2 * layers / 2 / 2)):
    program = programs(experiment, f"pp:stage=2:pipeline=4:rounds={rounds}", **PLAIN | sizes)
    assert program.schedule(1) == (2, 4, rounds)
    stream = 2 * 2 * iterations * row  # the microbatch and one that waits, forward and backward
    assert minimum_bytes(program, 1)["stage"] == pytest.approx(stream + moved + 2 / 2 * TABLE)


# --- where parameters lie


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_shard_map_covers_every_element_as_often_as_it_is_replicated(experiment, strategy):
  program = programs(experiment, strategy)
  for path, leaf in jax.tree.leaves_with_path(program.model.shapes()):
    shard_map = shard_map_of(program, "/".join(key.key for key in path))
    assert [p.device for p in shard_map.pieces] == list(range(8)) and shard_map.shape == leaf.shape
    covered = np.zeros(leaf.shape, int)
    for piece in shard_map.pieces:
      covered[tuple(slice(*ends) for ends in zip(piece.start, piece.stop, strict=True))] += 1
      assert piece.coordinates.keys() == program.model.placement.mesh.shape.keys()
    split = math.prod(program.model.placement.mesh.shape[a] for over in shard_map.spec for a in over.split(",") if a)
    assert (covered == 8 / split).all()
    coordinates = {tuple(p.coordinates.values()) for p in shard_map.pieces}
    assert len(coordinates) == 8


def test_the_shard_map_is_of_the_largest_parameter_of_the_blocks_unless_one_is_named(experiment):
  program = programs(experiment, "fsdp_tp")
  largest = shard_map_of(program, "")
  assert (largest.parameter, largest.axes) == ("blocks/mlp/wi", ("layers", "embed", "mlp"))
  assert largest.spec == ("", "data", "model")
  with pytest.raises(UserError, match=r"blocks/attn/w: .*blocks/attn/wq"):
    shard_map_of(program, "blocks/attn/w")


@pytest.mark.slow
def test_the_parts_of_memory_add_up_to_the_peak(experiment):
  program = programs(experiment, "fsdp")
  result = result_of(program, "fsdp", program.compile(1), 1, 0.5, "")
  m = result.memory_bytes
  assert m.parameters + m.optimizer + m.gradients + m.activations + m.temporaries == m.peak
  assert min(dataclasses.asdict(m).values()) >= 0
  assert m.parameters == bytes_per_device(program.state.params) and m.parameters == m.gradients
  assert 2 * m.parameters <= m.optimizer <= 2.1 * m.parameters + 64  # AdamW's two moments
