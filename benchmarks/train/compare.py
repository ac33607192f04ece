"""One case: the inputs, the check of the losses, the choice of dtypes, and the blocks in turns."""

import contextlib
import dataclasses
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import flags
from benchmarks.train.cases import Case
from benchmarks.train.load import LIMIT, others_share, snapshot, wait_for_quiet
from benchmarks.train.results import TOLERANCE, agreement, block_json, ratio, summary
from benchmarks.train.rounds import Block, run_rounds
from benchmarks.train.sides import SIDES, peer_python
from benchmarks.train.worker import SHARED_DEVICE, Worker

BLOCK_SECONDS = 10.0
TRIAL_STEPS = 4  # of a dtype that the check does not run


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the command line asks for.

  Attributes:
    blocks: kept blocks of each side.
    steps: steps of a block; 0: as many as take `BLOCK_SECONDS`.
    check: steps whose losses must agree.
    wait: most seconds to wait for a quiet machine before a block is run again.
    dtype: of all timed steps; empty: the faster one of each side.
    accelerator: whether JAX runs on one.
    overrides: keys of every config.
  """

  blocks: int
  steps: int
  check: int
  wait: int
  dtype: str
  accelerator: bool
  overrides: Mapping[str, str]


def compare_case(name: str, case: Case, names: Sequence[str], settings: Settings, out: Path) -> dict[str, Any]:
  """Runs a case on all sides that have its family, and returns its part of results.json.

  Raises:
    UserError: a mistake in the config, or a worker that fails; its log is in `out`/logs.
  """
  overrides = {**case.overrides, **settings.overrides}
  with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}-") as folder, contextlib.ExitStack() as stack:
    with Worker("benchmarks.train.inputs", out / "logs" / f"{name}-inputs.log") as inputs:
      data = inputs.ask("write_batches", config=case.config, overrides=overrides, count=settings.check, folder=folder)
      data |= inputs.ask("write_model", config=case.config, overrides=overrides, steps=settings.check, folder=folder)
    positions = data["rows"] * data["row_tokens"]
    result: dict[str, Any] = {
      "case": name,
      "about": case.about + "".join(f", {key}={value}" for key, value in settings.overrides.items()),
      "config": case.config,
      "overrides": overrides,
      "tokens_per_step": positions,
      **data,
      "tolerance": TOLERANCE,
      "agreement": {},
      "sides": {},
      "blocks": [],
    }
    _tell(name, f"{data['parameters']:,} parameters, {positions:,} positions per step, text of {data['source']}")
    runners: dict[str, _Runner] = {}
    rounded: list[float] = []
    for side in names:
      runner = stack.enter_context(contextlib.closing(_Runner(name, case, side, overrides, Path(folder), out)))
      losses = runner.check(settings.check)
      if side == "ours":
        reference = losses
      compared = agreement(reference, losses)
      if not compared["agrees"]:
        rounded = rounded or _with_other_rounding(name, case, overrides, settings.check, Path(folder), out)
        compared = agreement(reference, losses, rounded)
        _tell(name, f"by what other rounding does to ours, losses may differ by up to {max(compared['limits']):.2g}")
      result["agreement"][side] = compared
      result["sides"][side] = {"about": SIDES[side].about}
      if not compared["agrees"]:
        _tell(name, f"{side}: losses differ from ours by up to {compared['largest']:.2g}, relative: not timed")
        continue
      _tell(name, f"{side}: {settings.check} losses within {compared['largest']:.1e} of ours, relative")
      runner.choose(_dtypes(side, settings))
      _tell(name, f"{side}: {runner.dtype}; {_trials(runner.trials)}, compiled in {runner.compile_seconds:.1f} s")
      runners[side] = runner
    steps = {s: settings.steps or max(3, round(BLOCK_SECONDS / r.trials[r.dtype])) for s, r in runners.items()}

    def measure(side: str) -> tuple[list[float], float | None]:
      worker = runners[side].worker
      before = snapshot(worker.pid)
      seconds = worker.ask("run", steps=steps[side])["seconds"]
      return seconds, others_share(before, snapshot(worker.pid))

    useful = data["useful_tokens_per_step"]
    tell = lambda block: _tell(name, _progress(block, settings.blocks, useful))
    blocks = run_rounds(list(runners), settings.blocks, measure, tell, lambda: wait_for_quiet(settings.wait))
    result["blocks"] = [block_json(block) for block in blocks]
    for side, runner in runners.items():
      own = result["sides"][side]
      own |= {"dtype": runner.dtype, "trials": runner.trials, "steps_per_block": steps[side], **runner.facts()}
      own |= summary(blocks, side, useful)
      own["ours_is_faster_by"] = ratio(blocks, side) if side != "ours" and "ours" in runners else None
  return result


def _with_other_rounding(
  name: str, case: Case, overrides: dict[str, Any], steps: int, folder: Path, out: Path
) -> list[float]:
  """Our losses in float32 without the compiler's options that we set, which change the order of sums alone."""
  log = out / "logs" / f"{name}-rounding.log"
  with Worker("benchmarks.train.ours", log, environment={**SHARED_DEVICE, "TFM_TUNE_XLA": "0"}) as worker:
    batches = str(folder / "batches.npz")
    worker.ask("prepare", config=case.config, overrides=overrides, dtype="float32", batches=batches)
    losses: list[float] = worker.ask("run", steps=steps)["losses"]
  return losses


class _Runner:
  """A side in one case: its workers, of which the one with the chosen dtype stays."""

  def __init__(self, name: str, case: Case, side: str, overrides: dict[str, Any], folder: Path, out: Path) -> None:
    self.trials: dict[str, float] = {}  # dtype -> seconds per step
    self.dtype, self.compile_seconds = "", 0.0
    self._name, self._case, self._overrides, self._folder, self._out = name, case, overrides, folder, out
    self._label, self._side = side, SIDES[side]
    self._workers: dict[str, Worker] = {}
    self._prepared: dict[str, dict[str, Any]] = {}

  @property
  def worker(self) -> Worker:
    """The worker of the chosen dtype."""
    return self._workers[self.dtype]

  def check(self, steps: int) -> list[float]:
    """The losses of the first steps in float32."""
    self._start("float32")
    done = self._workers["float32"].ask("run", steps=steps)
    self.trials["float32"] = statistics.median(done["seconds"][-5:])
    losses: list[float] = done["losses"]
    return losses

  def choose(self, dtypes: Sequence[str]) -> None:
    """Tries the dtypes and keeps the fastest; the worker of the check is closed unless it is the one."""
    for dtype in dtypes:
      if dtype not in self._workers:
        self._start(dtype)
        self.trials[dtype] = statistics.median(self._workers[dtype].ask("run", steps=TRIAL_STEPS)["seconds"])
    self.dtype = min(dtypes, key=self.trials.__getitem__)
    self.trials = {dtype: self.trials[dtype] for dtype in dtypes}
    self.compile_seconds = self._prepared[self.dtype]["compile_seconds"]
    for dtype in [d for d in self._workers if d != self.dtype]:
      self._workers.pop(dtype).close()

  def facts(self) -> dict[str, Any]:
    """What the worker says of itself, and its peak memory."""
    prepared = self._prepared[self.dtype]
    facts = {key: x for key, x in prepared.items() if key not in ("seconds", "rows", "row_tokens")}
    return facts | {
      "prepare_seconds": prepared["seconds"],
      "memory": self.worker.ask("memory"),
      "environment": flags(),
    }

  def close(self) -> None:
    """Ends all workers."""
    for worker in self._workers.values():
      worker.close()
    shutil.rmtree(self._cache, ignore_errors=True)

  @property
  def _cache(self) -> Path:
    return self._folder / f"inductor-{self._label}"

  def _start(self, dtype: str) -> None:
    log = self._out / "logs" / f"{self._name}-{self._label}-{dtype}.log"
    if self._side.is_peer:
      # A cache of its own: compile times are those of a first run.
      worker = Worker(self._side.module, log, peer_python(), {"TORCHINDUCTOR_CACHE_DIR": str(self._cache)})
      arguments = {"folder": str(self._folder), "dtype": dtype, **self._side.options}
    else:
      worker = Worker(self._side.module, log, environment=SHARED_DEVICE)
      batches = str(self._folder / "batches.npz")
      arguments = {"config": self._case.config, "overrides": self._overrides, "dtype": dtype, "batches": batches}
    self._workers[dtype] = worker
    self._prepared[dtype] = worker.ask("prepare", **arguments)


def _dtypes(side: str, settings: Settings) -> list[str]:
  """The dtypes to try."""
  if settings.dtype:
    return [settings.dtype]
  own = SIDES[side].dtypes
  return list(dict.fromkeys([*own, "bfloat16"])) if settings.accelerator else list(own)


def _trials(trials: Mapping[str, float]) -> str:
  return ", ".join(f"{dtype} {seconds * 1e3:.4g} ms" for dtype, seconds in trials.items())


def _progress(block: Block, rounds: int, tokens: float) -> str:
  """A block in one line."""
  line = f"round {block.round + 1}/{rounds}  {block.side}: {block.step_seconds * 1e3:.4g} ms per step, "
  line += f"{tokens / block.step_seconds:,.0f} useful tokens/s"
  if block.others is not None:
    line += f"; others used {block.others:.1%} of the cores"
  if not block.clean:
    line += f", more than {LIMIT:.0%}: " + ("kept, and marked" if block.kept else "discarded, again")
  return line


def _tell(case: str, line: str) -> None:
  print(f"{case}: {line}", flush=True)
