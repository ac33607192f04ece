"""lm-eval on tiny runs: each kind of request against plain forward passes, and whole tasks on local files."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from tests.support.generating import logits_after, run_of
from tfm_jax.decode.prompts import position_limit
from tfm_jax.errors import UserError

pytest.importorskip("lm_eval", reason="NOT TESTED: lm-eval is not installed: pip install -e '.[lm-eval]'")

from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tfm_jax.tasks.lm_eval import adapter
from tfm_jax.tasks.lm_eval.__main__ import FLAGS, SWITCHES, main
from tfm_jax.tasks.lm_eval.__main__ import __doc__ as usage
from tfm_jax.tasks.lm_eval.adapter import RunLM, options_of, rolling
from tfm_jax.tasks.lm_eval.command import evaluate, load_tasks, report


def ask(kind, *arguments):
  return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def logprob_of(run, before, ids):
  """(the log-probability of ids after others, whether each is the likeliest) by one forward pass per token."""
  total, likeliest = 0.0, True
  for i, id in enumerate(ids):
    logits = logits_after(run, before, ids[:i])
    total += logits[id] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    likeliest &= bool(logits[id] == logits.max())
  return total, likeliest


def test_likelihoods_of_continuations():
  """The space at the end of a context belongs to the continuation; without a context there is the first symbol."""
  run = run_of("gpt")
  encode = lambda text: run.tokenizer.encode(text).tolist()
  (greedy,) = run.generate("the cat", max_new_tokens=2)
  pairs = [("the cat", " sat on"), ("the cat ", "sat on"), ("", "a dog"), ("the cat", greedy.text)]
  found = RunLM(run).loglikelihood(ask("loglikelihood", *pairs))
  for (context, continuation), (value, likeliest) in zip(pairs, found, strict=True):
    whole, bare = encode(context + continuation), encode(context.rstrip())
    expected, best = logprob_of(run, context.rstrip(), whole[len(bare) :])
    assert value == pytest.approx(expected, rel=1e-4) and likeliest == best
  assert found[3][1] and not found[2][1]


def test_a_run_whose_texts_begin_with_no_symbol_reads_the_end_symbol_before_a_text_alone():
  run = run_of("gpt")
  nameless = dataclasses.replace(run, begin_id=-1)
  after_end = dataclasses.replace(run, begin_id=run.tokenizer.eos_id)
  request = ask("loglikelihood", ("", "cat"))
  assert RunLM(nameless).loglikelihood(request) == RunLM(after_end).loglikelihood(request)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 21])
def test_windows_of_whole_texts_are_those_of_lm_eval(count):
  ids, window = np.arange(100, 100 + count), 8
  theirs = map(make_disjoint_window, get_rolling_token_windows(ids.tolist(), 5, window, 1))
  ours = [(row.ids[: row.first].tolist(), row.ids[row.first :].tolist()) for row in rolling(np.append(5, ids), window)]
  assert ours == [(list(context), list(scored)) for context, scored in theirs]


def test_likelihoods_of_whole_texts():
  run = run_of("gpt")
  assert run.window == 16 < position_limit(run.model)
  short, long = "the cat sat", "a dog ran after one small grey bird and saw all of the town on the mat"
  found = RunLM(run).loglikelihood_rolling(ask("loglikelihood_rolling", (short,), (long,)))
  assert found[0] == pytest.approx(logprob_of(run, "", run.tokenizer.encode(short).tolist())[0], rel=1e-4)
  ids = run.tokenizer.encode(long).tolist()
  assert len(ids) > 16
  # The second window of 16 tokens ends with the text; no symbol stands before it.
  bare = dataclasses.replace(run, begin_id=ids[len(ids) - 17])
  later = [logprob_of(bare, "", ids[len(ids) - 16 :])[0], logprob_of(bare, "", ids[len(ids) - 16 : 16])[0]]
  assert found[1] == pytest.approx(logprob_of(run, "", ids[:16])[0] + later[0] - later[1], rel=1e-4)


def test_texts_end_before_the_strings_of_the_task():
  run = run_of("gpt")
  (free,) = run.generate("the cat", max_new_tokens=12)
  stop = free.text[len(free.text) // 2 :][:2]
  settings = [
    {"until": [], "max_gen_toks": 12},
    {"until": [stop], "max_gen_toks": 12, "do_sample": False, "top_p": 0.5},
  ]
  drawn = {"until": stop, "max_gen_toks": 12, "do_sample": True}
  requests = [("the cat", settings[0]), ("a dog", drawn), ("the cat", settings[1]), ("a dog", drawn), ("a dog", drawn)]
  texts = RunLM(run).generate_until(ask("generate_until", *requests))
  assert texts[0] == free.text and texts[2] == free.text[: free.text.index(stop)]
  repeats = {texts[1], texts[3], texts[4]}  # drawn anew each time
  assert len(repeats) == 3 and not any(stop in text for text in repeats)


def test_of_a_context_that_is_too_long_the_end_is_read(monkeypatch):
  """The window of 16 tokens holds the symbol, the end of the context and the text."""
  run = run_of("gpt")
  read, (nothing,) = [], run.generate("the cat", max_new_tokens=1)
  monkeypatch.setattr(adapter, "continued", lambda *arguments: read.extend(arguments[3]) or [[nothing]])
  text = "the cat sat on the mat and saw the bird and a dog ran"
  ids = run.tokenizer.encode(text).tolist()
  for tokens, kept in ((5, 10), (100, 7)):  # at most half of the window is left to the text
    RunLM(run).generate_until(ask("generate_until", (text, {"max_gen_toks": tokens})))
    assert read.pop().ids.tolist() == [run.begin_id, *ids[-kept:]] and len(ids) > kept


def test_options_of_a_task():
  assert options_of({"until": ["\n"], "max_gen_toks": 5, "do_sample": False, "temperature": 0.7}).temperature == 0
  assert options_of({"temperature": 0.7, "top_k": 3}).top_k == 3
  assert options_of({}).max_new_tokens == 256
  assert options_of({"penalty_alpha": 0.6, "top_k": 4}).top_k == 4
  with pytest.raises(UserError, match="generation_kwargs have num_beams, which is not one of until, do_sample"):
    options_of({"num_beams": 4})


TASKS = {
  "choose": {
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
  },
  "lastword": {
    "output_type": "loglikelihood",
    "doc_to_text": "{{text}}",
    "doc_to_target": " {{choices[0]}}",
    "metric_list": [{"metric": "perplexity"}],
  },
  "whole": {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}],
  },
  "write": {
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match"}],
  },
}
DOCS = [
  {"text": "the cat", "choices": ["sat", "ran"], "label": 0},
  {"text": "a dog", "choices": ["saw", "on the mat"], "label": 1},
  {"text": "all of the", "choices": ["town", "bird"], "label": 1},
]


@pytest.fixture
def manager(tmp_path):
  """Tasks on local files: nothing is downloaded."""
  (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
  data = {"data_files": {"test": str(tmp_path / "docs.jsonl")}, "cache_dir": str(tmp_path / "cache")}
  (tmp_path / "tasks").mkdir()
  for name, task in TASKS.items():
    config = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test", **task}
    (tmp_path / "tasks" / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML
  return TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)


def test_tasks_are_scored_and_written(manager, tmp_path):
  run = run_of("gpt")
  results = evaluate(run, load_tasks([*TASKS], manager), batch_size=3)
  scores = results["results"]
  best = [max(range(2), key=lambda i: pair[i].logprob) for pair in (
    run.score([(doc["text"], f" {choice}") for choice in doc["choices"]]) for doc in DOCS
  )]  # fmt: skip
  assert scores["choose"]["acc,none"] == pytest.approx(
    np.mean([b == d["label"] for b, d in zip(best, DOCS, strict=True)])
  )
  words = [one.logprob for one in run.score([(doc["text"], f" {doc['choices'][0]}") for doc in DOCS])]
  assert scores["lastword"]["perplexity,none"] == pytest.approx(np.exp(-np.mean(words)), rel=1e-4)
  nll = -sum(one.logprob for one in run.score([("", doc["text"]) for doc in DOCS]))
  size = sum(len(doc["text"]) for doc in DOCS)
  assert scores["whole"]["bits_per_byte,none"] == pytest.approx(nll / size / np.log(2), rel=1e-4)
  written = [row["resps"][0][0] for row in results["samples"]["write"]]
  assert written == [one.text.split("\n")[0] for one in run.generate([doc["text"] for doc in DOCS], max_new_tokens=4)]
  table, *paths = report(results, str(tmp_path / "out"))
  rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
  assert rows["choose"][3:5] == ["acc", f"{scores['choose']['acc,none']:.4f}"] and set(rows) == {"task", *TASKS}
  error = f"{scores['lastword']['perplexity_stderr,none']:.4f}"
  assert rows["lastword"] == ["Yaml", "0", "none", "perplexity", f"{scores['lastword']['perplexity,none']:.4f}", error]
  stored = json.loads((tmp_path / "out" / "results.json").read_text())
  assert stored["results"]["choose"]["acc,none"] == scores["choose"]["acc,none"]
  assert (
    stored["config"]["parameters"] == run.model.parameter_count() and stored["n-samples"]["choose"]["effective"] == 3
  )
  assert {path.rpartition("/")[2] for path in paths} == {"results.json", *(f"samples_{name}.jsonl" for name in TASKS)}
  assert len((tmp_path / "out" / "samples_write.jsonl").read_text().splitlines()) == 3
  assert "torch" not in sys.modules


@pytest.mark.slow
def test_questions_by_the_chat_template_of_the_tokenizer(manager):
  run = run_of("gpt")
  with pytest.raises(UserError, match="has no chat template: leave --apply_chat_template out"):
    RunLM(run, chat=True)
  run.tokenizer.chat_template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}a:"
  results = evaluate(run, load_tasks(["lastword"], manager), limit=1, chat=True)
  (sample,) = results["samples"]["lastword"]
  assert sample["arguments"][0][0] == "<s>the cat</s>a:"
  begin, *before = run.tokenizer.encode("<s>the cat</s>a:", reads_names=True).tolist()
  new = run.tokenizer.encode("<s>the cat</s>a: sat", reads_names=True).tolist()[len(before) + 1 :]
  total, _ = logprob_of(dataclasses.replace(run, begin_id=begin), "", [*before, *new])
  expected = total - logprob_of(dataclasses.replace(run, begin_id=begin), "", before)[0]
  assert sample["resps"][0][0][0] == pytest.approx(expected, rel=1e-3)
  assert run.tokenizer.reads_names is False  # the run's own is unchanged


def test_mistakes_are_named(manager, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # a task without files has those that are found here
  (tmp_path / "tasks" / "both.yaml").write_text('{"group": "both", "task": ["choose", "whole"]}')
  (tmp_path / "tasks" / "broken.yaml").write_text('{"task": "broken", "dataset_path": "json", "test_split": "test"}')
  manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
  for names, message in (
    (["chose"], "--tasks=chose: there is no such task of lm-eval; did you mean choose?"),
    (["qqqq"], "no such task of lm-eval; lm-eval ls tasks lists"),
    (["broken"], "--tasks=broken cannot be loaded: "),
    (["both", "whole"], "--tasks=both,whole: Duplicate task 'whole'"),
  ):
    with pytest.raises(UserError, match=message):
      load_tasks(names, manager)
  assert len(load_tasks(["*o*e"], manager)) == 2  # choose, whole
  with pytest.raises(UserError, match="family=bert reads in both directions"):
    RunLM(run_of("bert"))


def test_the_command_names_its_flags_and_refuses_wrong_values():
  from tfm_jax.runtime.command import parse

  for name in (*FLAGS, *SWITCHES):
    assert f"--{name}" in usage, name
  for arguments, message in (
    ([], "--workdir=... is missing"),
    (["--workdir=a"], "--tasks=... is missing"),
    (["--workdir=a", "--tasks=b", "--limit=no"], "--limit=no: a number of examples or a share below 1"),
    (["--workdir=a", "--tasks=b", "--batch_size=0"], "--batch_size=0: a whole number is expected"),
    (["--workdir=a", "--tasks=b", "--config.seed=1"], "--config.seed does not apply here"),
    (["--workdir=a", "--tasks=b", "--include_path=/nowhere/at/all"], "--include_path=/nowhere/at/all is no folder"),
  ):
    with pytest.raises(UserError, match=message):
      main(parse(arguments, FLAGS, switches=SWITCHES))


@pytest.mark.slow
def test_an_encoder_decoder_answers_too():
  run = run_of("t5")
  model = RunLM(run)
  ((value, _),) = model.loglikelihood(ask("loglikelihood", ("the cat", " sat")))
  assert value == pytest.approx(run.score([("the cat", " sat")])[0].logprob, rel=1e-5)
  (text,) = model.generate_until(ask("generate_until", ("the cat", {"until": ["\n"], "max_gen_toks": 5})))
  assert text == run.generate("the cat", max_new_tokens=5)[0].text
  with pytest.raises(UserError, match="the likelihood of whole texts, which an encoder-decoder does not have"):
    model.loglikelihood_rolling(ask("loglikelihood_rolling", ("a",)))
