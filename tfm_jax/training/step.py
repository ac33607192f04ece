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
from tfm_jax.training.loss import LossFunction
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
    def total_loss(params: Any, part: Batch) -> tuple[Array, LossSums]:
      sums = loss(params, part, Noise(jnp.uint32(seed % 2**32), state.step, part["rows"]))
      return sums.loss, sums

    gradient = jax.grad(total_loss, has_aux=True)
    grads, sums = _sum_over_parts(lambda part: gradient(state.params, part), batch, microbatches, placement)
    # Divided at the end, where XLA joins the sum of the weights to others. Beforehand it would be a collective that
    # waits for nothing: of emulated CPU devices some take it first and others the first gathered weight, for ever.
    weight = jnp.maximum(sums.weight, 1e-9)
    grads = jax.tree.map(lambda g: g / weight, grads)
    grad_norm = optax.tree.norm(grads)
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


def compile_train_step(step: Callable, state: Any, batch: Any, placement: Placement) -> Any:
  """The compiled program of `make_train_step`'s function for a state and a batch, arrays or shapes with shardings.

  The state is donated and stays where it is; the metrics are on every device.
  """
  out = (jax.tree.map(lambda leaf: leaf.sharding, state), placement.replicated)
  return jax.jit(step, donate_argnums=0, out_shardings=out).lower(state, batch).compile()


def _sum_over_parts(function: Callable[[Batch], Any], batch: Batch, parts: int, placement: Placement) -> Any:
  """function(batch), summed over parts of the batch, one after the other; part j has the rows j::parts.

  These rows are spread over devices like the batch is, so nothing moves.
  """
  if parts == 1:
    return function(batch)

  def split(x: Array) -> Array:
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
    return placement.constrain(jnp.moveaxis(x, 1, 0), (None, "batch") + (None,) * (x.ndim - 2))

  def add(total: Any, part: Batch) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, function(part)), None

  one = jax.eval_shape(function, jax.tree.map(lambda x: x[::parts], dict(batch)))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one)
  return jax.lax.scan(add, zeros, jax.tree.map(split, dict(batch)))[0]


def make_eval_step(loss: LossFunction, placement: Placement, microbatches: int) -> Callable[[Any, Batch], LossSums]:
  """The function (params, batch) -> sums over the batch, without dropout, in as many parts as the train step."""

  def eval_step(params: Any, batch: Batch) -> LossSums:
    return _sum_over_parts(lambda part: loss(params, part, None), batch, microbatches, placement)

  return eval_step
