"""Looking into models: predictions, saliency and ablation against independent computations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tests.support.tiny as tiny_models
from tests.support.looking import HIDDEN, LOGITS, MASKED, PAIR, PREDICT, TEXT, cases, make_run, run_of
from tfm_jax.models.families import bert
from tfm_jax.models.families.table import FAMILIES
from tfm_jax.models.layers import Attention
from tfm_jax.tasks.looking.ablation import STACKS, ablate, without_heads
from tfm_jax.tasks.looking.example import read
from tfm_jax.tasks.looking.look import look
from tfm_jax.tasks.looking.prediction import predict
from tfm_jax.tasks.looking.saliency import saliency


@functools.cache
def looked(case):
  """(run, example, prediction) of a case."""
  run, texts = run_of(case)
  example = read(run, *texts)
  return run, example, predict(example)


def expected_log_probs(model, size, params, batch):
  """[P, C], written down again: from the logits of the public API."""
  y = np.asarray(LOGITS(model, params, batch), np.float64)[0]
  head = model.config.head
  if head.name == "lm":
    y = y[:, :size]
  elif head.name == "sequence_classification":
    y = y[None]
  elif head.name == "question_answering":
    y = y.T
  elif head.name == "replaced_token_detection":
    y = np.stack([np.zeros_like(y), y], axis=-1)
  return y if y.shape[-1] == 1 else y - np.log(np.exp(y).sum(-1, keepdims=True))


def values_of(example, params, prediction, shifts=None):
  """The log-probability of each target, with the embeddings of a side shifted."""
  shifts, width = shifts or {}, example.model.config.embed_dim
  batch = dict(example.batch)
  for side, ids in example.ids.items():
    name = f"{side}_embedding_shifts" if side else "embedding_shifts"
    batch[name] = shifts.get(side, np.zeros((1, len(ids), width), np.float32))
  numbers = expected_log_probs(example.model, example.tokenizer.vocab_size, params, batch)
  return np.array([numbers[t.place, t.choice] for t in prediction.targets]), numbers


# Each head, over encoders, decoders and both.
@pytest.mark.slow
@pytest.mark.parametrize("case", ["masks", "llama", "target", "answer"])
def test_saliency_is_the_derivative_along_the_embedding_of_each_token(case):
  run, example, prediction = looked(case)
  result = saliency(example, prediction)
  for side, ids in example.ids.items():
    embeddings = np.asarray(HIDDEN(example.model, run.params, example.batch, side)[0])
    for t in {0, len(ids) // 2, len(ids) - 1}:
      ends = []
      for sign in (1, -1):
        shift = np.zeros_like(embeddings)
        shift[0, t] = sign * 1e-2 * embeddings[0, t]
        ends.append(values_of(example, run.params, prediction, {side: shift})[0])
      slopes = (ends[0] - ends[1]) / 2e-2
      assert result.total[side][t] == pytest.approx(slopes.sum(), abs=2e-2, rel=2e-2)
      assert result.each[side][:, t] == pytest.approx(slopes[: len(result.each[side])], abs=1e-2, rel=2e-2)
  assert max(np.abs(x).max() for x in result.total.values()) > 1e-2  # of about the size of the tolerance or more


def test_tokens_after_the_one_that_is_predicted_have_no_saliency():
  run, texts = run_of("target")
  example = read(run, *texts)
  each = saliency(example, predict(example)).each["decoder"]
  assert len(each) == each.shape[1] > 2
  assert (np.triu(each, 1) == 0).all() and (np.abs(np.diag(each)) > 0).all()


# Each kind of stack.
@pytest.mark.slow
@pytest.mark.parametrize("case", ["distilbert", "llama", "written"])
def test_ablation_is_the_model_with_zeros_for_the_rows_of_a_head(case):
  run, example, prediction = looked(case)
  before, numbers = values_of(example, run.params, prediction)
  result = ablate(example, prediction)
  assert set(result) == ({"encoder", "decoder", "cross"} if run.model.encoder_decoder else {""})
  for stack, one in result.items():
    n, h = one.change.shape[0] - 1, 2
    params = jax.tree.map(np.array, run.params)
    functools.reduce(dict.get, STACKS[stack].split("/"), params)[n, h] = 0.0
    after, changed = values_of(example, params, prediction)
    assert one.change[n, h] == pytest.approx((after - before).sum(), abs=1e-4)
    places = [t.place for t in prediction.targets]
    assert one.flips[n, h] == (changed[places].argmax(-1) != numbers[places].argmax(-1)).sum()


class Silent(Attention):
  """Attention that says nothing in layer 1 beyond its bias."""

  def __call__(self, x_BTD, layer, ctx, kept=None):
    y, new, weights = super().__call__(x_BTD, layer, ctx, kept)
    bias = self.get_variable("params", "bo")
    return jnp.where(layer == 1, jnp.broadcast_to(bias, y.shape), y), new, weights


def test_a_layer_without_all_of_its_heads_is_one_without_attention(monkeypatch):
  run = make_run("bert")
  example = read(run, MASKED)
  params = without_heads(run.params, "", 1, range(4))
  expected = LOGITS(example.model, params, example.batch)
  assert np.abs(LOGITS(example.model, run.params, example.batch) - expected).max() > 0.1
  monkeypatch.setitem(FAMILIES, "bert", dataclasses.replace(bert.FAMILY, attention=Silent))
  silent = jax.jit(example.model.logits)(run.params, example.batch)
  np.testing.assert_allclose(silent, expected, atol=1e-5)


@pytest.mark.slow_but("masks", "target")
@cases("masks", "next token", "target", "tags", "classes", "value", "answer", "replaced")
def test_the_prediction_is_that_of_the_model(case):
  run, example, prediction = looked(case)
  expected = PREDICT(run.model, run.params, example.batch)
  head = run.model.config.head
  numbers, targets = prediction.log_probs, prediction.targets
  if head.name == "lm":
    np.testing.assert_array_equal(numbers.argmax(-1), expected["tokens"][0])
  elif case == "value":
    assert targets[0].best == [("0", pytest.approx(float(expected["value"][0]), abs=1e-5))]
  elif head.name == "sequence_classification":
    assert targets[0].name == head.labels.split("|")[int(expected["class"][0])]
    probabilities = dict(zip(head.labels.split("|"), expected["probabilities"][0].tolist(), strict=True))
    assert dict(targets[0].best) == pytest.approx(probabilities, abs=1e-5)
  elif head.name == "token_classification":
    np.testing.assert_array_equal(numbers.argmax(-1), expected["classes"][0])
  elif head.name == "question_answering":
    start, end = (int(expected[name][0]) for name in ("start", "end"))
    assert [t.choice for t in targets] == [start, end]
    assert prediction.answer == run.tokenizer.decode(example.ids[""][start : end + 1]).strip()
  else:
    np.testing.assert_array_equal(numbers.argmax(-1).astype(bool), expected["replaced"][0])
  np.testing.assert_allclose(prediction.values, values_of(example, run.params, prediction)[0], atol=1e-4)
  assert len(str(prediction).splitlines()) == len(targets) + bool(prediction.answer)


def test_masks_are_filled_as_by_fill_mask():
  run = make_run("bert")
  for target, guesses in zip(predict(read(run, MASKED)).targets, run.fill_mask(MASKED), strict=True):
    assert [name for name, _ in target.best] == [name for name, _ in guesses]
    assert [p for _, p in target.best] == pytest.approx([p for _, p in guesses], rel=1e-4)


@pytest.mark.slow
def test_what_a_decoder_writes_is_its_likeliest_token_each_time():
  run, texts = run_of("written")
  example = read(run, *texts)
  numbers = predict(example).log_probs
  np.testing.assert_array_equal(numbers.argmax(-1), example.targets)
  assert example.ids["decoder"][0] == run.tokenizer.bos_id
  np.testing.assert_array_equal(example.ids["decoder"][1:], example.targets[:-1])


def test_a_pair_is_read_as_in_training():
  run, texts = run_of("classes")
  example = read(run, *texts)
  t = run.tokenizer
  first, second = t.encode(TEXT), t.encode(PAIR)
  np.testing.assert_array_equal(example.ids[""], [t.bos_id, *first, t.eos_id, *second, t.eos_id])
  np.testing.assert_array_equal(example.batch["token_types"][0], [0] * (len(first) + 2) + [1] * (len(second) + 1))


@pytest.mark.slow
def test_a_sharded_model_shows_the_same():
  run = make_run("bert")
  st = tiny_models.placement("fsdp", 8)
  one = look(run, MASKED)
  other = look(dataclasses.replace(run, model=dataclasses.replace(run.model, placement=st)), MASKED)
  np.testing.assert_allclose(one.attention[""], other.attention[""], atol=1e-5)
  np.testing.assert_allclose(one.saliency.total[""], other.saliency.total[""], atol=1e-4)
  np.testing.assert_allclose(one.ablation[""].change, other.ablation[""].change, atol=1e-4)
