"""Log lines of `fit` in a program or a notebook that has not configured logging, and in one that has."""

import io
import logging
import subprocess
import sys

import pytest

from tfm_jax.runtime.reporting.logs import show_log_lines
from tfm_jax.runtime.reporting.tracking import Tracker
from tfm_jax.runtime.run_directory import RunDirectory


@pytest.fixture
def loggers():
  """A function that makes the root logger and the package's as in a new process, and returns them.

  The tests call it themselves: pytest adds its handlers after fixtures are set up.
  """
  pair = logging.getLogger(), logging.getLogger("tfm_jax")
  before = []

  def reset():
    before.extend((logger, logger.handlers[:], logger.level) for logger in pair)
    for logger, level in zip(pair, (logging.WARNING, logging.NOTSET), strict=True):
      logger.handlers[:] = []
      logger.setLevel(level)
    return pair

  yield reset
  for logger, handlers, level in before:
    logger.handlers[:], logger.propagate = handlers, True
    logger.setLevel(level)


def test_lines_are_shown_where_nobody_configured_logging(loggers, capsys):
  root, _ = loggers()
  show_log_lines()
  show_log_lines()
  logging.getLogger("tfm_jax.training.loop").info("step 1")
  logging.getLogger("another.library").info("silent")
  assert capsys.readouterr().err.splitlines()[0].split(" ", 1)[1] == "step 1"
  assert root.handlers == [] and root.level == logging.WARNING


def test_lines_are_shown_once_where_a_library_has_called_basic_config(loggers, capsys):
  """As absl does when Orbax is imported, and as notebooks do."""
  root, package = loggers()
  logging.basicConfig()
  before = root.handlers[:]
  show_log_lines()
  package.info("step 1")
  assert capsys.readouterr().err.rstrip().split(" ", 1)[1] == "step 1"
  assert root.handlers == before and root.level == logging.WARNING


@pytest.mark.parametrize("settings", [{"level": logging.INFO}, {"format": "%(message)s"}, {"level": logging.ERROR}])
def test_a_program_that_configured_logging_keeps_what_it_configured(loggers, settings):
  _, package = loggers()
  logging.basicConfig(stream=io.StringIO(), **settings)
  show_log_lines()
  assert package.handlers == [] and package.level == logging.NOTSET and package.propagate


def test_a_program_that_configured_the_package_keeps_what_it_configured(loggers, capsys):
  _, package = loggers()
  package.setLevel(logging.WARNING)
  show_log_lines()
  package.info("not wanted")
  assert package.handlers == [] and capsys.readouterr().err == ""


def test_a_tracker_adds_no_handler_to_a_logger_without_one(loggers, tmp_path, monkeypatch):
  loggers()
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, "stderr", terminal)
  show_log_lines()
  with Tracker(RunDirectory(tmp_path), 2) as tracker:
    assert logging.getLogger().handlers == []
    tracker.log("eval", 1, {"loss": 1.0})
  assert terminal.getvalue().count("eval step 1/2") == 1


def test_fit_prints_what_the_command_prints(tmp_path):
  """In a process of its own, as a script would call it."""
  from tests.support.launching import ROOT, environment, write_experiment

  experiment = write_experiment(tmp_path / "experiment")
  code = f"import tfm_jax; tfm_jax.fit(tfm_jax.load('{experiment}', {{'train.steps': 1}}), '{tmp_path}/run')"
  process = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True, timeout=300
  )
  lines = [line.split(" ", 1)[1] for line in process.stderr.splitlines() if " " in line]
  assert any(line.startswith("train step 1/1 ") for line in lines)
  assert any(line.startswith("eval step 1/1 ") for line in lines)
