"""The output layer and its cross-entropy, in tiles and in chunks, against the plain formula."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tfm_jax.ops import chunked
from tfm_jax.ops.cross_entropy import cross_entropy
from tfm_jax.ops.losses import SoftTargets, Unembedding, logits


def normal(shape, seed=0, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def reference_loss(h, w, bias, targets, weights, vocab, smoothing, z_loss):
  y = (jnp.einsum("btd,vd->btv", h, w, precision="highest") + bias[None, None])[..., :vocab]
  log_z = jax.nn.logsumexp(y, -1)
  log_p = y - log_z[..., None]
  soft = (1 - smoothing) * jax.nn.one_hot(targets, vocab) + smoothing / vocab
  loss = -(soft * log_p).sum(-1) + z_loss * log_z**2
  return (weights * loss).sum()


FORMS = [
  *({"form": "tiles", "tiles": tiles} for tiles in (1, 2, 6)),
  *({"form": "chunks", "ids": ids} for ids in (3, 8, 4096)),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.1, 1e-2)])
def test_cross_entropy_and_its_gradients(form, smoothing, z_loss, monkeypatch):
  form = dict(form)
  monkeypatch.setattr(chunked, "_IDS", form.pop("ids", 0))
  vocab, padded = 13, 16
  h, w, bias = normal((2, 6, 8)), normal((padded, 8), 1), normal((padded,), 2)
  draw = np.random.default_rng(3)
  targets, weights = jnp.asarray(draw.integers(0, vocab, (2, 6))), jnp.asarray(draw.random((2, 6)), jnp.float32)

  def mine(h, w, bias):
    return cross_entropy(
      h,
      Unembedding(w, bias),
      targets,
      weights,
      vocab_size=vocab,
      label_smoothing=smoothing,
      z_loss=z_loss,
      platform="cpu",
      **form,
    )

  theirs = lambda h, w, bias: reference_loss(h, w, bias, targets, weights, vocab, smoothing, z_loss)
  loss, nll, correct = mine(h, w, bias)
  np.testing.assert_allclose(loss, theirs(h, w, bias), rtol=1e-5)
  np.testing.assert_allclose(nll, reference_loss(h, w, bias, targets, weights, vocab, 0, 0), rtol=1e-5)
  best = logits(h, Unembedding(w, bias), vocab, "cpu").argmax(-1)
  np.testing.assert_allclose(correct, (weights * (best == targets)).sum(), rtol=1e-6)
  expected = jax.grad(theirs, (0, 1, 2))(h, w, bias)
  for a, b in zip(jax.grad(lambda *x: 3 * mine(*x)[0], (0, 1, 2))(h, w, bias), expected, strict=True):
    np.testing.assert_allclose(a, 3 * b, atol=1e-5)


def test_chunks_of_the_vocabulary_are_as_exact_as_bfloat16_allows(monkeypatch):
  """Logits as far apart as a trained model's: each chunk has exponentials of its own."""
  monkeypatch.setattr(chunked, "_IDS", 16)
  vocab, width = 60, 32
  h, w, bias = 3 * normal((2, 6, width), 0), normal((64, width), 1), 5 * normal((64,), 2)
  h, w = h.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
  targets, weights = jnp.arange(12).reshape(2, 6) * 5, jnp.ones((2, 6)).at[0, 0].set(0.0)

  def mine(h, w, bias):
    kind = {"vocab_size": vocab, "label_smoothing": 0.1, "z_loss": 1e-3, "form": "chunks", "platform": "cpu"}
    return cross_entropy(h, Unembedding(w, bias), targets, weights, **kind)[0]

  theirs = lambda h, w, bias: reference_loss(h, w, bias, targets, weights, vocab, 0.1, 1e-3)
  exact = (h.astype(jnp.float32), w.astype(jnp.float32), bias)
  np.testing.assert_allclose(mine(h, w, bias), theirs(*exact), rtol=1e-5)
  for a, b in zip(jax.grad(mine, (0, 1, 2))(h, w, bias), jax.grad(theirs, (0, 1, 2))(*exact), strict=True):
    assert np.linalg.norm(np.asarray(a, np.float32) - b) < 2**-7 * np.linalg.norm(b)


@pytest.mark.parametrize("form", ["tiles", "chunks"])
def test_a_target_that_is_all_but_certain_has_an_accurate_gradient(form):
  """What is left of it is small: rounded apart, its softmax and its one would leave only their errors."""
  w = normal((128, 64), 1, jnp.bfloat16)
  targets = jnp.arange(12).reshape(2, 6)
  h = (w[targets] * 0.12).astype(jnp.bfloat16)
  kind = {"vocab_size": 128, "label_smoothing": 0.0, "z_loss": 0.0, "form": form, "platform": "cpu"}
  mine = lambda w: cross_entropy(h, Unembedding(w, None), targets, jnp.ones((2, 6)), **kind)[0]
  theirs = lambda w: reference_loss(h.astype(jnp.float32), w, jnp.zeros(128), targets, jnp.ones((2, 6)), 128, 0, 0)
  expected = jax.grad(theirs)(w.astype(jnp.float32))
  assert float(theirs(w.astype(jnp.float32))) < 12 * 0.25  # certain to about 80 %
  assert np.linalg.norm(jax.grad(mine)(w).astype(jnp.float32) - expected) < 2**-7 * np.linalg.norm(expected)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("form", ["tiles", "chunks"])
def test_a_target_whose_logit_is_not_finite_has_no_finite_loss(form, value):
  h, w = jnp.ones((1, 2, 4)), normal((128, 4)).at[5].set(value)
  kind = {"vocab_size": 128, "label_smoothing": 0.0, "z_loss": 0.0, "form": form, "platform": "cpu"}
  loss, nll, _ = cross_entropy(h, Unembedding(w, None), jnp.array([[5, 6]]), jnp.ones((1, 2)), **kind)
  assert not np.isfinite(loss) and not np.isfinite(nll)


@pytest.mark.parametrize(("devices", "form"), [(1, "tiles"), (8, "tiles"), (1, "chunks")])
def test_a_hit_is_the_first_of_the_largest_logits(devices, form, monkeypatch):
  """As argmax has it: constant logits are right once in `vocab` targets, whatever devices hold the vocabulary."""
  monkeypatch.setattr(chunked, "_IDS", 3)  # the largest logit is in several chunks
  vocab, padded = 13, 16
  h, w = jnp.ones((2, 13, 4)), jnp.zeros((padded, 4)).at[5:].set(jnp.array([0.0, 0.0, 0.0, -1.0]))
  automatic = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((devices,), ("model",), automatic, devices=jax.devices()[:devices])
  table = jax.device_put(w, NamedSharding(mesh, PartitionSpec("model")))
  everywhere = NamedSharding(mesh, PartitionSpec())
  h, targets = (jax.device_put(x, everywhere) for x in (h, jnp.tile(jnp.arange(13), (2, 1))))

  def correct(h, table, targets):
    y = Unembedding(table, None)
    return cross_entropy(
      h,
      y,
      targets,
      jnp.ones(targets.shape),
      vocab_size=vocab,
      label_smoothing=0.0,
      z_loss=0.0,
      form=form,
      platform="cpu",
    )[2]

  program = jax.jit(correct, out_shardings=everywhere).lower(h, table, targets).compile()
  assert float(program(h, table, targets)) == 2  # ids 0 to 4 have the largest logit: the first of them in each row
  assert float(program(h, table, targets * 0 + 3)) == 0
  assert "all-gather" not in program.as_text()


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_logits_are_float32_products(platform):
  """Of bfloat16 operands too: rounded to bfloat16 they would be off by up to 1 in 256."""
  h, w = normal((2, 3, 64), 0, jnp.bfloat16), normal((16, 64), 1, jnp.bfloat16)
  y = jax.jit(lambda h, w: logits(h, Unembedding(w, None), 16, platform))(h, w)
  expected = np.einsum("btd,vd->btv", np.asarray(h, np.float64), np.asarray(w, np.float64))
  assert y.dtype == jnp.float32
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_evaluation_sees_float32_products_and_training_moves_no_more_bytes_for_them():
  h, w = normal((2, 4, 64), 0, jnp.bfloat16), normal((16, 64), 1, jnp.bfloat16)
  targets, ones = jnp.arange(8).reshape(2, 4), jnp.ones((2, 4))

  def nll(h, w, platform="tpu"):
    kind = {"label_smoothing": 0.0, "z_loss": 0.0, "tiles": 2, "platform": platform}
    return cross_entropy(h, Unembedding(w, None), targets, ones, vocab_size=16, **kind)[0]

  exact = reference_loss(h.astype(jnp.float32), w.astype(jnp.float32), jnp.zeros(16), targets, ones, 16, 0, 0)
  np.testing.assert_allclose(jax.jit(nll)(h, w), exact, rtol=1e-5)
  products = re.findall(r"(\w+)\[[\d,]+\] = dot_general", str(jax.make_jaxpr(jax.grad(nll, (0, 1)))(h, w)))
  assert products == ["bf16"] * 3


def test_logits_of_the_padding_are_never_chosen():
  y = logits(normal((2, 3, 8)), Unembedding(normal((16, 8)), None), 13, "cpu")
  assert (np.asarray(y[..., 13:]) < -1e29).all() and (np.asarray(y[..., :13]) > -1e3).all()


# Soft targets, beside a plain dense formula in float64.


def soft_case(length=6, vocab=13, padded=16):
  """Hidden states and output layers of a student and of a wider teacher; padding of the teacher's table is large."""
  draw = np.random.default_rng(4)
  case = {"h": (2, length, 8), "w": (padded, 8), "bias": (padded,), "their_h": (2, length, 11), "their_w": (padded, 11)}
  arrays = {name: draw.standard_normal(shape) for name, shape in case.items()}
  arrays["their_w"][vocab:] = 50.0
  arrays["targets"] = draw.integers(0, vocab, (2, length))
  arrays["weights"] = draw.random((2, length)) * (draw.random((2, length)) < 0.7)
  return arrays


def dense_soft(a, vocab, temperature, soft, hard, smoothing=0.0):
  """(loss, divergence, gradients of h, w and bias) in float64 numpy, from the definitions."""
  y = (np.einsum("btd,vd->btv", a["h"], a["w"]) + a["bias"])[..., :vocab]
  z = np.einsum("btd,vd->btv", a["their_h"], a["their_w"])[..., :vocab]

  def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)

  q, q_soft, p = softmax(y), softmax(y / temperature), softmax(z / temperature)
  labels = (1 - smoothing) * np.eye(vocab)[a["targets"]] + smoothing / vocab
  weights = a["weights"][..., None]
  loss = -(weights * (hard * labels * np.log(q) + soft * temperature**2 * p * np.log(q_soft))).sum()
  divergence = (weights * p * (np.log(p) - np.log(q_soft))).sum()
  d = weights * (hard * (q - labels) + soft * temperature * (q_soft - p))
  dw = np.zeros_like(a["w"])
  dw[:vocab] = np.einsum("btv,btd->vd", d, a["h"])
  db = np.zeros_like(a["bias"])
  db[:vocab] = d.sum((0, 1))
  return loss, divergence, (np.einsum("btv,vd->btd", d, a["w"][:vocab]), dw, db)


def our_soft(a, vocab, temperature, soft, hard, tiles=1, smoothing=0.0):
  """(function of h, w and bias -> sums, those three in float32)."""
  their_h, their_w, weights = (jnp.asarray(a[name], jnp.float32) for name in ("their_h", "their_w", "weights"))
  taught = SoftTargets(their_h, Unembedding(their_w, None), temperature, soft, hard)
  settings = {"vocab_size": vocab, "label_smoothing": smoothing, "z_loss": 0.0, "tiles": tiles, "platform": "cpu"}

  def sums(h, w, bias):
    targets = jnp.asarray(a["targets"])
    return cross_entropy(h, Unembedding(w, bias), targets, weights, **settings, soft=taught)

  return sums, tuple(jnp.asarray(a[name], jnp.float32) for name in ("h", "w", "bias"))


@pytest.mark.parametrize(
  ("tiles", "temperature", "soft", "hard", "smoothing"),
  [(1, 2.0, 5.0, 2.0, 0.0), (3, 2.0, 5.0, 2.0, 0.0), (6, 1.0, 1.0, 0.0, 0.0), (2, 4.0, 0.5, 0.5, 0.1)],
)
def test_soft_targets_and_their_gradients(tiles, temperature, soft, hard, smoothing):
  arrays, kind = soft_case(), (13, temperature, soft, hard)
  loss, divergence, expected = dense_soft(arrays, *kind, smoothing=smoothing)
  sums, own = our_soft(arrays, *kind, tiles=tiles, smoothing=smoothing)
  np.testing.assert_allclose(sums(*own)[0], loss, rtol=1e-5)
  np.testing.assert_allclose(sums(*own)[3], divergence, rtol=1e-5)
  plain = reference_loss(*own, arrays["targets"], arrays["weights"], 13, 0, 0)
  np.testing.assert_allclose(sums(*own)[1], plain, rtol=1e-5)  # what is reported knows no teacher
  for a, b in zip(jax.grad(lambda *x: 3 * sums(*x)[0], (0, 1, 2))(*own), expected, strict=True):
    np.testing.assert_allclose(a, 3 * b, atol=1e-4)


def test_a_student_that_is_its_teacher_has_the_teachers_entropy_and_nothing_to_learn():
  arrays = soft_case()
  arrays |= {"their_h": arrays["h"], "their_w": arrays["w"], "bias": np.zeros(16)}
  sums, own = our_soft(arrays, 13, 2.0, 1.0, 0.0)
  y = np.einsum("btd,vd->btv", arrays["h"], arrays["w"])[..., :13] / 2
  log_p = y - np.log(np.exp(y).sum(-1, keepdims=True))
  entropy = -(arrays["weights"][..., None] * np.exp(log_p) * log_p).sum()
  loss, _, _, divergence = sums(*own)
  np.testing.assert_allclose(loss, 4 * entropy, rtol=1e-5)
  np.testing.assert_allclose(divergence, 0, atol=1e-5)
  for gradient in jax.grad(lambda *x: sums(*x)[0], (0, 1, 2))(*own):
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_the_backward_pass_keeps_one_array_of_logits_and_not_the_teachers():
  """Whole logits [B, T, V] that a step stores: the gradient in bfloat16, whatever is learned from a teacher."""
  rows, length, vocab, width = 4, 512, 4096, 8
  h, w = jnp.ones((rows, length, width), jnp.bfloat16), jnp.ones((vocab, width), jnp.bfloat16)
  targets, weights = jnp.zeros((rows, length), jnp.int32), jnp.ones((rows, length))

  def temporaries(soft):
    settings = {"vocab_size": vocab, "label_smoothing": 0.0, "z_loss": 0.0, "tiles": 32, "platform": "cpu"}
    loss = lambda h, w: cross_entropy(h, Unembedding(w, None), targets, weights, **settings, soft=soft)[0]
    return jax.jit(jax.grad(loss, (0, 1))).lower(h, w).compile().memory_analysis().temp_size_in_bytes

  soft = SoftTargets(h, Unembedding(w, None), 2.0, 1.0, 1.0)
  whole = rows * length * vocab * 2
  assert whole < temporaries(None) < temporaries(soft) < temporaries(None) + whole / 2
