"""Rows as lines to read, the fertility of tokenizers, and the command that prints both."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.launching import write_text
from tests.support.refusal import refusal
from tfm_jax.data import __main__ as command
from tfm_jax.data.config import DataConfig
from tfm_jax.data.fertility import fertility, table
from tfm_jax.data.prepare import prepare
from tfm_jax.data.show import shown
from tfm_jax.objectives.objective import ObjectiveConfig
from tfm_jax.objectives.table import OBJECTIVES
from tfm_jax.runtime.command import Flags
from tfm_jax.text.corpora.table import text_corpus
from tfm_jax.text.tokenizers.table import TokenizerConfig, load_tokenizer, train_tokenizer
from tfm_jax.training.config import load, resolve, to_dict
from tfm_jax.training.pretraining import Pretraining


@pytest.fixture
def text(tmp_path, monkeypatch):
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "cache"))
  return write_text(tmp_path / "text.txt")


def prepared_text(text, objective, kind="char", **data):
  sentinels = 100 if kind == "char" and objective in ("span_corruption", "ul2") else 0
  return prepare(DataConfig("text", str(text), seq_len=48, **data), TokenizerConfig(kind=kind, sentinels=sentinels),
                 ObjectiveConfig(objective), 0)  # fmt: skip


@pytest.mark.parametrize("name", [*OBJECTIVES])
@pytest.mark.parametrize("packing", [True, False])
def test_every_objective_is_shown(text, name, packing):
  prepared = prepared_text(text, name, packing=packing)
  dataset = prepared.train(4)
  batch = dataset.batch(0)
  lines = shown(batch, dataset.fields, prepared.tokenizer, [])
  heads = [line for line in lines if line.startswith("row ")]
  assert [int(re.match(r"row (\d+)", line)[1]) for line in heads] == batch["rows"].tolist()
  assert all(line.startswith(("row ", "  ")) and "\n" not in line and line.isprintable() for line in lines)


def test_masks_are_marked_and_the_text_is_whole(text):
  """Without the marks, a row reads as its text; each mark names the target and what stands in its place."""
  prepared = prepared_text(text, "mlm")
  dataset, tokenizer = prepared.train(16), prepared.tokenizer
  batch = dataset.batch(0)
  lines = [line for line in shown(batch, dataset.fields, tokenizer, []) if line.startswith("  inputs: ")]
  kinds = set()
  for r, line in enumerate(lines):
    marks = re.findall(r"\{(.+?) > (.+?)\}", line)
    used = batch["weights"][r] > 0
    pairs = zip(batch["targets"][r][used], batch["inputs"][r][batch["mlm_positions"][r][used]], strict=True)
    assert marks == [(tokenizer.token(int(a)), tokenizer.token(int(b))) for a, b in pairs]
    kinds |= {"mask" if b == "<mask>" else "kept" if a == b else "random" for a, b in marks}
    original = batch["inputs"][r].copy()
    original[batch["mlm_positions"][r][used]] = batch["targets"][r][used]
    plain = re.sub(r"\{(.+?) > .+?\}", r"\1", line.removeprefix("  inputs: "))
    plain = re.sub(r"</?s>|║|\(padding.*|\s", "", plain)
    assert plain == re.sub(r"\s", "", tokenizer.decode(original))
    assert line.count("║") == batch["segment_ids"][r].max() - 1
  assert kinds == {"mask", "kept", "random"}


def test_targets_that_do_not_count_are_dots(text):
  prepared = prepared_text(text, "causal")
  dataset = prepared.train(8)
  batch = dataset.batch(0)
  lines = [line for line in shown(batch, dataset.fields, prepared.tokenizer, []) if line.startswith("  targets: ")]
  dots = [line.count("·") for line in lines]
  hidden = (batch["weights"] == 0) & (batch["segment_ids"] > 0)
  assert dots == hidden.sum(axis=1).tolist() and any(dots)


def test_fertility_by_hand(tmp_path):
  (tmp_path / "a.txt").write_text("the cat sat\n\nthe dog\n\n" * 50)
  (tmp_path / "b.txt").write_text("the cät\n\n")
  corpus = text_corpus(str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
  tokenizer = train_tokenizer(TokenizerConfig(kind="char"), ["the cat sat dog"])
  counts = fertility(DataConfig("text", str(tmp_path / "a.txt")), corpus, tokenizer)
  assert (counts.source, counts.part, counts.text_bytes, counts.words) == ("a", "held-out", 8, 2)
  assert (counts.pieces, counts.unknown, counts.used) == (7, 1, 6)  # t h e _ c ?
  alone = fertility(DataConfig("text"), text_corpus(str(tmp_path / "a.txt"), eval_fraction=0.0), tokenizer, 30)
  assert (alone.part, alone.pieces) == ("train", 30)
  head, row, _ = table([counts, alone], tokenizer.vocab_size).splitlines()
  assert re.split(r"\s{2,}", row) == ["a", "held-out", "8", "2", "7", "3.500", "1.143", "14.286%",
                                       f"{6 / tokenizer.vocab_size:.0%}"]  # fmt: skip
  assert re.split(r"\s{2,}", head)[5:8] == ["pieces/word", "bytes/piece", "unknown"]


def run(capsys, **values):
  flags = Flags({"config": "configs/quickstart.py"} | values.pop("flags", {}), values)
  command.main(flags)
  return capsys.readouterr().out


def rows_of(out):
  return [int(number) for number in re.findall(r"^row (\d+)", out, re.MULTILINE)]


def test_the_command_prepares_and_shows(text, capsys):
  base = {"data.path": str(text), "tokenizer.kind": "byte"}
  assert run(capsys, **base).startswith("token files: ")
  out = run(capsys, flags={"show": "5", "step": "1"}, **base)
  train = prepare(DataConfig("text", str(text), seq_len=64), TokenizerConfig(kind="byte"), ObjectiveConfig("mlm"), 0)
  size = 16
  assert rows_of(out) == train.train(size).batch(1)["rows"][:5].tolist()
  mixture = json.dumps([{"path": str(text)}, {"path": str(text), "name": "again"}])
  out = run(
    capsys, flags={"show": "1000", "split": "eval_again"}, **{"data.mixture": mixture, "tokenizer.kind": "byte"}
  )
  assert out.count("\nrow ") == train.evaluation(size).num_rows
  mixed = run(capsys, flags={"show": "8"}, **{"data.mixture": mixture, "tokenizer.kind": "byte"})
  assert set(re.findall(r"^row \d+ of (\w+):", mixed, re.MULTILINE)) == {"text", "again"}


@pytest.mark.parametrize("split", ["train", "eval", "eval_first"])
def test_the_command_shows_the_rows_of_training(text, capsys, split):
  """With a growing batch and short rows first: those of the steps 3 to 7, as a run has them."""
  settings = {"data.path": str(text), "tokenizer.kind": "byte", "train.ramp_from": "4", "train.ramp_steps": "4"}
  settings |= {"data.first_seq_len": "16", "data.first_steps": "5", "data.seq_len": "32", "data.eval_fraction": "0.4"}
  task = Pretraining(resolve(load("configs/quickstart.py", settings)))
  if split == "train":
    batches = [batch for _, batch in task.train_batches(3, 8, None)]
  else:
    batches = list(task.eval_streams[split](None))[3:8]
  expected = [(row, batch["segment_ids"].shape[1]) for batch in batches for row in batch["rows"].tolist()]
  out = run(capsys, flags={"show": str(len(expected)), "step": "3", "split": split}, **settings)
  shown_rows = re.findall(r"^row (\d+): inputs \d+ of (\d+) tokens", out, re.MULTILINE)
  assert [(int(row), int(length)) for row, length in shown_rows] == expected and len(expected) >= 36


@pytest.mark.parametrize("key", ["init_from", "branch_from", "distill.teacher", "--config"])
def test_the_command_reads_with_the_tokenizer_of_the_run_that_it_starts_from(text, tmp_path, capsys, key):
  former = tmp_path / "former"
  tokenizer = train_tokenizer(TokenizerConfig(kind="char"), ["cat"])
  tokenizer.save(former / "tokenizer")
  settings = {"data.path": str(text), "tokenizer.kind": "byte"}
  (former / "config.json").write_text(json.dumps(to_dict(resolve(load("configs/quickstart.py", settings)))))
  if key == "--config":
    out = run(capsys, flags={"config": str(former), "show": "1"}, **settings)
  else:
    out = run(capsys, flags={"show": "1"}, **settings | {key: str(former)})
  folder = Path(re.match(r"token files: (.*)", out)[1]) / "tokenizer"
  assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint and "<unk>" in out


def test_the_command_trains_a_tokenizer_alone(text, tmp_path, capsys):
  folder = tmp_path / "tokenizer"
  out = run(capsys, flags={"tokenizer": str(folder)}, **{"data.path": str(text), "tokenizer.vocab_size": "300"})
  assert out.splitlines()[1].split()[:2] == ["text", "held-out"]
  assert not (tmp_path / "cache" / "tokens").exists()
  tokenizer = load_tokenizer(folder)
  ids = tokenizer.encode("the cat sat")
  assert tokenizer.decode(ids) == "the cat sat" and isinstance(ids, np.ndarray)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"show": "x"}, "--show=x: a whole number"),
    ({"show": "0"}, "--show=0: name the number of rows"),
    ({"show": "1", "split": "dev"}, "--split=dev: there are train, eval"),
    ({"show": "1", "split": "eval", "step": "1000"}, "--step=1000: the last batch of --split=eval is "),
    ({"split": "eval"}, "--split says which rows are shown: say how many by --show"),
    ({"step": "3"}, "--step says which rows are shown"),
    ({"show": "1", "tokenizer": "t"}, "--tokenizer and --show exclude each other"),
    ({"step": "1", "tokenizer": "t"}, "--tokenizer and --step exclude each other"),
    ({"tokenizer": "configs"}, "--tokenizer=configs exists already"),
    ({"config": "configs/sst2.py"}, "task.name=sst2: this command prepares and shows the data of pre-training"),
  ],
)
def test_mistakes_of_the_command(text, flags, message):
  values = Flags({"config": "configs/quickstart.py"} | flags, {"data.path": str(text), "tokenizer.kind": "byte"})
  assert message in refusal(command.main, values)
