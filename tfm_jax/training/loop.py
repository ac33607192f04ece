"""`fit`: from a configuration to a trained model in a run directory.

The same call starts a run, resumes it, or prints the result of a finished one. What is compiled is in `program.py`, the
step itself in `step.py`, what is trained on in `task.py`, and the checks before the first step in `start.py`.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from tfm_jax.cache import cache_dir
from tfm_jax.errors import UserError
from tfm_jax.runtime.agreement import SHORTLY, exchange, in_turn, together
from tfm_jax.runtime.chips import peak_flops
from tfm_jax.runtime.devices import prepare_backends, use_compilation_cache
from tfm_jax.runtime.interruption import Interrupted, Interruption
from tfm_jax.runtime.reporting.curves import where_curves_are, write_curves
from tfm_jax.runtime.reporting.logs import show_log_lines
from tfm_jax.runtime.reporting.meter import Meter, Profiler
from tfm_jax.runtime.reporting.progress import progress_at
from tfm_jax.runtime.reporting.tracking import Tracker, check_wandb
from tfm_jax.runtime.reporting.units import human_count
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.runtime.trees import flat, nested
from tfm_jax.training.best import Best
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.compiled import flops
from tfm_jax.training.compiled.memory import choose_microbatches
from tfm_jax.training.compiled.program import build_program
from tfm_jax.training.compiled.step import TrainState
from tfm_jax.training.compiled.steps import TrainSteps
from tfm_jax.training.config import Config, resolve, to_dict
from tfm_jax.training.evaluation import evaluate_stream
from tfm_jax.training.forecasts import forecast_seconds
from tfm_jax.training.load import base_of, initial_params, load_params, teacher_entry
from tfm_jax.training.pretraining import Pretraining
from tfm_jax.training.reference import reference_lines
from tfm_jax.training.start import (
  branch_point,
  check_batches,
  check_fingerprints,
  check_resumable,
  check_same_config,
  check_same_data,
  check_teacher_reads,
  culprit_of,
  held,
  parameter_lines,
  resolve_steps,
  rows_here,
  start_anew,
  start_entry,
  starts_to_repeat,
  stored_tokenizer,
  trained_line,
)
from tfm_jax.training.task import Generates, Task

log = logging.getLogger(__name__)

REDRAW_SECONDS = 60.0  # the page with the curves is written this often, beside evaluations


def fit(config: Config, workdir: epath.PathLike, task: type[Task] = Pretraining) -> dict[str, float]:
  """Trains for `config.train.steps` or `config.train.epochs` in `workdir`, from scratch or from its last checkpoint.

  With several processes, all of them call it with the same arguments. Up to the first step, an error in one process is
  raised in all of them; later it is raised where it occurs, and `agreement.give_up` ends the other processes.

  Args:
    config: the configuration. If `workdir` has a checkpoint, it must agree with the stored configuration in all keys
      but those in `training.config.MAY_CHANGE`.
    workdir: the run directory, local or gs://.
    task: supplies batches, loss and report.

  Returns:
    The metrics of the last evaluation, or of the best one by `eval.metric`: `loss` and what else applies. Empty without
    held-out data.

  Raises:
    UserError: a mistake in the configuration, the data or the directory.
    Interrupted: SIGTERM or SIGINT. From the first step on, the checkpoint of the last step is complete.
  """
  show_log_lines()
  run = RunDirectory(workdir)
  with together():
    config = resolve(task.configure(config))
    check_wandb(config.train.wandb)
    check_same_config(config)
  prepare_backends()  # before anything asks JAX which process this is, which starts them
  use_compilation_cache()
  with held(run):
    with together():
      start_anew(run)
    with together():  # all processes read the directory before any writes to it
      config = check_resumable(run, config)
      starts, tokenizer = run.starts(), stored_tokenizer(run, config)
    with in_turn(cache_dir()):
      prepared_task = task(config, tokenizer)
    with together():
      check_same_data(prepared_task)
      check_fingerprints(starts, prepared_task, run)
      check_teacher_reads(config, prepared_task)
      config = resolve_steps(config, prepared_task)
    with Checkpoints(run.checkpoints, config.checkpoint) as checkpoints:
      with together():
        start = _Start(config, run, prepared_task, checkpoints)
      return start.fit(starts)


class _Start:
  """One start of a run: compiles, restores or initialises the state, trains, and reports."""

  def __init__(self, config: Config, run: RunDirectory, task: Task, checkpoints: Checkpoints) -> None:
    self.config, self.run, self.task, self.checkpoints = config, run, task, checkpoints
    vocab_size = task.tokenizer.vocab_size if task.tokenizer else 0
    self.program = build_program(config, vocab_size, task.fields, loss=task.loss)
    self.model = self.program.model
    self.abstract = self.program.state  # computed here so that mistakes in optimizer.frozen are raised early
    self.rows = rows_here(self.model.placement.sharding(("batch",)), config.train.batch_size)
    shards, first = self.model.placement.batch_shards, config.train.ramp.first
    if first % shards:
      raise UserError(f"train.ramp_from={first} does not divide into the {shards} parts of replica x data")
    self.eval_step: Any = None  # set once the number of microbatches is known
    self.result: dict[str, float] = {}
    self.base: tuple[RunDirectory, int] | None = None  # the run and the step whose parameters this one starts from
    self.restored: tuple[RunDirectory, int] | None = None  # the run and the step whose whole state this start takes
    self.begin = 0  # the step that this start begins at
    self.teacher = teacher_entry(run, config) if config.distill.teacher else None
    self.best = Best(config.eval.metric, config.eval.patience)
    self.split = next(iter(task.eval_streams), "")  # the held-out data that decides
    if config.adapter.rank and not config.init_from:
      raise UserError(f"adapter.rank={config.adapter.rank} adapts a model that is trained already: set init_from")
    if config.init_layers and not config.init_from:
      raise UserError(f"init_layers={config.init_layers} chooses layers of another run: set init_from")
    if config.eval.metric and not self.split:
      raise UserError(f"eval.metric={config.eval.metric} chooses by held-out data, and nothing is held out")

  def fit(self, starts: list[dict[str, Any]]) -> dict[str, float]:
    """Compiles, then trains. `starts`: the entries of run.json of the earlier starts."""
    config = self.config
    latest = self.checkpoints.latest()
    if latest is None and config.branch_from:
      with together():
        self.restored = branch_point(config)
        starts = starts_to_repeat(self.restored[0], config)
    if latest is not None:
      self.restored = self.run, latest
      records = [r for r in self.run.read_metrics() if r["step"] <= latest and self._has_metric(r)]
      with together():
        self.best.replay(records, self.split, self.checkpoints.steps())
    self.begin = self.restored[1] if self.restored else 0
    log.info("\n%s", parameter_lines(self.model, self.abstract.params))
    if self.program.frozen:
      log.info("%s", trained_line(self.program))
    train_steps, microbatches = None, 0
    if latest is None or (latest < config.train.steps and not self.best.exhausted()):
      earlier = next((entry["microbatches"] for entry in reversed(starts) if entry["microbatches"]), 0)
      with together():
        rows = config.train.ramp.size(self.begin)
        check_batches(config, self.task, self.begin, rows, self._rows_of(rows), self.rows)
      with together():
        microbatches, train_step = self._compile(earlier)
      culprit = culprit_of(config, self.task)
      train_steps = TrainSteps(self.program, microbatches, train_step, self.task.lengths, culprit)
      kind = self.program.prediction_step if self.task.predicts else self.program.eval_step
      self.eval_step = kind(microbatches)
    with together(SHORTLY):
      self._run(latest, train_steps, microbatches)
    return self.result

  def _run(self, latest: int | None, train_steps: TrainSteps | None, microbatches: int) -> None:
    """Restores or initialises the state, trains, and reports; `train_steps` None: the run is finished already."""
    run = self.run
    state = self._state()
    if not run.exists:
      if run.writes and self.task.tokenizer is not None:
        self.task.tokenizer.save(run.tokenizer)
      run.write_config(to_dict(self.config))
    run.write_best(self.best.describe(self.split))
    source = RunDirectory(self.config.init_from) if self.config.init_from else run
    source = self.restored[0] if self.restored else source
    entry = start_entry(self.program, self.task, self.begin, microbatches) | {"origin": source.origin()}
    if source is not run and self.restored:
      entry["branch"] = {"path": str(source.path), "step": self.begin}
    if self.base is not None:
      entry["base"] = {"path": str(self.base[0].path), "step": self.base[1]}
    if self.teacher is not None:
      entry["teacher"] = self.teacher
    run.append_start(entry)
    if train_steps is None:
      log.info("this run is finished: %d steps are done", latest)
      records = [record for record in run.read_metrics() if record.pop("split") == self.split]
      self.result = {name: value for name, value in records[-1].items() if name != "step"} if records else {}
    else:
      with Tracker(run, self.config.train.steps, latest, self.config.train.wandb) as tracker:
        if not latest:
          self._evaluate(state, tracker, self.begin)
        state = self._train(state, train_steps, tracker)
      self.checkpoints.wait()
    write_curves(run, finished=True)
    params = self._best_params(state)
    for line in [*self.task.report(self.model, params, self.result, run), *reference_lines(run, self.config)]:
      log.info("%s", line)
    log.info("%s", where_curves_are(run))

  def _best_params(self, state: TrainState) -> Any:
    """The parameters of the best evaluation, whose metrics become the result; without `eval.metric`, the last ones."""
    if self.best.step is None:
      return self._shown(state)
    name = self.best.metric
    log.info("the best evaluation by %s is that of step %d: %.6g", name, self.best.step, self.best.metrics[name])
    self.result = self.best.metrics
    if self.best.step == int(state.step):
      return self._shown(state)
    return load_params(self.run, self.model, self.best.step)[1]

  def _shown(self, state: TrainState) -> Any:
    """The parameters of the model that evaluations of this state see."""
    params = self.program.shown(state)
    if not self.config.adapter.rank:
      return params
    return jax.jit(self.program.model_params, out_shardings=self.model.shardings())(params)

  def _compile(self, earlier: int) -> tuple[int, Any]:
    """(number of microbatches, compiled train step); `earlier`: the number that the last start used, 0 for none.

    That number is kept, so that a resumed run repeats the same sums, unless it no longer divides the rows of a shard.
    """
    config, program = self.config, self.program
    begin = time.monotonic()
    size = config.train.batch_size
    divides = earlier and size // program.placement.batch_shards % earlier == 0  # not if the mesh has changed
    requested = config.train.microbatches or (earlier if divides else 0)
    microbatches, step = choose_microbatches(program.placement, self.abstract, size, requested, program.compile)
    log.info("train step: compiled in %.1f s, microbatches %d", time.monotonic() - begin, microbatches)
    return microbatches, step

  def _rows_of(self, size: int) -> np.ndarray | None:
    """See `rows_here`, of a global batch of so many rows."""
    return (
      self.rows if size == self.config.train.batch_size else rows_here(self.model.placement.sharding(("batch",)), size)
    )

  def _state(self) -> TrainState:
    """The state of the checkpoint that this start goes on from, or one of step 0."""
    config, program, teacher, restored = self.config, self.program, self._teacher(), self.restored
    if restored is None and not config.init_from:
      return program.init(None, teacher)
    base = None
    if restored is None or config.adapter.rank:  # the checkpoints of adapters lack what is frozen
      self.base = base_of(restored[0] if restored else self.run, config)
      base = initial_params(
        self.base[0], self.model, config.seed, program.named_frozen, self.base[1], config.init_layers
      )
    if restored is None:
      return program.init(base, teacher)
    source, step = restored
    log.info("resuming from the checkpoint of step %d%s", step, "" if source is self.run else f" of {source.path}")
    with Checkpoints(source.checkpoints) as checkpoints:
      state = TrainState(**checkpoints.restore(step, program.stored(self.abstract)))._replace(teacher=teacher)
    return state if base is None else state._replace(params=nested(flat(base) | flat(state.params)))

  def _teacher(self) -> Any:
    """The parameters of the teacher; () if there is none."""
    if self.teacher is None or self.program.teacher is None:
      return ()
    model, step = self.program.teacher.model, self.teacher["step"]
    log.info("teacher: %s, step %d, %s parameters", self.teacher["path"], step, f"{model.parameter_count():,}")
    return load_params(RunDirectory(self.config.distill.teacher), model, step)[1]

  def _meter(self, tracker: Tracker, microbatches: int) -> Meter:
    """The meter of this run; logs what its FLOP counts mean, and the forecast of its steps if there is one."""
    config, placement = self.config, self.model.placement
    peak = peak_flops(placement.mesh.devices.flat[0])
    peak = peak and peak * placement.mesh.size
    full, causal = map(human_count, self.program.flops)
    line = f"a step takes {_spaced(full)}FLOP: {flops.CONVENTION}"
    line += "" if full == causal else f"; {_spaced(causal)}FLOP if only what causal attention sees is counted"
    line += f"; mfu = {_spaced(full)}FLOP / seconds / {_spaced(human_count(peak))}FLOP/s" if peak else ""
    log.info("%s", line)
    done = progress_at(*self.restored) if self.restored else (0.0, 0.0)
    uniform = not self.task.lengths and config.train.ramp.first == config.train.batch_size
    forecast = forecast_seconds(self.program, microbatches) if uniform else None
    return Meter(tracker, config.train.log_every, peak, done, forecast)

  def _train(self, state: TrainState, train_steps: TrainSteps, tracker: Tracker) -> TrainState:
    """The training loop. Each step is dispatched before the metrics of the step before it are fetched."""
    config = self.config
    meter = self._meter(tracker, train_steps.microbatches)
    profiler = Profiler(self.run.path / "profile", config.train.profile_at if self.run.writes else 0)
    step = int(state.step)
    stages = config.train.ramp.stages(step, config.train.steps)
    parts = (self.task.train_batches(first, stop, self._rows_of(size)) for first, stop, size in stages)
    batches = itertools.chain.from_iterable(parts)
    with Interruption() as interruption, contextlib.ExitStack() as stack:
      stack.callback(profiler.stop)
      meter.resume()
      draw_at = time.monotonic() + REDRAW_SECONDS
      while step < config.train.steps and not self.best.exhausted():
        begin = time.perf_counter()
        host_batch = next(batches)[1]
        waited = time.perf_counter() - begin
        form = train_steps.form(config.train.ramp.size(step), host_batch)
        if form not in train_steps:
          meter.finish()
          train_steps.compile(form)
          meter.resume()
        batch = train_steps.program(form).put(host_batch, self._rows_of(form.rows))
        profiler.before(step)
        self.program.settle(state)
        state, metrics = train_steps[form](state, batch)
        profiler.after(step, metrics["loss"])
        step += 1
        meter.add(step, metrics, waited, train_steps.work(form, host_batch if self.rows is None else None))
        if time.monotonic() > draw_at:
          write_curves(self.run, finished=False)
          draw_at = time.monotonic() + REDRAW_SECONDS
        signal, last = interruption.after_step(), step == config.train.steps
        evaluate = last or _due(step, config.eval.every) or self._generates(step)
        save = last or signal is not None or self.checkpoints.due(step)
        if evaluate or save:
          meter.finish()
          if evaluate and self._evaluate(state, tracker, step):
            save = True
          if self.best.exhausted():
            log.info("no better %s in %d evaluations: training ends", config.eval.metric, config.eval.patience)
            save = last = True
          if save:
            tracker.sync()  # every record up to this step is on disk before the checkpoint commits
            self.checkpoints.best = self.best.step
            self.checkpoints.save(step, self.program.stored(state))
          meter.resume()
        if signal is not None and not last:
          self.checkpoints.wait()
          exchange()  # the others wait here while process 0 writes the checksums
          write_curves(self.run, finished=True)
          raise Interrupted(signal, step)
    return state

  def _evaluate(self, state: TrainState, tracker: Tracker, step: int) -> bool:
    """Logs one record per stream of held-out batches, and writes the page with the curves.

    Returns:
      Whether this evaluation is the best so far by `eval.metric`.
    """
    improved, params = False, self.program.shown(state)
    for number, (split, stream) in enumerate(self.task.eval_streams.items()):
      metrics = evaluate_stream(self.program, self.eval_step, params, self.task, split, stream, self.rows)
      if not metrics:
        continue
      if number == 0:
        metrics |= self._generated_scores(state, step, metrics)
        self.result = metrics
      tracker.log(split, step, metrics)
      if number == 0 and (step == 0 or self._has_metric(metrics)):
        improved = self.best.add(step, metrics, saved=step > self.begin)
    tracker.sync()
    write_curves(self.run, finished=False)
    if improved:
      self.run.write_best(self.best.describe(self.split))
    return improved

  def _generates(self, step: int) -> bool:
    """Whether the evaluation of this step also scores generated texts."""
    last = step == self.config.train.steps
    return isinstance(self.task, Generates) and (last or _due(step, self.config.eval.generate_every))

  def _generated_scores(self, state: TrainState, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """The scores of generated texts, if they are due; and at step 0 if `eval.metric` may be one of them, so that a
    wrong name ends a run at once."""
    unknown = step == 0 and not self._has_metric(metrics)
    if not isinstance(self.task, Generates) or not (unknown or self._generates(step)):
      return {}
    return self.task.generated_scores(self.model, self._shown(state))

  def _has_metric(self, metrics: Mapping[str, Any]) -> bool:
    """Whether an evaluation has the metric that decides. Of a task that generates, some may lack it."""
    return not isinstance(self.task, Generates) or self.best.metric in ("", *metrics)


def _due(step: int, every: int) -> bool:
  """Whether something that happens every so many steps (0: never) happens at this one."""
  return every > 0 and step % every == 0


def _spaced(count: str) -> str:
  """A count with its unit's SI prefix, for FLOP: 5.5B -> 5.5 G."""
  return f"{count.rstrip('kMBT')} {count[-1].replace('B', 'G') if count[-1] in 'kMBT' else ''}"
