"""What later starts take from a run: load_run, init_from, and settings that may or may not change."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from tests.support.launching import (
  assert_same_state,
  exact_rows,
  quick_fit,
  state,
  tiny,
  write_text,
)
from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.table import load_tokenizer
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.config import from_dict
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit

# Reading a run.


@pytest.mark.parametrize("strategy", [None, "fsdp_tp"])
def test_load_run(finished, strategy):
  run = load_run(finished[2], strategy=strategy)
  assert run.step == 12
  assert "step=12" in repr(run) and len(repr(run)) < 120  # not the parameters
  assert_same_state(jax.device_get(run.params), state(finished[2])["params"])
  count = len(jax.tree.leaves(run.params)[0].sharding.device_set)
  assert count == (1 if strategy is None else jax.device_count())
  split = any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(run.params))
  assert split == (strategy not in (None, "dp"))
  text = "the cat sat on a"
  assert run.tokenizer.decode(run.tokenizer.encode(text)) == text
  ids = np.resize(run.tokenizer.encode(text), (8, 16))
  logits = run.model.logits(run.params, {"inputs": ids})
  assert logits.shape == (8, 16, run.tokenizer.vocab_size) and np.isfinite(logits).all()


def test_load_run_at_a_step(finished):
  assert load_run(finished[2], step=5).step == 5
  with pytest.raises(UserError, match=r"no checkpoint of step 7.*5, 10, 12"):
    load_run(finished[2], step=7)


def test_load_run_of_what_is_no_run(tmp_path):
  with pytest.raises(UserError, match=r"no run in .*config\.json"):
    load_run(tmp_path)


def test_load_run_of_a_mistyped_name_names_the_run_beside_it(finished):
  with pytest.raises(UserError, match=rf"config\.json; did you mean {finished[2]}\?$"):
    load_run(finished[2].parent / "rum")


def test_a_run_without_its_tokenizer(experiment, finished, copy, tmp_path):
  """No other tokenizer is trained in its place: its ids would mean something else."""
  shutil.rmtree(copy / "tokenizer")
  for use in (
    lambda: load_run(copy),
    lambda: fit(tiny(experiment), copy),
    lambda: fit(tiny(experiment, init_from=str(copy)), tmp_path / "other"),
  ):
    with pytest.raises(UserError, match=r"run/tokenizer is missing: put the tokenizer of the run back") as caught:
      use()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_init_from_takes_the_parameters_alone(experiment, finished, tmp_path):
  other = write_text(tmp_path / "other.txt", seed=3)
  config = tiny(
    experiment,
    init_from=str(finished[2]),
    optimizer__learning_rate=0.0,
    train__steps=2,
    data__path=str(other),
    tokenizer__kind="char",
  )
  quick_fit(config, tmp_path / "run")
  assert_same_state(state(tmp_path / "run")["params"], state(finished[2])["params"])
  assert int(state(tmp_path / "run")["step"]) == 2
  assert (
    load_tokenizer(tmp_path / "run" / "tokenizer").fingerprint == load_tokenizer(finished[2] / "tokenizer").fingerprint
  )


@pytest.mark.slow
def test_init_from_resumes_without_its_source(experiment, finished, tmp_path):
  source = tmp_path / "source"
  shutil.copytree(finished[2], source)
  config = tiny(experiment, init_from=str(source), train__steps=4, checkpoint__every=2)
  quick_fit(config, tmp_path / "run")
  shutil.rmtree(source)
  quick_fit(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=5)), tmp_path / "run")
  assert int(state(tmp_path / "run")["step"]) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    ({"model__num_layers": 1}, r"blocks/\S+ has shape \(2, "),
    ({"family": "bert", "objective__name": "mlm"}, "has no embed/norm"),
  ],
)
def test_init_from_another_model_is_refused(experiment, finished, overrides, named, tmp_path):
  with pytest.raises(UserError, match=named):
    quick_fit(tiny(experiment, init_from=str(finished[2]), **overrides), tmp_path / "run")
  assert not (tmp_path / "run").exists()


# Starting a run again.


@pytest.mark.slow
def test_what_may_change(experiment, copy):
  changes = {"train__steps": 13, "train__log_every": 2, "train__profile_at": 0, "data__prefetch": 0}
  changes |= {"eval__every": 0, "eval__batches": 1, "checkpoint__every": 0, "checkpoint__keep": 1}
  changes |= {"sharding__strategy": "fsdp_tp", "sharding__model": 2}
  quick_fit(tiny(experiment, **changes), copy)
  assert int(state(copy)["step"]) == 13
  assert Checkpoints(copy / "checkpoints").steps() == [13]


@pytest.mark.slow
def test_a_run_without_a_checkpoint_starts_anew_with_other_settings(experiment, copy, tmp_path, caplog):
  """As after a kill before the first checkpoint: tokenizer, records and run.json are written anew."""
  shutil.rmtree(copy / "checkpoints")
  (copy / "checkpoints" / "5" / "params").mkdir(parents=True)  # a save that was killed
  config = tiny(experiment, "t5", seed=4, train__steps=2, tokenizer__sentinels=12)
  with caplog.at_level("INFO", "tfm_jax"):
    fit(config, copy)
  assert "ended before its first checkpoint: it starts anew" in caplog.text
  quick_fit(config, tmp_path / "fresh")
  assert exact_rows(copy) == exact_rows(tmp_path / "fresh")
  assert_same_state(state(copy), state(tmp_path / "fresh"))
  stored = from_dict(json.loads((copy / "config.json").read_text()))
  assert (stored.family, stored.seed) == ("t5", 4) and len(load_tokenizer(copy / "tokenizer").sentinel_ids) == 12
  assert len(json.loads((copy / "run.json").read_text())) == 1


@pytest.mark.slow
def test_a_run_without_a_checkpoint_starts_anew_with_other_text(experiment, tmp_path):
  text = write_text(tmp_path / "text.txt")
  config = tiny(experiment, data__path=str(text), train__steps=1)
  quick_fit(config, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints")
  write_text(text, seed=1)
  fit(config, tmp_path / "run")
  assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [1]


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("seed", 1),
    ("train.batch_size", 16),
    ("model.dropout", 0.2),
    ("optimizer.learning_rate", 1e-3),
    ("data.seq_len", 8),
    ("objective.mask_rate", 0.2),
    ("tokenizer.sentinels", 3),
    ("loss.z_loss", 0.1),
    ("init_from", "somewhere"),
  ],
)
def test_what_may_not_change_is_refused_by_name(experiment, finished, key, value):
  before = (finished[2] / "metrics.jsonl").read_bytes(), (finished[2] / "run.json").read_bytes()
  with pytest.raises(UserError, match=rf"other settings of {key}:"):
    quick_fit(tiny(experiment, **{key.replace(".", "__"): value, "train__steps": 20}), finished[2])
  assert before == ((finished[2] / "metrics.jsonl").read_bytes(), (finished[2] / "run.json").read_bytes())


def test_changed_text_is_refused(experiment, tmp_path):
  text = write_text(tmp_path / "text.txt")
  config = tiny(experiment, data__path=str(text), train__steps=1)
  quick_fit(config, tmp_path / "run")
  write_text(text, seed=1)
  with pytest.raises(UserError, match=r"the data of the run in .* has changed"):
    quick_fit(tiny(experiment, data__path=str(text), train__steps=2), tmp_path / "run")


@pytest.mark.slow
def test_the_number_of_microbatches_is_stored_and_reused(experiment, tmp_path, monkeypatch):
  from tfm_jax.training.compiled import memory

  config = tiny(experiment, train__batch_size=32, train__steps=2, eval__batches=1)

  peaks = itertools.chain([3_000_000.0], itertools.repeat(1_000_000.0))  # the whole batch is too large
  monkeypatch.setattr(memory, "device_limit", lambda device: 2_600_000)
  monkeypatch.setattr(memory, "peak_bytes", lambda compiled, platform: next(peaks))
  quick_fit(config, tmp_path / "run")
  (start,) = json.loads((tmp_path / "run" / "run.json").read_text())
  assert start["microbatches"] > 1
  monkeypatch.setattr(memory, "device_limit", lambda device: 1 << 40)  # now all would fit at once
  quick_fit(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4)), tmp_path / "run")
  starts = json.loads((tmp_path / "run" / "run.json").read_text())
  assert [entry["microbatches"] for entry in starts] == [start["microbatches"]] * 2
