"""Filled masks and sentinels equal those of transformers: the same pieces with the same probabilities.

The models are those of tests/golden/hf with other numbers, so that their guesses differ from place to place. What
transformers says is in tests/golden/filling.json. `pytest -m peers` asks it again; TFM_WRITE_GOLDEN=1 writes the file
anew.
"""

import json
import math
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.launching import environment
from tests.support.peers import peer_python
from tfm_jax.decode.filling import fill_mask
from tfm_jax.decode.prompts import Symbols
from tfm_jax.hf.importing import import_checkpoint
from tfm_jax.training.load import load_run

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "filling.json"
MASKED = ("bert_mlm", "distilbert_mlm")
WORDS = (
  "[PAD] [UNK] [CLS] [SEP] [MASK] the cat ##s sat on a mat and saw bird ##ing dog town ran all of . , grey small one"
)
TEXTS = ["the [MASK] sat on [MASK].", "[MASK]", "a dog [MASK] [MASK] the birds", "[MASK] cats saw all [MASK]"]
TOP = 5
# T5 in ids: sources with gaps, of which some are filled.
GAPS, END, START = [7, 20, 26], 1, 0
SOURCES = [[5, 7, 6, 29, 36, 34, 26], [34, 30, 27, 26, 20, 29, 10], [8, 20, 3, 26, 5]]
NEW = 16 * 3  # what ours writes for two gaps


def model(name: str, folder: Path, seed: int, scale: float) -> Path:
  """The model with other numbers, in a folder; a masked language model with a vocabulary of words."""
  source = ROOT / "tests" / "golden" / "hf" / name
  draw = np.random.default_rng(seed)
  folder.mkdir()
  tensors = load_file(source / "model.safetensors")
  for key, x in sorted(tensors.items()):
    noise = draw.standard_normal(x.shape, np.float32)
    tensors[key] = 1 + 0.1 * noise if "norm" in key.lower() and key.endswith("weight") else scale * noise
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  config = json.loads((source / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config))
  if name in MASKED:
    words = WORDS.split()
    words += [f"word{i}" for i in range(config["vocab_size"] - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
  return folder


def imported(folder: Path) -> Any:
  import_checkpoint(str(folder), str(folder.parent / "run"))
  return load_run(folder.parent / "run", dtype="float32")


def theirs(*arguments: object) -> Any:
  script = ROOT / "tests" / "support" / "filling_peer.py"
  command = [str(peer_python()), str(script), *map(str, arguments)]
  done = subprocess.run(command, env=environment(), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def masked_model(name: str, folder: Path) -> Path:
  return model(name, folder / "model", seed=5, scale=0.7)


def t5_model(folder: Path) -> Path:
  return model("t5", folder / "model", seed=43, scale=1.0)


def check_masks(run: Any, golden: Any) -> None:
  for text, expected in zip(TEXTS, golden, strict=True):
    found = run.fill_mask(text, TOP)
    assert [[piece for piece, _ in guesses] for guesses in found] == [[piece for piece, _ in one] for one in expected]
    for guesses, pairs in zip(found, expected, strict=True):
      np.testing.assert_allclose([p for _, p in guesses], [p for _, p in pairs], rtol=1e-4)


def check_gaps(run: Any, golden: Any) -> None:
  """What T5 writes behind the first of each sentinel, up to the next one or the end."""
  tokenizer: Any = SimpleNamespace(
    vocab_size=run.model.vocab_size, eos_id=END, pad_id=0, sentinel_ids=np.array(GAPS), reads_names=True,
    encode_batch=lambda texts: [np.array(text.split(), np.int32) for text in texts],
    decode=lambda ids: " ".join(map(str, np.asarray(ids, int))), token=str,
  )  # fmt: skip
  for source, answer in zip(SOURCES, golden, strict=True):
    parts: dict[int, tuple[list[int], float]] = {}
    part = None
    for id, logprob in zip(answer["ids"], answer["logprobs"], strict=True):
      if id == END:
        break
      if id in GAPS:
        part = None if id in parts else id
        parts.setdefault(id, ([], 0.0))
      elif part is not None:
        parts[part] = ([*parts[part][0], id], parts[part][1] + logprob)
    text = " ".join(map(str, source))
    found = fill_mask(run.model, run.params, tokenizer, Symbols(start=START), text)
    gaps = [id for id in source if id in GAPS]
    assert len(found) == len(gaps)
    whole = []
    for id in source:
      whole += parts.get(id, ([], 0.0))[0] if id in GAPS else [id]
    assert found.text == " ".join(map(str, [*whole, END]))
    for id, guesses in zip(gaps, found, strict=True):
      assert [text for text, _ in guesses] == ([" ".join(map(str, parts[id][0]))] if id in parts else [])
      if guesses:
        assert guesses[0][1] == pytest.approx(math.exp(parts[id][1]), rel=1e-3)


@pytest.mark.parametrize("name", [MASKED[0], pytest.param(MASKED[1], marks=pytest.mark.slow)])
def test_masks_are_filled_as_by_transformers(name, tmp_path):
  check_masks(imported(masked_model(name, tmp_path)), json.loads(GOLDEN.read_text())[name])


def test_sentinels_are_filled_as_by_transformers(tmp_path):
  golden = json.loads(GOLDEN.read_text())["t5"]
  check_gaps(imported(t5_model(tmp_path)), golden)
  assert len({*golden[0]["ids"]} & {*GAPS} & {*SOURCES[0]}) == 2  # there is something to compare


@pytest.mark.peers
@pytest.mark.skipif(peer_python() is None, reason="no torch and transformers: set TFM_PEERS_PYTHON")
@pytest.mark.parametrize("name", [*MASKED, "t5"])
def test_transformers_fills_them_so_today(name, tmp_path):
  folder = t5_model(tmp_path) if name == "t5" else masked_model(name, tmp_path)
  settings = (
    (json.dumps([[*source, END] for source in SOURCES]), NEW, END) if name == "t5" else (json.dumps(TEXTS), TOP)
  )
  asked = theirs(folder, *settings)
  if os.environ.get("TFM_WRITE_GOLDEN"):
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    GOLDEN.write_text(json.dumps({**golden, name: asked}, indent=1, sort_keys=True) + "\n")
  (check_gaps if name == "t5" else check_masks)(imported(folder), asked)
