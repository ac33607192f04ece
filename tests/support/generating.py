"""Runs of tiny models that generate, and what a plain forward pass says comes next."""

import dataclasses

import jax
import numpy as np

from tests.training.test_scoring import make_run
from tfm_jax.models.config import replaced, resolve

PROMPTS = ["the cat", "a dog ran after one small grey bird and", "sat"]


def run_of(variant, st=None, kind="sentencepiece", **changes):
  """A run whose tokenizer is smaller than its vocabulary, with some of its configuration changed."""
  run = make_run(variant, kind, begin_id=2, start_id=0)
  model = run.model
  if changes or st:
    config = resolve(replaced(model.config, changes)) if changes else model.config
    model = dataclasses.replace(model, config=config, placement=st or model.placement)
    shapes = model.shapes()
    draw = np.random.default_rng(3)
    params = jax.tree.map(lambda x: np.float32(0.3) * draw.standard_normal(x.shape, np.float32), shapes)
    run = dataclasses.replace(run, model=model, params=jax.device_put(params, model.shardings()))
  return run


def logits_after(run, prompt, new):
  """The next token's logits by a forward pass of everything before it, float64, of the tokenizer's ids."""
  tokenizer = run.tokenizer
  ids = tokenizer.encode(prompt)
  if run.model.encoder_decoder:
    source = np.append(ids, tokenizer.eos_id)
    batch = {"encoder_inputs": source[None], "decoder_inputs": np.array([[run.start_id, *new]], np.int32)}
  else:
    batch = {"inputs": np.array([[run.begin_id, *ids, *new]], np.int32)}
  return np.asarray(run.model.logits(run.params, batch), np.float64)[0, -1, : tokenizer.vocab_size]
