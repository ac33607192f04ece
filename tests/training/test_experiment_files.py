"""Experiment files: how they are found, evaluated and refused."""

import importlib

import pytest

from tests.support.launching import ROOT
from tests.support.refusal import refusal
from tfm_jax.tasks.table import find_task
from tfm_jax.training.config import load, resolve, to_dict

EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("base", "task", "__init__"))


@pytest.fixture
def file(tmp_path):
  """file("c.train.steps = 3") -> the path of an experiment file with that line."""

  def write(
    line, head="from configs import base\n\n\ndef get_config():\n  c = base.get_config()\n", tail="  return c.lock()\n"
  ):
    path = tmp_path / "experiment.py"
    path.write_text(f"{head}  {line}\n{tail}")
    return str(path)

  return write


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_loads_and_resolves(path):
  config = resolve(load(str(path)))
  values = [section for section in to_dict(config).values() if isinstance(section, dict)]
  assert not any(None in section.values() for section in values)
  assert resolve(config) == config


def test_every_variant_loads_and_names_a_task():
  for path in EXPERIMENTS:
    for variant in getattr(importlib.import_module(f"configs.{path.stem}"), "VARIANTS", ()):
      assert find_task(load(f"{path}:{variant}").task.name)
    assert find_task(load(str(path)).task.name)


def test_a_task_as_text_holds_out_the_examples_of_the_task_itself():
  paths = ("configs/mrpc.py", "configs/t5_tasks.py:mrpc", "configs/t5_tasks.py:mrpc_base")
  assert {load(str(ROOT / path)).data.eval_fraction for path in paths} == {0.1}


def test_experiment_files_are_named_after_families_and_documented():
  assert {"quickstart", "shakespeare_char", "bert_base", "gpt2_small", "t5_small", "transformer_base"} <= {
    path.stem for path in EXPERIMENTS
  }
  for path in EXPERIMENTS:
    text = path.read_text()
    assert f"--config=configs/{path.name}" in text, path
    assert "Measured: " in text, path


def test_overrides_typed_and_as_text():
  path = str(ROOT / "configs/quickstart.py")
  typed = load(path, {"train.steps": 7, "optimizer.learning_rate": 1, "data.packing": False, "model.dropout": 0.3})
  text = load(
    path,
    {"train.steps": "7", "optimizer.learning_rate": "1", "data.packing": "false", "model.dropout": "0.3"},
  )
  assert typed == text
  assert typed.train.steps == 7 and typed.optimizer.learning_rate == 1.0 and typed.data.packing is False
  assert isinstance(typed.optimizer.learning_rate, float)


def test_variants_of_a_file():
  config = load(str(ROOT / "configs/t5_small.py"))
  one = load(str(ROOT / "configs/t5_small.py") + ":1.1")
  assert not config.model.gated and one.model.gated


def test_a_variant_that_does_not_exist(file):
  for name, variants in (("t5_small", "1.0, 1.1"), ("decoder", "7b, 8b, 16b")):
    path = str(ROOT / f"configs/{name}.py")
    assert refusal(load, f"{path}:9b").startswith(f"{path} has no variant '9b': choose one of {variants}")
  path = str(ROOT / "configs/gpt2_small.py")
  assert refusal(load, f"{path}:large") == f"{path} has no variants: write --config={path}"
  path = file("{}[variant]", head="from configs import base\n\n\ndef get_config(variant):\n")
  assert refusal(load, f"{path}:9b") == f"{path}, line 5: KeyError: 9b"  # a file without VARIANTS


def test_a_missing_file():
  assert refusal(load, "configs/none.py").startswith("no config file or run directory 'configs/none.py'")


def test_a_missing_file_with_a_neighbour(monkeypatch):
  monkeypatch.chdir(ROOT)
  assert "did you mean configs/bert_base.py?" in refusal(load, "configs/bertbase.py")


def test_a_file_that_is_no_python():
  assert "README.md is not a Python file: name an experiment" in refusal(load, str(ROOT / "README.md"))


def test_a_folder_is_no_config_file(tmp_path):
  assert "no config file" in refusal(load, str(tmp_path))


@pytest.mark.parametrize(
  "line, named",
  [
    ("c.train.stepz = 3", "config.train.stepz does not exist; did you mean config.train.steps?"),
    ("c.optimizer.lr = 3", "config.optimizer.lr does not exist; did you mean config.optimizer.learning_rate?"),
    ("print(c.optimizer.lr)", "config.optimizer.lr does not exist; did you mean config.optimizer.learning_rate?"),
    ("c.optimizer.update({'learning_rat': 1.0})", "did you mean config.optimizer.learning_rate?"),
    ("c.trian = 3", "config.trian does not exist; did you mean config.train?"),
    ("c.train.foo = 3", "config.train.foo does not exist; --help=train lists the keys"),
    ("c.train.steps = 'many'", "config.train.steps='many' is of type str, but a whole number is expected"),
    ("c.train.steps = 1.5", "config.train.steps=1.5 is of type float, but a whole number is expected"),
    ("c.data.seq_len = True", "config.data.seq_len=True is of type bool"),
    ("c.model.bias = True", "config.model.bias=True is of type bool, but text is expected, such as 'all'"),
    ("c.model.num_layers = [1, 2]", "config.model.num_layers=[1, 2] is of type list"),
    ("c.model.update({'dropout': 'high'})", "config.model.dropout='high'"),
    ("c.train = 3", "config.train is a section, not 3"),
    ("c.seed = {'a': 1}", "config.seed={'a': 1}"),
    ("c.model.head = 'lm'", "config.model.head is now config.head.name"),
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("x = = 3", "SyntaxError: invalid syntax"),
    ("c.train.steps = undefined", "NameError: name 'undefined' is not defined"),
    ("{}['a \\'quoted\\' key']", "KeyError: a 'quoted' key"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("raise SystemExit(3)", "SystemExit: 3"),
  ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_an_error_in_a_file_is_one_line_with_the_file_and_the_line(file, line, named, relative, tmp_path, monkeypatch):
  path = file(line)
  if relative:
    monkeypatch.chdir(tmp_path)
    path = "experiment.py"
  message = refusal(load, path)
  assert message.startswith(f"{path}, line 6: ") and named in message
  assert '"' not in message and "\\" not in message


def test_an_error_in_a_file_that_another_imports_names_the_line_of_the_import(file, tmp_path, monkeypatch):
  (tmp_path / "broken_experiment.py").write_text("1 / 0\n")
  monkeypatch.syspath_prepend(tmp_path)
  assert refusal(load, file("import broken_experiment")).endswith("line 6: ZeroDivisionError: division by zero")


def test_get_config_returns_the_tree(file):
  path = file("return None")
  assert refusal(load, path) == f"{path}: get_config() must return the ConfigDict of configs/base.py"


def test_files_may_set_whole_numbers_as_floats_and_keys_of_the_model_to_none(file):
  config = load(file("c.train.steps, c.optimizer.learning_rate, c.model.dropout = 1e5, 1, None"))
  assert config.train.steps == 100_000 and type(config.train.steps) is int
  assert type(config.optimizer.learning_rate) is float and config.model.dropout == 0.1


def test_references_and_copies_of_the_tree_work(file):
  config = load(
    file(
      "c.train.steps = 7; c.eval.every = c.train.get_ref('steps'); c = copy.deepcopy(c)",
      head="import copy\nfrom configs import base\n\n\ndef get_config():\n  c = base.get_config()\n",
    )
  )
  assert config.eval.every == 7
  copied = file("c = c.copy_and_resolve_references(); c.unlock(); c.train.stepz = 3")
  assert refusal(load, copied) == "config.train.stepz does not exist; did you mean config.train.steps?"


def test_a_file_without_get_config(file):
  assert "get_config" in refusal(load, file("pass", head="if True:\n", tail=""))
