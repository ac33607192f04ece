"""The train step and the evaluation step: one jitted, donated, sharded program each."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import LossSums
from tfm_jax.sharding.placement import Placement
from tfm_jax.training.loss import LossFunction, weights_of
from tfm_jax.training.state import TrainState

Batch = Mapping[str, Array]
Metrics = dict[str, Array]


def make_train_step(
  loss: LossFunction,
  tx: optax.GradientTransformation,
  learning_rate: Callable[[Array], Array],
  placement: Placement,
  microbatches: int,
  seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """The function (state, batch) -> (state, metrics), to be jitted with the state donated.

  The loss is sum(w * loss) / sum(w) over the whole batch, however many microbatches it is cut into. A step whose loss
  or gradient is not finite leaves parameters and optimizer as they are, bit for bit, and is counted in `skipped`.
  """

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    weight = jnp.maximum(weights_of(batch).sum(), 1e-9)

    def mean_loss(params: Any, part: Batch) -> tuple[Array, LossSums]:
      noise = Noise(jnp.uint32(seed % 2**32), state.step, part["rows"])
      sums = loss(params, part, noise)
      return sums.loss / weight, sums

    grads, sums = _accumulate(jax.grad(mean_loss, has_aux=True), state.params, batch, microbatches, placement)
    grad_norm = optax.global_norm(grads)
    rate = learning_rate(state.step)
    direction, opt_state = tx.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
    good = jnp.isfinite(sums.loss) & jnp.isfinite(grad_norm)
    keep = lambda new, old: jnp.where(good, new, old)
    new = TrainState(
      state.step + 1,
      jnp.where(good, 0, state.skipped + 1),
      jax.tree.map(keep, params, state.params),
      jax.tree.map(keep, opt_state, state.opt_state),
    )
    metrics = {
      "loss": sums.nll / weight,
      "objective": sums.loss / weight,
      "accuracy": sums.correct / weight,
      "grad_norm": grad_norm,
      "learning_rate": rate,
      "skipped": new.skipped,
    }
    return new, metrics

  return train_step


def _accumulate(
  gradient: Callable, params: Any, batch: Batch, microbatches: int, placement: Placement
) -> tuple[Any, LossSums]:
  """Gradient and sums of the batch, in float32 over microbatches; number j takes rows j::k, which are local."""
  if microbatches == 1:
    return gradient(params, batch)

  def split(x: Array) -> Array:
    x = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:])
    return placement.constrain(jnp.moveaxis(x, 1, 0), (None, "batch") + (None,) * (x.ndim - 2))

  def add(total: Any, part: Batch) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, gradient(params, part)), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[::microbatches], dict(batch))),
  )
  return jax.lax.scan(add, zeros, jax.tree.map(split, dict(batch)))[0]


def make_eval_step(loss: LossFunction) -> Callable[[Any, Batch], LossSums]:
  """The function (params, batch) -> sums over the batch, without dropout."""
  return lambda params, batch: loss(params, batch, None)
