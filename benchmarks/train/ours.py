"""The worker of this package: the training step that the loop runs, on batches from a file or random ones."""

import time
from typing import Any

from benchmarks.train.serve import Clock, peak_bytes, reset_peak, serve


class Ours:
  """A program, its state, and batches that are used in turn."""

  def prepare(
    self, config: str, overrides: dict[str, Any], dtype: str, batches: str = "", first_step: bool = True
  ) -> dict[str, Any]:
    """Builds and compiles the step as `fit` does, and makes the state of step 0.

    Args:
      config: the experiment file.
      overrides: keys that differ from it.
      dtype: the compute dtype; empty: the config's.
      batches: the file that `inputs.write_batches` wrote; empty: one random batch.
      first_step: whether a step is taken, as a warm-up, before the state is made.
    """
    import jax
    import numpy as np

    from tfm_jax.compare.program import build_program, random_batch
    from tfm_jax.training.compiled.memory import choose_microbatches, peak_bytes
    from tfm_jax.training.config import load

    begin = time.perf_counter()
    self.program = program = build_program(load(config, overrides | ({"model.dtype": dtype} if dtype else {})))
    rows = program.config.train.batch_size
    if batches:
      with np.load(batches) as file:
        arrays = {name: file[name] for name in program.fields}
      self.batches = [{name: x[i] for name, x in arrays.items()} for i in range(len(arrays["rows"]))]
    else:
      self.batches = [random_batch(program.fields, rows)]
    compile_begin = time.perf_counter()
    microbatches, self.train_step = choose_microbatches(
      program.placement, program.state, rows, program.config.train.microbatches, program.compile
    )
    compile_seconds = time.perf_counter() - compile_begin
    if first_step:
      jax.block_until_ready(self.train_step(program.init(), program.put(self.batches[0])))
    self.state, self.step = program.init(), 0
    jax.block_until_ready(self.state)
    reset_peak()
    usage = self.train_step.memory_analysis()
    return {
      "seconds": time.perf_counter() - begin,
      "compile_seconds": compile_seconds,
      "parameters": program.model.parameter_count(),
      "flops": program.flops.full,
      "rows": rows,
      "row_tokens": program.row_tokens,
      "compiler_peak_bytes": peak_bytes(self.train_step, program.placement.platform),
      "compiler_temporary_bytes": usage.temp_size_in_bytes if usage is not None else 0,
      "flags": {
        "dtype": program.config.model.dtype,
        "scan": program.config.model.scan,
        "remat": program.config.model.remat,
        "attention": program.config.model.attention,
        "microbatches": microbatches,
        "compilation_cache": str(jax.config.jax_compilation_cache_dir or ""),
      },
      "versions": _versions(),
    }

  def run(self, steps: int) -> dict[str, Any]:
    """Takes steps as the loop does. Returns the loss and the seconds of each."""
    clock = Clock()
    for _ in range(steps):
      batch = self.program.put(self.batches[self.step % len(self.batches)])
      self.program.settle(self.state)  # as the loop does
      self.state, metrics = self.train_step(self.state, batch)
      self.step += 1
      clock.dispatched(metrics["loss"])
    return clock.finish()

  def memory(self) -> dict[str, Any]:
    """Peak memory since the state was made: of the process, and of the device where it is another."""
    device = self.program.placement.mesh.devices.flat[0]
    stats = device.memory_stats() or {}
    return {"peak_bytes": peak_bytes(), "device_peak_bytes": stats.get("peak_bytes_in_use", 0)}


def _versions() -> dict[str, str]:
  import importlib.metadata
  import platform

  import jax

  names = ("jax", "jaxlib", "flax", "optax", "numpy")
  versions = {name: importlib.metadata.version(name) for name in names}
  return {"python": platform.python_version(), **versions, "device": jax.devices()[0].device_kind}


if __name__ == "__main__":
  ours = Ours()
  serve({"prepare": ours.prepare, "run": ours.run, "memory": ours.memory})
