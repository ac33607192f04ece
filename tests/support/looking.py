"""Models of every kind for the tests that look inside: runs with disturbed parameters, and a text for each."""

import functools

import jax
import pytest

import tests.support.tiny as tiny_models
from tfm_jax.models.model import Model, resolve_model
from tfm_jax.sharding.placement import single_device
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer
from tfm_jax.training.config import from_dict
from tfm_jax.training.load import Run, symbols_of

TEXTS = ["the cat sat on the mat and saw the bird", "a dog ran after one small grey bird", "all of the town sat"] * 20
TEXT, MASKED, PAIR = "the cat sat on the mat", "the cat [MASK] on the [MASK]", "a dog ran"
SMALL = tiny_models.SIZES | {"dropout": 0.0, "attention_dropout": 0.0}


@functools.cache
def tokenizer_of(kind):
  return train_tokenizer(TokenizerConfig(kind=kind, vocab_size={"wordpiece": 120, "char": 0}[kind]), TEXTS)


@functools.cache
def make_run(family, kind="wordpiece", objective="", **changes):
  """A run with disturbed parameters; `head__name` stands for head.name."""
  tokenizer = tokenizer_of(kind)
  fields = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
  model = Model(family, resolve_model(family, fields), single_device(), tokenizer.vocab_size)
  leaves, tree = jax.tree.flatten(jax.jit(model.init)(jax.random.key(1)))
  keys = jax.random.split(jax.random.key(2), len(leaves))
  params = tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])
  config = from_dict({"objective": {"name": objective}} if objective else {})
  return Run(config, model, params, tokenizer, 7, start_id=symbols_of(config, tokenizer, False).start)


CLASSES = {"head__num_labels": 3, "head__labels": "O|B-PER|I-PER"}
CASES = {
  "masks": (("bert", {}), (MASKED,)),
  "text without masks": (("modernbert", {"window__size": 2, "window__global_every": 2}), (TEXT,)),
  "roberta": (("roberta", {}), (MASKED,)),
  "distilbert": (("distilbert", {}), (MASKED,)),
  "next token": (("gpt", {}), (TEXT,)),
  "llama": (("llama", {"num_kv_heads": 2}), (TEXT,)),
  "target": (("t5", {"objective": "span_corruption", "activation": "gelu"}), (TEXT, "", PAIR)),
  "written": (("transformer", {"objective": "seq2seq", "decoder_layers": 1, "activation": "gelu"}), (TEXT,)),
  "classes": (("bert", CLASSES | {"head__name": "sequence_classification"}), (TEXT, PAIR)),
  "value": (("bert", {"head__name": "sequence_classification", "head__num_labels": 1}), (TEXT,)),
  "tags": (("electra", CLASSES | {"head__name": "token_classification", "embedding_dim": 16}), (TEXT,)),
  "answer": (("bert", {"head__name": "question_answering"}), (PAIR, TEXT)),
  "replaced": (("electra", {"head__name": "replaced_token_detection", "embedding_dim": 16}), (TEXT,)),
}


def cases(*fast):
  """Every case; those that are not named are slow."""
  marked = [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
  return pytest.mark.parametrize("case", marked)


def run_of(case):
  (family, changes), texts = CASES[case]
  return make_run(family, **changes), texts


LOGITS, PREDICT = (jax.jit(f, static_argnums=0) for f in (Model.logits, Model.predict))
HIDDEN, WEIGHTS = (jax.jit(f, static_argnums=(0, 3)) for f in (Model.hidden_states, Model.attention_weights))
