"""Seconds per training step of a config on the devices at hand, with random batches; no corpus is read.

  python benchmarks/step_time.py --config=configs/shakespeare_char.py [--config.KEY=VALUE ...]
  python -m benchmarks.step_time ...        the same

Prints the median, the range, tokens/s, FLOP/s, and the peak memory by the compiler. On a shared machine compare only
figures of the same session.
"""

import statistics
import sys
import time

from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys


def main(flags: Flags) -> None:
  """Compiles the step, runs it for ten seconds, and prints the figures."""
  import jax

  from tfm_jax.compare.program import build_program, random_batch
  from tfm_jax.runtime.reporting.units import human_bytes, human_count
  from tfm_jax.training.compiled.memory import peak_bytes
  from tfm_jax.training.config import load

  program = build_program(load(flags.require("config"), flags.overrides))
  config, rows = program.config, program.config.train.batch_size
  state, batch = program.init(), program.put(random_batch(program.fields, rows))
  begin = time.perf_counter()
  compiled = program.compile(config.train.microbatches or 1)
  print(f"compiled in {time.perf_counter() - begin:.1f} s")
  usage = compiled.memory_analysis()
  if usage is not None:
    peak = human_bytes(peak_bytes(compiled, program.placement.platform))
    print(f"memory: {peak}, of that the state {human_bytes(usage.alias_size_in_bytes)}")
  seconds: list[float] = []
  for _ in range(3):
    state, _ = compiled(state, batch)
  jax.block_until_ready(state)
  end = time.perf_counter() + 10
  while time.perf_counter() < end or len(seconds) < 5:
    begin = time.perf_counter()
    program.settle(state)  # as the loop does
    state, _ = compiled(state, batch)
    jax.block_until_ready(state)
    seconds.append(time.perf_counter() - begin)
  median = statistics.median(seconds)
  tokens = rows * program.row_tokens
  flops = program.flops.full
  print(
    f"step: median {median * 1e3:.2f} ms, range {min(seconds) * 1e3:.2f} to {max(seconds) * 1e3:.2f} ms over "
    f"{len(seconds)} steps; {human_count(tokens / median)} tokens/s; {human_count(flops / median)}FLOP/s"
  )


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, flags=("config",), keys=config_keys))
