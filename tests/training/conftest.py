"""A finished run, for the tests of what is in it and of what later starts take from it."""

import shutil

import pytest

from tests.support.launching import quick_fit, tiny


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
  """(config, result, directory) of a run that must not be changed."""
  config = tiny(experiment, "gpt")
  workdir = tmp_path_factory.mktemp("finished") / "run"
  return config, quick_fit(config, workdir), workdir


@pytest.fixture
def copy(finished, tmp_path):
  """The directory of a finished run, to be changed."""
  shutil.copytree(finished[2], tmp_path / "run")
  return tmp_path / "run"
