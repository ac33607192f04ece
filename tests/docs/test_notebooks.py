"""The notebooks are stored without what they printed, define nothing that belongs in the package, and run."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.launching import ROOT, environment
from tests.support.xla import xla_flags

NOTEBOOKS = pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)

# In a process of its own: what the kernel's client warns of is none of ours. It takes a notebook, the folder to run in,
# and where to write the notebook with what it printed.
RUN = """
import sys
import nbclient, nbformat
source, folder, result = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
client = nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}})
try:
  client.execute()
except nbclient.exceptions.CellExecutionError as error:
  sys.exit(str(error))
nbformat.write(notebook, result)
"""

# Evaluations and checkpoints stay as rare as they are, so that there is one of each, at the end.
NUMBERS = re.compile(r'(\\"(?:train\.steps|train\.log_every|optimizer\.warmup_steps|eval\.batches)\\": )(\d+)')
SHORTER = 60
# Of the strategies that are measured side by side, three; tests/compare has the others.
FEWER = ('\\"zero2\\", \\"fsdp\\", \\"tp_sp\\", ', '\\"hsdp\\", \\"fsdp+cp\\", ')


def shortened(text):
  """A notebook's text with fewer steps, held-out batches and strategies, and programs that are compiled cheaply."""
  text = NUMBERS.sub(lambda found: f"{found[1]}{max(1, int(found[2]) // SHORTER)}", text)
  for some in FEWER:
    text = text.replace(some, "")
  return text.replace("--xla_force_host_platform_device_count=8", xla_flags(8))


def code_of(notebook):
  return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
  assert list((ROOT / "notebooks").glob("*.ipynb"))


@NOTEBOOKS
def test_it_is_stored_stripped(path):
  notebook = json.loads(path.read_text(encoding="utf-8"))
  assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
  assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
  assert notebook["metadata"]["kernelspec"]["name"] == "python3"  # every installation has it
  ids = [cell["id"] for cell in notebook["cells"]]
  assert len(set(ids)) == len(ids)
  for cell in notebook["cells"]:
    assert cell["metadata"] == {}
  for cell in code_of(notebook):
    assert cell["outputs"] == [] and cell["execution_count"] is None


@NOTEBOOKS
def test_it_defines_no_function_or_class(path):
  for cell in code_of(json.loads(path.read_text(encoding="utf-8"))):
    for node in ast.walk(ast.parse("".join(cell["source"]))):
      assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef), node.name
      assert not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)), ast.unparse(node)


def visible():
  """Files and folders of the repository that somebody would find."""
  return {path for place in (ROOT, ROOT / "notebooks") for path in place.iterdir() if not path.name.startswith(".")}


@pytest.mark.slow
@NOTEBOOKS
def test_it_runs(path, tmp_path):
  """In a folder that has the configs and nothing else, beside it Jupyter's own files; `shortened`."""
  here = tmp_path / "here"
  shutil.copytree(ROOT / "configs", here / "configs", ignore=shutil.ignore_patterns("__pycache__"))
  before = visible()
  places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
  env = environment() | {name: str(tmp_path / name.lower()) for name in places}
  env["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this interpreter, not one that a user has under the same name
  env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
  result = tmp_path / "result.ipynb"
  shorter = tmp_path / path.name
  shorter.write_text(shortened(path.read_text(encoding="utf-8")))
  command = [sys.executable, "-c", RUN, str(shorter), str(here), str(result)]
  done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
  assert done.returncode == 0, done.stderr
  for cell in code_of(json.loads(result.read_text(encoding="utf-8"))):
    assert cell["execution_count"]
    for output in cell["outputs"]:
      # A reader would see it, and take it for a fault.
      assert output.get("name") != "stderr", output["text"]
  assert visible() == before
