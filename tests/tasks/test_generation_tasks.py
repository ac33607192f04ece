"""Tasks that generate: what they read, their rows and prompts, runs from the config to scores of generated texts."""

import dataclasses
import json

import numpy as np
import pytest

from tests.support.labelled import TOKENIZER
from tests.support.launching import rows as records
from tests.support.launching import tiny
from tests.support.looking import make_run
from tfm_jax.decode.options import Options
from tfm_jax.errors import UserError
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.tasks.evaluate import evaluate, evaluate_run, read_predictions
from tfm_jax.tasks.generation import Generation
from tfm_jax.tasks.table import find_task
from tfm_jax.text.examples.pairs import BLANK, Pair
from tfm_jax.training.config import Config
from tfm_jax.training.load import load_run
from tfm_jax.training.loop import fit


def config_of(name="translation", family="transformer", seq_len=16, target_len=8, **task):
  config = Config()
  objective = dataclasses.replace(config.objective, name="causal" if family == "gpt" else "seq2seq")
  data = dataclasses.replace(config.data, seq_len=seq_len, target_len=target_len)
  own = dataclasses.replace(config.task, name=name, **task)
  return dataclasses.replace(config, family=family, data=data, task=own, objective=objective)


def task_of(*args, kind=Generation, **kwargs):
  return kind.of_run(config_of(*args, **kwargs), TOKENIZER)


def text_of(ids):
  return TOKENIZER.decode(np.asarray(ids))


# Reading.


def test_parallel_files_pair_line_by_line_and_blank_sides_are_left_out(tmp_path):
  (tmp_path / "a.en").write_text("one\n \nthree\nfour\n")
  (tmp_path / "a.de").write_text("eins\nzwei\ndrei\n\n")
  files = Generation.files(str(tmp_path / "a.en"), str(tmp_path / "a.de"), "data.path")
  data = dataclasses.replace(Config().data, target_path="set", eval_target_path="set")
  config = dataclasses.replace(config_of(), data=data)
  counts = {}
  pairs = Generation.read(config, files, True, counts)
  assert [(p.source, p.targets, p.line) for p in pairs] == [("one", ("eins",), 1), ("three", ("drei",), 3)]
  assert counts[BLANK] == 2
  held_out = Generation.read(config, files, False, {})
  assert [(p.source, p.targets) for p in held_out][1:] == [(" ", ("zwei",)), ("three", ("drei",)), ("four", None)]
  (tmp_path / "a.de").write_text("eins\n")
  with pytest.raises(UserError, match=r"a\.en has 4 lines and .*a\.de has 1"):
    Generation.files(str(tmp_path / "a.en"), str(tmp_path / "a.de"), "--data")


def test_tables_and_json_lines_have_both_sides(tmp_path):
  (tmp_path / "a.tsv").write_text("Hi.\t嗨。\nRun.\t你用跑的。\n")
  read = lambda name, file, **task: Generation.read(config_of(name, **task), [tmp_path / file], True, {})
  assert read("translation", "a.tsv", text="1", label="2")[0][2:4] == ("Hi.", ("嗨。",))
  (tmp_path / "a.jsonl").write_text(
    json.dumps({"source": ["One.", "Two."], "target": ["A", "B", " "], "title": "T"}) + "\n"
  )
  assert [(p.source, p.targets) for p in read("summarization", "a.jsonl")] == [("One. Two.", ("A", "B"))]
  assert read("title", "a.jsonl")[0].targets == ("T",)
  (tmp_path / "b.jsonl").write_text('{"dialogue": "a\\nb", "summary": 3}\n')
  with pytest.raises(UserError, match=r"b\.jsonl, line 1: 3 is no text"):
    read("dialogue_summary", "b.jsonl")
  (tmp_path / "c.txt").write_text("alone\n")
  with pytest.raises(UserError, match=r"c\.txt has no targets: .*data\.target_path"):
    read("translation", "c.txt")
  assert Generation.read(config_of(), [tmp_path / "c.txt"], False, {})[0].targets is None


# Rows.

PAIR = Pair(None, 1, "ab", ("xy", "z"))
LONG = Pair(None, 2, "abcdefghijklmnopqrstuvwxyz", ("ABCDEFGHIJ",))
BARE = Pair(None, 3, "cd", None)


def test_an_encoder_decoder_reads_the_source_and_writes_each_reference():
  task = task_of(prefix="t. ")
  rows = task.rows([PAIR, LONG, BARE])
  assert rows.examples.tolist() == [0, 0, 1, 2] and (rows.truncated, rows.target.truncated) == (1, 1)
  batch = task._batches(rows).batch(0)
  place = {int(row): i for i, row in enumerate(batch["rows"][:4])}
  eos, first = TOKENIZER.eos_id, TOKENIZER.bos_id
  for row, (source, target) in enumerate(
    [("t. ab", "xy"), ("t. ab", "z"), ("t. abcdefghijkl", "ABCDEFG"), ("t. cd", None)]
  ):
    i = place[row]
    ids = batch["encoder_inputs"][i][batch["encoder_segment_ids"][i] > 0]
    assert ids[-1] == eos and text_of(ids[:-1]) == source
    learned = batch["decoder_targets"][i][batch["decoder_weights"][i] > 0]
    if target is None:
      assert not len(learned)
      continue
    assert learned[-1] == eos and text_of(learned[:-1]) == target
    read = batch["decoder_inputs"][i][: len(learned)]
    assert read[0] == first and read[1:].tolist() == learned[:-1].tolist()
  assert not batch["decoder_weights"][4:].any()  # rows that fill up the batch


def test_sides_of_one_length_share_a_bucket_and_others_do_not():
  short, long_target = Pair(None, 1, "ab", ("xy",)), Pair(None, 1, "ab", ("x" * 40,))
  lengths = lambda seq_len, target_len, pairs: {
    name: x.shape[1]
    for task in [Generation.of_run(bucketed(seq_len, target_len), TOKENIZER)]
    for name, x in task._batches(task.rows(pairs)).batch(0).items()
    if name in ("encoder_inputs", "decoder_targets")
  }
  bucketed = lambda seq_len, target_len: dataclasses.replace(
    config_of(), data=dataclasses.replace(Config().data, seq_len=seq_len, target_len=target_len, buckets=3)
  )
  assert lengths(64, 64, [short]) == {"encoder_inputs": 16, "decoder_targets": 16}
  assert lengths(64, 64, [long_target]) == {"encoder_inputs": 64, "decoder_targets": 64}
  assert lengths(64, 48, [long_target]) == {"encoder_inputs": 16, "decoder_targets": 48}


def test_a_decoder_learns_the_target_alone_and_is_prompted_by_the_rest():
  task = task_of(family="gpt", seq_len=24)
  rows = task.rows([PAIR, LONG, BARE])
  eos = TOKENIZER.eos_id
  for row, (source, target) in enumerate([("ab", "xy"), ("ab", "z"), ("abcdefghijklmnop", "ABCDEFG"), ("cd", None)]):
    place = slice(rows.offsets[row], rows.offsets[row + 1])
    ids, weights = rows.tokens[place], rows.token_labels["weights"][place]
    assert len(ids) <= 24
    learned = rows.token_labels["targets"][place][weights > 0]
    expected = [] if target is None else [*TOKENIZER.encode(target), eos]
    assert learned.tolist() == expected
    prompt = task._prompt(rows, row, 0).ids
    assert prompt.tolist() == [*TOKENIZER.encode(source), eos] and len(prompt) + len(expected) - 1 in (
      len(ids),
      len(ids) - 1,
    )
    read = rows.token_labels["targets"][place][:-1]
    assert target is None or read.tolist() == ids[1:].tolist()


def test_no_room_for_text_is_refused():
  with pytest.raises(UserError, match=r"data\.seq_len=8 and targets of 8 tokens"):
    task_of(family="gpt", seq_len=8, target_len=8).rows([PAIR])


# Runs.

LETTERS = "abcdefgh"


def write_pairs(folder, count=400, seed=0):
  """Words, and the same in capitals: half of the words as long as they can be, so that lengths differ."""
  draw = np.random.default_rng(seed)
  words = ["".join(draw.choice(list(LETTERS), draw.integers(1, 6))) for _ in range(count)]
  (folder / "a.low").write_text("\n".join(words) + "\n")
  (folder / "a.up").write_text("\n".join(words).upper() + "\n")
  return folder / "a.low", folder / "a.up"


def settings(folder, **changes):
  source, target = write_pairs(folder)
  return {
    "task__name": "translation", "data__path": str(source), "data__target_path": str(target),
    "data__eval_fraction": 0.1, "data__target_len": 16, "train__steps": 40, "eval__every": 20, "eval__batches": 0,
    "eval__generate_examples": 10, "checkpoint__every": 20,
  } | changes  # fmt: skip


@pytest.mark.slow
def test_a_run_learns_to_write_and_is_scored_by_the_command(experiment, tmp_path):
  changes = settings(tmp_path, train__steps=300, train__batch_size=32, eval__every=150, eval__generate_every=300)
  changes |= {"model__dropout": 0.0, "model__attention_dropout": 0.0, "optimizer__learning_rate": 1e-2}
  workdir, source = tmp_path / "run", tmp_path / "a.low"
  result = fit(tiny(experiment, "transformer", **changes), workdir, find_task("translation"))
  evaluations = [r for r in records(workdir) if r["split"] == "eval"]
  assert [("bleu" in r, r["step"]) for r in evaluations] == [(True, 0), (False, 150), (True, 300)]
  assert result["chrf"] > 50 > evaluations[0]["chrf"] and result["chrf"] == evaluations[-1]["chrf"]
  found = read_predictions(str(workdir))
  assert {"prediction", "label", "text", "logprob"} == found[0].keys()
  assert all(row["label"] == row["text"].upper() for row in found)

  some, few = tmp_path / "some.low", tmp_path / "few.low"
  for file, count in ((some, 100), (few, 20)):
    file.write_text("".join(source.read_text().splitlines(keepends=True)[:count]))
  (tmp_path / "some.up").write_text(some.read_text().upper())
  options = {"targets": str(tmp_path / "some.up"), "beams": 3}
  lines = evaluate_run(str(workdir), str(some), "", str(tmp_path / "out"), None, None, "", 0, **options)
  assert any(line.startswith("BLEU: nrefs:1|") for line in lines)
  scores = json.loads((tmp_path / "out" / "scores.json").read_text())
  assert all(isinstance(value, float) for value in scores.values()) and scores["chrf_low"] <= scores["chrf"]
  assert "nrefs:1|" in (tmp_path / "out" / "errors.html").read_text()
  predictions = read_predictions(str(tmp_path / "out"))
  assert [row["text"] for row in predictions] == some.read_text().split()

  lines = evaluate_run(str(workdir), str(few), "", str(tmp_path / "bare"), None, None, "", 0)
  assert "has no labels: nothing is scored" in lines[0]
  greedy = read_predictions(str(tmp_path / "bare"))
  generated = load_run(workdir).generate([row["text"] for row in greedy], max_new_tokens=16)
  for row, one in zip(greedy, generated, strict=True):
    assert row["label"] is None and row["prediction"] == one.text.strip()
    assert row["logprob"] == pytest.approx(one.logprob, abs=1e-3)


@pytest.mark.slow
def test_the_score_of_generated_texts_chooses_the_best_step_and_a_resumed_run_repeats_it(experiment, tmp_path):
  changes = settings(tmp_path, eval__metric="chrf", eval__generate_every=20, data__seq_len=32, train__steps=60)
  changes["optimizer__schedule"] = "constant"  # the shorter run is the beginning of the longer one
  config = tiny(experiment, "gpt", **changes)
  whole = fit(config, tmp_path / "whole", find_task("translation"))
  shorter = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=40))
  fit(shorter, tmp_path / "parts", find_task("translation"))
  assert fit(config, tmp_path / "parts", find_task("translation")) == whole
  kept = lambda name: [r for r in records(tmp_path / name) if r["split"] == "eval"]
  assert [{k: v for k, v in r.items() if "seconds" not in k} for r in kept("whole")] == [
    {k: v for k, v in r.items() if "seconds" not in k} for r in kept("parts")
  ]
  assert all("chrf" in r for r in kept("whole"))
  best = json.loads((tmp_path / "whole" / "best.json").read_text())
  assert best["value"] == max(r["chrf"] for r in kept("whole")[1:])


@pytest.mark.parametrize("imported", [True, False])
def test_a_resumed_run_knows_by_itself_whether_it_descends_from_an_import(experiment, tmp_path, imported):
  TOKENIZER.save(tmp_path / "run" / "tokenizer")
  RunDirectory(tmp_path / "run").append_start({"origin": {"source": "gpt2"} if imported else {}})
  config = Generation.configure(tiny(experiment, "gpt", init_from="moved", **settings(tmp_path, data__seq_len=32)))
  task = Generation(config, tmp_path / "run" / "tokenizer")
  (_, batch), *_ = task.train_batches(0, 1, None)
  assert (batch["inputs"][:, 0] == TOKENIZER.bos_id).all() == imported


@pytest.mark.slow
def test_a_metric_that_is_not_measured_ends_a_run_at_once(experiment, tmp_path):
  config = tiny(experiment, "transformer", **settings(tmp_path, eval__metric="blue"))
  with pytest.raises(UserError, match=r"eval\.metric='blue' is not measured here: choose one of .*bleu"):
    fit(config, tmp_path / "run", find_task("translation"))


@pytest.mark.slow
def test_a_pre_trained_run_on_parallel_text_is_evaluated_as_translation(experiment, tmp_path):
  source, target = write_pairs(tmp_path)
  changes = {"data__source": "parallel", "data__path": str(source), "data__target_path": str(target), "train__steps": 5}
  fit(tiny(experiment, "transformer", **changes), tmp_path / "run")
  run = load_run(tmp_path / "run")
  assert {"bleu", "rougeL"} <= evaluate(run, str(source), "translation", targets=str(target)).scores.keys()
  with pytest.raises(UserError, match=r"no_such is no option"):
    evaluate(run, str(source), "translation", no_such=1)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"beams": 4}, r"--beams is for tasks that generate text, and --task=sst2 does not"),
    ({"targets": "x"}, r"--targets=x has the other side of which file"),
  ],
)
def test_options_of_generation_are_refused_elsewhere(experiment, tmp_path, flags, message):
  (tmp_path / "a.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
  run = Fake(tmp_path)
  with pytest.raises(UserError, match=message):
    evaluate(run, "" if "targets" in flags else str(tmp_path / "a.tsv"), "sst2", **flags)


def test_tasks_as_text_are_evaluated_where_they_were_trained(tmp_path):
  with pytest.raises(UserError, match=r"--task=text_to_text is for runs that were trained on it"):
    evaluate(Fake(tmp_path), "a.tsv", "text_to_text")


class Fake:
  """A run whose head fits SST-2, as far as evaluation looks before it reads the file."""

  def __init__(self, folder):
    config = Config()
    head = dataclasses.replace(config.model.head, name="sequence_classification", labels="0|1")
    model = dataclasses.replace(config.model, head=head)
    self.config, self.tokenizer = dataclasses.replace(config, model=model), TOKENIZER
    self.model = type("", (), {"placement": type("", (), {"batch_shards": 1})})


def test_a_model_that_was_pre_trained_for_several_tasks_needs_a_prefix(tmp_path):
  run = make_run("t5", objective="span_corruption", activation="gelu")
  config = dataclasses.replace(run.config, family="t5", model=run.model.config)
  run = dataclasses.replace(run, config=config)
  (tmp_path / "a.jsonl").write_text('{"source": "the cat sat on the mat", "target": "the cat"}\n')
  evaluated = lambda run, **prefix: evaluate(
    run, str(tmp_path / "a.jsonl"), "summarization", max_new_tokens=2, **prefix
  )
  with pytest.raises(UserError, match=r'say --prefix="summarize: " or the like for --task=summarization, or --prefix='):
    evaluated(run)
  assert len(evaluated(run, prefix="").predictions) == len(evaluated(run, prefix="the ").predictions) == 1
  trained = dataclasses.replace(config, task=dataclasses.replace(config.task, name="summarization"))
  assert len(evaluated(dataclasses.replace(run, config=trained)).predictions) == 1


def test_an_encoder_alone_is_refused(experiment, tmp_path):
  with pytest.raises(UserError, match=r"family=bert reads in both directions"):
    fit(tiny(experiment, "bert", **settings(tmp_path)), tmp_path / "run", find_task("translation"))


def test_options_of_a_task_are_greedy_and_as_long_as_its_targets():
  task = task_of(target_len=8)
  assert task.options == Options(max_new_tokens=8, batch_size=task.config.train.batch_size)
  task.use(task.symbols, {"beams": 4})
  assert (task.options.beams, task.options.max_new_tokens) == (4, 8)
