"""`import tfm_jax`: load, fit and load_run, imported when they are used."""

import os
import subprocess
import sys

import pytest

import tfm_jax
from tests.support.launching import tiny, write_experiment
from tfm_jax.errors import UserError


def test_importing_the_package_imports_no_jax():
  """Workers that tokenize import the package as well."""
  code = "import sys, tfm_jax; assert 'jax' not in sys.modules; tfm_jax.load; assert 'jax' in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_folder_of_that_name_beside_the_script_does_not_hide_the_installed_package(tmp_path):
  """As the clone itself is one, for whoever works in the folder above it."""
  (tmp_path / "tfm_jax").mkdir()
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  code = "import tfm_jax; assert tfm_jax.load_run"
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=tmp_path, env=environment)


def test_load_fit_and_load_run(tmp_path):
  experiment = write_experiment(tmp_path / "experiment")
  config = tfm_jax.load(f"{experiment}:gpt", {"train.steps": 1, "eval.batches": 1})
  metrics = tfm_jax.fit(config, tmp_path / "run")
  assert metrics["loss"] > 0
  run = tfm_jax.load_run(tmp_path / "run")
  assert isinstance(run, tfm_jax.Run) and run.step == 1 and run.config == config


def test_fit_takes_the_task_that_the_configuration_names(tmp_path):
  experiment = write_experiment(tmp_path / "experiment")
  with pytest.raises(UserError, match=r"task\.name='sorting' is not one of"):
    tfm_jax.fit(tiny(experiment, task__name="sorting"), tmp_path / "run")


def test_other_names_do_not_exist():
  with pytest.raises(AttributeError, match="no attribute 'train'"):
    tfm_jax.train  # noqa: B018
  assert {"load", "fit", "load_run", "Run"} <= set(dir(tfm_jax))
