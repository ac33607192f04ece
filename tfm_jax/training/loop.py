"""`fit`: from a configuration to a trained model in a run directory, whether it starts, resumes or is finished."""

import contextlib
import logging
import math
import time
from typing import Any

import jax
from etils import epath

from tfm_jax.cache import cache_dir
from tfm_jax.training import flops
from tfm_jax.training.agreement import SHORTLY, exchange, in_turn, together
from tfm_jax.training.checkpoint import Checkpoints
from tfm_jax.training.chips import peak_flops
from tfm_jax.training.config import Config, resolve, to_dict
from tfm_jax.training.interruption import Interrupted, Interruption
from tfm_jax.training.load import initial_params
from tfm_jax.training.memory import choose_microbatches
from tfm_jax.training.meter import Meter, Profiler
from tfm_jax.training.pretraining import Pretraining
from tfm_jax.training.program import build_program
from tfm_jax.training.run_directory import RunDirectory
from tfm_jax.training.start import (
  check_fingerprints,
  check_resumable,
  check_same_config,
  check_same_data,
  held,
  parameter_lines,
  rows_here,
  start_anew,
  start_entry,
  stored_tokenizer,
  use_compilation_cache,
)
from tfm_jax.training.step import TrainState
from tfm_jax.training.task import EvalStream, Task
from tfm_jax.training.tracking import Tracker, human_count

log = logging.getLogger(__name__)


def fit(config: Config, workdir: epath.PathLike, task: type[Task] = Pretraining) -> dict[str, float]:
  """Trains to `config.train.steps` in `workdir`; goes on where an earlier start ended.

  Several processes call it alike. A mistake that one of them meets is raised in all of them, where they can still
  agree on it; one that comes while devices work together is raised where it is met (`agreement.give_up` ends the rest).

  Args:
    config: the configuration; it must agree with that of the run in `workdir`, if that has a checkpoint (`MAY_CHANGE`
      aside).
    workdir: the run directory, local or gs://.
    task: what to train on.

  Returns:
    The last row of evaluation: loss and what else applies. Empty without held-out data.

  Raises:
    UserError: a mistake in the configuration, the data or the directory.
    Interrupted: SIGTERM or SIGINT; a checkpoint of the last step is complete.
  """
  run = RunDirectory(workdir)
  with together():
    config = resolve(task.configure(config))
    check_same_config(config)
  use_compilation_cache()
  with held(run):
    with together():
      start_anew(run)
    with together():  # nobody writes before all have looked
      check_resumable(run, config)
      starts, tokenizer = run.starts(), stored_tokenizer(run, config)
    with in_turn(cache_dir()):
      work = task(config, tokenizer)
    with together():
      check_same_data(work)
      check_fingerprints(starts, work, run)
    with Checkpoints(run.checkpoints, config.checkpoint) as checkpoints:
      with together():
        start = _Start(config, run, work, checkpoints)
      return start.fit(starts)


class _Start:
  """One start of a run: what is fixed for its whole length, and the loop."""

  def __init__(self, config: Config, run: RunDirectory, task: Task, checkpoints: Checkpoints) -> None:
    self.config, self.run, self.task, self.checkpoints = config, run, task, checkpoints
    vocab_size = task.tokenizer.vocab_size if task.tokenizer else 0
    self.program = build_program(config, vocab_size, task.fields, loss=task.loss)
    self.model = self.program.model
    self.abstract = self.program.state  # now, as mistakes in what is frozen come up
    self.rows = rows_here(self.model.placement.sharding(("batch",)), config.train.batch_size)
    self.eval_step: Any = None  # made with the number of microbatches, where there is something to train
    self.result: dict[str, float] = {}

  def fit(self, starts: list[dict[str, Any]]) -> dict[str, float]:
    """Compiles, and runs what was compiled; `starts`: the earlier ones."""
    config = self.config
    latest = self.checkpoints.latest()
    log.info("\n%s", parameter_lines(self.model, self.abstract.params))
    train_step, microbatches = None, 0
    if latest is None or latest < config.train.steps:
      chosen = next((entry["microbatches"] for entry in reversed(starts) if entry["microbatches"]), 0)
      with together():
        microbatches, train_step = self._compile(chosen)
      self.eval_step = self.program.eval_step(microbatches)
    with together(SHORTLY):
      self._run(latest, train_step, microbatches)
    return self.result

  def _run(self, latest: int | None, train_step: Any, microbatches: int) -> None:
    """Restores or initialises, trains, reports."""
    run = self.run
    state = self._state(latest)
    if not run.exists:
      if run.writes and self.task.tokenizer is not None:
        self.task.tokenizer.save(run.tokenizer)
      run.write_config(to_dict(self.config))
    source = run if latest is not None or not self.config.init_from else RunDirectory(self.config.init_from)
    run.append_start(start_entry(self.model, self.task, latest or 0, microbatches) | {"origin": source.origin()})
    if train_step is None:
      log.info("this run is finished: %d steps are done", latest)
      rows = [row for row in run.read_metrics() if row.pop("split") == "eval"]
      self.result = {name: value for name, value in rows[-1].items() if name != "step"} if rows else {}
    else:
      with Tracker(run, self.config.train.steps, latest) as tracker:
        state = self._train(state, train_step, tracker)
      self.checkpoints.wait()
    log.info("curves: %s, or tensorboard --logdir %s", run.path / "metrics.jsonl", run.tensorboard)
    for line in self.task.report(self.model, state.params, self.result, run):
      log.info("%s", line)

  def _compile(self, chosen: int) -> tuple[int, Any]:
    """(microbatches, compiled train step); a number that an earlier start chose is kept, where it still divides."""
    config, program = self.config, self.program
    begin = time.monotonic()
    size = config.train.batch_size
    divides = chosen and size // program.placement.batch_shards % chosen == 0  # else the mesh has changed since
    asked = config.train.microbatches or (chosen if divides else 0)
    microbatches, step = choose_microbatches(program.placement, self.abstract, size, asked, program.compile)
    log.info("train step: compiled in %.1f s, microbatches %d", time.monotonic() - begin, microbatches)
    return microbatches, step

  def _state(self, latest: int | None) -> TrainState:
    """The state of the last checkpoint, or a fresh one."""
    config = self.config
    if latest is not None:
      log.info("going on from the checkpoint of step %d", latest)
      return TrainState(**self.checkpoints.restore(latest, self.abstract._asdict()))
    params = None
    if config.init_from:
      source = RunDirectory(config.init_from)
      params = initial_params(source, self.model, config.seed, self.program.named_frozen)
    return self.program.init(params)

  def _meter(self, tracker: Tracker) -> Meter:
    """The meter of this run; says once what its figures mean."""
    config, placement = self.config, self.model.placement
    work = self.program.flops
    peak = peak_flops(placement.mesh.devices.flat[0])
    step, seen = map(human_count, work)
    total = peak and peak * placement.mesh.size
    log.info(
      "a step takes %sFLOP: %s%s%s", step, flops.CONVENTION,
      "" if step == seen else f"; {seen}FLOP if only what causal attention sees is counted",
      f"; mfu = {step}FLOP / seconds / {human_count(total)}FLOP/s" if total else "; no mfu, as the peak is not known",
    )  # fmt: skip
    return Meter(
      tracker, config.train.log_every, config.train.batch_size * self.program.row_tokens, work.full, total,
    )  # fmt: skip

  def _train(self, state: TrainState, train_step: Any, tracker: Tracker) -> TrainState:
    """The loop: each step is handed to the devices before the metrics of the one before it are fetched."""
    config = self.config
    meter = self._meter(tracker)
    profiler = Profiler(self.run.path / "profile", config.train.profile_at if self.run.writes else 0)
    step = int(state.step)
    if step == 0:
      self._evaluate(state, tracker, 0)
    batches = self.task.train_batches(step, config.train.steps, self.rows)
    with Interruption() as interruption, contextlib.ExitStack() as stack:
      stack.callback(profiler.stop)
      meter.resume()
      while step < config.train.steps:
        asked = time.perf_counter()
        rows = next(batches)[1]
        waited = time.perf_counter() - asked
        batch = self.program.put(rows, self.rows)
        profiler.before(step)
        state, metrics = train_step(state, batch)
        profiler.after(step, metrics["loss"])
        step += 1
        meter.add(step, metrics, waited)
        stopped, last = interruption.after_step(), step == config.train.steps
        evaluate = last or (config.eval.every > 0 and step % config.eval.every == 0)
        save = last or stopped is not None or self.checkpoints.due(step)
        if evaluate or save:
          meter.finish()
          if evaluate:
            self._evaluate(state, tracker, step)
          if save:
            tracker.sync()  # every row up to this step is on disk before the checkpoint commits
            self.checkpoints.save(step, state._asdict())
          meter.resume()
        if stopped is not None and not last:
          self.checkpoints.wait()
          exchange()  # process 0 has the checksums to write, and the others would not wait for ever at the end
          raise Interrupted(stopped, step)
    return state

  def _evaluate(self, state: TrainState, tracker: Tracker, step: int) -> None:
    """One row of metrics per stream of held-out batches: means over all that it holds."""
    for number, (split, stream) in enumerate(self.task.eval_streams.items()):
      row = self._evaluate_stream(state, split, stream)
      if not row:
        continue
      tracker.log(split, step, row)
      if number == 0:
        self.result = row

  def _evaluate_stream(self, state: TrainState, split: str, stream: EvalStream) -> dict[str, float]:
    """Empty where nothing is held out, or nothing of it has weight."""
    sums = [self.eval_step(state.params, self.program.put(batch, self.rows)) for batch in stream(self.rows)]
    if not sums:
      return {}
    totals = jax.tree.map(lambda *parts: math.fsum(map(float, parts)), *jax.device_get(sums))
    if not all(weight > 0 for _, weight in totals.loss.values()):
      log.warning("%s: nothing to predict in its %d batches: no evaluation", split, len(sums))
      return {}
    row = totals.means()
    del row["objective"]  # evaluation is without extras: it is the loss
    return row | self.task.eval_metrics(split, totals)
