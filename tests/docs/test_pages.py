"""README and docs: links lead somewhere, shell is valid, commands parse, Python runs, and what is named exists."""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import tfm_jax
from tests.support import pages
from tests.support.image_data import write_quarters
from tests.support.launching import ROOT, WithoutSamples, tiny, write_experiment, write_untrained_run
from tfm_jax.compare import __main__ as compare_command
from tfm_jax.compare import scaling
from tfm_jax.compare.plan import __main__ as plan_command
from tfm_jax.data import __main__ as data_command
from tfm_jax.data.prepare import SOURCES
from tfm_jax.decode import __main__ as decode_command
from tfm_jax.hf import __main__ as hf_command
from tfm_jax.models.families.table import FAMILIES
from tfm_jax.objectives.table import OBJECTIVES
from tfm_jax.runtime.command import parse
from tfm_jax.sharding.strategy import STRATEGIES, find_strategy
from tfm_jax.tasks import __main__ as tasks_command
from tfm_jax.tasks import attention as attention_command
from tfm_jax.tasks import distillation as distillation_command
from tfm_jax.tasks import sweep as sweep_command
from tfm_jax.tasks.architectures import __main__ as architectures_command
from tfm_jax.tasks.images.task import ImageTask
from tfm_jax.tasks.lm_eval import __main__ as lm_eval_command
from tfm_jax.tasks.table import TASKS
from tfm_jax.text.tokenizers.table import KINDS
from tfm_jax.training.config import Config, all_keys, load, resolve, sections, to_dict
from tfm_jax.training.pretraining import Pretraining
from train import FLAGS

README = ROOT / "README.md"
EVERY = {page.relative_to(ROOT).as_posix(): page for page in pages.PAGES}
PAGES = pytest.mark.parametrize("page", EVERY.values(), ids=EVERY)

# Flags of each command, by the words that follow `python`.
COMMANDS = {
  "train.py": FLAGS,
  "-m tfm_jax.compare": ("config", "strategies", "devices", "topology", "steps", "parameter", "out"),
  "-m tfm_jax.compare.calibration": ("only",),
  "-m tfm_jax.compare.plan": plan_command.FLAGS,
  "-m tfm_jax.compare.scaling": ("config", "strategies", "topologies", "rows", "to", "out"),
  "-m tfm_jax.data": data_command.FLAGS,
  "-m tfm_jax.decode": decode_command.FLAGS,
  "-m tfm_jax.hf import": hf_command.FLAGS["import"],
  "-m tfm_jax.hf export": hf_command.FLAGS["export"],
  "-m tfm_jax.tasks": tasks_command.FLAGS,
  "-m tfm_jax.tasks.architectures": architectures_command.FLAGS,
  "-m tfm_jax.tasks.attention": attention_command.FLAGS,
  "-m tfm_jax.tasks.distillation": distillation_command.FLAGS,
  "-m tfm_jax.tasks.lm_eval": lm_eval_command.FLAGS,
  "-m tfm_jax.tasks.sweep": sweep_command.FLAGS,
  "-m tfm_jax.training.reference": ("workdir", "out"),
}
# Those that may stand without a value.
SWITCHES = {"-m tfm_jax.decode": decode_command.SWITCHES, "-m tfm_jax.tasks.lm_eval": lm_eval_command.SWITCHES}


def shell_lines(text: str) -> list[str]:
  """The commands of a block, one per line."""
  return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def commands(page: Path) -> list[str]:
  """The shell commands of a page, from blocks and from inline code that begins with a command."""
  inline = re.findall(r"`((?:python|make|pip) [^`]+)`", pages.prose(page))
  return [line for block in pages.blocks(page, "sh") for line in shell_lines(block.text)] + inline


def ours(page: Path) -> list[tuple[str, list[str]]]:
  """(command, its arguments) of each command of this project on a page."""
  found = []
  for line in commands(page):
    for match in re.finditer(
      r"(?:python3?[\d.]*|\.venv/bin/python) ((?:-m tfm_jax|train\.py|benchmarks/)(?:'[^']*'|[^\"#;|])*)", line
    ):
      words = shlex.split(match[1])
      name = next((n for n in sorted(COMMANDS, key=len, reverse=True) if match[1].startswith(n)), "")
      found.append((name, words[len(name.split()) :]) if name else (match[1], []))
  return found


@pytest.fixture(autouse=True)
def here(monkeypatch):
  monkeypatch.chdir(ROOT)


# What the pages say as a whole.


def test_the_readme_fits_on_a_few_screens():
  assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@PAGES
def test_links_lead_to_files_and_headings(page):
  for link in pages.links(page):
    if "://" in link:
      continue
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists(), link
    assert not anchor or anchor in pages.anchors(target), link


def test_every_page_is_reached_from_the_index_and_from_the_readme():
  names = {page.name for page in pages.PAGES if page.parent.name == "docs"} - {"README.md"}
  assert {Path(link).name for link in pages.links(ROOT / "docs" / "README.md")} >= names
  assert {link.removeprefix("docs/") for link in pages.links(README)} >= names


@PAGES
def test_figures_name_the_revision_that_they_were_measured_on(page):
  for line in pages.prose(page).splitlines():
    if re.search(r"\| `python benchmarks/|nats|dev accuracy", line) and line.startswith("|"):
      assert re.search(r"\| [0-9a-f]{7,40} \|$", line), line


def test_every_config_is_listed_loads_and_tells_its_command():
  text = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
  for path in sorted((ROOT / "configs").glob("*.py")):
    if path.stem in ("base", "task"):
      continue
    resolve(load(str(path)))
    assert f"`{path.stem}`" in text, path.stem
    assert f"--config=configs/{path.name}" in path.read_text(), f"{path.name} does not tell its own command"


LISTED = {
  **dict.fromkeys(STRATEGIES, "sharding.md"),
  **dict.fromkeys([*SOURCES, *OBJECTIVES, *(set(KINDS) - {"huggingface"})], "data.md"),
}


@pytest.mark.parametrize("name", sorted(LISTED))
def test_every_strategy_objective_source_and_tokenizer_is_listed(name):
  text = (ROOT / "docs" / LISTED[name]).read_text(encoding="utf-8")
  assert f"| `{name}`" in text, f"docs/{LISTED[name]}: add a table row for {name}"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_table_of_objectives_names_the_families_that_learn_them(name):
  text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
  cell = re.search(rf"^\| `{name}` \| ([^|]+)", text, re.MULTILINE)[1].partition(", with")[0]
  families = {family for family, entry in FAMILIES.items() if name in entry.objectives}
  assert cell == "encoders" or set(re.findall(r"`(\w+)`", cell)) == families


@PAGES
def test_keys_and_files_that_are_named_exist(page):
  keys, text = all_keys(), pages.prose(page)
  for name in re.findall(r"`([a-z_]+\.[a-z_]+)(?:=[^`]*)?`", text):
    if name.split(".")[0] in sections() and not name.endswith((".py", ".json", ".jsonl", ".html", ".safetensors")):
      assert name in keys, name
  for name in re.findall(r"`((?:tfm_jax|tests|configs|benchmarks|notebooks|docs)/[\w/]+\.\w+)`", text):
    assert (ROOT / name).is_file(), name
  for name in re.findall(r"`((?:tfm_jax|tests|configs|benchmarks|notebooks|docs)/(?:\w+/)*)`", text):
    assert (ROOT / name).is_dir(), name


# Shell.


@PAGES
def test_shell_blocks_are_valid_shell(page):
  script = "\n".join(block.text for block in pages.blocks(page, "sh"))
  done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@PAGES
def test_commands_of_blocks_without_a_mark_are_not_ours(page):
  for block in pages.blocks(page, ""):
    for line in shell_lines(block.text):
      assert not re.match(r"(\.venv/bin/)?(python|pip|make) ", line), f"{page.name}: mark this block as sh: {line}"


@PAGES
def test_commands_parse_into_a_valid_configuration(page, monkeypatch, tmp_path):
  """Work directories that earlier commands would make are empty runs here; labelled data is a table, or pictures."""
  if page.name == "extending.md":
    for name in pages.examples():
      pages.add_example(monkeypatch, name)
  stored = tmp_path / "run"
  stored.mkdir()
  (stored / "config.json").write_text(json.dumps(to_dict(Config())))
  table = tmp_path / "train.tsv"
  columns = ("sentence", "sentence1", "sentence2", "premise", "hypothesis", "source", "target", "prompt", "text")
  rows = ["good\t" * len(columns) + "1", "bad\t" * len(columns) + "0"]
  table.write_text("\n".join(["\t".join([*columns, "label"]), *rows]) + "\n")
  for name, arguments in ours(page):
    if name not in COMMANDS or not arguments or any(argument.startswith("--help") for argument in arguments):
      continue
    flags = parse(arguments, COMMANDS[name], switches=SWITCHES.get(name, ()))
    if "config" not in COMMANDS[name]:
      continue
    path = flags.require("config")
    config = load(str(stored) if path.startswith("runs/") else path, flags.overrides)
    if config.task.name:
      images = issubclass(TASKS[config.task.name], ImageTask)
      examples = str(write_quarters(tmp_path, 100) if images else table)
      files = {"path": examples, "eval_path": examples, "target_path": "", "eval_target_path": ""}
      data = dataclasses.replace(config.data, source="files", **files)
      config = dataclasses.replace(config, data=data)
    if name == "train.py":
      config = TASKS[config.task.name].configure(config)
    resolve(config)
    for strategy in filter(None, flags.values.get("strategies", "").split(",")):
      find_strategy(strategy.split(":")[0])


@PAGES
def test_modules_scripts_and_make_targets_that_commands_name_exist(page):
  targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
  for line in commands(page):
    for name in re.findall(r"-m (tfm_jax[\w.]*)", line):
      path = ROOT / name.replace(".", "/")
      assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), line
    for name in re.findall(r"python (benchmarks/\w+\.py)", line):
      assert (ROOT / name).exists(), line
    for name in re.findall(r"^make (\w+)", line):
      assert name in targets, line
    for extra in re.findall(r"-e '\.\[([\w,-]+)\]'", line):
      for one in extra.split(","):
        assert re.search(rf"^{one} =$", (ROOT / "setup.cfg").read_text(), re.MULTILINE), line


def test_there_are_commands_to_check():
  counts = {name: len(ours(page)) for name, page in EVERY.items()}
  assert sum(counts.values()) >= 60 and counts["README.md"] >= 20 and counts["docs/data.md"] >= 5


def test_flags_of_commands_are_those_of_the_commands():
  """`COMMANDS` above names what the commands themselves document."""
  for name, module in {
    "-m tfm_jax.compare": compare_command,
    "-m tfm_jax.compare.plan": plan_command,
    "-m tfm_jax.data": data_command,
    "-m tfm_jax.compare.scaling": scaling,
    "-m tfm_jax.tasks.sweep": sweep_command,
    "-m tfm_jax.tasks.distillation": distillation_command,
  }.items():
    documented = set(re.findall(r"^--(\w+)=", str(module.__doc__), re.MULTILINE))
    assert documented - {"config"} <= set(COMMANDS[name]), name


# Python.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with the configs, two tiny runs, and a folder in Hugging Face's form, as the pages name them."""
  place = tmp_path_factory.mktemp("pages")
  experiment = write_experiment(place / "tiny")
  shutil.copytree(ROOT / "configs", place / "configs", ignore=shutil.ignore_patterns("__pycache__"))
  shutil.copytree(ROOT / "tests" / "golden" / "hf" / "bert_mlm", place / "bert-base-uncased")
  (place / "bert-base-uncased" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
  for name, family in {"quickstart": "bert", "gpt": "gpt"}.items():
    write_untrained_run(tiny(experiment, family), place / "runs" / name)
  return place


VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] paris is the of france .".split()  # noqa: SIM905


PYTHON_PAGES = [name for name, page in EVERY.items() if pages.blocks(page, "python") and page.name != "extending.md"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PYTHON_PAGES)
def test_python_runs(name, folder, monkeypatch):
  """All blocks of a page, one after the other, on tiny models; what `load` reads is checked, and made small."""
  monkeypatch.chdir(folder)

  def small(path, overrides=None):
    load(path, overrides)
    return tiny(folder / "tiny" / "tiny.py", "bert", train__steps=1, eval__batches=1)

  monkeypatch.setattr(tfm_jax, "load", small, raising=False)
  monkeypatch.setattr(Pretraining, "report", WithoutSamples.report)
  names = {}
  for block in pages.blocks(EVERY[name], "python"):
    source = "\n" * (block.line - 1) + block.text  # so that errors name the line of the page
    exec(compile(source, name, "exec"), names)
  if name == "docs/python.md":
    layers = names["run"].config.model.num_layers
    assert names["hidden"].shape[0] == layers + 1 and names["weights"].shape[0] == layers and len(names["ids"]) == 20
