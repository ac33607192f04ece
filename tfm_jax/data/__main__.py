"""Prepares the data of a run, and shows it: python -m tfm_jax.data --config=FILE.py [--show=20].

Without --show and --tokenizer: trains the tokenizer and tokenises the text, as train.py would, and stops. A preparation
that was interrupted goes on where it was.

--config=FILE.py[:VARIANT]   the run whose data it is, as for train.py; or a run directory
--show=20                    prints so many rows as the model sees them, with what it has to predict marked
--split=train                what is shown: train, eval, eval_NAME of a mixture, eval_first of data.first_steps
--step=0                     the step of training (of held-out rows: the batch) at which they begin
--tokenizer=DIR              trains the tokenizer alone and writes it to DIR, for tokenizer.path; prints, by source, the
                             pieces per word (fertility), the bytes per piece, and the share of unknown pieces
--config.KEY=VALUE           sets a key of the configuration
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

if TYPE_CHECKING:  # otherwise late: it takes seconds
  from etils import epath

  from tfm_jax.data.prepare import Prepared
  from tfm_jax.training.compiled.ramp import Ramp
  from tfm_jax.training.config import Config

FLAGS = ("config", "show", "split", "step", "tokenizer")


def main(flags: Flags) -> None:
  """Does what the flags say."""
  from tfm_jax.runtime.run_directory import RunDirectory
  from tfm_jax.training.config import load, resolve
  from tfm_jax.training.start import stored_tokenizer

  path = flags.require("config")
  counts = {name: flags.values.get(name, default) for name, default in (("show", "1"), ("step", "0"))}
  for name, value in counts.items():
    if not value.isdecimal():
      raise UserError(f"--{name}={value}: a whole number is expected")
  of_rows = [name for name in ("show", "split", "step") if name in flags.values]
  if "tokenizer" in flags.values and of_rows:
    raise UserError(f"--tokenizer and --{of_rows[0]} exclude each other: the tokenizer alone has no rows to show")
  if of_rows and "show" not in flags.values:
    raise UserError(f"--{of_rows[0]} says which rows are shown: say how many by --show, such as --show=20")
  if not int(counts["show"]):
    raise UserError(f"--show={counts['show']}: name the number of rows to show")
  config = load(path, flags.overrides)
  if config.task.name:
    raise UserError(f"task.name={config.task.name}: this command prepares and shows the data of pre-training")
  config = resolve(config)
  stored = stored_tokenizer(RunDirectory(path), config)
  if "tokenizer" in flags.values:
    _tokenizer(config, Path(flags.require("tokenizer")), stored)
    return
  from tfm_jax.data.prepare import prepare

  prepared = prepare(config.data, config.tokenizer, config.objective, config.seed, stored)
  print(f"token files: {', '.join(str(source.token_file.directory) for source in prepared.sources)}")
  if "show" in flags.values:
    _show(config, prepared, flags.values.get("split", "train"), int(counts["step"]), int(counts["show"]))


def _show(config: "Config", prepared: "Prepared", split: str, step: int, count: int) -> None:
  """Prints so many rows from a step on. Raises UserError if there is no such split or step."""
  from tfm_jax.data.show import LEGEND, shown

  size, first_steps = config.train.batch_size, config.data.first_steps
  datasets = {"train": prepared.train(size)} | prepared.evaluations(size)
  short = prepared.at_length(config.data.first_seq_len) if first_steps else prepared
  if first_steps and (short_eval := short.evaluation(size)) is not None:
    datasets["eval_first"] = short_eval
  if split not in datasets:
    raise UserError(f"--split={split}: there are {', '.join(datasets)}")
  dataset = datasets[split]
  if split == "train":
    samples, steps = _train_samples(config.train.ramp, step, count)
    parts = [(short.train(size), steps < first_steps), (dataset, steps >= first_steps)]
  else:
    if step >= dataset.num_batches():
      raise UserError(f"--step={step}: the last batch of --split={split} is {dataset.num_batches() - 1}")
    samples = np.arange(step * size, min(step * size + count, dataset.num_rows))
    steps = samples // size
    parts = [(dataset, steps >= 0)]
  print(LEGEND)
  for part, where in parts:
    if where.any():
      batch = part.arrays(samples[where], steps[where])
      print("\n".join(shown(batch, part.fields, prepared.tokenizer, part.source_names(batch["rows"]))))


def _train_samples(ramp: "Ramp", step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
  """(the numbers of so many training rows from a step on, counted through all steps; the step of each)."""
  number, row = ramp.place(step)
  steps = range(step, step + count)  # a step has at least one row
  of_rows = np.repeat(steps, [ramp.size(one) for one in steps])
  return number * ramp.full + row + np.arange(count), of_rows[:count]


def _tokenizer(config: "Config", folder: Path, stored: "epath.Path | None") -> None:
  """Trains or reads the tokenizer alone, writes it, and prints how well it fits each source."""
  from tfm_jax.cache import atomic_directory
  from tfm_jax.data.fertility import fertility, table
  from tfm_jax.data.prepare import find_tokenizer, open_corpus, sources_of
  from tfm_jax.text.corpora.table import joined

  if folder.exists():
    raise UserError(f"--tokenizer={folder} exists already: name a new folder")
  configs: Sequence = sources_of(config.data)
  corpora = [open_corpus(source) for source in configs]
  tokenizer = find_tokenizer(config.tokenizer, joined(corpora), stored)
  print(table([fertility(*each, tokenizer) for each in zip(configs, corpora, strict=True)], tokenizer.vocab_size))
  with atomic_directory(folder) as temporary:
    tokenizer.save(temporary)
  print(f"{tokenizer.kind} tokenizer of {tokenizer.vocab_size:,} ids: {folder} (--config.tokenizer.path={folder})")


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, FLAGS, keys=config_keys))
