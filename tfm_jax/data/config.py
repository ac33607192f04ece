"""The settings of the data."""

import dataclasses
import logging
from dataclasses import dataclass

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.table import DOCUMENTS, check_split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
  """Where text is read from, and how it is divided into rows."""

  # embedded (prose of the installation), text, jsonl (one object per line), parallel (pairs of files), tfds (TensorFlow
  # Datasets). embedded with a path: text. Tasks read files unless this is tfds
  source: str = "embedded"
  # all but embedded: file, folder, glob or a list with commas, UTF-8; plain, .gz, .bz2, .xz or .zst. Of text,
  # files that end in .jsonl or .ndjson are read as by jsonl. tfds: NAME[/CONFIG][:VERSION] in TFDS_DATA_DIR
  path: str = ""
  target_path: str = ""  # parallel, and tasks that generate: the other side, line by line
  eval_path: str = ""  # held-out text; empty: the last eval_fraction of `path`
  eval_target_path: str = ""  # the other side of eval_path
  eval_fraction: float = 0.05  # share of the text that is held out when there is no eval_path
  document: str = "block"  # what one document of plain text is: block (between blank lines), line or file
  split: str = "train"  # tfds: what is trained on, in its notation: train, train[:10%], train+validation
  eval_split: str = ""  # tfds: what is held out; empty: the validation split, or eval_fraction if there is none
  field: str = ""  # tfds: the field of the text (of pairs, of the source); empty: text, or the only field with text
  target_field: str = ""  # tfds: of pairs, the field of the target
  # jsonl: the key of the text in each object; a.b is the key b of the object under a, and a+b joins two texts
  text_key: str = "text"
  errors: str = "raise"  # text that is not UTF-8: raise, or replace by U+FFFD
  seq_len: int = 128  # tokens per row; of its encoder side where there are two
  first_seq_len: int = 0  # pre-training: tokens per row in the first steps, before rows of seq_len follow
  first_steps: int = 0  # how many steps have rows of first_seq_len
  target_len: int = 0  # tokens of the decoder side; 0: the objective's natural length
  packing: bool = True  # a row may hold several documents; false: one document, or one piece of it, per row
  buckets: int = 1  # tasks: lengths that batches may have: seq_len, its half, and so on; rows come by length
  prefetch: int = 8  # batches that a background thread prepares ahead; 0: none


@dataclass(frozen=True)
class TaskConfig:
  """A task other than pre-training, and the columns of the data that it reads."""

  name: str = ""  # one of tasks/table.py, such as sequence_classification or sst2; empty: pre-training
  # Columns of a file, by name or number (from 1); empty: guessed from a plain header, such as label and sentence.
  text: str = ""  # the text (of token_classification: the words, by number)
  pair: str = ""  # the second text, if there is one
  label: str = ""  # the class, number or tag; of tasks that generate, the text to write
  texts: int = 0  # classification, regression: texts per example, 1 or 2; set from the training file; 0: not known
  prefix: str = ""  # tasks that generate: stands before each text that the model reads, as T5's "summarize: "
  source_task: str = ""  # text_to_text: the task that is written as text, such as sst2, squad or conll2003
  class_weights: str = ""  # of the training loss: balanced (all classes weigh the same), or numbers with commas
  hide: float = 0.0  # augmentation: the share of tokens that become the mask token (or the unknown one) in training
  hide_spans: float = 0.0  # augmentation: the share of tokens that are hidden in spans of three
  swap: float = 0.0  # augmentation: the share of tokens that change places with the next (not of tags and answers)
  stride: int = 128  # question_answering: tokens that two windows of a long context share
  answer_tokens: int = 30  # question_answering: most tokens of a predicted answer
  no_answer: bool = False  # question_answering: whether a question may have none; set if some in training have none
  scale: float = 1.0  # similarity: labels are divided by it; set to the largest in training


def resolve_data(data: DataConfig) -> DataConfig:
  """The settings with the source that the paths imply: files named while `source` is still "embedded" are text.

  Raises:
    UserError: a setting that tfds would not read.
  """
  if data.source == "tfds":
    for key in ("target_path", "eval_path", "eval_target_path"):
      if value := getattr(data, key):
        raise UserError(
          f"data.{key}={value} names files, and data.source=tfds reads none: see data.eval_split and data.target_field"
        )
  if data.source != "embedded" or not (data.path or data.eval_path or data.target_path):
    return data
  source = "parallel" if data.target_path else "text"
  log.info("data.path is set and data.source is not: data.source=%s is taken", source)
  return dataclasses.replace(data, source=source)


def eval_key(data: DataConfig) -> str:
  """The key that names held-out text."""
  return "data.eval_split" if data.source == "tfds" else "data.eval_path"


def check_data(data: DataConfig) -> None:
  """Raises UserError for a value that no source accepts, whether or not this source reads it."""
  if data.document not in DOCUMENTS:
    raise UserError(f"data.document={data.document}: expected one of {', '.join(DOCUMENTS)}")
  if data.first_steps and not 2 <= data.first_seq_len <= data.seq_len:
    raise UserError(
      f"data.first_seq_len={data.first_seq_len} must lie between 2 and data.seq_len={data.seq_len}, as "
      f"data.first_steps={data.first_steps} is set"
    )
  if not data.text_key:
    raise UserError("data.text_key is empty: name the key of the text in each JSON object")
  check_split(data.eval_fraction, data.errors)
