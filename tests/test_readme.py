"""The README's commands and snippets name what exists."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from tfm_jax.sharding.strategy import STRATEGIES
from tfm_jax.training.command import parse
from tfm_jax.training.config import Config, all_keys, load, resolve, to_dict
from train import FLAGS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
  line.strip()
  for kind, block in BLOCKS
  if not kind
  for line in block.replace("\\\n", " ").splitlines()
  if "python train.py" in line
]


@pytest.mark.parametrize("command", COMMANDS)
def test_training_commands_parse_into_a_valid_configuration(
  command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
  monkeypatch.chdir(ROOT)
  flags = parse(shlex.split(command.split("train.py", 1)[1]), FLAGS)
  config = flags.require("config")
  if config.startswith("runs/"):  # a run directory, which commands before it make
    (tmp_path / "config.json").write_text(json.dumps(to_dict(Config())))
    config = str(tmp_path)
  resolve(load(config, flags.overrides))


def test_there_are_commands_to_check() -> None:
  assert len(COMMANDS) >= 4


def test_every_config_file_is_listed_and_loads(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.chdir(ROOT)
  for path in sorted((ROOT / "configs").glob("*.py")):
    if path.stem == "base":
      continue
    resolve(load(str(path)))
    family, _, size = path.stem.partition("_")
    assert path.stem in TEXT or (f"`{family}_" in TEXT and f"_{size}`" in TEXT), path.stem
    assert f"--config=configs/{path.name}" in path.read_text(), f"{path.name} does not tell its own command"


def test_keys_strategies_and_modules_that_are_named_exist() -> None:
  keys = all_keys()
  sections = {key.split(".")[0] for key in keys}
  for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", TEXT):
    if name.split(".")[0] in sections and not name.endswith((".py", ".json", ".jsonl", ".safetensors")):
      assert name in keys, name
  for name in STRATEGIES:
    assert f"| `{name}` |" in TEXT, name
  for name in re.findall(r"`(tfm_jax/[\w/]+\.py)`", TEXT):
    assert (ROOT / name).is_file(), name
  for kind, block in BLOCKS:
    if kind == "python":
      for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
          module = __import__(str(node.module), fromlist=["*"])
          assert all(hasattr(module, alias.name) for alias in node.names)
