"""The Makefile, with programs that do nothing in place of those of an environment."""

import os
import subprocess

import pytest

from tests.support.launching import ROOT


@pytest.fixture
def make(tmp_path):
  """Runs make with an environment whose programs are these shell commands; returns (exit status, stdout)."""

  def with_programs(target, **programs):
    for name, command in {"pip": "true", "python": "true", **programs}.items():
      program = tmp_path / "bin" / name.replace("_", "-")
      program.parent.mkdir(exist_ok=True)
      program.write_text(f"#!/bin/sh\n{command}\n")
      program.chmod(0o755)
    for mark in (".installed", ".installed-dev"):
      (tmp_path / mark).touch()
    # Without what `make test` gives to the programs that it runs.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", *target, f"VENV={tmp_path}"], cwd=ROOT, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout

  return with_programs


def test_make_alone_lists_the_targets_and_runs_nothing(make):
  status, page = make([], python="echo something ran")
  assert status == 0 and "something ran" not in page
  text = (ROOT / "Makefile").read_text()
  targets = set(text.partition(".PHONY: ")[2].splitlines()[0].split()) - {"help"}
  assert {line.split()[1] for line in page.splitlines() if line.startswith("make ")} == targets


def test_install_only_sets_up(make):
  assert make(["install"], python="echo something ran") == (0, "make: Nothing to be done for 'install'.\n")


@pytest.mark.parametrize("failing", ["ruff", "mypy", "lint_imports", ""])
def test_lint_runs_every_linter_and_fails_if_one_did(make, failing):
  programs = {name: f"echo {name}: $*; exit {int(name == failing)}" for name in ("ruff", "mypy", "lint_imports")}
  status, page = make(["lint"], **programs)
  assert (status != 0) == bool(failing)
  for line in ("ruff: check .", "ruff: format --check .", "mypy:", "lint_imports: --no-logo"):
    assert line in page.splitlines()
