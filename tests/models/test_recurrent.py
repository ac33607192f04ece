"""Recurrent stacks beside plain loops in numpy and beside torch.nn.LSTM and torch.nn.GRU; documents, padding, cost.

The numbers of torch are in tests/golden/recurrent.json. `pytest -m peers` asks it again; TFM_WRITE_GOLDEN=1 writes the
file anew.
"""

import json
import os
import re
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.launching import environment
from tests.support.peers import peer_python
from tests.support.tiny import VOCAB, make_batch, make_model, make_program, params_of, placement
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model, resolve_model
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.recurrent import GRU, LSTM, forward, steps_of
from tfm_jax.sharding.placement import single_device
from tfm_jax.tasks.looking.example import read

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "recurrent.json"


# A plain loop over rows, tokens and directions.


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def one_row(kind, p, x, order):
  """h of the tokens of one document [T, F], read in this order; p: wx [D, G, F], wh [F, G, F], b, bh."""
  h = c = np.zeros(p["wh"].shape[0])
  y = np.zeros((len(x), len(h)))
  for t in order:
    a = [x[t] @ p["wx"][:, g] + p["b"][g] for g in range(p["wx"].shape[1])]
    u = [h @ p["wh"][:, g] for g in range(p["wx"].shape[1])]
    if kind == "lstm":
      i, f, g, o = (a + u for a, u in zip(a, u, strict=True))
      c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
      h = sigmoid(o) * np.tanh(c)
    else:
      u = [x + p["bh"][g] for g, x in enumerate(u)]
      z = sigmoid(a[1] + u[1])
      h = (1 - z) * np.tanh(a[2] + sigmoid(a[0] + u[0]) * u[2]) + z * h
    y[t] = h
  return y


def plain(kind, blocks, x_BTD, segments_BT):
  """The output of all layers at each token; documents are read one by one, and padding not at all."""
  x_BTD = np.asarray(x_BTD, np.float64)
  for n in range(blocks["rnn"]["wx"].shape[0]):
    of = {way: {name: np.asarray(w[n], np.float64) for name, w in p.items()} for way, p in blocks.items()}
    y_BTD = np.zeros_like(x_BTD)
    for row, segments in enumerate(segments_BT):
      for document in set(segments.tolist()) - {0}:
        at = np.flatnonzero(segments == document)
        x, order = x_BTD[row, at], range(len(at))
        sides = [one_row(kind, of["rnn"], x, order)]
        if "reverse" in of:
          sides.append(one_row(kind, of["reverse"], x, reversed(order)))
        y_BTD[row, at] = np.concatenate(sides, axis=1)
    x_BTD = y_BTD
  return x_BTD


@pytest.mark.parametrize("variant", ["lstm", "gru", "lstm_encoder"])
def test_layers_equal_a_plain_loop_over_each_document(variant):
  model, params, batch = make_model(variant), params_of(variant), make_batch(variant, rows=2)
  batch["segment_ids"][1] = [0] * 3 + [1] * 6 + [3] * 5 + [2, 0]  # padding in front; documents need not be in order
  states = np.asarray(jax.jit(model.hidden_states)(params, batch))
  expected = plain(variant.split("_")[0], params["blocks"], states[0], batch["segment_ids"])
  real = batch["segment_ids"] > 0
  np.testing.assert_allclose(states[-1][real], expected[real], rtol=1e-4, atol=2e-5)


def test_padding_between_tokens_of_a_document_is_passed_over():
  segments = jnp.array([[1, 0, 1, 2, 0, 0, 2, 1, 0], [0, 0, 3, 3, 3, 0, 0, 0, 0]])
  steps, last = steps_of(segments)
  np.testing.assert_array_equal(np.flatnonzero(steps.begins[:, 0]), [0, 3, 7])
  np.testing.assert_array_equal(np.flatnonzero(steps.begins[:, 1]), [2])
  np.testing.assert_array_equal(last, [1, 3])
  steps, _ = steps_of(segments, jnp.array([1, 3]))  # they continue what was read before
  np.testing.assert_array_equal(np.flatnonzero(steps.begins[:, 0]), [3, 7])
  assert not steps.begins[:, 1].any()


# torch.


def ours(case, golden):
  """The output and the gradients of our layers with torch's parameters, under torch's names."""
  kind, way = case.split("-")
  G, width = {"lstm": 4, "gru": 3}[kind], len(golden["x"][0][0])
  family = kind if way == "one" else f"{kind}_encoder"
  config = resolve_model(family, {"num_layers": 2, "embed_dim": width, "dtype": "float32", "head.name": "none"})
  model = Model(family, config, single_device(), VOCAB)
  params = jax.jit(model.init)(jax.random.key(0))

  def blocks(torch):
    sides = {}
    for side, suffix in {"rnn": "", "reverse": "_reverse"}.items():
      layers = []
      for n in range(2 if f"weight_ih_l0{suffix}" in torch else 0):
        wx, wh, bx, bh = (torch[f"{name}_l{n}{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        gates = lambda w: jnp.moveaxis(w.reshape(G, -1, w.shape[1]), 2, 0)
        layer = {"wx": gates(wx), "wh": gates(wh)}
        biases = {"b": bx + bh} if kind == "lstm" else {"b": bx, "bh": bh}
        layer |= {name: b.reshape(G, -1) for name, b in biases.items()}
        layers.append(layer)
      if layers:
        sides[side] = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    return sides

  x = jnp.array(golden["x"], jnp.float32)
  ids = np.zeros(x.shape[:2], np.int32)
  embedded = model.hidden_states(params, {"inputs": ids})[0]

  def output(torch, x):
    batch = {"inputs": ids, "embedding_shifts": x - embedded}
    return model.outputs(params | {"blocks": blocks(torch)}, batch)["hidden"]

  weights = ((np.arange(3, 3 + x.size) * 0.618033988749895) % 1 - 0.5).reshape(x.shape).astype(np.float32)
  torch = {name: jnp.array(w, jnp.float32) for name, w in golden["parameters"].items()}
  gradients, dx = jax.jit(jax.grad(lambda torch, x: (output(torch, x) * weights).sum(), (0, 1)))(torch, x)
  return {"y": output(torch, x), "gradients": gradients, "dx": dx}


def check(case, golden):
  mine = ours(case, golden)
  for name in ("y", "dx"):
    np.testing.assert_allclose(mine[name], golden[name], rtol=1e-4, atol=2e-6, err_msg=name)
  for name, gradient in golden["gradients"].items():
    np.testing.assert_allclose(mine["gradients"][name], gradient, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.slow_but("lstm-one", "gru-both")
@pytest.mark.parametrize("case", ["lstm-one", "lstm-both", "gru-one", "gru-both"])
def test_outputs_and_gradients_are_those_of_torch(case):
  check(case, json.loads(GOLDEN.read_text())[case])


@pytest.mark.peers
def test_outputs_and_gradients_are_those_of_the_torch_that_is_installed():
  python = peer_python()
  if python is None:
    pytest.skip("torch and transformers are not installed: set TFM_PEERS_PYTHON")
  command = [python, str(ROOT / "tests" / "support" / "recurrent_peer.py")]
  text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout
  found = json.loads(text)
  if os.environ.get("TFM_WRITE_GOLDEN"):
    compact = re.sub(r"-?\d+\.\d+(e-\d+)?", lambda number: f"{float(number[0]):.7g}", text)
    GOLDEN.write_text(compact)
  for case, golden in found.items():
    check(case, golden)


# What is their own.


def test_a_fresh_lstm_remembers_and_its_dropout_is_not_in_time():
  fresh = jax.jit(make_model("lstm").init)(jax.random.key(0))["blocks"]["rnn"]["b"]
  np.testing.assert_array_equal(fresh, np.tile(np.array([0, 1, 0, 0], np.float32)[None, :, None], (2, 1, 32)))
  model, batch = make_model("lstm", dropout=0.5, num_layers=1), make_batch("lstm", rows=2)
  params = jax.jit(model.init)(jax.random.key(1))
  run = lambda noise: np.asarray(model.apply(params, batch, noise, hidden=True)["hidden"].h)
  noise = Noise(jnp.uint32(1), jnp.uint32(2), jnp.arange(2))
  dropped = run(noise)
  assert 0.4 < (dropped == 0).mean() < 0.6
  np.testing.assert_array_equal(dropped, run(noise))


def test_only_the_hidden_product_is_in_the_scan_and_its_gradient_is_one_product_after_it():
  model, batch = make_model("gru", num_layers=1, scan=False), make_batch("gru", rows=2)
  outputs = lambda params: model.apply(params, batch, hidden=True)["hidden"].h.sum()
  program = jax.make_jaxpr(jax.grad(outputs))(params_of("gru") | {"blocks": first_layer("gru")}).jaxpr
  found = []

  def walk(jaxpr, steps):
    for equation in jaxpr.eqns:
      if equation.primitive.name == "dot_general":
        found.append((steps, equation.outvars[0].aval.shape))
      inner = steps * equation.params["length"] if equation.primitive.name == "scan" else steps
      for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
          if hasattr(getattr(part, "jaxpr", part), "eqns"):
            walk(getattr(part, "jaxpr", part), inner)

  walk(program, 1)
  inside = [shape for steps, shape in found if steps == 16]
  assert sorted(inside) == [(2, 3, 32), (2, 32)]  # h times wh, and back


def test_of_an_lstm_the_backward_pass_keeps_one_product_per_gate():
  for cell, products in ((LSTM, 1), (GRU, 2)):
    shape = (5, 2, cell.gates, 3)  # T, B, G, F
    inputs, w, state = jnp.zeros(shape), jnp.zeros((3, cell.gates, 3)), (jnp.zeros((2, 3)),) * cell.vectors
    saved = jax.eval_shape(partial(forward, cell, "cpu"), inputs, w, None, state, None)[1]
    assert [leaf.shape for leaf in jax.tree.leaves(saved)].count(shape) == products


def first_layer(variant):
  return jax.tree.map(lambda x: x[:1], params_of(variant)["blocks"])


def test_cells_are_cut_over_the_mesh():
  model = make_model("lstm", placement("fsdp_tp", 8, model=4, data=2))
  shardings = model.shardings()["blocks"]["rnn"]
  assert tuple(shardings["wh"].spec) == (None, "data", None, "model") == tuple(shardings["wx"].spec)
  assert tuple(shardings["b"].spec) == (None, None, "model")


@pytest.mark.slow
def test_under_fsdp_the_gathered_weights_of_all_layers_are_kept_nowhere():
  model, batch = make_model("lstm", placement("fsdp", 8), num_layers=3), make_batch("lstm")
  text = make_program(model, batch).compile(1).as_text()
  shapes = set(re.findall(r"f32\[([\d,]+)\]", text))
  assert {"3,4,4,32", "32,4,32"} <= shapes and "3,32,4,32" not in shapes  # a part of all layers, all of one layer


def test_a_decoder_attends_to_the_encoder_and_weights_sum_to_one():
  model, params = make_model("gru_encoder_decoder"), params_of("gru_encoder_decoder")
  batch = make_batch("gru_encoder_decoder", rows=2)
  weights = np.asarray(model.attention_weights(params, batch, "cross"))
  assert weights.shape == (1, 2, 4, 16, 16)
  own, theirs = batch["decoder_segment_ids"], batch["encoder_segment_ids"]
  same = (own[:, :, None] == theirs[:, None]) & (own > 0)[:, :, None]
  np.testing.assert_allclose(weights.sum(-1)[0].transpose(0, 2, 1)[own > 0], 1, atol=1e-5)
  assert (weights[0].transpose(0, 2, 3, 1)[~same & (own > 0)[:, :, None]] == 0).all()


def test_what_recurrent_families_lack_is_refused_in_one_line():
  lstm, both = make_model("lstm"), make_model("gru_encoder_decoder")
  batch = {"inputs": np.zeros((1, 4), np.int32)}
  for model in (lstm, both):
    with pytest.raises(UserError, match=r"the layers of family=.* are recurrent and have no attention"):
      model.attention_weights({}, batch)
  with pytest.raises(UserError, match="family=lstm is recurrent: its layers have no attention to look at"):
    read(SimpleNamespace(model=lstm, tokenizer=None), "a text")
  with pytest.raises(UserError, match="cache_dtype=int8 is of keys and values: family=lstm has a state, in float32"):
    lstm.init_cache({}, 1, 4, dtype="int8")
  with pytest.raises(UserError, match="family=lstm_encoder attends in both directions"):
    make_model("lstm_encoder").init_cache({}, 1, 4)
  for key, value, usual in (
    ("experts.count", 4, 0), ("window.size", 3, 0), ("norm_order", "rezero", "pre"), ("positions", "alibi", "none")
  ):  # fmt: skip
    name = key if "." in key else f"model.{key}"
    with pytest.raises(UserError, match=f"{name}={value}: the layers of family=gru are recurrent, set it to {usual}"):
      resolve_model("gru", {key: value})
  assert resolve_model("gru", {"positions": "learned"}).positions == "learned"
  with pytest.raises(UserError, match=r"model\.embed_dim=31 must be even"):
    resolve_model("gru_encoder", {"embed_dim": 31})
  assert resolve_model("lstm", {"embed_dim": 31}).embed_dim == 31
  assert (LSTM.gates, GRU.gates) == (4, 3)
