"""Programs that XLA:GPU compiles for eight H100 that are not here: kernels, no matrix of weights, the least traffic."""

import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import pytest

from tests.support.launching import ROOT
from tfm_jax.compare.compiled import hlo
from tfm_jax.compare.compiled.collectives import collectives
from tfm_jax.compare.compiled.minimum import minimum_bytes
from tfm_jax.compare.forecast.topology import compiler_options, topology_devices
from tfm_jax.compare.program import build_program, with_strategy
from tfm_jax.models.sight import attend_locally
from tfm_jax.ops.attention import KERNELS
from tfm_jax.ops.masks import Mask
from tfm_jax.sharding.linear import embed
from tfm_jax.sharding.placement import Placement, make_mesh
from tfm_jax.sharding.strategy import AXES, STRATEGIES
from tfm_jax.training.config import load

TOPOLOGY = "h100:8"
pytestmark = pytest.mark.skipif(
  any(importlib.util.find_spec(name) is None for name in ("jax_cuda13_plugin", "nvidia.cudnn")),
  reason="needs XLA's compiler for GPUs and cuDNN: pip install -e '.[forecast]'",
)


@pytest.fixture(autouse=True)
def _uncached():
  """Programs for other devices are not for the cache of those at hand."""
  jax.config.update("jax_enable_compilation_cache", False)
  yield
  jax.config.update("jax_enable_compilation_cache", True)


ROWS, TOKENS, KEYS, HEADS, WIDTH = 8, 320, 192, 4, 64
SEGMENTS = "segments"
# queries, keys, heads of keys, mask, whether there are segments, whether there is a bias
KERNEL_CASES = {
  "causal": (TOKENS, TOKENS, HEADS, Mask(causal=True), False, False),
  "causal, grouped, window": (TOKENS, TOKENS, 2, Mask(causal=True, window=64), False, False),
  "segments": (TOKENS, TOKENS, HEADS, Mask(causal=True), True, False),
  "across, segments, bias": (TOKENS, KEYS, HEADS, Mask(), True, True),
}


@pytest.mark.parametrize("case", KERNEL_CASES)
def test_cudnn_attention_is_fused_in_both_passes_on_the_rows_and_heads_of_each_device(case):
  T, S, groups, mask, packed, biased = KERNEL_CASES[case]
  devices = topology_devices(TOPOLOGY)[1]
  st = Placement(STRATEGIES["fsdp_tp"], make_mesh(dict.fromkeys(AXES, 1) | {"data": 4, "model": 2}, devices))
  of = lambda shape, dtype, axes: jax.ShapeDtypeStruct(shape, dtype, sharding=st.sharding(axes))
  heads = lambda n, count: of((ROWS, n, count, WIDTH), jnp.bfloat16, ("batch", None, "act_heads", None))
  ids = [of((ROWS, n), jnp.int32, ("batch", None)) for n in (T, S)] if packed else [None, None]
  bias = of((HEADS, T + S), jnp.float32, ("act_heads", None)) if biased else None
  kernel = KERNELS["cudnn"]

  def total(q, k, v, bias, ids):
    given = Mask(mask.causal, mask.window, *ids)
    prepared = kernel.prepare(given, T, S)
    y = attend_locally(st, kernel, q, (k, v), prepared, bias, None, jnp.int32(0), scale=0.5, platform="gpu")
    return (y.astype(jnp.float32) ** 2).sum()

  gradient = jax.jit(jax.grad(total, (0, 1, 2, 3) if biased else (0, 1, 2)))
  lowered = gradient.trace(heads(T, HEADS), heads(S, groups), heads(S, groups), bias, ids).lower()
  text = lowered.compile(compiler_options=compiler_options(TOPOLOGY)).as_text()
  name = "ScaleBiasSoftmax" if packed or biased else "Softmax"
  calls = re.findall(r'custom_call_target="__cudnn\$fmha(\w+)"', text)
  assert sorted(calls) == [name, f"{name}Backward"]
  assert "all-gather" not in text and ("all-reduce" in text) == biased
  # A device's rows and heads are 2 and 2: a mask has no heads, a bias no rows, and nothing has both.
  matrices = {math.prod(int(n) for n in dims.split(",")) for dims in re.findall(rf"\[([\d,]*{T},{S})\]", text)}
  assert max(matrices, default=0) <= (2 * T * S if packed or biased else 0)
  assert bool(matrices) == (packed or biased)


def step_of(config, strategy, tokens=TOKENS, **changes):
  """(program, module, text) of the compiled step of a small model."""
  sizes = {"num_layers": 2, "embed_dim": 128, "num_heads": 4, "mlp_dim": 256, "attention_dropout": 0.0} | changes
  others = {"data.seq_len": tokens, "train.batch_size": 16, "train.microbatches": 1, "tokenizer.vocab_size": 4096}
  loaded = load(str(ROOT / f"configs/{config}.py"), {f"model.{key}": value for key, value in sizes.items()} | others)
  program = build_program(with_strategy(loaded, strategy), topology_devices(TOPOLOGY)[1])
  text = program.compile(1, compiler_options(TOPOLOGY)).as_text()
  return program, hlo.parse(text), text


def check(program, module, text, close):
  """The traffic is the least, nothing is asked for in float32 but norms and biases, products are bfloat16."""
  least, sent = minimum_bytes(program, 1), {}
  for one in collectives(module, program.model.placement.mesh):
    sent[one.axes] = sent.get(one.axes, 0) + one.bytes
  for axes, size in least.items():
    assert 0.99 * size <= sent.pop(axes) <= size * (1 + close)
  assert sum(sent.values()) < 2**16
  assert "all-reduce(" not in text or max(map(hlo.shape_bytes, small_sums(module))) < 2**18
  for i, where, _ in module.executed():
    if "__cublas" in i.rest and i.shapes[0][0] in ("bf16", "f32"):
      assert {where.by_name[name].shapes[0][0] for name in i.operands[:2]} == {"bf16"}


def small_sums(module):
  """The shapes of the all-reduces in float32."""
  return [s for i, _, _ in module.executed() if i.kind == "all-reduce" for s in i.shapes if s[0] == "f32"]


def weights(text):
  """The largest array with queries and keys, in matrices of one head and one row."""
  found = re.findall(rf"\[([\d,]*{TOKENS},{TOKENS})\]", text)
  return max((math.prod(int(n) for n in dims.split(",")) for dims in found), default=0) / (TOKENS * TOKENS)


@pytest.mark.parametrize("strategy", ["dp", "fsdp", "fsdp_tp"])
def test_the_gradient_of_a_tied_table_is_reduced_once_and_where_it_is_stored(strategy):
  """That of the rows and that of the output layer are added before, in bfloat16."""
  V, D = 1024, 256
  sizes = {"data": 4, "model": 2} if strategy == "fsdp_tp" else {"data": 8}
  devices = topology_devices(TOPOLOGY)[1]
  st = Placement(STRATEGIES[strategy], make_mesh(dict.fromkeys(AXES, 1) | sizes, devices))
  of = lambda shape, dtype, axes: jax.ShapeDtypeStruct(shape, dtype, sharding=st.sharding(axes))

  def total(stored, ids):
    table = st.weight(stored, ("vocab", "embed"), "bfloat16", looked_up=True)
    h = jnp.sin(embed(table, ids, ("vocab", "embed"), st))
    return jnp.square(jnp.einsum("BTD,VD->BTV", h, table).astype(jnp.float32)).sum()

  arguments = of((V, D), jnp.float32, ("vocab", "embed")), of((ROWS, 32), jnp.int32, ("batch", "seq"))
  gradient = jax.jit(jax.grad(total), out_shardings=arguments[0].sharding)
  module = hlo.parse(gradient.lower(*arguments).compile(compiler_options=compiler_options(TOPOLOGY)).as_text())
  reduced = [i for i, _, _ in module.executed() if i.kind not in (None, "all-gather")]
  large = [(i.kind, i.shapes[-1][0]) for i in reduced if math.prod(i.shapes[-1][1]) >= V * D // 8]
  assert large == [("all-reduce" if strategy == "dp" else "reduce-scatter", "bf16")]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["dp", "fsdp", "tp", "fsdp_tp"])
def test_a_gpt_sends_the_least_by_fused_attention_and_products_in_bfloat16(strategy):
  program, module, text = step_of("gpt2_small", strategy, max_positions=TOKENS, embed_dim=256)
  calls = {"__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"}
  assert set(re.findall(r"__cudnn\$fmha\w+", text)) == calls
  check(program, module, text, 0.1)
  assert weights(text) <= program.config.train.batch_size / program.model.placement.batch_shards  # the mask alone


@pytest.mark.slow
def test_attention_with_dropout_in_tiles_has_no_matrix_of_weights():
  changes = {"attention_dropout": 0.1, "max_positions": 1024, "num_layers": 1}
  _, _, tiled = step_of("bert_base", "fsdp_tp", 1024, attention="tiles", **changes)
  _, _, plain = step_of("bert_base", "fsdp_tp", 1024, attention="xla", **changes)
  assert "fmha" not in tiled and ",1024,1024]" not in tiled and ",1024,1024]" in plain


@pytest.mark.slow
def test_the_kernels_are_counted_alike():
  """FLOPs of a step are those of the model, whatever computes its attention."""

  def flops(kernel):
    sizes = {"num_layers": 1, "decoder_layers": 1, "embed_dim": 128, "num_heads": 2, "attention_dropout": 0.0}
    changes = {f"model.{key}": value for key, value in (sizes | {"attention": kernel}).items()}
    changes |= {"data.target_len": 64, "train.batch_size": 16, "train.microbatches": 1, "tokenizer.vocab_size": 512}
    loaded = with_strategy(load(str(ROOT / "configs/t5_base.py"), changes), "fsdp")
    return build_program(loaded, topology_devices(TOPOLOGY)[1]).flops

  assert flops("cudnn") == flops("tiles") == flops("xla")
