"""Command lines: flags, the errors in them, and `--help`."""

import dataclasses
import logging
import sys

import pytest

from tests.support.launching import ROOT
from tfm_jax.errors import UserError, nearest
from tfm_jax.runtime import command
from tfm_jax.runtime.command import Flags, parse, run_command
from tfm_jax.runtime.help import Key, Section
from tfm_jax.training.config import all_keys, choices
from tfm_jax.training.keys.help import comments, config_keys
from tfm_jax.training.optimization.optimizer import OptimizerConfig

FLAGS = ("config", "workdir")


def refusal(function, *arguments):
  """The one line with which a function refuses its arguments."""
  with pytest.raises(UserError) as error:
    function(*arguments)
  assert "\n" not in str(error.value)
  return str(error.value)


# Flags.


def test_flags_in_both_forms():
  flags = parse(["--config=a.py:x", "--workdir", "dir", "--config.train.steps=3", "--config.data.path", "x=y"], FLAGS)
  assert flags.values == {"config": "a.py:x", "workdir": "dir"}
  assert flags.overrides == {"train.steps": "3", "data.path": "x=y"}


def test_the_last_of_repeated_flags_wins_and_the_log_says_so(caplog):
  caplog.set_level(logging.INFO, "tfm_jax")
  flags = parse(["--config.seed=1", "--workdir=a", "--config.seed=2", "--workdir=b"], FLAGS)
  assert flags == Flags({"workdir": "b"}, {"seed": "2"})
  assert caplog.messages == [
    "--config.seed is given more than once: 2 is used, not 1",
    "--workdir is given more than once: b is used, not a",
  ]


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    (["--train.steps=3"], "--train.steps is not a flag; to set a key of the config write --config.train.steps=3"),
    (["train.steps=3"], "'train.steps=3' is not a flag; to set a key of the config write --config.train.steps=3"),
    (["config.train.steps=3"], "'config.train.steps=3' is not a flag: write --config.train.steps=3"),
    (["--steps=3"], "write --config.train.steps=3"),
    (["--learning_rate", "3"], "write --config.optimizer.learning_rate=..."),
    (["--lr=1e-3"], "--lr is not a flag; did you mean --config.optimizer.learning_rate=1e-3?"),
    (["--wrokdir=x"], "--wrokdir is not a flag; did you mean --workdir=x?"),
    (["--xyzzy=1"], "--xyzzy is not a flag; flags are written --name=value, and --help lists them"),
    (["run"], "'run' is not a flag; flags are written --name=value"),
    (["-config=x"], "'-config=x' is not a flag: write --config=x"),
    (["workdir=x"], "'workdir=x' is not a flag: write --workdir=x"),
    (["--config"], "--config needs a value"),
    (["--config", "--workdir=x"], "--config needs a value"),
    (["--config.seed"], "--config.seed needs a value"),
  ],
)
def test_errors_in_flags(arguments, named):
  assert refusal(parse, arguments, FLAGS, config_keys).startswith(named.partition("write")[0])
  assert named in refusal(parse, arguments, FLAGS, config_keys)


def test_errors_in_flags_of_a_command_without_a_config():
  assert (
    refusal(parse, ["--steps=3"], FLAGS)
    == "--steps is not a flag; flags are written --name=value, and --help lists them"
  )


def test_a_missing_flag():
  assert "--config=... is missing" in refusal(parse([], FLAGS).require, "config")


def test_a_missing_config_of_a_run(tmp_path):
  flags = Flags({"workdir": str(tmp_path)}, {})
  assert "--help lists" in refusal(flags.require, "config")
  (tmp_path / "config.json").write_text("{}")
  assert f"add --config={tmp_path})" in refusal(flags.require, "config")


def test_the_nearest_name():
  names = ["train.steps", "optimizer.warmup_steps", "optimizer.learning_rate", "workdir"]
  assert nearest("steps", names) == "train.steps"
  assert nearest("optimizer.warmup", names) == "optimizer.warmup_steps"
  assert nearest("lr", names) == nearest("train.lr", names) == "optimizer.learning_rate"
  assert nearest("train.eval_every", ["train.log_every", "eval.every", "eval.batches"]) == "eval.every"
  assert nearest("wrokdir", names) == "workdir"
  assert nearest("xyzzy", names) is None and nearest("x", []) is None


# Help.


@pytest.fixture
def run(monkeypatch, capsys):
  """Runs a command that has keys, and returns (exit status, stdout, stderr)."""
  monkeypatch.setattr(command, "set_up_logging", lambda: None)
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv("COLUMNS", "120")

  def with_arguments(*arguments, keys=config_keys):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    status = run_command(lambda flags: pytest.fail("the command ran"), "usage of it", FLAGS, keys=keys)
    return (status, *capsys.readouterr())

  return with_arguments


def test_help_is_the_usage_and_the_sections(run):
  status, page, _ = run("--help")
  lines = page.splitlines()
  assert status == 0 and lines[0] == "usage of it" and len(lines) < 30
  count = len(dataclasses.fields(OptimizerConfig))
  assert f"  --help=optimizer   {count}  The optimizer and its schedule" in lines
  assert run("-h") == run("--help")


def test_help_of_all_lists_every_key_with_its_comment_and_choices(run):
  status, page, _ = run("--help=all")
  assert status == 0 and max(map(len, page.splitlines())) <= 120
  words = " ".join(page.split())
  for section in config_keys():
    for key in section.keys:
      assert f"--config.{key.name}={key.value} {' '.join(key.comment.split())}" in words, key.name
      assert all(name in words for name in choices(key.name))
  assert {key.name for section in config_keys() for key in section.keys} == set(all_keys())
  assert "--config.train.steps=1000 number of updates, unless `epochs` says it (int)" in words
  assert "architecture (one of bert, roberta, " in words
  # A line with a mark begins so: it differs from the defaults.
  assert not any(line.startswith("*") for line in page.splitlines())


def test_help_has_the_values_of_a_config(run):
  status, page, _ = run("--config=configs/gpt2_small.py", "--help", "--config.seed=7")
  lines = page.splitlines()
  assert status == 0 and "usage of it" not in lines
  assert any(line.startswith("* --config.seed=7  ") for line in lines)
  assert any(line.startswith("* --config.tokenizer.vocab_size=50257  ") for line in lines)
  assert any(line.startswith("  --config.model.positions=learned  ") for line in lines)  # the family's own
  assert lines[-1] == "* differs from the default of the family"
  one = run("--help", "optimizer.learning_rate", "--config=configs/gpt2_small.py")[1].splitlines()
  assert len(one) == 4 and one[1].startswith("* --config.optimizer.learning_rate=0.0006  ")


@pytest.mark.parametrize(
  ("topic", "keys"),
  [
    (
      "eval",
      {f"eval.{key}" for key in ("every", "batches", "metric", "patience", "generate_every", "generate_examples")},
    ),
    ("optimizer.beta1", {"optimizer.beta1"}),
    ("--config.optimizer.beta1", {"optimizer.beta1"}),
    ("warm", {"optimizer.learning_rate", "optimizer.schedule", "optimizer.warmup_fraction", "optimizer.warmup_steps"}),
    ("Seed", {"seed"}),
  ],
)
def test_help_searches_sections_names_and_comments(run, topic, keys):
  for arguments in ([f"--help={topic}"], ["--help", topic] if topic[0] != "-" else [f"-h={topic}"]):
    status, page, _ = run(*arguments)
    assert status == 0
    assert {word[9:].partition("=")[0] for word in page.split() if word.startswith("--config.")} == keys


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    (["--help=optimizer.lr"], "did you mean --help=optimizer.learning_rate?"),
    (["--help=chekpoint"], "did you mean --help=checkpoint?"),
    (["--help=train.eval_every"], "did you mean --help=eval.every?"),
    (["--help=xyzzy"], "--help=xyzzy: no key has that word in its name or comment; --help lists the sections"),
    (["--help", "--config=none.py"], "no config file or run directory 'none.py'"),
    (["--help", "--config.train.steps=x", "--config=configs/quickstart.py"], "--config.train.steps=x: a whole number"),
    (["--help", "--wrokdir=x"], "did you mean --workdir=x?"),
  ],
)
def test_errors_beside_help(run, arguments, named):
  status, page, errors = run(*arguments)
  assert status == 2 and not page and named in errors and errors.count("\n") == 1


def test_help_of_a_command_without_a_config_is_its_usage(run):
  assert run("--help", keys=None) == (0, "usage of it\n", "")


def test_help_of_a_config_that_is_not_ours(run):
  """Whatever the keys are: comments are wrapped, and stand below a value that leaves no room."""
  keys = (Key("a.path", "x" * 60, "where it is " * 10, "str"), Key("a.b", "1", "a number", "int", changed=True))
  page = run("--help=a", keys=lambda path, overrides: [Section("a", "", keys)])[1]
  lines = page.splitlines()
  assert lines[0] == "a" and lines[1] == f"  --config.a.path={'x' * 60}" and lines[2].strip().startswith("where it is")
  assert next(line for line in lines if line.startswith("*")).split() == ["*", "--config.a.b=1", "a", "number", "(int)"]


# A class whose comments are read below.
class Commented:
  """A docstring."""

  plain: int = 0  # beside; with "# a sign"
  text: str = "# no comment"  # beside a text
  # Above, in
  # two lines.
  above: str = ""

  # Not of a field, as a line is between.

  bare: int = 0
  both: tuple[int, ...] = (  # not this one
    1,
  )  # at the end


def test_comments_are_read_from_the_source():
  assert comments(Commented) == {
    "plain": 'beside; with "# a sign"',
    "text": "beside a text",
    "above": "Above, in two lines.",
    "bare": "",
    "both": "at the end",
  }
