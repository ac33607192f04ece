"""The training state: pure arrays; everything static is closed over."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tfm_jax.models.model import Model
from tfm_jax.training.optimizer import state_shardings


class TrainState(NamedTuple):
  """Everything that a step changes.

  Attributes:
    step: int32 scalar, number of steps taken.
    skipped: int32 scalar, number of steps in a row, up to now, that were left out because they were not finite.
    params: nested dict of float32 arrays.
    opt_state: Optax state.
  """

  step: Any
  skipped: Any
  params: Any
  opt_state: Any


def init_state(model: Model, tx: optax.GradientTransformation, seed: int, params: Any = None) -> TrainState:
  """A fresh state, each array made where the strategy puts it; `params` replaces the fresh parameters."""
  abstract = abstract_state(model, tx)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  if params is None:
    params = jax.jit(model.init, out_shardings=shardings.params)(jax.random.key(seed))

  def rest(params: Any) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), params, tx.init(params))

  return jax.jit(rest, out_shardings=shardings, donate_argnums=0)(params)


def abstract_state(model: Model, tx: optax.GradientTransformation) -> TrainState:
  """The state as shapes with their shardings: what a checkpoint is restored into."""
  params = model.shapes()
  opt_state = jax.eval_shape(tx.init, params)
  scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=model.placement.replicated)
  place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return TrainState(
    scalar,
    scalar,
    jax.tree.map(place, params, model.shardings()),
    jax.tree.map(place, opt_state, state_shardings(model, opt_state)),
  )
