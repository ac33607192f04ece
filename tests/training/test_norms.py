"""The norms of each layer: those of the whole trees, divided among their layers."""

import dataclasses
import re

import jax
import numpy as np
import optax
import pytest

from tests.support.tiny import make_batch, make_model, make_program
from tfm_jax.runtime.reporting.curves import curves_page
from tfm_jax.runtime.trees import flat, partition
from tfm_jax.training.optimization.norms import layer_norms


def test_layers_and_the_rest_have_norms_of_their_own():
  tree = {
    "blocks": {"attn": {"bq": np.array([[3.0, 0.0], [6.0, 8.0]])}, "mlp": {"bi": np.array([[4.0], [0.0]])}},
    "embed": {"token": np.full((2, 2), 2.0)},
    "head": {"bias": np.array([3.0]), "norm": {"scale": np.array([4.0])}},
    "encoder": {"blocks": {"attn": {"bq": np.array([[1.0]])}}, "final_norm": {"scale": np.array([2.0])}},
    "generator": {
      "blocks": {"attn": {"bq": np.array([[1.0], [7.0]])}},
      "head": {"bias": np.array([8.0])},
      "project": {"b": np.array([9.0])},
    },
  }
  expected = {
    "x/blocks/0": 5.0,
    "x/blocks/1": 10.0,
    "x/embed": 4.0,
    "x/head": 5.0,
    "x/encoder/blocks/0": 1.0,
    "x/encoder/final_norm": 2.0,
    "x/generator/blocks/0": 1.0,
    "x/generator/blocks/1": 7.0,
    "x/generator/head": 8.0,
    "x/generator/project": 9.0,
  }
  assert {name: float(norm) for name, norm in layer_norms({"x": tree}).items()} == expected


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["t5"])
def test_a_step_reports_gradient_parameters_and_update_of_each_layer(variant):
  batch = make_batch(variant)
  program = make_program(make_model(variant), batch, warmup_steps=0)
  train = dataclasses.replace(program.config.train, layer_norms=True)
  program = dataclasses.replace(program, config=dataclasses.replace(program.config, train=train))
  before = program.init()
  after, metrics = jax.jit(program.train_step(2))(before, batch)
  named = {name: value for name, value in metrics.items() if "/" in name}
  of = lambda kind: np.array([value for name, value in named.items() if name.startswith(f"{kind}/")])
  trained, updated = (partition(state.params, program.frozen)[0] for state in (before, after))
  np.testing.assert_allclose(np.linalg.norm(of("grad_norm")), metrics["grad_norm"], rtol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(of("param_norm")), optax.tree.norm(trained), rtol=1e-5)
  update = jax.tree.map(lambda a, b: a - b, updated, trained)
  np.testing.assert_allclose(np.linalg.norm(of("update_norm")), optax.tree.norm(update), rtol=1e-5)
  first = [np.linalg.norm(x[0]) for path, x in flat(jax.device_get(update)).items() if path.startswith("blocks/")]
  if first:
    np.testing.assert_allclose(named["update_norm/blocks/0"], np.linalg.norm(first), rtol=1e-5)
  plain, others = jax.jit(make_program(program.model, batch, warmup_steps=0).train_step(2))(before, batch)
  assert not any("/" in name for name in others)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain.params, after.params)


def test_the_page_draws_them_by_layer():
  """Of 24 layers each has a colour of its own, and some are in the legend; the parts outside the blocks are apart."""
  layers = [str(layer) for layer in range(24)]
  norms = {f"grad_norm/blocks/{layer}": 1.0 + int(layer) for layer in sorted(layers)}  # as JAX sorts them
  norms |= {"grad_norm/embed": 0.5, "update_norm/encoder/blocks/0": 1.0, "update_norm/decoder/blocks/0": 1.0}
  page = curves_page("run", [{"step": n, "split": "train", "loss": 2.0, "grad_norm": 3.0, **norms} for n in (1, 2)])
  titles = re.findall(r"<h2>(.*?)</h2>", page)
  assert titles[-4:] == [
    "Gradient norm by layer",
    "Gradient norm of other parts",
    "Update norm by layer: encoder/blocks",
    "Update norm by layer: decoder/blocks",
  ]
  _, plot, rest, *_ = re.split("<h2>Gradient norm [^<]*</h2>", page)
  assert "blocks/23, step 2: 24" in plot and "embed" not in plot and "embed, step 2: 0.5" in rest
  strokes = re.findall(r'<polyline [^>]* stroke="(.*?)"', plot)
  assert len(set(strokes)) == 24 and "var(--c4) 0.0%" in strokes[0] and "var(--c4) 100.0%" in strokes[-1]
  shown = re.findall(r"</span>blocks/(\d+)</li>", plot)
  assert shown == ["0", "5", "9", "14", "18", "23"]
