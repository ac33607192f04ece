"""`python -m tfm_jax.decode` on real runs: a prompt, a file of prompts, going on after a kill, and mistakes."""

import dataclasses
import io
import json
import signal
import subprocess
import sys

import pytest

from tests.support.generating import run_of
from tests.support.launching import ROOT, environment, quick_fit, tiny
from tests.support.refusal import refusal
from tfm_jax.data.config import DataConfig
from tfm_jax.decode import command
from tfm_jax.decode.__main__ import FLAGS, OPTIONS, SWITCHES
from tfm_jax.decode.__main__ import __doc__ as usage
from tfm_jax.decode.command import decode, options_of, resumable
from tfm_jax.decode.options import Options
from tfm_jax.decode.surprisal_page import surprisal_page
from tfm_jax.errors import UserError
from tfm_jax.models.config import replaced
from tfm_jax.training.load import load_run


@pytest.fixture(scope="module")
def runs(experiment, tmp_path_factory):
  """A run of each kind, by family."""
  folder = tmp_path_factory.mktemp("runs")
  for family in ("gpt", "bert", "t5"):
    quick_fit(tiny(experiment, family, train__steps=3), folder / family)
  return folder


def run(*arguments):
  line = [sys.executable, "-m", "tfm_jax.decode", *arguments]
  return subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


def call(**values):
  """The command in this process."""
  decode({name: str(value) for name, value in values.items()}, load_run)


def lines(path):
  return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.slow
def test_the_command_streams_a_text_and_writes_a_file(runs, tmp_path):
  done = run(f"--workdir={runs / 'gpt'}", "--prompt=the cat", "--max_new_tokens=9")
  assert done.returncode == 0 and done.stdout.startswith("the cat"), done.stderr
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("the cat\na dog\n")
  done = run(f"--workdir={runs / 't5'}", f"--file={prompts}", f"--out={tmp_path / 'out.jsonl'}", "--beams=2")
  assert done.returncode == 0, done.stderr
  assert [row["prompt"] for row in lines(tmp_path / "out.jsonl")] == ["the cat", "a dog"]
  done = run(f"--workdir={runs / 'bert'}", "--prompt=a")
  assert (done.returncode, done.stdout) == (2, "") and "family=bert reads in both directions" in done.stderr
  done = run(f"--workdir={runs / 'gpt'}", "--prompt=a", "--beams=none")
  assert (done.returncode, done.stderr) == (2, "error: --beams=none: a whole number is expected\n")
  done = run(f"--workdir={runs / 'gpt'}", "--prompt=the cat", "--score")
  assert done.returncode == 0 and json.loads(done.stdout)["logprob"] < 0


@pytest.mark.slow
def test_a_file_of_prompts_becomes_one_object_per_line_in_order(runs, tmp_path):
  prompts = ["the cat sat", "a", "one small grey bird\\nran", "saw"]
  (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
  out = tmp_path / "out.jsonl"
  call(workdir=runs / "gpt", file=tmp_path / "prompts.txt", out=out, max_new_tokens=5, temperature=0.8, seed=3)
  found = lines(out)
  assert [row["prompt"] for row in found] == [prompt.replace("\\n", "\n") for prompt in prompts]
  trained = load_run(runs / "gpt")
  for row in found:
    assert set(row) == {"prompt", "text", "ids", "logprob", "end"} and len(row["ids"]) <= 5
    (one,) = trained.generate(row["prompt"], max_new_tokens=5, temperature=0.8, seed=3)
    assert (list(one.ids), one.text) == (row["ids"], row["text"])
    assert one.logprob == pytest.approx(row["logprob"], rel=1e-4)
  assert not (tmp_path / "out.jsonl.partial").exists()
  call(workdir=runs / "gpt", file=tmp_path / "prompts.txt", out=out, max_new_tokens=2, temperature=1, samples=2)
  assert [(row["prompt"], row["sample"]) for row in lines(out)] == [
    (prompt.replace("\\n", "\n"), sample) for prompt in prompts for sample in (0, 1)
  ]


@pytest.mark.parametrize("samples", [1, 2])
def test_a_killed_call_goes_on_after_its_last_whole_prompt(tmp_path, samples):
  out, texts, setting = str(tmp_path / "out.jsonl"), [f"prompt {i}" for i in range(5)], {"seed": 1}
  asked = []

  def generated(rest):
    for text in rest:
      asked.append(text)
      for sample in range(samples):
        if asked == texts[:3] and sample == samples - 1:
          raise KeyboardInterrupt
        yield {"prompt": text, "text": f"{text} {sample}", "ids": [sample]}

  with pytest.raises(KeyboardInterrupt):
    resumable(out, texts, setting, generated, samples)
  assert not (tmp_path / "out.jsonl").exists()
  partial = tmp_path / "out.jsonl.partial"
  partial.write_text(partial.read_text() + '{"prompt": "prompt 2", "te')  # torn by the kill
  with pytest.raises(UserError, match="is of other prompts or options"):
    resumable(out, texts, {"seed": 2}, generated, samples)
  with pytest.raises(UserError, match="is of other prompts or options"):
    resumable(out, ["another", *texts[1:]], setting, generated, samples)

  def watched(rest):
    assert len(partial.read_text().splitlines()) == 1 + 2 * samples  # another kill at once would lose nothing
    yield from generated(rest)

  resumable(out, texts, setting, watched, samples)
  assert asked == [*texts[:3], *texts[2:]]
  rows = lines(tmp_path / "out.jsonl")
  assert [row["text"] for row in rows] == [f"{text} {sample}" for text in texts for sample in range(samples)]
  assert not partial.exists()


class Killed(Exception):
  """Stands for a signal."""


def test_what_was_begun_with_another_computation_is_not_continued(runs, tmp_path, monkeypatch):
  prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
  prompts.write_text("the cat\na dog\n")
  given = {"workdir": runs / "gpt", "file": prompts, "out": out, "draft": runs / "gpt", "max_new_tokens": 2}
  generated = command._generated

  def killed(*arguments):
    yield next(generated(*arguments))
    raise Killed

  one = load_run(runs / "gpt")
  shown = lambda dtype: dataclasses.replace(
    one, model=dataclasses.replace(one.model, config=replaced(one.model.config, {"dtype": dtype or "float32"}))
  )
  load = lambda path, step=None, strategy=None, dtype=None: shown(dtype)
  again = lambda load=load, **changes: decode({name: str(value) for name, value in (given | changes).items()}, load)
  monkeypatch.setattr(command, "_generated", killed)
  with pytest.raises(Killed):
    again()
  # The draft, of which no step is asked for, was trained on.
  later = lambda path, *step, **options: dataclasses.replace(load(path, **options), step=one.step + (not step))
  for changes in ({"dtype": "bfloat16"}, {"draft_tokens": 2}, {"draft": runs / "t5"}, {"load": later}):
    with pytest.raises(UserError, match="is of other prompts or options"):
      again(**changes)
  with pytest.raises(Killed):
    again()
  monkeypatch.undo()
  again()
  assert [row["prompt"] for row in lines(out)] == ["the cat", "a dog"]


def test_a_draft_is_sharded_as_the_model_is(runs, capsys):
  values = {"prompt": "the cat", "draft": runs / "gpt", "draft_tokens": 2, "max_new_tokens": 4, "dtype": "float32"}
  call(workdir=runs / "gpt", **values)
  call(workdir=runs / "gpt", **values, strategy="fsdp")
  one, other = capsys.readouterr().out.splitlines()
  assert one == other


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    ({"max_new_tokens": "24"}, True),
    ({"max_new_tokens": "24", "context": "4"}, False),
    ({"max_new_tokens": "2"}, False),
  ],
)
def test_texts_that_become_longer_than_a_row_are_told_how_to_keep_their_way(flags, told, caplog, capsys):
  own = run_of("llama")
  own = dataclasses.replace(own, config=dataclasses.replace(own.config, data=DataConfig(seq_len=16)))
  with caplog.at_level("INFO", "tfm_jax"):
    decode({"workdir": "run", "prompt": "the cat", **flags}, lambda *arguments, **changes: own)
  assert any("--context=16 lets" in message for message in caplog.messages) == told
  assert capsys.readouterr().out.startswith("the cat")


def test_gaps_are_filled(runs, capsys):
  trained = load_run(runs / "bert")
  call(workdir=runs / "bert", prompt="the c[MASK]t s[MASK]t", fill="true", top=2)
  row = json.loads(capsys.readouterr().out)
  assert len(row["guesses"]) == 2 and all(len(guesses) == 2 for guesses in row["guesses"])
  filled = trained.fill_mask("the c[MASK]t s[MASK]t", 1)
  assert [guesses[0][0] for guesses in row["guesses"]] == [guesses[0][0] for guesses in filled]
  call(workdir=runs / "t5", prompt="the <extra_id_0> sat <extra_id_1> mat", fill="true")
  row = json.loads(capsys.readouterr().out)
  assert len(row["guesses"]) == 2 and row["text"].startswith("the ")
  filled = load_run(runs / "t5").fill_mask("the <extra_id_0> sat <extra_id_1> mat")
  assert row["text"] == filled.text and row["guesses"] == [[list(one) for one in guesses] for guesses in filled]


def test_lines_of_a_pipe_are_answered(runs, monkeypatch, capsys):
  monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n/reset\nthe cat"))
  wide = lambda *arguments, **options: dataclasses.replace(
    load_run(*arguments, **options), imported=True
  )  # all positions
  decode({"workdir": str(runs / "gpt"), "chat": "true", "max_new_tokens": "4"}, wide)
  first, second, end = capsys.readouterr().out.split("\n")
  assert first == second and end == ""


@pytest.mark.slow
def test_ctrl_c_reaches_a_conversation(experiment, tmp_path):
  """The first one ends an answer or a wait for a line, and the program goes on; the second ends it."""
  quick_fit(tiny(experiment, "gpt", train__steps=1, data__seq_len=64, model__max_positions=64), tmp_path / "gpt")
  command = [sys.executable, "-m", "tfm_jax.decode", f"--workdir={tmp_path / 'gpt'}", "--chat"]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, bufsize=1, **pipes) as process:
    remark = lambda: next(line for line in process.stderr if "Ctrl-C" in line)
    process.stdin.write("the cat\n")
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert remark().endswith("Ctrl-C again ends the program\n")
    process.stdin.write("a dog\n")
    assert process.stdout.readline() and process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert remark().endswith("Ctrl-C again ends the program\n")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read() == "SIGINT: stopped\n"


def test_choices_and_scores(runs, tmp_path, capsys):
  call(
    workdir=runs / "gpt",
    prompt="the cat",
    choices=" sat| ran",
  )
  row = json.loads(capsys.readouterr().out)
  assert sum(row["probabilities"].values()) == pytest.approx(1.0) and row["text"] in (" sat", " ran")
  (tmp_path / "pairs.txt").write_text("the cat\t sat\na dog\t ran\n")
  call(workdir=runs / "gpt", file=tmp_path / "pairs.txt", score="true", out=tmp_path / "scores.jsonl")
  rows = lines(tmp_path / "scores.jsonl")
  assert [(row["prompt"], row["text"]) for row in rows] == [("the cat", " sat"), ("a dog", " ran")]
  assert rows[0]["logprob"] == pytest.approx(load_run(runs / "gpt").score([("the cat", " sat")])[0].logprob, rel=1e-5)


def test_surprisal_becomes_a_page(runs, tmp_path):
  (tmp_path / "pairs.txt").write_text("the cat\t sat\na <extra_id_0> ran\t<extra_id_0> dog\n")
  call(workdir=runs / "t5", file=tmp_path / "pairs.txt", score="true", out=tmp_path / "page.html", top=2)
  page = (tmp_path / "page.html").read_text(encoding="utf-8")
  trained = load_run(runs / "t5")
  views = [trained.surprisal(" sat", "the cat", 2), trained.surprisal("<extra_id_0> dog", "a <extra_id_0> ran", 2)]
  assert page == surprisal_page(views)
  assert views[1].tokens[0].id == trained.tokenizer.sentinel_ids[0]
  call(workdir=runs / "bert", prompt="the cat", score="true", out=tmp_path / "bert.html")
  assert "masked one at a time" in (tmp_path / "bert.html").read_text(encoding="utf-8")


def test_one_line_says_which_prompt_is_wrong_and_nothing_is_written(runs, tmp_path):
  long, before = "the cat " * 20, sorted(runs.iterdir())
  for family, lines_of_file, values, message in (
    ("t5", [*["a"] * 17, ""], {"batch_size": 1}, "prompt 18 is empty"),  # of the second window
    ("gpt", ["a", "b", "c"], {"beams": 1000}, "beams=1000 must be between 1 and"),
    ("gpt", ["a", "b"], {"draft": runs / "gpt", "beams": 2}, "a draft is for greedy decoding"),
    ("bert", ["a"], {}, "family=bert reads in both directions and generates no text: use --fill"),
    ("bert", ["a [MASK]", "b"], {"fill": "true"}, "prompt 2: the text has no mask"),
    ("bert", [long * 4 + "[MASK]"], {"fill": "true"}, "the text has 643 tokens, but the model has 512 positions"),
    ("t5", ["the cat\t sat", "sat"], {"score": "true"}, "write \"source<TAB>text\", not only 'sat'"),
    ("bert", ["a", "b [MASK]"], {"score": "true", "out": tmp_path / "x.html"}, "prompt 2: the text has a mask"),
    ("bert", ["a"], {"score": "true"}, "--score --out=PAGE.html for the surprisal"),
  ):
    (tmp_path / "prompts.txt").write_text("\n".join(lines_of_file) + "\n")
    given = {"workdir": runs / family, "file": tmp_path / "prompts.txt", "out": tmp_path / "out.jsonl"} | values
    assert message in refusal(call_with, given)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"] and sorted(runs.iterdir()) == before


def call_with(values):
  call(**values)


def test_the_flags_are_the_options():
  assert set(OPTIONS) == set(Options.__dataclass_fields__)
  for name in (*FLAGS, *SWITCHES):
    assert f"--{name}" in usage, name
  assert options_of({"stop": "a|b", "temperature": "0.5"}) == Options(stop=("a", "b"), temperature=0.5)
  assert options_of({"stop": "<|im_end|>|a||<b>"}).stop == ("<|im_end|>", "a", "<b>")


def test_mistakes_are_named(runs, tmp_path):
  (tmp_path / "empty.txt").write_text("")
  for values, message in (
    ({"file": tmp_path / "none.txt"}, "none.txt: No such file"),
    ({"file": tmp_path / "empty.txt"}, "empty.txt is empty: write one prompt per line"),
    ({"prompt": "a", "out": tmp_path}, "is a folder; name a file"),
    ({"prompt": "a", "out": tmp_path / "no" / "out.jsonl"}, "is no folder; name a file"),
    ({"prompt": "a", "temperature": "hot"}, "--temperature=hot: a number is expected"),
    ({"prompt": "a", "fill": "true", "score": "true"}, "--fill and --score do not go together"),
    ({"prompt": "a", "draft": runs / "t5"}, "the draft has another tokenizer"),
    ({"chat": "true", "out": tmp_path / "out"}, "--chat and --out do not go together"),
    ({"chat": "true", "beams": 2}, "a text is streamed as its tokens are chosen"),
    ({"prompt": "a", "system": "Be brief."}, "--system=Be brief. is said before a conversation: add --chat"),
    ({"prompt": "no gap", "fill": "true"}, "fill_mask needs a masked language model"),
  ):
    with pytest.raises(UserError, match=message):
      call(workdir=runs / "gpt", **values)
