"""Prepares the data of a run, and shows it: python -m tfm_jax.data --config=FILE.py [--show=20].

Without --show and --tokenizer: trains the tokenizer and tokenises the text, as train.py would, and stops. A preparation
that was interrupted goes on where it was.

--config=FILE.py[:VARIANT]   the run whose data it is, as for train.py; or a run directory
--show=20                    prints so many rows as the model sees them, with what it has to predict marked
--split=train                the rows that are shown: train, eval, or of a mixture eval_NAME
--step=0                     the step at which the shown rows begin
--tokenizer=DIR              trains the tokenizer alone and writes it to DIR, for tokenizer.path; prints, by source, the
                             pieces per word (fertility), the bytes per piece, and the share of unknown pieces
--config.KEY=VALUE           sets a key of the configuration
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.training.keys.help import config_keys

FLAGS = ("config", "show", "split", "step", "tokenizer")


def main(flags: Flags) -> None:
  """Does what the flags say."""
  from tfm_jax.training.config import load, resolve

  path = flags.require("config")
  counts = {name: flags.values.get(name, "0") for name in ("show", "step")}
  for name, value in counts.items():
    if not value.isdecimal():
      raise UserError(f"--{name}={value}: a whole number is expected")
  if "tokenizer" in flags.values and ("show" in flags.values or "split" in flags.values):
    raise UserError("--tokenizer and --show exclude each other: the tokenizer alone has no rows to show")
  config = load(path, flags.overrides)
  if config.task.name:
    raise UserError(f"task.name={config.task.name}: this command prepares and shows the data of pre-training")
  config = resolve(config)
  stored = Path(path) / "tokenizer"
  stored_tokenizer = stored if stored.is_dir() else None
  if "tokenizer" in flags.values:
    _tokenizer(config, Path(flags.require("tokenizer")), stored_tokenizer)
    return
  from tfm_jax.data.prepare import prepare
  from tfm_jax.data.show import LEGEND, shown

  prepared = prepare(config.data, config.tokenizer, config.objective, config.seed, stored_tokenizer)
  print(f"token files: {', '.join(str(source.token_file.directory) for source in prepared.sources)}")
  if "show" not in flags.values:
    return
  split = flags.values.get("split", "train")
  size = config.train.batch_size
  datasets = {"train": prepared.train(size)} | prepared.evaluations(size)
  if split not in datasets:
    raise UserError(f"--split={split}: there are {', '.join(datasets)}")
  dataset = datasets[split]
  first = int(counts["step"]) * size
  last = first + int(counts["show"])
  samples = np.arange(first, last if split == "train" else min(last, dataset.num_rows))
  batch = dataset.arrays(samples, samples // size)
  print(LEGEND)
  for line in shown(batch, dataset.fields, prepared.tokenizer, dataset.source_names(batch["rows"])):
    print(line)


def _tokenizer(config, folder: Path, stored: Path | None) -> None:  # type: ignore[no-untyped-def]  # of a late import
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
