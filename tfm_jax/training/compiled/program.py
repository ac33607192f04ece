"""`Program`: everything static that a training step is compiled from, and the functions compiled from it.

`fit`, `compare`, forecasts and benchmarks all build one, so that what they compile and measure is what a run trains.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import NamedSharding

from tfm_jax.errors import UserError
from tfm_jax.models.heads.head import of_head
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import Model
from tfm_jax.objectives.objective import Fields
from tfm_jax.runtime.allocator import Heap, keep_freed_memory
from tfm_jax.runtime.trees import flat, join, nested, partition
from tfm_jax.sharding.pipeline import Schedule, schedule
from tfm_jax.sharding.placement import Placement
from tfm_jax.training.compiled.flops import Flops, count, sequence_lengths
from tfm_jax.training.compiled.lengths import at_length, check_context
from tfm_jax.training.compiled.memory import HOST_MEMORY, device_limit, peak_bytes
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.compiled.step import TrainState, make_eval_step, make_prediction_step, make_train_step
from tfm_jax.training.config import Config
from tfm_jax.training.loss import LossFunction, make_loss
from tfm_jax.training.optimization.depth import make_rates
from tfm_jax.training.optimization.lora import adapter_shapes, axes_of, fresh_adapters, merge, merged_loss
from tfm_jax.training.optimization.optimizer import make_optimizer, state_shardings
from tfm_jax.training.optimization.optimizer import schedule as learning_rate
from tfm_jax.training.teacher import Teacher, make_teacher, read_teacher

log = logging.getLogger(__name__)

# Freed memory is kept if this many times the peak of a step is free: for a while the heap may hold several blocks for
# the temporaries of one step. Up to 2.3 times the peak were seen.
_KEPT = 3


# Options of XLA by platform. XLA:GPU begins collectives early and ends them late only if it is told to.
OPTIONS: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_enable_latency_hiding_scheduler": True}}


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """A model, the form of its batches, its loss and its optimizer: the static part of a run, without any array.

  The arrays are in `TrainState`, which `init` makes. What is expensive to derive is a cached property.

  Attributes:
    config: the resolved configuration.
    model: the model on its mesh.
    fields: field name -> shape, dtype and logical axes of the arrays of a batch.
    loss: (params, batch, noise) -> the named sums of the loss and the metrics, see `training.loss`; of all parameters,
      adapters included.
    teacher: the model that teaches this one in training; None: there is none.
  """

  config: Config
  model: Model
  fields: Fields
  loss: LossFunction
  teacher: Teacher | None = None

  @property
  def placement(self) -> Placement:
    """The strategy on its mesh."""
    return self.model.placement

  @functools.cached_property
  def shapes(self) -> Any:
    """The parameters of the model and the adapters, as shapes."""
    model = flat(self.model.shapes())
    return nested(model | adapter_shapes(self.config.adapter, nested(model)))

  @property
  def trained(self) -> Any:
    """The parameters that are trained, as shapes."""
    return partition(self.shapes, self.frozen)[0]

  def model_params(self, params: Any) -> Any:
    """The parameters of the model, with the adapters added to its weights. To be traced."""
    return merge(self.config.adapter, params, self.placement)

  @property
  def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Field name -> shape, dtype and sharding of the array of the global batch."""
    rows = self.config.train.batch_size
    return {
      name: jax.ShapeDtypeStruct((rows, *field.shape), field.dtype, sharding=self.sharding(name))
      for name, field in self.fields.items()
    }

  def sharding(self, name: str) -> NamedSharding:
    """The sharding of the array of one field."""
    return self.placement.sharding(self.fields[name].axes)

  def schedule(self, microbatches: int) -> Schedule | None:
    """The pipeline in a step of so many microbatches; None if there is none."""
    return schedule(self.placement, self.config.train.batch_size // microbatches)

  @property
  def row_tokens(self) -> int:
    """Positions of one row, padding included; of an encoder-decoder those of both sides together."""
    return sum(sequence_lengths(self.config.model, self.fields))

  def at_length(self, length: int, declared: int) -> "Program":
    """The same program for shorter batches: `length` in place of the declared length of rows. State and steps agree."""
    shorter = dataclasses.replace(self, fields=at_length(self.fields, length, declared))
    shorter.__dict__.update(frozen=self.frozen, tx=self.tx, state=self.state)  # no need to derive them again
    return shorter

  def with_rows(self, rows: int) -> "Program":
    """The same program for batches of so many rows. State and steps agree."""
    train = dataclasses.replace(self.config.train, batch_size=rows)
    other = dataclasses.replace(self, config=dataclasses.replace(self.config, train=train))
    other.__dict__.update(frozen=self.frozen, tx=self.tx, state=self.state)
    return other

  @functools.cached_property
  def flops(self) -> Flops:
    """The floating-point operations of one step on the global batch, all devices together."""
    trained, constant = partition(self.shapes, self.frozen)
    teach = self.teacher.teach if self.teacher else lambda _, batch: batch
    loss = lambda params, others, _: self.loss(join(params, others[0]), teach(others[1], others[2]), None)
    return count(loss, trained, (constant, self.state.teacher, self.batch_shapes))

  @functools.cached_property
  def named_frozen(self) -> frozenset[str]:
    """Paths of the parameters that the configuration says not to train.

    Those that `optimizer.frozen` matches, and those that `optimizer.trained` does not. With adapters, an empty
    `optimizer.trained` stands for the head of a task: it learns from labels that the model has not seen.

    Raises:
      UserError: one of the two is set and matches nothing.
    """
    frozen, trained = self._matching("frozen"), self._matching("trained")
    model = flat(self.model.shapes()).keys()
    if self.config.adapter.rank and not self.config.optimizer.trained:
      of_task = not HEADS[self.config.model.head.name].learns_from_objective
      trained = {path for path in model if of_task and of_head(path)}
    elif not self.config.optimizer.trained:
      trained = set(model)
    return frozenset(frozen | (model - trained))

  def _matching(self, key: str) -> set[str]:
    """The paths that the regular expression `optimizer.KEY` matches; none if it is empty. Raises UserError."""
    paths, pattern = flat(self.shapes).keys(), getattr(self.config.optimizer, key)
    try:
      found = {path for path in paths if pattern and re.match(pattern, path)}
    except re.error as error:
      raise UserError(f"optimizer.{key}={pattern!r} is not a regular expression: {error}") from error
    if pattern and not found:
      raise UserError(f"optimizer.{key}={pattern!r} matches no parameter; they are {', '.join(sorted(paths))}")
    return found

  @functools.cached_property
  def frozen(self) -> frozenset[str]:
    """Paths of the parameters that are not trained: those in `named_frozen`, and those that the loss does not use.

    A head for which the batch has no labels is not used by the loss; weight decay alone would change it.

    Raises:
      UserError: `optimizer.frozen` is not valid, or nothing is left to train.
    """
    paths, named = flat(self.shapes).keys(), self.named_frozen
    objective = lambda params, batch: self.loss(params, batch, None).objective
    unused = _unused(objective, self.shapes, self.batch_shapes)
    if unused - named:
      log.info("not trained, as the loss does not depend on them: %s", ", ".join(sorted(unused - named)))
    if not paths - named - unused:
      key = "frozen" if self.config.optimizer.frozen else "trained"
      raise UserError(f"optimizer.{key}={getattr(self.config.optimizer, key)!r} leaves no parameter to train")
    return frozenset(named | unused)

  @functools.cached_property
  def tx(self) -> optax.GradientTransformation:
    """The Optax chain over the trained parameters. The learning rate is applied by the train step, not by the chain."""
    return make_optimizer(self.config.optimizer, nested({path: axes_of(path) for path in flat(self.trained)}))

  @functools.cached_property
  def state(self) -> TrainState:
    """The training state as `jax.ShapeDtypeStruct`s with shardings: what is compiled for, and restored into."""
    opt_state = jax.eval_shape(self.tx.init, self.trained)
    layout = state_shardings(self.placement, self.shapes, opt_state)
    if self.config.optimizer.offload:
      in_host = lambda leaf, sharding: sharding.with_memory_kind(HOST_MEMORY) if leaf.ndim else sharding
      layout = jax.tree.map(in_host, opt_state, layout)
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=self.placement.replicated)
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return TrainState(
      scalar,
      scalar,
      _placed(self.shapes, self.placement),
      jax.tree.map(place, opt_state, layout),
      _placed(self.trained, self.placement.of_state) if self.config.train.ema else (),
      self.teacher.model.abstract() if self.teacher else (),
    )

  @property
  def gradients(self) -> Any:
    """The sum of the gradients as `jax.ShapeDtypeStruct`s with shardings."""
    return _placed(self.trained, self.placement.of_gradients)

  def stored(self, state: TrainState) -> dict[str, Any]:
    """The trees of a state, or of its shapes, that checkpoints hold.

    The teacher is left out and, with adapters, frozen parameters.
    """
    trees = state._replace(teacher=())._asdict()
    return trees | {"params": partition(state.params, self.frozen)[0]} if self.config.adapter.rank else trees

  def shown(self, state: TrainState) -> Any:
    """The parameters that are evaluated: the trained ones are their average, if there is one."""
    return join(state.ema, partition(state.params, self.frozen)[1]) if self.config.train.ema else state.params

  def init(self, params: Any = None, teacher: Any = None) -> TrainState:
    """The state of step 0, each array created under its sharding.

    Args:
      params: the parameters to start from, which are donated; None: fresh ones from `config.seed`.
      teacher: the parameters of the teacher, if there is one; None: fresh ones, which teach nothing, to measure a step.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state._replace(teacher=()))
    key = jax.random.key(self.config.seed)
    fresh = lambda model: jax.jit(model.init, out_shardings=model.shardings())(key)
    params = fresh(self.model) if params is None else params
    if teacher is None:
      teacher = fresh(self.teacher.model) if self.teacher else ()

    def at_step_zero(params: Any) -> TrainState:
      zero = jnp.zeros((), jnp.int32)
      params = nested(flat(params) | fresh_adapters(self.config.adapter, self.model.shapes(), key))
      trained = partition(params, self.frozen)[0]
      average = jax.tree.map(jnp.copy, trained) if self.config.train.ema else ()
      return TrainState(zero, zero, params, self.tx.init(trained), average)

    state = jax.jit(at_step_zero, out_shardings=shardings, donate_argnums=0)(params)
    return state._replace(teacher=teacher)

  def train_step(self, microbatches: int) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]:
    """The pure function (state, batch) -> (state, metrics): see `make_train_step`."""
    train, optimizer = self.config.train, self.config.optimizer
    rate = learning_rate(optimizer, train.steps)
    rates = make_rates(self.shapes, self.trained, optimizer.layer_decay, train.unfreeze_every)
    step = make_train_step(
      self.loss,
      self.tx,
      rate,
      self.placement,
      self.fields,
      microbatches,
      self.config.seed,
      self.frozen,
      rates,
      train.ema,
      self.teacher.teach if self.teacher else None,
      train.layer_norms,
    )
    if not optimizer.offload:
      return step
    on_device = jax.tree.map(lambda leaf: leaf.sharding.with_memory_kind("device"), self.state.opt_state)
    return lambda state, batch: step(state._replace(opt_state=jax.device_put(state.opt_state, on_device)), batch)

  def compile(self, microbatches: int, options: dict[str, Any] | None = None) -> Any:
    """The train step, compiled ahead of time. The state is donated and keeps its shardings; metrics are replicated.

    Args:
      microbatches: number of parts of the batch.
      options: of the compiler, beside `OPTIONS`.
    """
    out = (jax.tree.map(lambda leaf: leaf.sharding, self.state), self.placement.replicated)
    if pipeline := self.schedule(microbatches):
      form = "pipeline: %d stages, %d microbatches, rounds: %d, idle %.0f%% of the time"
      log.info(form, *pipeline, 100 * pipeline.bubble)
    step = jax.jit(self.train_step(microbatches), donate_argnums=0, out_shardings=out)
    chosen = OPTIONS.get(self.placement.platform, {}) | (options or {})
    compiled = step.lower(self.state, self.batch_shapes).compile(compiler_options=chosen or None)
    if self.placement.platform == "cpu":
      device = self.placement.mesh.local_devices[0]
      if _KEPT * peak_bytes(compiled, "cpu") < device_limit(device):
        keep_freed_memory()
    return compiled

  @functools.cached_property
  def _heap(self) -> Heap:
    return Heap()

  def settle(self, results: Any) -> None:
    """On CPUs, waits for the step with these results: steps in flight gain nothing there, and each needs memory."""
    if self.placement.platform == "cpu":
      jax.block_until_ready(results)
      self._heap.settle()

  def eval_step(self, microbatches: int) -> Callable[[Any, Any], Any]:
    """The jitted function (params, batch) -> `LossTerms`: sums over the global batch, without dropout, replicated."""
    step = make_eval_step(self.loss, self.placement, self.fields, microbatches)
    return jax.jit(step, out_shardings=self.placement.replicated)

  def prediction_step(self, microbatches: int) -> Callable[[Any, Any], Any]:
    """The jitted function (params, batch) -> (`LossTerms`, `Model.predict` of all rows), replicated."""
    predict = lambda params, batch: self.model.predict(self.model_params(params), batch)
    step = make_prediction_step(self.loss, predict, self.placement, self.fields, microbatches)
    return jax.jit(step, out_shardings=self.placement.replicated)

  def put(self, batch: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> dict[str, Array]:
    """Puts a batch on the devices.

    Args:
      batch: field name -> numpy array of the rows that this process has.
      rows: the indices of these rows in the global batch, ascending; None: the process has all of them.
    """
    if rows is None:
      return jax.device_put(dict(batch), {name: self.sharding(name) for name in batch})
    size = self.config.train.batch_size

    def place(name: str, x: np.ndarray) -> Array:
      """The global array of one field. The rows of each local device are among those of this process, in order."""
      part = lambda index: x[(np.searchsorted(rows, np.arange(size)[index[0]]), *index[1:])]
      return jax.make_array_from_callback((size, *x.shape[1:]), self.sharding(name), part)

    return {name: place(name, x) for name, x in batch.items()}


def build_program(
  config: Config,
  vocab_size: int,
  fields: Fields,
  devices: Sequence[jax.Device] | None = None,
  loss: Callable[[Model], LossFunction] | None = None,
) -> Program:
  """The program of a resolved configuration.

  Args:
    config: the resolved configuration.
    vocab_size: number of ids of the tokenizer; 0 if there is none.
    fields: field name -> shape, dtype and logical axes of the arrays of a batch.
    devices: the devices of the mesh; None: all devices of all processes.
    loss: model -> its loss; None: the loss of its head.

  Raises:
    UserError: see `build_model`; or the batch does not divide by the number of its shards, or sequences by the number
      of parts into which they are cut, or `distill.teacher` cannot teach this model.
  """
  described = read_teacher(config) if config.distill.teacher else None
  model = build_model(config, vocab_size, devices, described)
  shards = model.placement.batch_shards
  if config.train.batch_size % shards:
    raise UserError(
      f"train.batch_size={config.train.batch_size} does not divide into the {shards} parts of "
      f"{' x '.join(model.placement.batch_axes)}: choose a multiple of {shards}"
    )
  check_context(config, model, fields)
  teacher = make_teacher(*described, config.distill, model, fields) if described else None
  of_model = loss(model) if loss else make_loss(model, config.loss)
  return Program(config, model, fields, merged_loss(config.adapter, of_model, model.placement), teacher)


def _placed(shapes: Any, placement: Placement) -> Any:
  """Shapes of parameters with the shardings that a placement has for them."""
  place = lambda leaf, axes: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement.sharding(axes.names))
  return nested({path: place(leaf, axes_of(path)) for path, leaf in flat(shapes).items()})


def _unused(function: Callable[[Any, Any], Any], params: Any, batch: Any) -> set[str]:
  """Paths of the parameters on which no result of function(params, batch) depends, found in its jaxpr."""
  jaxpr = jax.make_jaxpr(function)(params, batch).jaxpr
  needed = {id(variable) for variable in jaxpr.outvars}
  for equation in reversed(jaxpr.eqns):
    if any(id(variable) in needed for variable in equation.outvars):
      needed.update(id(variable) for variable in equation.invars)
  paths = list(flat(params))
  return {path for path, variable in zip(paths, jaxpr.invars, strict=False) if id(variable) not in needed}
