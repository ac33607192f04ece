"""Initialisation: one scheme per paper, bit-equal under every sharding.

`jax.random.normal` is not: on CPU, its logarithm is rounded differently in vectorised and in scalar loops, and which of
them computes an element depends on the shard. So values are sums of uniform integers, which are exact, times a factor.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.models.config import ModelConfig
from tfm_jax.ops import hashing

Initializer = Callable[[Array, tuple[int, ...]], Array]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: Array, shape: tuple[int, ...], stddev: float) -> Array:
  """See `normal`. Compiled as a function of its own, so that it is traced once per shape."""
  index = hashing.positions(shape)
  total = jnp.zeros(shape, jnp.int32)
  for seed in jax.random.bits(key, (6,)):
    word = hashing.bits(index, seed)
    total += ((word >> np.uint32(16)) + (word & np.uint32(0xFFFF))).astype(jnp.int32)
  # Twelve uniforms on 0 .. 65535: mean 12 * 65535 / 2, variance 65536^2 - 1. Twice the deviation is an integer.
  return (2 * total - 12 * 65535).astype(jnp.float32) * np.float32(stddev / 2 / 65536)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _uniform(key: Array, shape: tuple[int, ...], bound: float) -> Array:
  """See `uniform`."""
  word = hashing.bits(hashing.positions(shape), jax.random.bits(key))
  return ((word >> np.uint32(8)).astype(jnp.int32) - 2**23).astype(jnp.float32) * np.float32(bound / 2**23)


def normal(stddev: float) -> Initializer:
  """Normal of mean 0, as the sum of twelve uniforms (Irwin-Hall): within 6 standard deviations, kurtosis 2.9."""
  return lambda key, shape: _normal(key, shape, stddev)


def uniform(bound: float) -> Initializer:
  """Uniform in [-bound, bound)."""
  return lambda key, shape: _uniform(key, shape, bound)


def scaled(init: Initializer, factor: float) -> Initializer:
  """`init` times a constant."""
  return lambda key, shape: init(key, shape) * np.float32(factor)


def bert(path: str, config: ModelConfig, fan_in: int, fan_out: int) -> Initializer:
  """Normal with standard deviation 0.02 (Devlin et al. 2018, without their truncation)."""
  return normal(0.02)


def gpt(path: str, config: ModelConfig, fan_in: int, fan_out: int) -> Initializer:
  """Normal with 0.02, divided by sqrt(2 N) for projections into the residual stream (Radford et al. 2019)."""
  return normal(0.02 * (2 * config.num_layers) ** -0.5 if path.endswith("/wo") else 0.02)


def t5(path: str, config: ModelConfig, fan_in: int, fan_out: int) -> Initializer:
  """Normal with fan_in^-0.5, K^-0.5 less for queries (logits are not scaled), 1 for embeddings (Raffel et al. 2020)."""
  if path == "token":
    return normal(1.0)
  if path in ("head", "relative"):
    return normal(config.embed_dim**-0.5)
  return normal((fan_in * (config.head_features if path.endswith("/wq") else 1)) ** -0.5)


def xavier(path: str, config: ModelConfig, fan_in: int, fan_out: int) -> Initializer:
  """Uniform in +-sqrt(6 / (fan_in + fan_out)); embeddings normal with D^-0.5 (Vaswani et al. 2017, tensor2tensor)."""
  if path in ("token", "head", "position", "type"):
    return normal(config.embed_dim**-0.5)
  return uniform((6 / (fan_in + fan_out)) ** 0.5)


INITS = {"bert": bert, "gpt": gpt, "t5": t5, "xavier": xavier}


def initializer(path: str, config: ModelConfig, fan_in: int, fan_out: int) -> Initializer:
  """The initializer of a weight with `fan_in` inputs and `fan_out` outputs, in the scheme of the config.

  `path` is "token", "position", "type", "head" or "relative" for tables, else the module's and the parameter's name.
  """
  return INITS[config.init](path, config, fan_in, fan_out)
