"""Greedy texts, beams and penalties equal those of transformers, token by token.

The ids of transformers are in tests/golden/generation.json. `pytest -m peers` asks it again; TFM_WRITE_GOLDEN=1 writes
the file anew.
"""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.launching import environment
from tests.support.peers import peer_python
from tfm_jax.decode.generate import continued
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import Prompt
from tfm_jax.hf.importing import import_checkpoint
from tfm_jax.training.load import load_run

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "generation.json"
CASES = ("gpt2", "llama", "t5", "gpt_neox")
DEFAULT = ("gpt2", "t5")
NEW = 6
ENDS = {"gpt2": 3, "llama": 20, "t5": 3, "gpt_neox": 14}  # ids that these random models do choose, or do not
PROMPTS = [[5, 9, 2, 11], [7, 1, 4]]

# name -> our options, those of transformers
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
  "greedy": ({}, {}),
  "repetition": ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
  "ngrams": ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
  "late end": ({"min_new_tokens": 4}, {"min_new_tokens": 4}),
  "beams": ({"beams": 3, "samples": 3}, {"num_beams": 3, "num_return_sequences": 3}),
  "long beams": (
    {"beams": 4, "samples": 2, "length_penalty": 2.0},
    {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 2.0},
  ),
  "short beams, penalties": (
    {"beams": 3, "length_penalty": -1.0, "repetition_penalty": 1.4, "no_repeat_ngram": 2},
    {"num_beams": 3, "length_penalty": -1.0, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
  ),
}


def ours(name: str, folder: Path) -> dict[str, list[list[list[int]]]]:
  """The new ids of each setting and prompt, the best text first."""
  import_checkpoint(str(ROOT / "tests" / "golden" / "hf" / name), str(folder))
  run = load_run(folder, dtype="float32")
  size = run.model.vocab_size
  tokenizer: Any = SimpleNamespace(vocab_size=size, eos_id=ENDS[name], pad_id=0, decode=lambda ids: "")
  none = np.zeros(0, np.int32)
  prompts = []
  for number, ids in enumerate(PROMPTS):
    array = np.array(ids, np.int32)
    two = (np.array([0], np.int32), array) if run.model.encoder_decoder else (array, none)
    prompts.append(Prompt(number, "", *two))
  return {
    setting: [
      [list(one.ids) for one in several]
      for several in continued(run.model, run.params, tokenizer, prompts, Options(max_new_tokens=NEW, **options))
    ]
    for setting, (options, _) in SETTINGS.items()
  }


def theirs(name: str) -> dict[str, list[list[list[int]]]]:
  """The same of transformers, cut after the end symbol."""
  script, model = ROOT / "tests" / "support" / "generation_peer.py", ROOT / "tests" / "golden" / "hf" / name
  fixed = {"max_new_tokens": NEW, "eos_token_id": ENDS[name], "pad_token_id": 0, "decoder_start_token_id": 0}
  settings = {setting: {**fixed, **options} for setting, (_, options) in SETTINGS.items()}
  command = [str(peer_python()), str(script), str(model), json.dumps(PROMPTS), json.dumps(settings)]
  done = subprocess.run(command, env=environment(), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  cut = lambda ids: ids[: ids.index(ENDS[name]) + 1] if ENDS[name] in ids else ids
  found = json.loads(done.stdout.splitlines()[-1])
  return {setting: [[cut(ids) for ids in several] for several in texts] for setting, texts in found.items()}


@pytest.mark.slow_but("gpt2")
@pytest.mark.parametrize("name", [pytest.param(x, marks=() if x in DEFAULT else pytest.mark.slow) for x in CASES])
def test_texts_are_those_of_transformers(name, tmp_path):
  found = ours(name, tmp_path / "run")
  assert found == json.loads(GOLDEN.read_text())[name]


@pytest.mark.peers
def test_the_settings_make_a_difference():
  golden = json.loads(GOLDEN.read_text())
  for setting in SETTINGS:
    others = [name for name in CASES if golden[name][setting] != golden[name]["greedy"]]
    assert setting == "greedy" or others, setting
  assert any(ENDS[name] in ids for name in CASES for several in golden[name]["greedy"] for ids in several)


@pytest.mark.peers
@pytest.mark.skipif(peer_python() is None, reason="no torch and transformers: set TFM_PEERS_PYTHON")
@pytest.mark.parametrize("name", CASES)
def test_transformers_gives_these_texts_today(name, tmp_path):
  asked = theirs(name)
  if os.environ.get("TFM_WRITE_GOLDEN"):
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    GOLDEN.write_text(json.dumps({**golden, name: asked}, indent=1, sort_keys=True) + "\n")
  assert ours(name, tmp_path / "run") == asked
