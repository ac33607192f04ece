"""The train step and the evaluation step as pure functions; `Program` compiles them."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from tfm_jax.errors import UserError
from tfm_jax.models.heads.terms import DIVERGENCE
from tfm_jax.objectives.objective import Fields
from tfm_jax.ops.dropout import Noise
from tfm_jax.ops.losses import LossTerms, total
from tfm_jax.runtime.trees import flat, join, nested, partition
from tfm_jax.sharding.placement import Placement
from tfm_jax.training.loss import LossFunction
from tfm_jax.training.optimization.lora import axes_of
from tfm_jax.training.optimization.norms import layer_norms

Batch = Mapping[str, Any]
Metrics = dict[str, Array]


class TrainState(NamedTuple):
  """Everything that a train step changes, and the teacher, as arrays; a checkpoint stores all but the teacher.

  Attributes:
    step: int32 scalar, the number of steps taken.
    skipped: int32 scalar, the number of consecutive steps, up to the last one, whose update was not finite.
    params: nested dict of float32 arrays, frozen parameters and adapters included.
    opt_state: the Optax state of the trained parameters.
    ema: the moving average of the trained parameters; () without `train.ema`.
    teacher: the parameters of the teacher, which no step changes; () without `distill.teacher`.
  """

  step: Any
  skipped: Any
  params: Any
  opt_state: Any
  ema: Any = ()
  teacher: Any = ()


def make_train_step(
  loss: LossFunction,
  tx: optax.GradientTransformation,
  learning_rate: Callable[[Array], Array],
  placement: Placement,
  fields: Fields,
  microbatches: int,
  seed: int,
  frozen: Collection[str] = (),
  rates: Callable[[Array], Any] | None = None,
  ema: float = 0.0,
  teach: Callable[[Any, Batch], Batch] | None = None,
  with_layer_norms: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """The function (state, batch) -> (state, metrics), to be jitted with the state donated.

  It minimises the sum of the means of the loss's terms over the global batch, whatever the number of microbatches.
  A step whose loss or gradient is not finite keeps parameters and optimizer state as they are, bit for bit, and is
  counted in `skipped`. If only the update is not finite, the affected values stay as they are, and the step is counted
  if the smallest parameter is affected, which it is whenever all parameters are.

  Args:
    loss: (params, batch, noise) -> named (sum, weight) pairs, see `training.loss`.
    tx: the Optax chain over the trained parameters, without the learning rate.
    learning_rate: step, counted from 0 -> float32 scalar.
    placement: the strategy on its mesh.
    fields: field name -> logical axes of the arrays of a batch.
    microbatches: number of parts of the batch, whose gradients are summed one after the other.
    seed: of the dropout masks.
    frozen: paths of the parameters that have no gradient and no optimizer state.
    rates: step -> factors of the learning rate, a tree that broadcasts with the trained parameters; None: all are 1.
    ema: decay of the average of the trained parameters, at most (1 + step) / (10 + step), so that it forgets the first
      ones soon; 0: there is none.
    teach: (parameters of the teacher, batch) -> the batch with what the teacher says about it; None: no teacher.
    with_layer_norms: whether the metrics include `grad_norm`, `param_norm` and `update_norm` of each layer, see
      `layer_norms`; parameters are those before the update.

  Raises:
    UserError: when the function is traced: there is a teacher, and the loss does not learn from it.

  Returns:
    The new state, and the metrics as float32 scalars: those of the loss, `grad_norm` (before clipping),
    `learning_rate` and `skipped`.
  """

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    trainable, constant = partition(state.params, frozen)
    noise_of = lambda part: Noise(jnp.uint32(seed % 2**32), state.step, part["rows"])
    taught = lambda part: part if teach is None else teach(state.teacher, part)
    # Each term is divided by its weight in the whole batch. With one term that is done after the gradients are summed,
    # which saves a pass over the weights of the batch. With several terms their ratio is needed before. Calling the
    # whole loss for its weights is not expensive: the compiler drops everything that the weights do not depend on.
    shapes = jax.eval_shape(lambda b: loss(state.params, taught(b), noise_of(b)), dict(batch))
    if teach is not None and DIVERGENCE not in shapes.metrics:
      raise UserError(
        "distill.teacher: this loss does not learn from a teacher, as those of heads do that predict tokens, or "
        "classes of tokens or rows: leave it empty"
      )
    names = shapes.objective
    factors: dict[str, Any] = dict.fromkeys(names, 1.0)
    if len(names) > 1:
      pairs = loss(state.params, taught(batch), noise_of(batch)).objective
      factors = {name: 1 / jnp.maximum(weight, 1e-9) for name, (_, weight) in pairs.items()}

    def minimised(trainable: Any, part: Batch) -> tuple[Array, LossTerms]:
      terms = loss(join(trainable, constant), part, noise_of(part))
      return sum(factors[name] * value for name, (value, _) in terms.objective.items()), terms

    gradient = jax.grad(minimised, has_aux=True)

    def of_part(part: Batch) -> tuple[Any, LossTerms]:
      grads, terms = gradient(trainable, taught(part))
      return _placed(grads, placement.of_gradients) if placement.strategy.gradients else grads, terms

    grads, terms = _sum_over_parts(of_part, batch, microbatches, placement, fields)
    if len(names) == 1:
      # Dividing here lets XLA merge the sum of the weights with other collectives. Done earlier, it would be a
      # collective that depends on nothing: some emulated CPU devices would start it first, others the gathering of the
      # first weight, and they would wait for each other forever.
      ((_, weight),) = terms.objective.values()
      grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-9), grads)
    if placement.strategy.state:  # each device updates its part of the parameters, and then they are gathered
      grads, trainable = (_placed(tree, placement.of_state) for tree in (grads, trainable))
    grad_norm = optax.tree.norm(grads)
    rate = learning_rate(state.step)
    direction, opt_state = tx.update(grads, state.opt_state, trainable)
    if rates is not None:
      direction = jax.tree.map(lambda d, factor: factor * d, direction, rates(state.step))
    updated = jax.tree.map(lambda p, d: p - rate * d, trainable, direction)
    good = jnp.isfinite(total(terms.objective)) & jnp.isfinite(grad_norm)
    # An optimizer can turn finite gradients into an update that is not finite: everywhere, which the smallest parameter
    # shows, or in single values, where it divides 0 by 0. Those keep their old values. Checking all values before any
    # is used would be another pass over them; making all of them wait for the smallest parameter alone costs 9 % of a
    # step of BERT-base with 8 rows on XLA:CPU.
    smallest = min(jax.tree.leaves(updated), key=lambda leaf: leaf.size)
    keep = lambda new, old: jnp.where(good & jnp.isfinite(new), new, old)
    kept, average = jax.tree.map(keep, updated, trainable), state.ema
    if ema:
      share = 1 - jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
      average = jax.tree.map(lambda a, p: jnp.where(good, a + share * (p - a), a), average, kept)
    new = TrainState(
      state.step + 1,
      jnp.where(good & jnp.isfinite(smallest).all(), 0, state.skipped + 1),
      join(_placed(kept, placement) if placement.strategy.state else kept, constant),
      jax.tree.map(keep, opt_state, state.opt_state),
      average,
      state.teacher,
    )
    metrics = terms.means() | {"grad_norm": grad_norm, "learning_rate": rate, "skipped": new.skipped}
    if with_layer_norms:
      update = jax.tree.map(jnp.subtract, kept, trainable)
      metrics |= layer_norms({"grad_norm": grads, "param_norm": trainable, "update_norm": update})
    return new, metrics

  return train_step


def _placed(tree: Any, placement: Placement) -> Any:
  """A tree like the parameters', under the shardings that a placement has for them."""
  return nested({path: placement.constrain(x, axes_of(path).names) for path, x in flat(tree).items()})


def _sum_over_parts(
  function: Callable[[Batch], Any], batch: Batch, parts: int, placement: Placement, fields: Fields
) -> Any:
  """The sum of function(part) over the parts of a batch, computed one after the other; part j is rows j::parts.

  Each device holds equally many rows of each part, so no row moves to another device.
  """
  return _over_parts(lambda part: (function(part), None), batch, parts, placement, fields)[0]


def _over_parts(
  function: Callable[[Batch], tuple[Any, Any]], batch: Batch, parts: int, placement: Placement, fields: Fields
) -> tuple[Any, Any]:
  """(sum of the first results of function(part), rows of the second ones in the order of the batch)."""
  if parts == 1:
    return function(batch)

  def split(name: str, x: Array) -> Array:
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
    return placement.constrain(jnp.moveaxis(x, 1, 0), (None, *fields[name].axes))

  def merge(x: Array) -> Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0] * parts, *x.shape[2:])

  def add(total: Any, part: Batch) -> tuple[Any, Any]:
    summed, rows = function(part)
    return jax.tree.map(jnp.add, total, summed), rows

  one, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[::parts], dict(batch)))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one)
  summed, rows = jax.lax.scan(add, zeros, {name: split(name, x) for name, x in batch.items()})
  return summed, jax.tree.map(merge, rows)


def make_eval_step(
  loss: LossFunction, placement: Placement, fields: Fields, microbatches: int
) -> Callable[[Any, Batch], LossTerms]:
  """The function (params, batch) -> `LossTerms`, summed over the batch without dropout, in `microbatches` parts."""

  def eval_step(params: Any, batch: Batch) -> LossTerms:
    return _sum_over_parts(lambda part: loss(params, part, None), batch, microbatches, placement, fields)

  return eval_step


def make_prediction_step(
  loss: LossFunction,
  predict: Callable[[Any, Batch], Mapping[str, Array]],
  placement: Placement,
  fields: Fields,
  microbatches: int,
) -> Callable[[Any, Batch], tuple[LossTerms, Mapping[str, Array]]]:
  """The function (params, batch) -> (`LossTerms` as of `make_eval_step`, predictions of all rows by name).

  Loss and predictions are of one program, so that the compiler runs what they share once.
  """

  def prediction_step(params: Any, batch: Batch) -> tuple[LossTerms, Mapping[str, Array]]:
    both = lambda part: (loss(params, part, None), predict(params, part))
    return _over_parts(both, batch, microbatches, placement, fields)

  return prediction_step
