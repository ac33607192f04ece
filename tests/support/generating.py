"""Runs of tiny models that generate, and what a plain forward pass says comes next."""

import dataclasses
import functools

import jax
import numpy as np

from tests.training.test_scoring import make_run
from tfm_jax.decode.prompts import position_limit
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


WIDTH = 96  # of the oracle's rows: padding at the right does not reach causal tokens


@functools.cache
def _forward(model):
  return jax.jit(model.logits)


def logits_after(run, prompt, new):
  """The next token's logits by a forward pass of everything before it, float64, of the tokenizer's ids."""
  tokenizer = run.tokenizer
  ids = tokenizer.encode(prompt)
  width = position_limit(run.model) or WIDTH
  row = lambda ids: np.pad(np.array(ids, np.int32), (0, width - len(ids)))[None]
  if run.model.encoder_decoder:
    source, target = [run.begin_id, *ids, tokenizer.eos_id], [run.start_id, *new]
    batch = {"encoder_inputs": row(source), "encoder_segment_ids": row([1] * len(source))}
    batch["decoder_inputs"] = row(target)
  else:
    target = [run.begin_id, *ids, *new]
    batch = {"inputs": row(target)}
  logits = _forward(run.model)(run.params, batch)
  return np.asarray(logits, np.float64)[0, len(target) - 1, : tokenizer.vocab_size]
