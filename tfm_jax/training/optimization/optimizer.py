"""Optimizers, as Optax chains for stacked parameters, and learning-rate schedules."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from tfm_jax.errors import UserError
from tfm_jax.models.config import Axes
from tfm_jax.runtime.trees import flat
from tfm_jax.sharding.placement import Placement
from tfm_jax.training.optimization.lora import axes_of


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The optimizer and its schedule."""

  name: str = "adamw"  # update rule
  learning_rate: float = 1e-4  # peak learning rate, reached at warmup_steps
  schedule: str = "linear"  # learning rate after the warm-up; rsqrt_flat is at its peak during the warm-up too
  decay_steps: int = 0  # wsd: the last steps, in which the learning rate falls; before, it is at its peak
  warmup_steps: int = 0  # steps in which the learning rate rises linearly to its peak (rsqrt_flat: stays there)
  warmup_fraction: float = 0.0  # share of train.steps that warmup_steps is, if that is 0
  final_fraction: float = 0.0  # learning rate at the last step of linear, cosine and wsd, as a fraction of the peak
  weight_decay: float = 0.0  # decoupled decay, times the learning rate; of matrices (all but adam and adafactor)
  beta1: float = 0.9  # momentum (all but adafactor; of muon: where it is AdamW)
  # decay of the average of squared gradients (adamw, adam, muon; 0: 0.999), or of the momentum (lion; 0: 0.99)
  beta2: float = 0.0
  epsilon: float = 1e-8  # added to the root of that average (adamw, adam, muon)
  momentum: float = 0.95  # Nesterov momentum of the matrices that are made orthogonal (muon)
  grad_clip: float = 1.0  # largest norm of the whole gradient; 0: no clipping
  frozen: str = ""  # regular expression; parameters whose path starts with a match are not trained; empty: none
  trained: str = ""  # regular expression; only parameters whose path starts with a match are trained; empty: all are
  offload: bool = False  # keep the optimizer's state in the memory of the host, from where each step fetches it
  layer_decay: float = 1.0  # factor of the learning rate per layer below the head; 1: all layers have the same rate

  def __post_init__(self) -> None:
    """Fills in the optimizer's own `beta2`, which is what runs store."""
    if not self.beta2:
      object.__setattr__(self, "beta2", 0.99 if self.name == "lion" else 0.999)


def _done(n: Array, first: int, last: int) -> Array:
  """How far update n is from update `first` to update `last`, from 0 to 1."""
  return jnp.clip((n - first) / max(last - first, 1), 0.0, 1.0)


# Name -> learning rate after the warm-up, as a fraction of the peak. Arguments: the config; the update n, from 1; and
# the number of updates of the whole training.
SCHEDULES: dict[str, Callable[[OptimizerConfig, Array, int], Array]] = {
  "linear": lambda c, n, steps: 1 - (1 - c.final_fraction) * _done(n, c.warmup_steps, steps),
  "cosine": lambda c, n, steps: (
    c.final_fraction + (1 - c.final_fraction) * 0.5 * (1 + jnp.cos(math.pi * _done(n, c.warmup_steps, steps)))
  ),
  "rsqrt": lambda c, n, steps: jnp.sqrt(max(c.warmup_steps, 1) / n),
  # 1 / sqrt(max(n, warmup_steps)), as in T5 (Raffel et al. 2020, 3.1.2).
  "rsqrt_flat": lambda c, n, steps: jnp.sqrt(max(c.warmup_steps, 1) / n),
  "constant": lambda c, n, steps: jnp.ones_like(n),
  # Warm-up, stable, decay (Hu et al. 2024), with the decay of Hägele et al. 2024. Its stable part does not depend on
  # `steps`, so that a run can be made longer, and be cooled down from any of its checkpoints (`branch_from`).
  "wsd": lambda c, n, steps: (
    1 - (1 - c.final_fraction) * jnp.sqrt(_done(n, max(steps - c.decay_steps, c.warmup_steps), steps))
  ),
}


def schedule(config: OptimizerConfig, steps: int) -> Callable[[Array], Array]:
  """step (from 0) -> learning rate of that step's update, float32.

  Every schedule reaches its peak at update `warmup_steps`.

  Args:
    config: the schedule by name, and its numbers.
    steps: the number of updates of the whole training.

  Raises:
    UserError: an unknown schedule.
  """
  if config.schedule not in SCHEDULES:
    raise UserError(f"optimizer.schedule={config.schedule!r} is not one of {', '.join(SCHEDULES)}")
  warmup = config.warmup_steps

  def rate(step: Array) -> Array:
    n = jnp.asarray(step, jnp.float32) + 1
    before = jnp.ones_like(n) if config.schedule == "rsqrt_flat" else n / max(warmup, 1)
    return config.learning_rate * jnp.where(n < warmup, before, SCHEDULES[config.schedule](config, n, steps))

  return rate


def _map_axes(function: Callable[[Axes], Any], axes: Any) -> Any:
  """A tree of function(axes of a parameter)."""
  return jax.tree.map(function, axes, is_leaf=lambda a: isinstance(a, Axes))


def _decay(config: OptimizerConfig, axes: Any) -> optax.GradientTransformation:
  mask = _map_axes(lambda a: a.is_matrix, axes)
  return optax.add_decayed_weights(config.weight_decay, mask) if config.weight_decay else optax.identity()


def _adam(config: OptimizerConfig, axes: Any) -> optax.GradientTransformation:
  return optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)


def _adamw(config: OptimizerConfig, axes: Any) -> optax.GradientTransformation:
  return optax.chain(_adam(config, axes), _decay(config, axes))


def _sgd(config: OptimizerConfig, axes: Any) -> optax.GradientTransformation:
  momentum = optax.trace(config.beta1) if config.beta1 else optax.identity()
  # The decay comes last, outside the momentum. The identity keeps the path of the momentum in older checkpoints.
  return optax.chain(optax.identity(), momentum, _decay(config, axes))


def _adafactor(config: OptimizerConfig, axes: Any) -> optax.GradientTransformation:
  """Shazeer and Stern 2018, without momentum, with updates relative to each parameter's scale, as in T5."""
  return per_matrix(
    optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()),
    axes,
  )


def _lion(config: OptimizerConfig, axes: Any) -> optax.GradientTransformation:
  """Chen et al. 2023: the sign of a momentum. Rates are 3 to 10 times smaller than AdamW's, decays as much larger."""
  return optax.chain(optax.scale_by_lion(config.beta1, config.beta2), _decay(config, axes))


def _muon(config: OptimizerConfig, axes: Any) -> optax.GradientTransformation:
  """Jordan et al. 2024: an orthogonal matrix for the momentum of each matrix of the blocks. The rest is AdamW.

  Embeddings, the head, biases and norms are not matrices of the blocks. Each direction has the size that AdamW's would
  have, so that both take the same learning rate and weight decay (Liu et al. 2025, 2.2).
  """
  of_blocks = lambda a: a.is_matrix and a.layers > 0
  theirs = _map_axes(lambda a: a if of_blocks(a) else optax.MaskedNode(), axes)
  orthogonal = optax.stateless(lambda momentum, _: jax.tree.map(_orthogonal_direction, momentum, theirs))
  return optax.chain(
    optax.masked(optax.chain(optax.trace(config.momentum, nesterov=True), orthogonal), _map_axes(of_blocks, axes)),
    optax.masked(_adam(config, axes), _map_axes(lambda a: not of_blocks(a), axes)),
    _decay(config, axes),
  )


def _orthogonal_direction(x: Array, axes: Axes) -> Array:
  """The orthogonal matrix for each matrix of a stacked parameter, with a root mean square of about 0.2, as AdamW's.

  One layer after the other, so that of a sharded parameter never more than a layer is gathered. The experts of a layer
  stay together, as each device may have its own.
  """
  matrices = x.reshape(matrix_shape(x.shape, axes))
  return (0.2 * math.sqrt(max(matrices.shape[-2:])) * jax.lax.map(orthogonalized, matrices)).reshape(x.shape)


def orthogonalized(x: Array) -> Array:
  """The orthogonal matrix that is nearest to each matrix, nearly: five Newton-Schulz iterations (Jordan et al. 2024).

  The singular values of the result are about 0.7 to 1.2, except for those that were below 0.1 % of the norm.

  Args:
    x: matrices [..., I, O]; their size has no influence.
  """
  x = x / (jnp.sqrt(jnp.square(x).sum((-2, -1), keepdims=True)) + 1e-8)
  tall = x.shape[-2] > x.shape[-1]
  x = x.mT if tall else x
  for _ in range(5):
    gram = x @ x.mT
    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
  return x.mT if tall else x


OPTIMIZERS = {
  "adamw": _adamw,
  "adam": _adam,
  "adafactor": _adafactor,
  "lion": _lion,
  "muon": _muon,
  "sgd": _sgd,
}


def find_optimizer(name: str) -> Callable[[OptimizerConfig, Any], optax.GradientTransformation]:
  """The optimizer of that name. Raises UserError, which lists the names."""
  if name not in OPTIMIZERS:
    raise UserError(f"optimizer.name={name!r} is not one of {', '.join(OPTIMIZERS)}")
  return OPTIMIZERS[name]


def make_optimizer(config: OptimizerConfig, axes: Any) -> optax.GradientTransformation:
  """The chain that turns gradients into a direction, which the training step multiplies by minus the learning rate.

  Args:
    config: the optimizer by name, and its numbers.
    axes: a tree like the parameters', with the `Axes` of each.
  """
  clip = optax.clip_by_global_norm(config.grad_clip) if config.grad_clip else optax.identity()
  return optax.chain(clip, find_optimizer(config.name)(config, axes))


def matrix_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
  """The shape of a parameter as stacked matrices: [layers..., inputs, outputs]. Other parameters keep their shape."""
  if not axes.is_matrix:
    return shape
  middle = axes.layers + axes.inputs
  return (*shape[: axes.layers], math.prod(shape[axes.layers : middle]), math.prod(shape[middle:]))


def per_matrix(tx: optax.GradientTransformation, axes: Any) -> optax.GradientTransformation:
  """`tx` applied to the matrix of each layer separately, although layers are stacked and attention heads are an axis.

  The state is a tree like the parameters', in which tx's state, stacked over layers, takes the place of each leaf.
  """
  is_axes = lambda a: isinstance(a, Axes)
  flat_axes = jax.tree.leaves(axes, is_leaf=is_axes)
  structure: Any = jax.tree.structure(axes, is_leaf=is_axes)

  def matrices(tree: Any) -> list[Array]:
    leaves = structure.flatten_up_to(tree)
    return [x.reshape(matrix_shape(x.shape, a)) for x, a in zip(leaves, flat_axes, strict=True)]

  def over_layers(function: Callable, a: Axes) -> Callable:
    for _ in range(a.layers):
      function = jax.vmap(function)
    return function

  def init(params: Any) -> Any:
    return structure.unflatten(over_layers(tx.init, a)(x) for x, a in zip(matrices(params), flat_axes, strict=True))

  def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    results = [
      over_layers(tx.update, a)(g, s, p)
      for g, s, p, a in zip(matrices(grads), structure.flatten_up_to(state), matrices(params), flat_axes, strict=True)
    ]
    updates = structure.unflatten(
      u.reshape(g.shape) for (u, _), g in zip(results, structure.flatten_up_to(grads), strict=True)
    )
    return updates, structure.unflatten(s for _, s in results)

  return optax.GradientTransformation(init, update)


def state_shardings(placement: Placement, shapes: Any, opt_state: Any) -> Any:
  """The sharding of each array of the optimizer state: that of the state of its parameter, matched by path and shape.

  `shapes` are the parameters. A factored moment lacks one axis of its parameter's matrix and is sharded like the
  others. Arrays that match no parameter (counters, placeholders) are replicated.
  """
  placement = placement.of_state
  parameters = {tuple(path.split("/")): (leaf.shape, axes_of(path)) for path, leaf in flat(shapes).items()}

  def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    if _keys(path) in parameters:
      shape, axes = parameters[_keys(path)]
      if leaf.shape == shape:
        return placement.sharding(axes.names)
      parts = list(placement.spec(axes.names))
      shape = matrix_shape(shape, axes)
      if axes.is_matrix:
        middle = axes.layers + axes.inputs
        # Of axes that are merged into one, only the first is ever sharded.
        parts = [*parts[: axes.layers], parts[axes.layers], parts[middle]]
      for missing in (None, *range(len(shape))):
        if leaf.shape == tuple(n for i, n in enumerate(shape) if i != missing):
          return NamedSharding(placement.mesh, PartitionSpec(*(p for i, p in enumerate(parts) if i != missing)))
    return placement.replicated

  return jax.tree.map_with_path(place, opt_state)


def _keys(path: tuple) -> tuple:
  """The path of the parameter that an array of the optimizer state belongs to: the dictionary keys of its path."""
  return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
