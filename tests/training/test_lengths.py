"""Batches of different lengths: the same results as with padding, less work, one compiled step per length."""

import logging

import numpy as np
import pytest

from tests.support.launching import WithoutSamples, exact_rows, rows, tiny
from tests.support.tiny import make_batch, make_model, make_program
from tfm_jax.errors import UserError
from tfm_jax.objectives.objective import token_fields
from tfm_jax.training.compiled.lengths import at_length, batch_length, check_lengths
from tfm_jax.training.compiled.steps import Form, TrainSteps
from tfm_jax.training.loop import fit

LENGTHS = (8, 12, 16)
PLAN = (16, 8, 8, 12, 16, 12, 8, 16)  # the length of each step's batch, in turn


class Bucketed(WithoutSamples):
  """Pre-training whose batches are cut to a length that depends on the step."""

  lengths = LENGTHS

  def shape(self, batch, length):
    return {name: x[:, :length] if x.ndim == 2 else x for name, x in batch.items()}

  def train_batches(self, start, stop, rows):
    for step, batch in super().train_batches(start, stop, rows):
      yield step, self.shape(batch, PLAN[step % len(PLAN)])

  @property
  def eval_streams(self):
    streams = super().eval_streams
    return {"eval": lambda rows: (self.shape(b, PLAN[i + 1]) for i, b in enumerate(streams["eval"](rows)))}


class Padded(Bucketed):
  """The same tokens in rows of the declared length."""

  lengths = ()

  def shape(self, batch, length):
    kept = np.arange(batch["inputs"].shape[1]) < length
    return {name: (x * kept).astype(x.dtype) if x.ndim == 2 else x for name, x in batch.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "microbatches"), [("dp", 1), ("fsdp_tp", 2)])
def test_short_batches_train_like_padded_ones(experiment, tmp_path, caplog, strategy, microbatches):
  settings = {
    "sharding__strategy": strategy,
    "train__microbatches": microbatches,
    "train__batch_size": 16,
    "model__num_layers": 1,
  }
  settings |= {"model__dropout": 0.0, "model__attention_dropout": 0.0}  # the masks depend on the length
  config = tiny(experiment, **settings, train__steps=8, eval__every=4)
  with caplog.at_level(logging.INFO, "tfm_jax"):
    fit(config, tmp_path / "short", Bucketed)
  compiled = [message for message in caplog.messages if "train step for rows of" in message]
  assert [message.split(":")[0] for message in compiled] == [f"train step for rows of {n} tokens" for n in (8, 12)]
  fit(config, tmp_path / "padded", Padded)
  short, padded = exact_rows(tmp_path / "short"), exact_rows(tmp_path / "padded")
  assert list(short) == list(padded)
  for key, record in padded.items():
    for name in ("loss", "grad_norm"):
      if name in record:
        assert short[key][name] == pytest.approx(record[name], rel=1e-4 if name == "grad_norm" else 1e-5), (key, name)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(experiment, tmp_path):
  settings = {"model__num_layers": 1, "optimizer__schedule": "constant", "eval__every": 3, "checkpoint__every": 3}
  fit(tiny(experiment, train__steps=8, **settings), tmp_path / "whole", Bucketed)
  for steps in (3, 6, 8):
    fit(tiny(experiment, train__steps=steps, **settings), tmp_path / "parts", Bucketed)
  assert exact_rows(tmp_path / "parts") == exact_rows(tmp_path / "whole")


@pytest.mark.slow
def test_a_record_counts_the_work_of_its_own_batch(experiment, tmp_path):
  """Positions per second times seconds are the positions of the batch that was run; useful ones are its segments'."""
  fit(tiny(experiment, train__steps=4, eval__every=0), tmp_path / "run", Bucketed)
  for row in rows(tmp_path / "run"):
    if row["split"] == "train":
      tokens = row["tokens_per_second"] * row["step_seconds"]
      assert tokens == pytest.approx(8 * PLAN[row["step"] - 1])
      assert 0 < row["useful_tokens_per_second"] * row["step_seconds"] <= tokens + 1e-6
      assert row["tokens"] == 8 * sum(PLAN[: row["step"]])


def test_the_operations_of_a_short_step_are_those_of_a_program_of_its_length():
  program = make_program(make_model("gpt"), make_batch("gpt"))
  fields = token_fields(16, 250)
  program = type(program)(program.config, program.model, {**program.fields, **_declared(fields)}, program.loss)
  steps = TrainSteps(program, 1, None, (8, 16), "x")
  short_rows, rows = Form(16, 8), Form(16, 16)
  steps._programs[short_rows] = program.at_length(8, 16), None
  short = make_program(make_model("gpt"), make_batch("gpt", length=8))
  assert steps.work(short_rows, None).flops == short.flops.full < steps.work(rows, None).flops
  assert (steps.work(short_rows, None).tokens, steps.work(rows, None).tokens) == (16 * 8, 16 * 16)
  batch = make_batch("gpt", length=8)
  assert steps.work(short_rows, batch).useful == (batch["segment_ids"] != 0).sum() < 16 * 8


def _declared(fields):
  """The fields that a language model reads, with its labels."""
  along = fields["positions"]
  return fields | {"targets": along._replace(kind="labels"), "weights": along._replace(dtype=np.dtype(np.float32))}


FIELDS = token_fields(16, 100)


def test_a_field_of_another_length_stays_as_it_is():
  fields = FIELDS | {"decoder_inputs": token_fields(9, 100)["inputs"]}
  shorter = at_length(fields, 8, 16)
  assert shorter["inputs"].shape == shorter["segment_ids"].shape == (8,) and shorter["decoder_inputs"].shape == (9,)
  choices = {"inputs": FIELDS["inputs"]._replace(shape=(4, 16), axes=("batch", None, "seq"))}
  assert at_length(choices, 8, 16)["inputs"].shape == (4, 8)
  assert batch_length({"inputs": np.zeros((2, 4, 8))}, choices, (8, 16), "x") == 8


def test_a_length_that_is_not_declared_is_an_error(experiment, tmp_path):
  with pytest.raises(UserError, match="x: inputs has rows of 9 tokens, and `lengths` declares 8, 16"):
    batch_length({"inputs": np.zeros((2, 9))}, FIELDS, (8, 16), "x")
  with pytest.raises(UserError, match="must ascend"):
    check_lengths((16, 8), FIELDS, "x")
  with pytest.raises(UserError, match="ends with 32, which no field declares"):
    check_lengths((8, 32), FIELDS, "x")

  class Uneven(Bucketed):
    def shape(self, batch, length):
      return super().shape(batch, 8) | {"weights": batch["weights"]}

  with pytest.raises(UserError, match=r"objective\.name=causal: weights is float32\[8,16\], declared float32\[8,8\]"):
    fit(tiny(experiment, train__steps=2), tmp_path / "run", Uneven)
  assert not (tmp_path / "run").exists()
