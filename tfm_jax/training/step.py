"""The train step and the evaluation step as pure functions; `training.program` compiles them."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from tfm_jax.objectives.objective import Fields
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import LossTerms, total
from tfm_jax.sharding.placement import Placement
from tfm_jax.training.loss import LossFunction
from tfm_jax.training.trees import join, partition

Batch = Mapping[str, Array]
Metrics = dict[str, Array]


class TrainState(NamedTuple):
  """Everything that a step changes: pure arrays.

  Attributes:
    step: int32 scalar, number of steps taken.
    skipped: int32 scalar, number of steps in a row, up to now, that were left out because they were not finite.
    params: nested dict of float32 arrays, frozen ones too.
    opt_state: Optax state of the parameters that are not frozen.
  """

  step: Any
  skipped: Any
  params: Any
  opt_state: Any


def make_train_step(
  loss: LossFunction,
  tx: optax.GradientTransformation,
  learning_rate: Callable[[Array], Array],
  placement: Placement,
  fields: Fields,
  microbatches: int,
  seed: int,
  frozen: Collection[str] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """The function (state, batch) -> (state, metrics), to be jitted with the state donated.

  It minimises the sum of the means of the loss's terms over the whole batch, however many microbatches it is cut
  into. A step whose loss or gradient is not finite leaves parameters and optimizer as they are, bit for bit, and is
  counted in `skipped`. Where values of the new parameters or moments are not finite, the old ones stay; a step that
  makes a whole parameter so is counted too. Parameters at the paths in `frozen` have no gradient.
  """

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    trainable, constant = partition(state.params, frozen)
    noise_of = lambda part: Noise(jnp.uint32(seed % 2**32), state.step, part["rows"])
    # A term is divided by its weight in the whole batch. With one term that can wait until the gradients are summed,
    # which saves a pass over the batch's weights. With several their ratio is needed beforehand: what computes the
    # rest of the terms for the whole batch is dropped by the compiler, as weights do not depend on it.
    names = jax.eval_shape(lambda b: loss(state.params, b, noise_of(b)), dict(batch)).objective
    factors: dict[str, Any] = dict.fromkeys(names, 1.0)
    if len(names) > 1:
      pairs = loss(state.params, batch, noise_of(batch)).objective
      factors = {name: 1 / jnp.maximum(weight, 1e-9) for name, (_, weight) in pairs.items()}

    def minimised(trainable: Any, part: Batch) -> tuple[Array, LossTerms]:
      terms = loss(join(trainable, constant), part, noise_of(part))
      return sum(factors[name] * value for name, (value, _) in terms.objective.items()), terms

    gradient = jax.grad(minimised, has_aux=True)
    grads, terms = _sum_over_parts(lambda part: gradient(trainable, part), batch, microbatches, placement, fields)
    if len(names) == 1:
      # Divided here, where XLA joins the sum of the weights to others. Beforehand it would be a collective that waits
      # for nothing: of emulated CPU devices some take it first and others the first gathered weight, for ever.
      ((_, weight),) = terms.objective.values()
      grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-9), grads)
    grad_norm = optax.tree.norm(grads)
    rate = learning_rate(state.step)
    direction, opt_state = tx.update(grads, state.opt_state, trainable)
    updated = jax.tree.map(lambda p, d: p - rate * d, trainable, direction)
    good = jnp.isfinite(total(terms.objective)) & jnp.isfinite(grad_norm)
    # Of finite gradients an optimizer can still make what is not finite: everywhere, as the smallest parameter shows,
    # or where it divides 0 by 0. There the old values stay. To look at all values before any is taken is another pass
    # over them, and even waiting for the smallest parameter costs XLA:CPU 9 % of a step of BERT-base on 8 rows.
    smallest = min(jax.tree.leaves(updated), key=lambda leaf: leaf.size)
    keep = lambda new, old: jnp.where(good & jnp.isfinite(new), new, old)
    new = TrainState(
      state.step + 1,
      jnp.where(good & jnp.isfinite(smallest).all(), 0, state.skipped + 1),
      join(jax.tree.map(keep, updated, trainable), constant),
      jax.tree.map(keep, opt_state, state.opt_state),
    )
    return new, terms.means() | {"grad_norm": grad_norm, "learning_rate": rate, "skipped": new.skipped}

  return train_step


def _sum_over_parts(
  function: Callable[[Batch], Any], batch: Batch, parts: int, placement: Placement, fields: Fields
) -> Any:
  """function(batch), summed over parts of the batch, one after the other; part j has the rows j::parts.

  These rows are spread over devices like the batch is, so nothing moves.
  """
  if parts == 1:
    return function(batch)

  def split(name: str, x: Array) -> Array:
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
    return placement.constrain(jnp.moveaxis(x, 1, 0), (None, *fields[name].axes))

  def add(total: Any, part: Batch) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, function(part)), None

  one = jax.eval_shape(function, jax.tree.map(lambda x: x[::parts], dict(batch)))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one)
  return jax.lax.scan(add, zeros, {name: split(name, x) for name, x in batch.items()})[0]


def make_eval_step(
  loss: LossFunction, placement: Placement, fields: Fields, microbatches: int
) -> Callable[[Any, Batch], LossTerms]:
  """The function (params, batch) -> sums over the batch, without dropout, in as many parts as the train step."""

  def eval_step(params: Any, batch: Batch) -> LossTerms:
    return _sum_over_parts(lambda part: loss(params, part, None), batch, microbatches, placement, fields)

  return eval_step
