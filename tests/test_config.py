"""Configurations: from files, flags and dictionaries to typed dataclasses, and what may change at a resume."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import ml_collections
import pytest
from launching import ROOT
from ml_collections import config_dict

from tfm_jax.errors import UserError
from tfm_jax.training.command import parse
from tfm_jax.training.config import (
  Config,
  all_keys,
  changed_keys,
  defaults,
  from_dict,
  from_stored,
  load,
  parse_value,
  resolve,
  sections,
  to_dict,
)
from tfm_jax.training.moved import MOVED

EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("base", "__init__"))


def refusal(function, *arguments):
  """The one line with which a function refuses its arguments."""
  with pytest.raises(UserError) as error:
    function(*arguments)
  message = str(error.value)
  assert "\n" not in message
  return message


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


# The tree.


def test_defaults_are_those_of_the_dataclasses():
  assert from_dict(defaults().to_dict()) == Config() == from_dict({})


def test_dictionaries_and_json_round_trip():
  config = load(str(ROOT / "configs/t5_small.py"), {"train.steps": 7})
  assert from_dict(to_dict(config)) == config
  assert from_dict(json.loads(json.dumps(to_dict(resolve(config))))) == resolve(config)


def test_every_key_has_a_default_a_known_type_and_a_comment():
  for name, field in {field.name: field for field in dataclasses.fields(Config)}.items():
    assert field.default is not dataclasses.MISSING, name
  assert set(all_keys().values()) <= {int, float, str, bool}
  for owner in sections().values():
    source = inspect.getsource(owner)
    for name in (field.name for field in dataclasses.fields(owner) if not dataclasses.is_dataclass(field.default)):
      assert re.search(rf"^  {name}: [^#]*  # \S", source, re.MULTILINE), f"{owner.__name__}.{name}"


def test_configurations_are_frozen_and_hashable():
  config = from_dict({})
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.train.steps = 3
  assert hash(config) == hash(from_dict({}))


def test_the_keys_that_others_rely_on():
  """Those of the table of public keys."""
  public = {
    "": "seed family init_from",
    "model.": "num_layers decoder_layers embed_dim num_heads head_dim mlp_dim dropout attention_dropout dtype remat"
    " scan",
    "tokenizer.": "kind vocab_size path",
    "data.": "source path target_path eval_path eval_target_path eval_fraction document seq_len target_len packing",
    "objective.": "name",
    "optimizer.": "name learning_rate schedule warmup_steps weight_decay beta1 beta2 grad_clip",
    "train.": "steps batch_size microbatches log_every profile_at",
    "eval.": "every batches",
    "rotary.": "base local_base factor original low high",
    "window.": "size global_every",
    "head.": "name transform activation bias pooler pooling num_labels labels",
    "image.": "height width channels patch",
    "checkpoint.": "every keep",
    "sharding.": "strategy replica data model context stage",
  }
  assert {section + key for section, keys in public.items() for key in keys.split()} <= set(all_keys())


# Files.


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_loads_and_resolves(path):
  config = resolve(load(str(path)))
  values = [section for section in to_dict(config).values() if isinstance(section, dict)]
  assert not any(None in section.values() for section in values)
  assert resolve(config) == config


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
  assert "variant" in refusal(load, str(ROOT / "configs/t5_small.py") + ":9.9")


def test_a_missing_file():
  assert refusal(load, "configs/none.py").startswith("no config file 'configs/none.py'")


def test_a_missing_file_with_a_neighbour(monkeypatch):
  monkeypatch.chdir(ROOT)
  assert "did you mean configs/bert_base.py?" in refusal(load, "configs/bertbase.py")


def test_a_file_that_is_no_python():
  assert "README.md is no Python file: name an experiment" in refusal(load, str(ROOT / "README.md"))


def test_a_folder_is_no_config_file(tmp_path):
  assert "no config file" in refusal(load, str(tmp_path))


@pytest.mark.parametrize(
  "line, named",
  [
    ("c.train.stepz = 3", "steps"),
    ("c.train.steps = 'many'", "steps"),
    ("c.train.steps = 1.5", "steps"),
    ("c.trian = 3", "train"),
    ("c.optimizer.update({'learning_rat': 1.0})", "learning_rate"),
    ("c.model.num_layers = [1, 2]", "num_layers"),
    ("c.model.dropout = 'high'", "dropout"),
    ("c.train = 3", "train"),
    ("import no_such_module", "no_such_module"),
    ("x = = 3", "line 6"),
    ("c.train.steps = undefined", "line 6"),
    ("1 / 0", "line 6"),
    ("return None", "ConfigDict"),
    ("raise SystemExit(3)", "experiment.py"),
  ],
)
def test_a_mistake_inside_a_file_is_one_line_that_names_it(file, line, named):
  path = file(line)
  message = refusal(load, path)
  assert path in message or "config." in message
  assert named in message


def test_a_file_without_get_config(file):
  assert "get_config" in refusal(load, file("pass", head="if True:\n", tail=""))


def test_a_new_key_of_an_unlocked_config_is_unknown(file):
  path = file("c.unlock(); c.train.stepz = 3")
  assert refusal(load, path) == "config.train.stepz does not exist; did you mean config.train.steps?"


# Types and values.


@pytest.mark.parametrize(
  "key, near",
  [
    ("train.stepz", "train.steps"),
    ("trian.steps", "train.steps"),
    ("learning_rate", "optimizer.learning_rate"),
    ("model.embed", "model.embed_dim"),
    ("sed", "seed"),
    ("steps", "train.steps"),
    ("checkpoint.evry", "checkpoint.every"),
  ],
)
def test_an_unknown_key_names_the_nearest(key, near):
  section, _, name = key.rpartition(".")
  expected = f"config.{key} does not exist; did you mean config.{near}?"
  assert refusal(load, str(ROOT / "configs/quickstart.py"), {key: "1"}) == expected
  if section in to_dict(Config()):
    assert refusal(from_dict, {section: {name: 1}}) == expected


@pytest.mark.parametrize(
  "values, named",
  [
    ({"train": {"steps": "10"}}, "config.train.steps='10'"),
    ({"train": {"steps": 1.5}}, "config.train.steps=1.5"),
    ({"train": {"steps": True}}, "config.train.steps=True"),
    ({"train": {"steps": None}}, "config.train.steps=None"),
    ({"data": {"packing": 1}}, "config.data.packing=1"),
    ({"data": {"path": 3}}, "config.data.path=3"),
    ({"optimizer": {"learning_rate": True}}, "config.optimizer.learning_rate=True"),
    ({"model": {"dropout": "0.1"}}, "config.model.dropout='0.1'"),
    ({"train": 3}, "config.train is a section"),
    ({"seed": {"a": 1}}, "config.seed="),
  ],
)
def test_wrong_types_are_refused_and_named(values, named):
  assert named in refusal(from_dict, values)


def test_numbers_of_numpy_and_none_where_a_family_decides():
  assert from_dict({"optimizer": {"learning_rate": 1}}).optimizer.learning_rate == 1.0
  assert from_dict({"model": {"dropout": None}, "family": "llama"}).model.dropout == 0.0
  assert from_dict({"model": {"dropout": None}}).model.dropout == 0.1


@pytest.mark.parametrize(
  "key, text, value",
  [
    ("train.steps", "1_000_000", 1_000_000),
    ("train.steps", "-1", -1),
    ("optimizer.learning_rate", "3e-4", 3e-4),
    ("data.packing", "True", True),
    ("data.packing", "0", False),
    ("data.path", "a=b,c.txt", "a=b,c.txt"),
    ("data.path", "", ""),
    ("model.dropout", "0.1", 0.1),
    ("model.dropout", "none", None),
    ("model.gated", "true", True),
  ],
)
def test_values_of_flags(key, text, value):
  assert parse_value(key, text) == value
  assert type(parse_value(key, text)) is type(value)


@pytest.mark.parametrize(
  "key, text, wanted",
  [
    ("train.steps", "ten", "a whole number"),
    ("train.steps", "1.5", "a whole number"),
    ("train.steps", "", "a whole number"),
    ("optimizer.learning_rate", "fast", "a number"),
    ("data.packing", "yes please", "true or false"),
    ("train.steps", "none", "a whole number"),
  ],
)
def test_wrong_values_of_flags(key, text, wanted):
  message = refusal(parse_value, key, text)
  assert message.startswith(f"--config.{key}={text}") and wanted in message


@pytest.mark.parametrize(
  "change, named",
  [
    ({"family": "bart"}, "family='bart' is not one of bert, roberta, "),
    ({"objective": {"name": "mlm"}, "family": "gpt"}, "objective.name='mlm' does not fit family=gpt"),
    ({"objective": {"name": "nonsense"}}, "objective.name='nonsense'"),
    ({"sharding": {"strategy": "zero"}}, "sharding.strategy='zero' is not one of dp, fsdp, tp, fsdp_tp"),
    ({"model": {"dtype": "float16"}}, "model.dtype='float16'"),
    ({"model": {"remat": "some"}}, "model.remat='some'"),
    ({"model": {"positions": "alibi"}}, "model.positions='alibi'"),
    ({"model": {"norm": "batch"}}, "model.norm='batch'"),
    ({"model": {"activation": "tanh"}}, "model.activation='tanh'"),
    ({"model": {"init": "zeros"}}, "model.init='zeros'"),
    ({"model": {"num_heads": 5}}, "model.num_heads=5 does not divide"),
    ({"model": {"num_layers": 0}}, "model.num_layers=0 must be positive"),
    ({"model": {"mlp_dim": -1}}, "model.mlp_dim=-1"),
    ({"model": {"head_dim": -8}}, "model.head_dim=-8"),
    ({"model": {"decoder_layers": -1}}, "model.decoder_layers=-1"),
    ({"model": {"dropout": 1.0}}, "model.dropout=1.0"),
    ({"model": {"attention_dropout": -0.1}}, "model.attention_dropout=-0.1"),
    ({"optimizer": {"name": "lion"}}, "optimizer.name='lion' is not one of adamw"),
    ({"optimizer": {"schedule": "step"}}, "optimizer.schedule='step' is not one of linear"),
    ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate=nan"),
    ({"optimizer": {"learning_rate": float("inf")}}, "optimizer.learning_rate=inf"),
    ({"optimizer": {"warmup_steps": -5}}, "optimizer.warmup_steps=-5"),
    ({"optimizer": {"grad_clip": -1.0}}, "optimizer.grad_clip=-1.0"),
    ({"optimizer": {"epsilon": 0.0}}, "optimizer.epsilon=0.0"),
    ({"optimizer": {"name": "adam", "epsilon": 1e-50}}, "optimizer.epsilon=1e-50"),
    ({"optimizer": {"beta1": 1.0}}, "optimizer.beta1=1.0"),
    ({"optimizer": {"beta2": 1.5}}, "optimizer.beta2=1.5"),
    ({"optimizer": {"beta2": 1 - 1e-9}}, "optimizer.beta2=0.999999999"),
    ({"optimizer": {"beta1": -0.1}}, "optimizer.beta1=-0.1"),
    ({"optimizer": {"final_fraction": 1.1}}, "optimizer.final_fraction=1.1"),
    ({"loss": {"label_smoothing": 1.5}}, "loss.label_smoothing=1.5"),
    ({"data": {"eval_fraction": 2.0}}, "data.eval_fraction=2.0"),
    ({"objective": {"mask_rate": 1.5}}, "objective.mask_rate=1.5"),
    ({"train": {"steps": 0}}, "train.steps=0"),
    ({"train": {"batch_size": -8}}, "train.batch_size=-8"),
    ({"train": {"log_every": 0}}, "train.log_every=0"),
    ({"train": {"microbatches": 3}}, "train.microbatches=3"),
    ({"train": {"microbatches": -2}}, "train.microbatches=-2"),
    ({"train": {"profile_at": -1}}, "train.profile_at=-1"),
    ({"data": {"seq_len": 0}}, "data.seq_len=0"),
    ({"data": {"seq_len": 1024}}, "data.seq_len=1024 is longer than the table of 512 learned positions"),
    ({"eval": {"batches": -1}}, "eval.batches=-1"),
    ({"eval": {"every": -1}}, "eval.every=-1"),
    ({"checkpoint": {"keep": -1}}, "checkpoint.keep=-1"),
    ({"checkpoint": {"every": -1}}, "checkpoint.every=-1"),
  ],
)
def test_impossible_settings_are_refused_by_name(change, named):
  assert named in refusal(lambda: resolve(from_dict(change)))


def test_settings_at_the_edge_of_what_is_possible():
  edges = {"epsilon": 1e-30, "beta1": 0.0, "beta2": 0.9999, "final_fraction": 1.0}
  resolve(from_dict({"optimizer": edges, "loss": {"label_smoothing": 1.0}}))
  resolve(from_dict({"optimizer": {"name": "sgd", "epsilon": 0.0}}))  # of which it makes no use


# Flags.


def test_flags_in_both_forms():
  flags = parse(
    ["--config=a.py:x", "--workdir", "dir", "--config.train.steps=3", "--config.data.path", "x=y"],
    ["config", "workdir"],
  )
  assert flags.values == {"config": "a.py:x", "workdir": "dir"}
  assert flags.overrides == {"train.steps": "3", "data.path": "x=y"}


@pytest.mark.parametrize(
  "arguments, named",
  [
    (["--train.steps=3"], "write --config.train.steps=..."),
    (["--steps=3"], "write --config.train.steps=..."),
    (["--learning_rate", "3"], "write --config.optimizer.learning_rate=..."),
    (["--wrokdir=x"], "did you mean --workdir?"),
    (["--xyzzy=1"], "--help"),
    (["train.steps=3"], "unexpected argument 'train.steps=3'"),
    (["-config=x"], "unexpected argument"),
    (["--config"], "--config needs a value"),
    (["--config", "--workdir=x"], "--config needs a value"),
    (["--config.seed"], "--config.seed needs a value"),
    (["--config.seed=1", "--config.seed=2"], "--config.seed is given twice"),
    (["--workdir=a", "--workdir=b"], "--workdir is given twice"),
  ],
)
def test_mistakes_in_flags(arguments, named):
  assert named in refusal(parse, arguments, ["config", "workdir"])


def test_a_missing_flag():
  assert "--config=... is missing" in refusal(parse([], ["config"]).require, "config")


# Sections of the model, and where the values of older runs stand in them.

# Written by the revision before there were sections, 996c29e, from the file and overrides beside them.
OLD = json.loads((ROOT / "tests/golden/old_configs.json").read_text())
TODAY = {
  "t5": ("t5_small", {"optimizer.schedule": "rsqrt"}),
  "modernbert": (
    "quickstart",
    {"family": "modernbert", "model.bias": "qkv,norm", "window.size": "3", "window.global_every": "2",
     "head.name": "pretraining", "head.pooler": "tanh", "rotary.local_base": "500"},
  ),
  "llama": (
    "quickstart",
    {"family": "llama", "objective.name": "causal", "rotary.factor": "8", "rotary.original": "32", "rotary.low": "2",
     "rotary.high": "8"},
  ),
  "vit": (
    "quickstart",
    {"family": "vit", "head.name": "sequence_classification", "head.num_labels": "3", "head.labels": "a|b|c",
     "head.pooling": "mean", "image.height": "8", "image.width": "12", "image.channels": "1", "image.patch": "4",
     "model.positions": "learned"},
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_an_older_run_has_the_configuration_that_it_had(name, tmp_path):
  file, overrides = TODAY[name]
  wanted = resolve(load(str(ROOT / f"configs/{file}.py"), overrides))
  assert resolve(from_stored(OLD[name])) == wanted
  assert changed_keys(to_dict(from_stored(OLD[name])), to_dict(wanted)) == []
  assert from_stored(to_dict(wanted)) == wanted
  (tmp_path / "config.json").write_text(json.dumps(OLD[name]))
  assert resolve(load(str(tmp_path))) == wanted


def test_no_key_of_an_older_run_is_without_a_place_today():
  old = {f"model.{key}" for key in OLD["t5"]["model"]} - set(all_keys())
  assert old == set(MOVED) and set(MOVED.values()) <= set(all_keys())


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_key_that_has_moved_is_answered_with_its_new_name(old, new):
  message = f"config.{old} is now config.{new}"
  assert refusal(load, str(ROOT / "configs/quickstart.py"), {old: "1"}) == message
  assert refusal(parse_value, old, "1") == message
  section, _, name = old.partition(".")
  assert refusal(from_dict, {section: {name: 1}}) == message


def test_a_key_that_has_moved_in_an_experiment_file(file):
  assert "config.model.head is now config.head.name" in refusal(load, file("c.model.head = 'lm'"))


def test_the_family_decides_what_the_experiment_leaves_open():
  config = load(str(ROOT / "configs/quickstart.py"), {"family": "gpt", "objective.name": "causal"})
  assert config.model.init == "gpt" and config.model.activation == "gelu_tanh" and config.model.positions == "rotary"
  assert config.model.head.pooler == "none" and config.model.token_types == 0


@pytest.mark.parametrize(
  ("text", "parts"),
  [("true", "all"), ("false", "none"), ("all", "all"), ("norm,qkv", "qkv,norm"), ("qkv,out,mlp,norm,transform", "all")],
)
def test_biases_by_the_parts_that_have_them(text, parts):
  assert load(str(ROOT / "configs/quickstart.py"), {"model.bias": text}).model.bias == parts


def test_a_bias_of_what_has_none():
  assert "'embed'" in refusal(load, str(ROOT / "configs/quickstart.py"), {"model.bias": "qkv,embed"})


# What may change at a resume.


def test_only_some_keys_may_change():
  config = resolve(from_dict({}))
  free = {"steps", "log_every", "profile_at"}
  for key, kind in all_keys().items():
    section, _, name = key.rpartition(".")
    values = to_dict(config)
    place = values[section] if section else values
    place[name] = {int: 12345, float: 0.12345, str: "other", bool: not place[name]}[kind]
    allowed = (
      section in ("eval", "checkpoint", "sharding") or (section == "train" and name in free) or key == "data.prefetch"
    )
    assert changed_keys(to_dict(config), values) == ([] if allowed else [key])


def test_keys_that_one_side_lacks_are_changes():
  old = to_dict(resolve(from_dict({})))
  new = {key: value for key, value in old.items() if key != "seed"}
  assert changed_keys(old, new) == changed_keys(new, old) == ["seed"]


def test_the_tree_of_experiment_files_is_one_level_deep():
  tree = defaults()
  assert isinstance(tree, ml_collections.ConfigDict)
  for name in tree:
    section = tree.get(name)
    if isinstance(section, config_dict.ConfigDict):
      assert not any(isinstance(section.get(key), config_dict.ConfigDict) for key in section), name


def test_base_is_the_tree():
  path = Path(ROOT / "configs/base.py")
  assert from_dict(load_tree(path)) == Config()


def load_tree(path):
  from tfm_jax.training.config import load_file

  return load_file(str(path)).to_dict()
