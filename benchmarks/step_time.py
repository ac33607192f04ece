"""Seconds of one training step of a config on the devices at hand, on random rows of its objective's shapes.

  python benchmarks/step_time.py --config=configs/shakespeare_char.py [--config.KEY=VALUE ...]

Prints the median, the range, tokens and FLOP/s, and what the compiler says of the memory. Machines are shared: compare
figures of one session only.
"""

import statistics
import sys
import time

from tfm_jax.training.command import Flags, run_command


def main(flags: Flags) -> None:
  """Compiles the step, runs it for some seconds, prints the figures."""
  import jax

  from tfm_jax.compare.program import random_batch
  from tfm_jax.data.prepare import objective_fields
  from tfm_jax.objectives.objective import Vocabulary
  from tfm_jax.training import flops
  from tfm_jax.training.build import build_model, build_optimizer
  from tfm_jax.training.config import load, resolve
  from tfm_jax.training.loss import make_loss
  from tfm_jax.training.optimizer import schedule
  from tfm_jax.training.state import init_state
  from tfm_jax.training.step import compile_train_step, make_train_step
  from tfm_jax.training.tracking import human_bytes, human_count

  config = resolve(load(flags.require("config"), flags.overrides))
  vocab_size = config.tokenizer.vocab_size or {"char": 70, "byte": 261}[config.tokenizer.kind]
  fields = objective_fields(config.objective, config.data, Vocabulary(vocab_size))
  model = build_model(config, vocab_size)
  tx = build_optimizer(config, model)
  state = init_state(model, tx, config.seed)
  rows = config.train.batch_size
  batch = jax.device_put(random_batch(fields, rows), model.placement.sharding(("batch",)))
  rate = schedule(config.optimizer, config.train.steps)
  microbatches = config.train.microbatches or 1
  loss = make_loss(model, config.loss)
  step = make_train_step(loss, tx, rate, model.placement, microbatches, config.seed)
  begin = time.perf_counter()
  compiled = compile_train_step(step, state, batch, model.placement)
  print(f"compiled in {time.perf_counter() - begin:.1f} s")
  usage = compiled.memory_analysis()
  if usage is not None:
    print(f"temporaries {human_bytes(usage.temp_size_in_bytes)}, state {human_bytes(usage.alias_size_in_bytes)}")
  seconds: list[float] = []
  for _ in range(3):
    state, _ = compiled(state, batch)
  jax.block_until_ready(state)
  end = time.perf_counter() + 10
  while time.perf_counter() < end or len(seconds) < 5:
    begin = time.perf_counter()
    state, _ = compiled(state, batch)
    jax.block_until_ready(state)
    seconds.append(time.perf_counter() - begin)
  median = statistics.median(seconds)
  tokens = rows * sum(flops.sequence_lengths(config.model, fields))
  work = flops.row_flops(config.model, vocab_size, fields).full * rows
  print(
    f"step: median {median * 1e3:.2f} ms, range {min(seconds) * 1e3:.2f} to {max(seconds) * 1e3:.2f} ms over "
    f"{len(seconds)} steps; {human_count(tokens / median)} tokens/s; {human_count(work / median)}FLOP/s"
  )


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, flags=("config",)))
