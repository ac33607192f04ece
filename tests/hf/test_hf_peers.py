"""Import and export of fresh random models against transformers itself, live: `pytest -m peers`, see peers.py."""

import dataclasses
import json
import random
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.hf_cases import CASES, TRAINED, find
from tests.support.hf_compare import (
  ALIKE,
  LIVE_GRADIENTS,
  LIVE_OUTPUTS,
  LOSS,
  check_gradients,
  check_outputs,
  check_same_tensors,
  check_whole_gradients,
  compute,
  read_expected,
)
from tests.support.launching import environment, write_text
from tests.support.peers import peer_python
from tfm_jax.hf.exporting import export_checkpoint
from tfm_jax.hf.importing import import_checkpoint
from tfm_jax.training.config import load
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit

pytestmark = [
  pytest.mark.peers,
  pytest.mark.skipif(
    peer_python() is None, reason="no torch and transformers: set TFM_PEERS_PYTHON to a python with them"
  ),
]

SCRIPT = Path(__file__).parents[1] / "support/make_hf_golden.py"
# transformers 5 ties the two ends of every T5, and says so where a file has them apart.
TIES_T5 = "specifies to tie shared.weight to lm_head.weight, but both are present in the checkpoints"
# Of transformers' own training alone, or of no consequence: the types of the layers replace `global_...`.
FORGOTTEN = {"transformers_version", "dtype", "global_attn_every_n_layers"}
FORGOTTEN |= {"initializer_range", "initializer_factor", "initializer_cutoff_factor"}


def ask(*arguments: str | Path) -> None:
  """The other interpreter runs make_hf_golden.py."""
  python = peer_python()
  assert python is not None
  done = subprocess.run([python, str(SCRIPT), *map(str, arguments)], env=environment(), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@dataclasses.dataclass(frozen=True)
class Peers:
  """made/NAME by transformers, run/NAME imported from it, exported/NAME exported from that and read by transformers."""

  folder: Path
  seed: int
  failures: dict[str, Exception]

  def made(self, name: str) -> Path:
    if name in self.failures:
      raise self.failures[name]
    return self.folder / "made" / name

  def run(self, name: str) -> Path:
    return self.folder / "run" / name

  def exported(self, name: str) -> Path:
    return self.folder / "exported" / name

  def report(self, name: str) -> dict[str, Any]:
    report = json.loads((self.folder / "exported" / f"{name}.json").read_text())
    assert "error" not in report, report
    return report

  def outputs(self, name: str) -> dict[str, np.ndarray]:
    with np.load(self.folder / "exported" / f"{name}.npz") as file:
      return {key: file[key] for key in file.files}


def make(folder: Path, names: Iterable[str], prepare: Any) -> Peers:
  """Fresh models of these names; `prepare` (peers, name) imports and exports one."""
  peers = Peers(folder, random.SystemRandom().randrange(2**30), {})
  ask("make", f"--out={folder / 'made'}", f"--seed={peers.seed}", *names)
  (folder / "exported").mkdir()
  for name in names:
    try:
      prepare(peers, name)
    except Exception as error:  # that of one case, to be raised by its tests
      peers.failures[name] = error
  ask("load", f"--made={folder / 'made'}", f"--exported={folder / 'exported'}")
  return peers


@pytest.fixture(scope="module")
def peers(tmp_path_factory) -> Peers:
  def there_and_back(peers: Peers, name: str) -> None:
    import_checkpoint(peers.made(name), peers.run(name))
    export_checkpoint(peers.run(name), peers.exported(name))

  return make(tmp_path_factory.mktemp("peers"), list(CASES), there_and_back)


@pytest.mark.parametrize("name", CASES)
def test_outputs_loss_and_all_gradients_are_those_of_transformers(name, peers):
  case, expected = CASES[name], read_expected(peers.made(name))
  run = load_run(peers.run(name))
  ours = compute(run.model, run.params, case, expected.inputs)
  print(f"made with --seed={peers.seed}")
  check_outputs(case, expected, ours.outputs, LIVE_OUTPUTS)
  assert ours.loss == pytest.approx(expected.loss, abs=LOSS, rel=LOSS)
  check_gradients(expected, ours.gradients, LIVE_GRADIENTS)
  check_whole_gradients(load_file(peers.made(name) / "gradients.safetensors"), ours.gradients, LIVE_GRADIENTS)


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_the_export_as_what_was_imported(name, peers):
  """Bit for bit, and without a warning."""
  made, report = peers.made(name), peers.report(name)
  expected = read_expected(made)
  assert report["state"] == []
  assert_warnings(name, report["warnings"])
  # One function under another name is computed another way.
  atol = 1e-5 if ALIKE.keys() & set(map(str, CASES[name].options.values())) else 0
  for key, x in peers.outputs(name).items():
    np.testing.assert_allclose(x, expected.outputs[key], atol=atol, rtol=0)
  check_same_tensors(load_file(made / "model.safetensors"), load_file(peers.exported(name) / "model.safetensors"))


@pytest.mark.parametrize("name", CASES)
def test_transformers_reads_the_same_configuration_from_the_export(name, peers):
  peers.made(name)
  assert_same_config(name, peers.report(name)["config"])


@pytest.mark.parametrize("name", CASES)
def test_transformers_reads_the_same_special_tokens_from_the_export(name, peers):
  peers.made(name)
  assert {key: pair for key, pair in peers.report(name)["config"].items() if key.endswith("_token_id")} == {}


def assert_same_config(name: str, differences: dict[str, list[Any]]) -> None:
  """None but in what says the same; [imported, exported] of each key. Special tokens aside."""
  width = find(name).options.get("n_embd", 0)
  pairs = {key: [ALIKE.get(str(x), x) for x in pair] for key, pair in differences.items() if key not in FORGOTTEN}
  assert {
    key: pair
    for key, pair in pairs.items()
    if pair[0] != pair[1] and not key.endswith("_token_id") and (key, pair) != ("n_inner", [None, 4 * width])
  } == {}


def assert_warnings(name: str, messages: list[str]) -> None:
  """None, but for what transformers always says."""
  if find(name).free_head:
    assert len(messages) == 1 and TIES_T5 in messages[0]
  else:
    assert messages == []


OBJECTIVES = {"trained_bert": "mlm", "trained_gpt2": "causal", "trained_t5": "span_corruption"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Peers:
  """Imported, trained for ten steps on eight devices, exported."""
  folder = tmp_path_factory.mktemp("trained")
  text = write_text(folder / "text.txt")

  def train(peers: Peers, name: str) -> None:
    imported = folder / "imported" / name
    import_checkpoint(peers.made(name), imported)
    changes = {
      "init_from": str(imported),
      "model.dtype": "float32",
      "objective.name": OBJECTIVES[name],
      "tokenizer.kind": "byte",
      "tokenizer.sentinels": 10 if name == "trained_t5" else 0,
      "data.source": "text",
      "data.path": str(text),
      "data.seq_len": 16,
      "sharding.strategy": "fsdp",
      "train.batch_size": 16,
      "train.steps": 10,
      "train.log_every": 1,
      "eval.batches": 1,
      "checkpoint.every": 10,
      "optimizer.learning_rate": 3e-3,
      "optimizer.warmup_steps": 2,
    }
    fit(load(str(imported), changes), peers.run(name))
    export_checkpoint(peers.run(name), peers.exported(name))

  return make(folder, list(TRAINED), train)


@pytest.mark.parametrize("name", TRAINED)
def test_what_was_trained_on_eight_devices_is_the_same_model_in_transformers(name, trained):
  made = trained.made(name)
  expected, run = read_expected(made), load_run(trained.run(name))
  assert run.step == 10
  theirs = trained.outputs(name)
  assert np.abs(theirs["logits"] - expected.outputs["logits"]).max() > 1e-2, "it has learnt nothing"
  ours = compute(run.model, run.params, TRAINED[name], expected.inputs)
  check_outputs(TRAINED[name], expected._replace(outputs=theirs), ours.outputs, LIVE_OUTPUTS)
  report = trained.report(name)
  assert_warnings(name, report["warnings"])
  assert_same_config(name, report["config"])
  before = load_file(made / "model.safetensors")
  assert sorted(before) == sorted(load_file(trained.exported(name) / "model.safetensors"))
  assert len(report["state"]) >= len(before) - 2
