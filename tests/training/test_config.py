"""Configurations: from files, flags and dictionaries to typed dataclasses, and what may change at a resume."""

import dataclasses
import json

import ml_collections
import pytest
from ml_collections import config_dict

from tests.support.launching import ROOT
from tests.support.refusal import refusal
from tfm_jax.data.config import MixtureSource
from tfm_jax.training.config import (
  CHOICES,
  Config,
  all_keys,
  changed_keys,
  choices,
  default,
  flat,
  from_dict,
  from_stored,
  load,
  parse_value,
  resolve,
  sections,
  to_dict,
)
from tfm_jax.training.keys.help import comments
from tfm_jax.training.keys.moved import MOVED
from tfm_jax.training.keys.tree import defaults
from tfm_jax.training.optimization.optimizer import OptimizerConfig

EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("base", "task", "__init__"))


# The tree.


def test_defaults_are_those_of_the_dataclasses():
  assert from_dict(defaults().to_dict()) == Config() == from_dict({})


@pytest.mark.parametrize(("name", "own"), [("lion", 0.99), ("adamw", 0.999), ("muon", 0.999)])
def test_an_optimizer_has_its_own_beta2_and_runs_keep_theirs(name, own):
  of = lambda **settings: to_dict(resolve(from_dict({"optimizer": {"name": name, **settings}})))
  assert of()["optimizer"]["beta2"] == of(beta2=0.0)["optimizer"]["beta2"] == OptimizerConfig(name).beta2 == own
  assert of(beta2=0.9)["optimizer"]["beta2"] == 0.9
  stored = of(beta2=0.999)  # as runs of all optimizers stored it
  assert to_dict(from_stored(stored)) == stored and changed_keys(stored, of(beta2=0.999)) == []


def test_dictionaries_and_json_round_trip():
  config = load(str(ROOT / "configs/t5_small.py"), {"train.steps": 7})
  assert from_dict(to_dict(config)) == config
  assert from_dict(json.loads(json.dumps(to_dict(resolve(config))))) == resolve(config)


def test_every_key_has_a_default_a_known_type_and_a_comment():
  for name, field in {field.name: field for field in dataclasses.fields(Config)}.items():
    assert field.default is not dataclasses.MISSING, name
  assert set(all_keys().values()) <= {int, float, str, bool, tuple[MixtureSource, ...]}
  for section, owner in sections().items():
    for name in (field.name for field in dataclasses.fields(owner) if not dataclasses.is_dataclass(field.default)):
      assert comments(owner)[name], f"{section}.{name}"


def test_choices_are_names_of_keys_and_include_the_default():
  assert set(CHOICES) <= set(all_keys())
  for key in all_keys():
    names = choices(key)
    assert not names or {default(key), flat(to_dict(Config()))[key]} <= {*names, ""}, key


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
    "sharding.": "strategy replica data model context stage pipeline rounds",
  }
  assert {section + key for section, keys in public.items() for key in keys.split()} <= set(all_keys())


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
    ("optimizer.lr", "optimizer.learning_rate"),
    ("optimizer.wd", "optimizer.weight_decay"),
    ("optimizer.eps", "optimizer.epsilon"),
    ("optimizer.clip", "optimizer.grad_clip"),
    ("train.lr", "optimizer.learning_rate"),
    ("lr", "optimizer.learning_rate"),
    ("data.batch_size", "train.batch_size"),
    ("model.n_layers", "model.num_layers"),
    ("optimizer.schedular", "optimizer.schedule"),
    ("strategy", "sharding.strategy"),
    ("max_steps", "train.steps"),
  ],
)
def test_an_unknown_key_names_the_nearest(key, near):
  section, _, name = key.rpartition(".")
  expected = f"config.{key} does not exist; did you mean config.{near}?"
  assert refusal(load, str(ROOT / "configs/quickstart.py"), {key: "1"}) == expected
  if section in to_dict(Config()):
    assert refusal(from_dict, {section: {name: 1}}) == expected


def test_an_unknown_key_that_is_like_no_other_names_where_the_keys_are_listed():
  path = str(ROOT / "configs/quickstart.py")
  assert refusal(load, path, {"train.xyzzy": "1"}) == "config.train.xyzzy does not exist; --help=train lists the keys"
  assert refusal(load, path, {"xyzzy.foo": "1"}) == "config.xyzzy.foo does not exist; --help=all lists the keys"


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
    ("train.steps", "1e5", 100_000),
    ("train.steps", "1.5E3", 1500),
    ("train.steps", "2.0", 2),
    ("seed", "12345678901234567", 12345678901234567),
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
  "key, text, expected",
  [
    ("train.steps", "ten", "a whole number"),
    ("train.steps", "1.5", "a whole number"),
    ("train.steps", "1.5e0", "a whole number"),
    ("train.steps", "1e-3", "a whole number"),
    ("train.steps", "1e999", "a whole number"),
    ("train.steps", "inf", "a whole number"),
    ("train.steps", "", "a whole number"),
    ("optimizer.learning_rate", "fast", "a number"),
    ("data.packing", "yes please", "true or false"),
    ("train.steps", "none", "a whole number"),
  ],
)
def test_wrong_values_of_flags(key, text, expected):
  message = refusal(parse_value, key, text)
  assert message.startswith(f"--config.{key}={text}: {expected} is expected")


@pytest.mark.parametrize(
  "change, named",
  [
    ({"family": "mamba"}, "family='mamba' is not one of bert, roberta, "),
    ({"objective": {"name": "mlm"}, "family": "gpt"}, "objective.name='mlm' does not fit family=gpt"),
    ({"objective": {"name": "nonsense"}}, "objective.name='nonsense'"),
    ({"sharding": {"strategy": "zero"}}, "sharding.strategy='zero' is not one of dp, fsdp, tp, fsdp_tp"),
    ({"model": {"dtype": "float16"}}, "model.dtype='float16'"),
    ({"model": {"remat": "some"}}, "model.remat='some'"),
    ({"model": {"positions": "xpos"}}, "model.positions='xpos'"),
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
    ({"optimizer": {"name": "lamb"}}, "optimizer.name='lamb' is not one of adamw"),
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
    ({"data": {"source": "web"}}, "data.source='web' is not one of embedded, text"),
    ({"data": {"document": "paragraph"}}, "data.document='paragraph' is not one of block, line, file"),
    ({"data": {"errors": "ignore"}}, "data.errors='ignore' is not one of raise, replace"),
    ({"tokenizer": {"kind": "bpe"}}, "tokenizer.kind='bpe' is not one of sentencepiece, wordpiece"),
    ({"tokenizer": {"algorithm": "word"}}, "tokenizer.algorithm='word' is not one of unigram, bpe"),
    ({"head": {"name": "lmm"}}, "head.name='lmm' is not one of lm"),
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


# Sections of the model, and where the values of older runs stand in them.

# Written by the revision before there were sections, 996c29e, from the file and overrides beside them.
OLD = json.loads((ROOT / "tests/golden/old_configs.json").read_text())
TODAY = {
  "t5": ("t5_small", {"optimizer.schedule": "rsqrt"}),
  "modernbert": (
    "quickstart",
    {
      "family": "modernbert",
      "model.bias": "qkv,norm",
      "window.size": "3",
      "window.global_every": "2",
      "head.name": "pretraining",
      "head.pooler": "tanh",
      "rotary.local_base": "500",
    },
  ),
  "llama": (
    "quickstart",
    {
      "family": "llama",
      "objective.name": "causal",
      "rotary.factor": "8",
      "rotary.original": "32",
      "rotary.low": "2",
      "rotary.high": "8",
    },
  ),
  "vit": (
    "quickstart",
    {
      "family": "vit",
      "head.name": "sequence_classification",
      "head.num_labels": "3",
      "head.labels": "a|b|c",
      "head.pooling": "mean",
      "image.height": "8",
      "image.width": "12",
      "image.channels": "1",
      "image.patch": "4",
      "model.positions": "learned",
    },
  ),
}


@pytest.mark.parametrize("name", OLD)
def test_an_older_run_has_the_configuration_that_it_had(name, tmp_path):
  file, overrides = TODAY[name]
  expected = resolve(load(str(ROOT / f"configs/{file}.py"), overrides))
  assert resolve(from_stored(OLD[name])) == expected
  assert changed_keys(to_dict(from_stored(OLD[name])), to_dict(expected)) == []
  assert from_stored(to_dict(expected)) == expected
  (tmp_path / "config.json").write_text(json.dumps(OLD[name]))
  assert resolve(load(str(tmp_path))) == expected


def test_no_key_of_an_older_run_is_without_a_place_today():
  old = {f"model.{key}" for key in OLD["t5"]["model"]} - set(all_keys())
  assert old == {key for key in MOVED if key.startswith("model.")} and set(MOVED.values()) <= set(all_keys())
  assert not set(MOVED) & set(all_keys())


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_key_that_has_moved_is_answered_with_its_new_name(old, new):
  message = f"config.{old} is now config.{new}"
  assert refusal(load, str(ROOT / "configs/quickstart.py"), {old: "1"}) == message
  assert refusal(parse_value, old, "1") == message
  section, _, name = old.partition(".")
  assert refusal(from_dict, {section: {name: 1}}) == message


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
  free = {"steps", "epochs", "log_every", "layer_norms", "wandb", "profile_at"}
  for key, kind in all_keys().items():
    section, _, name = key.rpartition(".")
    values = to_dict(config)
    place = values[section] if section else values
    place[name] = {int: 12345, float: 0.12345, str: "other", bool: not place[name]}.get(kind, [{}])
    allowed = section in ("eval", "checkpoint", "sharding") or (section == "train" and name in free)
    allowed |= key in ("data.prefetch", "distill.teacher", "task.texts")
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
  assert load(str(ROOT / "configs/base.py")) == Config()
