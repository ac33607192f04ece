"""The settings of the data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
  source: str = "embedded"  # embedded (prose of the installation), text, parallel (pairs of files), tsv (labelled)
  path: str = ""  # all but embedded: file, folder, glob or a list with commas; plain or .gz, UTF-8
  target_path: str = ""  # parallel: the other side, line by line
  eval_path: str = ""  # held-out text; empty: the last eval_fraction of `path`
  eval_target_path: str = ""  # parallel: its other side
  eval_fraction: float = 0.05  # share of the text that is held out when there is no eval_path
  document: str = "block"  # what one document is: block (between blank lines), line or file
  errors: str = "raise"  # undecodable text: raise, or replace by U+FFFD
  seq_len: int = 128  # tokens of a row; of its encoder side where there are two
  target_len: int = 0  # tokens of the decoder side; 0: the objective's natural length
  packing: bool = True  # rows are filled with several documents; false: one piece of a document a row
  prefetch: int = 8  # batches made ahead by a background thread; 0: none


@dataclass(frozen=True)
class TaskConfig:
  """A task other than pre-training, and where in the data it finds what."""

  name: str = ""  # sequence_classification; empty: pre-training
  # Columns of a table, by name or number (from 1); empty: guessed from a header that says label, and sentence or text,
  # or sentence1 and sentence2.
  text: str = ""  # the text
  pair: str = ""  # the second text, if there is one
  label: str = ""  # the class
