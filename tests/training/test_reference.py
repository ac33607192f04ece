"""Reference curves: a run of the same settings says how far it is from the committed one."""

import json
from pathlib import Path

import pytest

from tests.support.launching import ROOT, SHORT_RUN, quick_fit, tiny
from tfm_jax.errors import UserError
from tfm_jax.runtime.command import parse
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.training import reference
from tfm_jax.training.config import all_keys, from_stored, load, resolve, to_dict
from tfm_jax.training.reference import losses, reference_lines, write_reference

SETTINGS = SHORT_RUN | {"train__steps": 4}


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
  """A run directory as `fit` leaves it, as far as curves are concerned."""
  run = RunDirectory(tmp_path_factory.mktemp("finished") / "run")
  run.create()
  run.write_config(to_dict(resolve(tiny(experiment, **SETTINGS))))
  entry = {"fingerprints": {"data": "a", "tokenizer": "b"}, "versions": {"tfm_jax": "0.1.0", "jax": "0.12"}}
  run.append_start(entry | {"devices": {"count": 1, "kind": "cpu", "processes": 1}})
  writer = run.open_metrics()
  for step, loss in ((0, 5.5), (2, 4.25), (4, 4.0)):
    writer.write({"step": step, "split": "train", "loss": 9.0})
    writer.write({"step": step, "split": "eval", "loss": loss})
  writer.close()
  return run


@pytest.fixture
def curves(finished, tmp_path, monkeypatch):
  """A folder of curves with that of the finished run."""
  monkeypatch.setattr(reference, "CURVES", tmp_path / "curves")
  write_reference(finished, tmp_path / "curves" / "tiny.json")
  return tmp_path / "curves" / "tiny.json"


def lines(finished, experiment, **changes):
  return reference_lines(finished, resolve(tiny(experiment, **SETTINGS | changes)))


def test_a_run_of_the_same_settings_is_compared_wherever_its_text_lies(finished, curves, experiment):
  content = json.loads(curves.read_text())
  assert [int(step) for step in content["losses"]] == [0, 2, 4]
  assert content["config"]["seed"] == 0 and "path" not in content["config"]["data"]
  assert str(experiment.parent) not in curves.read_text()
  (line,) = lines(finished, experiment)
  assert losses(finished) == {0: 5.5, 2: 4.25, 4: 4.0}
  assert line == (
    "reference curve (tiny.json, seed 0): held-out loss 4.0000 at step 4, here 4.0000 (+0.00%); "
    "largest difference +0.00%, at step 2"
  )
  content["losses"] = {"2": content["losses"]["2"] * 0.8, "4": content["losses"]["4"] * 1.1, "6": 1.0}
  curves.write_text(json.dumps(content))
  (line,) = lines(finished, experiment, seed=7, sharding__strategy="fsdp", eval__every=1, data__path="elsewhere.txt")
  assert "(-9.09%); largest difference +25.00%, at step 2" in line


@pytest.mark.parametrize(
  "changes", [{"optimizer__learning_rate": 0.1}, {"train__steps": 5}, {"eval__batches": 2}, {"model__num_layers": 2}]
)
def test_a_run_of_other_settings_is_not_compared(changes, finished, curves, experiment):
  assert lines(finished, experiment, **changes) == []


def test_a_run_on_other_data_says_so(finished, curves, experiment):
  content = json.loads(curves.read_text())
  content["fingerprints"]["data"] = "other"
  curves.write_text(json.dumps(content))
  (line,) = lines(finished, experiment)
  assert line.endswith("not compared, as the data of this run differ")


@pytest.mark.parametrize(
  "damage", ['{"config": {"see', "[]", "5", "{}", '{"config": []}', '{"config": {"famly": "bert"}}', "no losses"]
)
def test_a_damaged_file_is_logged_and_ends_nothing(damage, finished, curves, experiment, caplog):
  whole = json.loads(curves.read_text())
  (curves.parent / "a.json").write_text(
    json.dumps({**whole, "losses": {"two": 1.0}}) if damage == "no losses" else damage
  )
  assert len(lines(finished, experiment)) == 1  # the other file is read
  (message,) = caplog.messages
  assert "a.json is not a reference curve: " in message and "\n" not in message


def test_a_curve_is_written_whole_or_not_at_all(finished, curves, monkeypatch):
  before = curves.read_text()

  def full(self, text, **options):
    self.write_bytes(text[:10].encode())
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(Path, "write_text", full)
  with pytest.raises(UserError, match=r"cannot write --out=.*: No space left"):
    write_reference(finished, curves)
  assert curves.read_text() == before


def test_only_a_finished_run_from_its_seed_becomes_a_reference(finished, tmp_path, monkeypatch):
  longer = finished.read_config()
  longer["train"]["steps"] = 9
  monkeypatch.setattr(RunDirectory, "read_config", lambda self: longer)
  with pytest.raises(UserError, match="no evaluation of its last step, 9"):
    write_reference(finished, tmp_path / "x.json")
  longer["train"]["steps"], longer["init_from"] = 4, "runs/other"
  with pytest.raises(UserError, match="started from another run"):
    write_reference(finished, tmp_path / "x.json")
  assert not (tmp_path / "x.json").exists()


@pytest.mark.slow
def test_the_end_of_a_run_says_it(caplog, experiment, tmp_path, monkeypatch):
  monkeypatch.setattr(reference, "CURVES", tmp_path / "curves")
  quick_fit(tiny(experiment, **SETTINGS), tmp_path / "run")
  assert (
    reference.main(
      parse([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'curves' / 'tiny.json'}"], ("workdir", "out"))
    )
    is None
  )
  with caplog.at_level("INFO", "tfm_jax"):
    quick_fit(tiny(experiment, **SETTINGS, seed=1), tmp_path / "other")
  (line,) = [message for message in caplog.messages if message.startswith("reference curve")]
  assert line.startswith("reference curve (tiny.json, seed 0): held-out loss") and "(+0.00%)" not in line


COMMITTED = sorted((ROOT / "configs" / "curves").glob("*.json"))


def test_there_are_committed_curves():
  """Without one, the next test would be skipped, and no run would ever be compared."""
  assert {"quickstart", "shakespeare_char", "speedrun"} <= {file.stem for file in COMMITTED}


@pytest.mark.parametrize("file", COMMITTED, ids=[file.stem for file in COMMITTED])
def test_committed_curves_are_those_of_the_config_of_their_name(file):
  content = json.loads(file.read_text())
  stored, config = from_stored(content["config"]), resolve(load(str(ROOT / "configs" / f"{file.stem}.py")))
  assert reference._same(stored, config), file.stem
  assert str(config.train.steps) in content["losses"] and to_dict(stored).keys() == to_dict(config).keys()
  assert len(file.read_text()) < 8000
  assert set(reference._FREE) | set(reference._FIXED) <= set(all_keys())
