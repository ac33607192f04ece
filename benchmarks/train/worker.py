"""The parent's side of a worker: a process that stays alive and answers JSON lines."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.train.sides import ROOT
from tfm_jax.errors import UserError

# JAX takes three quarters of an accelerator's memory when it starts; here several processes share it.
SHARED_DEVICE = {"XLA_PYTHON_CLIENT_MEM_FRACTION": os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.3")}
QUIT_SECONDS = 20.0  # a worker that does not end by itself is killed after this time


class Worker:
  """A running worker, as a context manager.

  Args:
    module: the module that serves, such as benchmarks.train.ours.
    log: a file for what the worker writes to stderr.
    python: its interpreter; empty: this one.
    environment: variables on top of this process's own.
  """

  def __init__(self, module: str, log: Path, python: str = "", environment: Mapping[str, str] | None = None) -> None:
    self.log = log
    self._command = [python or sys.executable, "-m", module]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stderr:
      self._process = subprocess.Popen(
        self._command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
      )

  @property
  def pid(self) -> int:
    """Its process id."""
    return self._process.pid

  def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
    """Sends a request and waits for the answer. Raises UserError if the worker reports an error or ends."""
    assert self._process.stdin and self._process.stdout
    try:
      self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ""
    if not line:
      status = self._process.wait()
      raise UserError(f"{shlex.join(self._command)} ended with status {status}: {self._last_line()} ({self.log})")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
      raise UserError(f"{shlex.join(self._command)}: {answer['error']} ({self.log})")
    return answer

  def _last_line(self) -> str:
    lines = self.log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"

  def __enter__(self) -> "Worker":
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
    self.close()

  def close(self) -> None:
    """Ends the worker."""
    assert self._process.stdin and self._process.stdout
    if self._process.poll() is None:
      try:
        self._process.stdin.write('{"do": "quit"}\n')
        self._process.stdin.close()
        self._process.wait(QUIT_SECONDS)
      except (BrokenPipeError, subprocess.TimeoutExpired):
        self._process.kill()
        self._process.wait()
    self._process.stdout.close()
