"""FLOP counts against published figures, an analytic formula and a plain count of products; peaks of devices."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from tests.support.tiny import BATCH, CASES, LENGTH, VARIANTS, make_batch, make_model, model_config, placement
from tfm_jax.compare.program import random_batch
from tfm_jax.models.families.table import FAMILIES
from tfm_jax.models.model import Model, resolve_model
from tfm_jax.objectives.objective import ROWS, Field, along_row, encoder_decoder_fields, token_fields
from tfm_jax.ops.losses import total
from tfm_jax.runtime.chips import peak_flops
from tfm_jax.sharding.placement import single_device
from tfm_jax.training.compiled import flops
from tfm_jax.training.loss import LossConfig, make_loss


def per_row(family, config, vocab_size, fields):
  """FLOPs of one row, from shapes alone."""
  model = Model(family, resolve_model(family, config), single_device(), vocab_size)
  batch = {name: jax.ShapeDtypeStruct((2, *field.shape), field.dtype) for name, field in fields.items()}
  return flops.Flops(*(x / 2 for x in flops.count(make_loss(model, LossConfig()), model.shapes(), batch)))


def single_fields(length, targets, vocab_size):
  places = {"mlm_positions": along_row(targets, "places")} if targets != length else {}
  ends = {"targets": along_row(targets, "labels", vocab_size), "weights": along_row(targets, "weights")}
  return token_fields(length, vocab_size) | places | ends | {"rows": ROWS}


@pytest.mark.parametrize(("targets", "expected"), [(512, 710e6), (77, 588e6)])
def test_bert_base(targets, expected):
  row = per_row("bert", {}, 30_522, single_fields(512, targets, 30_522))
  assert row.full / 512 == pytest.approx(expected, rel=0.005) and row.causal == row.full


def test_gpt2_in_both_conventions():
  row = per_row("gpt", {}, 50_257, single_fields(1024, 1024, 50_257))
  assert row.full / 1024 == pytest.approx(855e6, rel=0.005) and row.causal / 1024 == pytest.approx(798e6, rel=0.005)


def test_t5_base_1_1():
  config = {"mlp_dim": 2048, "gated": True, "tied": False}
  row = per_row("t5", config, 32_128, encoder_decoder_fields(512, 114, 32_128))
  assert row.full == pytest.approx(425e9, rel=0.02)
  # Only the self-attention of the decoder is causal.
  assert row.full - row.causal == 12 * 768 * 114 * 114 * 12 / 2


def formula(model, lengths, targets):
  """6 x weights x positions that they see + 12 x layers x heads x head_dim x queries x keys, of one row."""
  c, total = model.config, 0
  S, T = lengths[0], lengths[-1]
  for path, leaf in jax.tree.leaves_with_path(model.shapes()):
    name = "/".join(str(key.key) for key in path)
    if ("/w" not in name and not name.endswith("router")) or name == "head/w":
      continue
    source = name.startswith("encoder") or "cross/wk" in name or "cross/wv" in name
    share = c.experts.top_k / c.experts.count if "experts/" in name else 1  # of the experts, those that a token uses
    total += 6 * math.prod(leaf.shape) * share * (targets if name.startswith("head/") else S if source else T)
  total += 6 * 256 * c.embed_dim * targets
  HK = c.num_heads * c.head_features
  if FAMILIES[model.family].cell:  # a product of h and its weights at each step, and one attention after the layers
    return total + (12 * HK * T * S if model.encoder_decoder else 0)
  total += 12 * c.num_layers * HK * S * S
  return total + (12 * c.decoder_depth * HK * (T * T + T * S) if model.encoder_decoder else 0)


def dots(jaxpr):
  """Multiplications and additions in all dots of a program."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (summed, _), _ = equation.params["dimension_numbers"]
      lengths = equation.outvars[0].aval.shape + tuple(equation.invars[0].aval.shape[axis] for axis in summed)
      total += 2 * math.prod(lengths)
    for parameter in equation.params.values():
      for part in parameter if isinstance(parameter, tuple | list) else (parameter,):
        inner = getattr(part, "jaxpr", part)
        if hasattr(inner, "eqns"):
          total += equation.params.get("length", 1) * dots(inner)
  return total


@pytest.mark.parametrize("variant", CASES)
def test_every_family_by_formula_and_by_a_plain_count(variant):
  family, _ = VARIANTS[variant]
  model = Model(family, model_config(variant, decoder_layers=3, head_dim=16), single_device(), 256)
  batch, loss = make_batch(variant), make_loss(model, LossConfig())
  row = flops.count(loss, model.shapes(), batch).full / BATCH
  program = jax.make_jaxpr(jax.grad(lambda params: total(loss(params, batch, None).objective)))(model.shapes())
  assert dots(program.jaxpr) / BATCH == row or (model.config.experts.count and dots(program.jaxpr) / BATCH > row)
  lengths = [x.shape[1] for name, x in batch.items() if name.endswith("inputs")]
  targets = next(x.shape[1] for name, x in batch.items() if name.endswith("targets"))
  # T5 reads its table of relative positions by products as well.
  assert row == pytest.approx(formula(model, lengths, targets), rel=1e-3 if family.startswith("t5") else 1e-9)


@pytest.mark.parametrize("variant", ["bert", "t5"])
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_what_is_computed_again_counts_once(variant, remat):
  plain, again = (make_model(variant, remat=name) for name in ("none", remat))
  shapes, batch = plain.shapes(), make_batch(variant)
  count = lambda model: flops.count(make_loss(model, LossConfig()), shapes, batch)
  assert count(again) == count(plain)


@pytest.mark.parametrize("devices", [1, 8])
def test_kernels_count_what_plain_attention_counts(devices):
  st = placement("fsdp_tp", devices)
  sizes = {"max_positions": 256, "head_dim": 128, "dtype": "bfloat16"}
  batch = make_batch("gpt", rows=8, length=256)
  counted = []
  for attention in ("xla", "splash"):
    model = make_model("gpt", st, attention=attention, **sizes)
    counted.append(flops.count(make_loss(model, LossConfig()), model.shapes(), batch))
  # Splash attention sums over its result by a product as well.
  assert counted[1] == pytest.approx(counted[0], rel=1e-3) and counted[0].causal < counted[0].full


def test_what_is_not_trained_has_no_gradient():
  model, batch = make_model("bert"), make_batch("bert")
  loss = make_loss(model, LossConfig())
  frozen = {name: part for name, part in model.shapes().items() if name != "head"}
  trained = {"head": model.shapes()["head"]}
  full = flops.count(loss, model.shapes(), batch).full
  of_head = lambda trained, both, noise: loss(trained | both[0], both[1], noise)
  forward = full / 3
  head = 2 * 4 * BATCH * (32 * 256 + 32 * 32)
  dense = 2 * 4 * BATCH * 32 * 32
  table = 2 * 4 * BATCH * 32 * 256  # tied to the embeddings: not trained
  assert flops.count(of_head, trained, (frozen, batch)).full == forward + 2 * head - dense - table


def test_branches_loops_and_convolutions():
  x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5))

  def loss(params, batch, noise):
    y = jax.lax.conv_general_dilated(batch, params["k"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = y.reshape(8, 5)
    y = jax.lax.cond(y.sum() > 0, lambda y: y @ params["w"] @ params["w"].T, lambda y: y @ params["w"][:, :5], y)
    return jax.lax.fori_loop(0, 3, lambda _, y: y @ params["v"], y)

  params = {"k": kernel, "w": jnp.ones((5, 7)), "v": jnp.ones((5, 5))}
  patches, branch, loop = 2 * 8 * 5 * 4 * 4 * 3, 2 * 2 * 8 * 5 * 7, 3 * 2 * 8 * 5 * 5
  assert flops.count(loss, params, x).full == 2 * patches + 3 * (branch + loop)


def test_lengths_follow_from_the_kinds_of_fields():
  config = resolve_model("bert")
  assert flops.sequence_lengths(config, single_fields(16, 4, 100)) == [16]
  assert flops.sequence_lengths(config, encoder_decoder_fields(16, 9, 100)) == [16, 9]
  vit = resolve_model(
    "vit", {"head.name": "none", "max_positions": 0, "image.height": 8, "image.width": 12, "image.patch": 4}
  )
  assert flops.sequence_lengths(vit, {"images": Field((8, 12, 3), jnp.float32, "pixels", ("batch",))}) == [7]


def test_peaks_belong_to_exact_names():
  peak = lambda kind: peak_flops(SimpleNamespace(device_kind=kind))
  assert peak("NVIDIA H200") == 989e12 and peak("TPU v5 lite") == 197e12 and peak("TPU v5p") == 459e12
  assert peak("NVIDIA A100-SXM4-40GB") == 312e12 and peak("cpu") is None
  assert peak("TPU7x") == 1153.5e12  # half a chip
  assert peak("NVIDIA H100 80GB HBM3") == 989e12
  assert peak("NVIDIA H100 PCIe") == 756e12 and peak("NVIDIA H100 NVL") == peak("NVIDIA H200 NVL") == 835e12
  assert peak("NVIDIA H100 something-unknown") is None and peak("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None


def test_a_batch_is_counted_whole():
  model = make_model("gpt")
  batch = random_batch(single_fields(LENGTH, LENGTH, 250), 4)
  count = lambda batch: flops.count(make_loss(model, LossConfig()), model.shapes(), batch).full
  assert 2 * count({name: x[:2] for name, x in batch.items()}) == count(batch)
