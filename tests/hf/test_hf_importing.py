"""Import and export as commands and as parts of a run's life: meshes, memory, other heads, refusals."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.hf_compare import GOLDEN
from tests.support.launching import ROOT, WORDS
from tests.support.tiny import SIZES
from tfm_jax.compare.compare import compare
from tfm_jax.errors import UserError
from tfm_jax.hf.__main__ import main
from tfm_jax.hf.config import TABLES, config_from, config_to
from tfm_jax.hf.exporting import export_checkpoint
from tfm_jax.hf.importing import import_checkpoint
from tfm_jax.models.config import replaced
from tfm_jax.models.families.table import FAMILIES as OURS
from tfm_jax.models.model import resolve_model
from tfm_jax.training.config import load
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit


def equal(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
  """An imported BertForPreTraining."""
  workdir = tmp_path_factory.mktemp("bert") / "run"
  import_checkpoint(GOLDEN / "bert_pretraining", workdir)
  return workdir


@pytest.mark.parametrize(
  "name", ["bert_mlm", "gpt2", "gpt_neox", "t5_1_1", "modernbert_mlm", "vit", "electra_mlm", "llama_groups"]
)
def test_every_device_reads_its_own_part(name, tmp_path):
  """Rows, columns, heads and halves of tensors: the same parameters as in one piece."""
  import_checkpoint(GOLDEN / name, tmp_path / "one")
  config = json.loads((GOLDEN / name / "config.json").read_text())
  heads = config.get("num_key_value_heads") or config.get("num_attention_heads") or config.get("n_head") or 3
  strategy = "fsdp" if heads % 2 else "fsdp_tp"
  try:
    import_checkpoint(GOLDEN / name, tmp_path / "many", strategy=strategy)
  except UserError as error:  # eight devices do not divide every odd shape
    assert "divide" in str(error)
    assert not (tmp_path / "many").exists()
    pytest.fail(f"choose another case: {error}")
  equal(load_run(tmp_path / "many").params, load_run(tmp_path / "one").params)


def words(path: Path) -> str:
  path.write_text("\n\n".join(" ".join(np.random.default_rng(i).choice(WORDS, 40)) for i in range(40)))
  return str(path)


def fine_tuning(bert: Path, tmp_path: Path, **changes):
  tiny = {"init_from": str(bert), "train.steps": 1, "train.batch_size": 8, "eval.batches": 1, "data.seq_len": 8}
  text = {"data.source": "text", "data.path": words(tmp_path / "text.txt"), "tokenizer.kind": "char"}
  return load(str(bert), tiny | text | {"model.vocab_size": 0} | changes)


@pytest.mark.slow
def test_a_run_starts_from_an_import_with_another_head(bert, tmp_path, caplog):
  """The tower is taken, the unused head is left behind, the missing one starts afresh, and the log says so."""
  config = fine_tuning(bert, tmp_path, **{"model.vocab_size": load_run(bert).model.vocab_size})
  caplog.set_level("INFO", logger="tfm_jax")
  fit(dataclasses.replace(config, model=replaced(config.model, {"head.name": "lm"})), tmp_path / "run")
  log = caplog.text
  assert "left behind: next_sentence/b, next_sentence/w, pooler/b, pooler/w" in log and "afresh" not in log
  caplog.clear()
  import_checkpoint(GOLDEN / "bert_tokens", tmp_path / "tokens")
  config = fine_tuning(tmp_path / "tokens", tmp_path)
  config = dataclasses.replace(config, model=replaced(config.model, {"head.name": "lm"}))
  vocab = load_run(tmp_path / "tokens").model.vocab_size
  fit(dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=vocab)), tmp_path / "other")
  assert "starting afresh: head/bias, head/dense/b" in caplog.text
  before, after = load_run(tmp_path / "tokens").params, load_run(tmp_path / "other").params
  np.testing.assert_allclose(after["embed"]["token"], before["embed"]["token"], atol=1e-2)


def test_an_import_is_no_run_to_go_on_with(bert):
  with pytest.raises(UserError, match=r"--config\.init_from="):
    fit(load(str(bert), {"train.steps": 2}), bert)


def test_pre_training_has_nothing_for_heads_that_learn_from_labels(tmp_path):
  import_checkpoint(GOLDEN / "bert_tokens", tmp_path / "tokens")
  with pytest.raises(UserError, match=r"head\.name=lm"):
    fit(load(str(tmp_path / "tokens"), {"train.steps": 2}), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_compare_takes_an_import(tmp_path):
  import_checkpoint(GOLDEN / "bert_question", tmp_path / "run")
  config = load(str(tmp_path / "run"), {"train.batch_size": 8})
  (row,) = compare(config, ["fsdp"], devices=2, steps=1, progress=False).strategies
  assert row.status == "ok" and row.loss_difference < 1e-1  # bfloat16 against float32


def test_a_step_of_a_run_can_be_chosen_and_narrowed(tmp_path, bert):
  export_checkpoint(bert, tmp_path / "out", step=0, dtype="bfloat16")
  tensors = load_file(tmp_path / "out" / "model.safetensors")
  assert {str(x.dtype) for x in tensors.values()} == {"bfloat16"}
  assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
  import_checkpoint(tmp_path / "out", tmp_path / "again")
  again = jax.tree.leaves(load_run(tmp_path / "again").params)
  exact = [np.asarray(x).astype("bfloat16").astype(np.float32) for x in jax.tree.leaves(load_run(bert).params)]
  assert all(np.array_equal(a, b) for a, b in zip(again, exact, strict=True))
  with pytest.raises(UserError, match="step 7"):
    export_checkpoint(bert, tmp_path / "other", step=7)
  with pytest.raises(UserError, match="int8"):
    export_checkpoint(bert, tmp_path / "other", dtype="int8")
  assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("family", [family for family in OURS if family != "vit"])
def test_every_family_as_it_is_made_here_has_its_counterpart_there(family):
  heads = {head for table in TABLES if table.family == family for head in table.architectures.values()}
  bare = {"head.name": "none"} if heads and "lm" not in heads else {}  # transformers has no T5 encoder that predicts
  config = resolve_model(family, {**SIZES, "vocab_size": 250, **bare})
  if not heads:
    with pytest.raises(UserError, match=family):
      config_to(config, family)
    return
  theirs = json.loads(json.dumps(config_to(config, family)))
  assert config_to(config_from(theirs, theirs["architectures"][0]), family) == theirs


def test_an_encoder_is_exported_whatever_its_configuration_says_of_a_decoder(tmp_path):
  """The configuration of a `t5` run, with which one of `t5_encoder` starts, may have `model.decoder_layers`."""
  import_checkpoint(GOLDEN / "t5_encoder", tmp_path / "run")
  path = tmp_path / "run" / "config.json"
  config = json.loads(path.read_text())
  config["model"]["decoder_layers"] = 7
  path.write_text(json.dumps(config))
  export_checkpoint(tmp_path / "run", tmp_path / "out")
  assert json.loads((tmp_path / "out" / "config.json").read_text())["num_decoder_layers"] == 2


ROTARY = {"positions": "rotary"}


@pytest.mark.parametrize(
  ("family", "changes", "named"),
  [
    ("gpt", {"positions": "sinusoidal"}, "model.positions='sinusoidal'"),
    ("bert", {"norm": "rms"}, "model.norm='rms'"),
    ("gpt", {"head_dim": 16}, "model.head_dim=16"),
    ("t5", {"bias": "all"}, "model.bias='all'"),
    ("bert", {"num_kv_heads": 2}, "model.num_kv_heads=2"),
    ("llama", {"norm": "layer"}, "model.norm='layer'"),
    ("modernbert", {"positions": "learned"}, "model.positions"),
    ("bert", {"gated": True}, "model.gated=True"),
    ("electra", {"head.name": "sequence_classification"}, "head.name=sequence_classification"),
    ("t5_encoder", {"head.name": "sequence_classification"}, "head.name=sequence_classification"),
    ("llama", {"window.size": 4, "bias": "qkv"}, "model.bias='qkv'"),
    ("llama", {"window.size": 4, "rotary.local_base": 5.0}, "rotary.local_base=5.0"),
    ("bert", {"positions": "rotary"}, "model.norm_order='post'"),
    ("gpt", ROTARY | {"norm": "rms"}, "model.norm='rms'"),
    ("bert", ROTARY | {"norm_order": "pre", "rotary.factor": 2.0, "token_types": 0}, "rotary.factor=2.0"),
    ("bert", ROTARY | {"norm_order": "pre", "head.name": "token_classification"}, "model.token_types=2"),
    ("roberta", ROTARY, "model.positions='rotary'"),
    ("gpt", ROTARY | {"gated": True}, "model.gated=True"),
    ("gpt", {"positions": "alibi"}, "model.positions='alibi'"),
    ("llama", {"norm_order": "parallel"}, "model.norm_order='parallel'"),
    ("llama", {"experts.count": 4}, "experts.count=4"),
  ],
)
def test_what_has_no_counterpart_is_refused_by_name(family, changes, named):
  config = resolve_model(family, {**SIZES, "vocab_size": 250, **changes})
  with pytest.raises(UserError) as error:
    config_to(config, family)
  assert named in str(error.value)


def test_nothing_is_left_by_an_import_that_fails_on_the_way(tmp_path, monkeypatch):
  """An error of ours keeps its traceback, and still leaves nothing; a directory that was there stays."""
  (tmp_path / "empty").mkdir()

  def fail(*args: object) -> None:
    raise ZeroDivisionError

  monkeypatch.setattr("tfm_jax.runtime.run_directory.RunDirectory.write_config", fail)
  for name in ("new", "empty"):
    with pytest.raises(ZeroDivisionError):
      import_checkpoint(GOLDEN / "bert_mlm", tmp_path / name)
  assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


MEMORY = """
import sys
from tfm_jax.hf import importing

def peak():
  return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

importing.import_checkpoint(sys.argv[1], sys.argv[2])
before = peak()
importing.import_checkpoint(sys.argv[3], sys.argv[4])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_memory_of_an_import_is_that_of_its_parameters(tmp_path):
  """In a process of its own, beyond what a tiny import takes: 1.3 times the parameters and the largest tensor."""
  from tfm_jax.hf.tensors import NewTensor, write_tensors

  width, layers, vocab = 512, 12, 20_000
  shapes = {"transformer.wte.weight": (vocab, width), "transformer.wpe.weight": (16, width)}
  for i in range(layers):
    for name, shape in (
      ("ln_1", (width,)),
      ("attn.c_attn", (width, 3 * width)),
      ("attn.c_proj", (width, width)),
      ("ln_2", (width,)),
      ("mlp.c_fc", (width, 4 * width)),
      ("mlp.c_proj", (4 * width, width)),
    ):
      shapes |= {f"transformer.h.{i}.{name}.weight": shape, f"transformer.h.{i}.{name}.bias": shape[-1:]}
  shapes |= {"transformer.ln_f.weight": (width,), "transformer.ln_f.bias": (width,)}
  source = tmp_path / "source"
  source.mkdir()
  one = np.dtype(np.float32)
  write_tensors(source, [NewTensor(n, s, one, lambda s=s: np.ones(s, np.float32)) for n, s in shapes.items()])
  config = {
    "model_type": "gpt2",
    "n_embd": width,
    "n_layer": layers,
    "n_head": 8,
    "n_positions": 16,
    "vocab_size": vocab,
  }
  (source / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
  total, largest = (f(4 * int(np.prod(shape)) for shape in shapes.values()) for f in (sum, max))
  arguments = [str(GOLDEN / "gpt2"), str(tmp_path / "a"), str(source), str(tmp_path / "b")]
  command = [sys.executable, "-c", MEMORY, *arguments]
  added = int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
  assert total < added < 1.3 * total + largest, (added / 1e6, total / 1e6, largest / 1e6)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "import or export"),
    (["convert"], "convert"),
    (["import", "--workdir=x"], "--source"),
    (["import", "--source=x"], "--workdir"),
    (["export", "--workdir=x", "--out=y", "--step=last"], "--step=last"),
    (["import", "--source=nowhere", "--workdir=x"], "nowhere"),
    (["export", "--workdir=nowhere", "--out=y"], "nowhere"),
    (["import", "--source=x", "--workdir=y", "--config.seed=1"], "--config.seed"),
    (["import", "--source=x", "--out=y"], "--out"),
    (["import", f"--source={GOLDEN / 'bert_mlm'}", "--workdir=x", "--architecture=BertForChess"], "BertForChess"),
    (["import", f"--source={GOLDEN / 'bert_mlm'}", "--workdir=x", "--strategy=none"], "none"),
  ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "argv", ["hf", *arguments])
  monkeypatch.setattr("tfm_jax.runtime.command.set_up_logging", lambda: None)  # it stays after the test
  assert main() == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1 and message in error
  assert not list(tmp_path.iterdir())


def test_help_tells_of_both_commands(monkeypatch, capsys):
  for arguments in (["--help"], ["export", "--help"]):
    monkeypatch.setattr(sys, "argv", ["hf", *arguments])
    assert main() == 0
    text = capsys.readouterr().out
    assert "--source=" in text and "--out=" in text
