"""The first models that one trains, quickstart and shakespeare_char, exported: read back here, and by transformers."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.launching import ROOT, environment, write_text
from tests.support.peers import peer_python
from tfm_jax.errors import UserError
from tfm_jax.hf.exporting import export_checkpoint
from tfm_jax.hf.importing import import_checkpoint
from tfm_jax.training.config import load
from tfm_jax.training.load import Run, load_run
from tfm_jax.training.loop import fit

RECIPES = {"quickstart": "EsmForMaskedLM", "shakespeare_char": "GPTNeoXForCausalLM"}
TEXT = "The cat sat, and the dog ran."
TINY = {"model.num_layers": 2, "model.embed_dim": 32, "model.num_heads": 4, "model.mlp_dim": 48, "data.seq_len": 16}
SHORT = {"train.steps": 3, "train.batch_size": 8, "eval.batches": 1, "optimizer.warmup_steps": 1}


@pytest.fixture(scope="module", params=RECIPES)
def exported(request, tmp_path_factory) -> tuple[str, Run, Path]:
  """(recipe, its run after three steps, the exported folder)."""
  folder = tmp_path_factory.mktemp(request.param)
  data = {"data.source": "text", "data.path": str(write_text(folder / "text.txt")), "data.eval_fraction": 0.2}
  tokenizer = {"tokenizer.kind": "char", "tokenizer.vocab_size": 0}
  config = load(str(ROOT / "configs" / f"{request.param}.py"), TINY | SHORT | data | tokenizer)
  fit(config, folder / "run")
  export_checkpoint(folder / "run", folder / "out")
  return request.param, load_run(folder / "run", dtype="float32"), folder / "out"


def logits(run: Run) -> np.ndarray:
  return np.asarray(run.model.logits(run.params, {"inputs": some_ids(run)}))


def some_ids(run: Run) -> np.ndarray:
  return np.random.default_rng(0).integers(0, run.model.vocab_size, (3, 16)).astype(np.int32)


@pytest.mark.slow
def test_the_export_read_back_gives_the_same_logits_and_ids(exported, tmp_path):
  name, run, out = exported
  assert json.loads((out / "config.json").read_text())["architectures"] == [RECIPES[name]]
  import_checkpoint(out, tmp_path / "back")
  back = load_run(tmp_path / "back", dtype="float32")
  np.testing.assert_array_equal(logits(back), logits(run))
  np.testing.assert_array_equal(back.tokenizer.encode(TEXT), run.tokenizer.encode(TEXT))
  assert back.model.parameter_count() - run.model.parameter_count() == (
    (run.model.vocab_size - 2) * 32 if name == "quickstart" else 0  # an output layer of its own, no token types
  )


@pytest.mark.parametrize("exported", ["quickstart"], indirect=True)
def test_the_first_token_type_becomes_part_of_the_embeddings(exported):
  _, run, out = exported
  tensors, embed, size = load_file(out / "model.safetensors"), run.params["embed"], run.model.vocab_size
  assert np.abs(embed["type"][0]).max() > 1e-3
  table = np.asarray(embed["token"])[:size]
  np.testing.assert_array_equal(tensors["esm.embeddings.word_embeddings.weight"], table + np.asarray(embed["type"])[:1])
  np.testing.assert_array_equal(tensors["lm_head.decoder.weight"], table)


def test_the_export_says_what_the_class_computes_and_how_to_load_it(exported, tmp_path, caplog):
  name, _, out = exported
  with caplog.at_level("INFO", "tfm_jax"):
    export_checkpoint(out.parent / "run", tmp_path / "again")
  *_, what, how = caplog.messages
  assert f"step 3 as {RECIPES[name]}, the transformers class that computes a" in what
  assert f'from transformers import {RECIPES[name]}; {RECIPES[name]}.from_pretrained("{tmp_path}/again")' in how


def test_a_target_that_is_not_empty_is_refused_before_the_run_is_read(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="is not an empty folder; choose another --out"):
    export_checkpoint(tmp_path / "no run", tmp_path)


ASK = """
import json, sys, warnings
warnings.simplefilter("error")
import numpy, torch, transformers
folder, architecture, question, answer, text = sys.argv[1:]
transformers.utils.logging.disable_progress_bar()
model = getattr(transformers, architecture).from_pretrained(folder, attn_implementation="eager").eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
  out = model(torch.from_numpy(numpy.load(question)), output_hidden_states=True, output_attentions=True)
  padded = model(**tokenizer([text, text[:5]], return_tensors="pt", padding=True)).logits
assert padded.isfinite().all()
arrays = {"logits": out.logits, "hidden": torch.stack(out.hidden_states), "attention": torch.stack(out.attentions)}
ids = tokenizer(text, add_special_tokens=False)["input_ids"]
numpy.savez(answer, ids=ids, **arrays)
"""


@pytest.mark.peers
@pytest.mark.skipif(peer_python() is None, reason="no torch and transformers: see tests/support/peers.py")
def test_transformers_computes_the_same(exported, tmp_path):
  """Logits, the hidden states and attention weights of every layer, ids; without a warning."""
  name, run, out = exported
  np.save(tmp_path / "ids.npy", some_ids(run).astype(np.int64))
  command: list[Any] = [peer_python(), "-c", ASK, out, RECIPES[name], tmp_path / "ids.npy", tmp_path / "out.npz", TEXT]
  done = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "")
  batch = {"inputs": some_ids(run)}
  ours = {
    "logits": logits(run),
    "hidden": np.asarray(run.model.hidden_states(run.params, batch)),
    "attention": np.asarray(run.model.attention_weights(run.params, batch)),
  }
  with np.load(tmp_path / "out.npz") as theirs:
    for key, x in ours.items():
      np.testing.assert_allclose(x, theirs[key], atol=1e-4, rtol=0, err_msg=key)
    np.testing.assert_array_equal(run.tokenizer.encode(TEXT), theirs["ids"])
