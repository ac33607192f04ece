"""Named sums: losses, gradients and metrics do not depend on how a batch is cut; frozen parameters stay as they are."""

import functools

import jax
import numpy as np
import pytest

from tests.models.test_heads import CASES, batch_of, make, params_of
from tests.support.tiny import make_batch, make_model, make_program, placement
from tfm_jax.errors import UserError
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import total
from tfm_jax.runtime.trees import flat
from tfm_jax.training.loss import LossConfig, make_loss

PRETRAINING = "bert pretraining"
# (microbatches, strategy, devices)
CUTS = ((2, "dp", 1), (4, "dp", 1), (1, "fsdp_tp", 8))
# Two terms under every cut, and every second head under one of them in turn.
PAIRS = [*((PRETRAINING, cut) for cut in CUTS), *zip(list(CASES)[::2], CUTS * len(CASES), strict=False)]
EXTRAS = LossConfig(label_smoothing=0.1, z_loss=1e-2)


def two_losses(st=None):
  """BERT's pre-training with both of its losses; the last two rows only fill up the batch."""
  model = make_model("bert", st, **{"head.name": "pretraining"})
  batch = make_batch("bert", rows=8)
  batch["next_sentence"] = np.array([0, 1, 1, 0, 1, 1, 0, 0], np.int32)
  batch["weights"][2:4, 1:] = 0  # uneven, so that means of microbatches differ from the mean of the batch
  for name in ("weights", "segment_ids"):
    batch[name][-2:] = 0
  return model, batch


def uneven(case):
  batch = batch_of(case)
  batch["weights"] = batch["weights"] * np.linspace(0.2, 2, len(batch["rows"]), dtype=np.float32).reshape(
    (-1,) + (1,) * (batch["weights"].ndim - 1)
  )
  return batch


@functools.cache
def stepped(case, microbatches, strategy, devices):
  """(metrics, gradient by path): one step of SGD with rate 1 moves each parameter by its gradient."""
  st = placement(strategy, devices)
  if case == PRETRAINING:
    (model, batch), params = two_losses(st), None
  else:
    model, batch, params = make(case, st), uneven(case), params_of(case)
  sgd = {"name": "sgd", "learning_rate": 1.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0}
  program = make_program(model, batch, loss=EXTRAS, beta1=0.0, grad_clip=0.0, **sgd)
  if params is None:
    params = jax.jit(model.init)(jax.random.key(3))
  before = jax.device_get(params)
  state = program.init(jax.device_put(before, model.shardings()))
  state, metrics = program.compile(microbatches)(state, program.put(batch))
  moved = jax.tree.map(lambda a, b: a - np.asarray(b), before, state.params)
  return jax.device_get(metrics), flat(moved)


@pytest.mark.slow_but("bert rows-(2, 'dp', 1)")
@pytest.mark.parametrize(("case", "cut"), PAIRS, ids=str)
def test_every_head_learns_the_same_however_its_batch_is_cut(case, cut):
  metrics, gradient = stepped(case, 1, "dp", 1)
  other_metrics, other = stepped(case, *cut)
  assert metrics.keys() == other_metrics.keys()
  for name in metrics:
    np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-6, atol=1e-7, err_msg=name)
  norm = metrics["grad_norm"]
  for path in gradient:
    np.testing.assert_allclose(other[path], gradient[path], atol=1e-6 * max(norm, 1), err_msg=path)


@pytest.mark.slow
def test_the_gradient_of_two_terms_is_that_of_the_sum_of_their_means():
  """Compared with the plain derivative, as a wrong weight would be the same for every number of microbatches."""
  model, batch = two_losses()
  params = jax.jit(model.init)(jax.random.key(3))
  loss = make_loss(model, EXTRAS)
  noise = Noise(np.uint32(0), np.int32(0), batch["rows"])
  expected = flat(jax.jit(jax.grad(lambda params: total(loss(params, batch, noise).objective)))(params))
  gradient = stepped(PRETRAINING, 2, "dp", 1)[1]
  for path in expected:
    np.testing.assert_allclose(gradient[path], expected[path], atol=1e-6, err_msg=path)


def test_each_term_is_divided_by_its_own_weight_and_blank_rows_count_for_nothing():
  model, batch = two_losses()
  program = make_program(model, batch)
  params = jax.jit(model.init)(jax.random.key(3))
  row = jax.device_get(program.eval_step(2)(params, batch).means())
  outputs = {name: np.asarray(y, np.float64) for name, y in model.outputs(params, batch).items()}

  def nll(logits, labels):
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]

  tokens = (nll(outputs["logits"], batch["targets"]) * batch["weights"]).sum() / batch["weights"].sum()
  following = nll(outputs["next_sentence"], batch["next_sentence"])[:-2].mean()
  assert row["loss_labels"] == pytest.approx(tokens, rel=1e-5)
  assert row["loss_next_sentence"] == pytest.approx(following, rel=1e-5)
  assert row["loss"] == row["objective"] == pytest.approx(tokens + following, rel=1e-5)
  hits = outputs["next_sentence"].argmax(-1)[:-2] == batch["next_sentence"][:-2]
  assert row["next_sentence_accuracy"] == pytest.approx(hits.mean(), rel=1e-6)


def trained(program, batch, steps=3):
  """The parameters before and after some steps, by path."""
  state = program.init()
  before = flat(jax.device_get(state.params))
  step = program.compile(1)
  for _ in range(steps):
    state, _ = step(state, program.put(batch))
  return before, flat(jax.device_get(state.params)), state


def test_what_the_loss_does_not_depend_on_is_not_trained():
  """Weight decay alone would shrink the pooler and the next-sentence head of a BERT that sees no pairs."""
  model, batch = two_losses()
  del batch["next_sentence"]
  program = make_program(model, batch, weight_decay=0.5)
  unused = {"pooler/w", "pooler/b", "next_sentence/w", "next_sentence/b"}
  assert program.frozen == unused
  before, after, _ = trained(program, batch)
  assert {path for path in before if np.array_equal(before[path], after[path])} == unused


@pytest.mark.slow
def test_frozen_parameters_have_no_gradient_and_no_moments():
  batch = make_batch("gpt")
  model = make_model("gpt", placement("fsdp", 8))
  program = make_program(model, batch, frozen="embed/token|blocks/attn")
  frozen = {
    path for path in flat(model.shapes()) if path.startswith(("embed/token", "blocks/attn/", "blocks/attn_norm/"))
  }
  assert program.frozen == frozen
  before, after, state = trained(program, batch)
  assert {path for path in before if np.array_equal(before[path], after[path])} == frozen
  moments = {
    "/".join(k.key for k in path if isinstance(k, jax.tree_util.DictKey))
    for path, _ in jax.tree.leaves_with_path(state.opt_state[1][0].mu)
  }
  assert moments == set(flat(model.shapes())) - frozen
  # Clipping sees only the gradient of the trained parameters.
  whole = make_program(model, batch)
  _, metrics = whole.compile(1)(whole.init(), whole.put(batch))
  _, part = program.compile(1)(program.init(), program.put(batch))
  assert 0 < float(part["grad_norm"]) < float(metrics["grad_norm"])


@pytest.mark.parametrize(
  ("pattern", "message"),
  [
    ("encoder", "matches no parameter; they are .*blocks/attn/wq"),
    ("", None),
    ("(", "is not a regular expression"),
    (".*", "leaves no parameter to train"),
  ],
)
def test_patterns_of_frozen_parameters(pattern, message):
  program = make_program(make_model("gpt"), make_batch("gpt"), frozen=pattern)
  if message is None:
    assert program.frozen == frozenset()
  else:
    with pytest.raises(UserError, match=message):
      _ = program.frozen
