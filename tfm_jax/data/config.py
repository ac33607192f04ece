"""The settings of the data."""

import dataclasses
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.table import DOCUMENTS, check_split

DUPLICATES = ("keep", "exact", "near")
"""What `data.duplicates` may be."""

log = logging.getLogger(__name__)

S = TypeVar("S", bound="SourceConfig")


@dataclass(frozen=True)
class SourceConfig:
  """Where text is read from, and what of it is held out."""

  # embedded (prose of the installation), text, jsonl (one object per line), parallel (pairs of files), parquet, arrow
  # (a folder of Hugging Face's datasets), tfds (TensorFlow Datasets). embedded with a path: text. Tasks read files
  # unless this is tfds
  source: str = "embedded"
  # all but embedded: file, folder, glob or a list with commas, UTF-8; plain, .gz, .bz2, .xz or .zst. Of text,
  # files that end in .jsonl or .ndjson are read as by jsonl. tfds: NAME[/CONFIG][:VERSION] in TFDS_DATA_DIR. arrow: a
  # folder that save_to_disk wrote
  path: str = ""
  target_path: str = ""  # parallel, and tasks that generate: the other side, line by line
  eval_path: str = ""  # held-out text; empty: the last eval_fraction of `path`
  eval_target_path: str = ""  # the other side of eval_path
  eval_fraction: float = 0.05  # share of the text that is held out when there is no eval_path
  document: str = "block"  # what one document of plain text is: block (between blank lines), line or file
  split: str = "train"  # tfds, arrow: what is trained on; of tfds in its notation: train[:10%], train+validation
  eval_split: str = ""  # tfds, arrow: what is held out; empty: the validation split, or eval_fraction without one
  # tfds, parquet, arrow, jsonl: the field of the text (of pairs, of the source); empty: text, or the only one with
  # text. a.b is the field b inside a; of jsonl, a+b joins two texts
  field: str = ""
  target_field: str = ""  # tfds, parquet, arrow, jsonl: of pairs, the field of the target
  errors: str = "raise"  # text that is not UTF-8: raise, or replace by U+FFFD
  duplicates: str = "keep"  # documents like an earlier one: keep, or leave out exact ones, or near ones too
  similarity: float = 0.8  # of near duplicates: the smallest share of common runs of five words (Jaccard)
  min_characters: int = 0  # shorter documents are left out
  max_characters: int = 0  # longer documents are left out; 0: none
  min_letters: float = 0.0  # documents with a smaller share of letters among their visible characters are left out
  max_repeated_lines: float = 1.0  # documents in which a larger share of the lines repeats another are left out
  unwanted: str = ""  # documents with a match of this regular expression are left out, such as (?i)lorem ipsum


@dataclass(frozen=True)
class MixtureSource(SourceConfig):
  """One source of a mixture: where its text is read from, and how much of it is trained on."""

  name: str = ""  # its held-out metrics are those of the split eval_NAME; empty: made from path
  weight: float = 0.0  # its share of the training rows, beside the other weights; 0: its own number of rows


@dataclass(frozen=True)
class DataConfig(SourceConfig):
  """Where text is read from, and how it is divided into rows."""

  # Sources that are mixed, in place of the keys above: a list of sections, in an experiment file such as
  # [{"path": "a.txt", "weight": 3.0}, {"source": "tfds", "path": "c4/en", "weight": 1.0}], on a command line as JSON
  mixture: tuple[MixtureSource, ...] = ()
  mixture_temperature: float = 1.0  # shares are weights to the power of 1/temperature: above 1 they are more equal
  seq_len: int = 128  # tokens per row; of its encoder side where there are two
  first_seq_len: int = 0  # pre-training: tokens per row in the first steps, before rows of seq_len follow
  first_steps: int = 0  # how many steps have rows of first_seq_len
  target_len: int = 0  # tokens of the decoder side; 0: the objective's natural length
  packing: bool = True  # a row may hold several documents; false: one document, or one piece of it, per row
  buckets: int = 1  # tasks: lengths that batches may have: seq_len, its half, and so on; rows come by length
  prefetch: int = 8  # batches that a background thread prepares ahead; 0: none


SOURCE_KEYS = tuple(field.name for field in dataclasses.fields(SourceConfig))
"""The keys that say where text is read from: of the section `data`, and of each section of a mixture."""

_FILES, _FIELDS = ("path", "eval_path"), ("field", "target_field")
READ = {
  "embedded": (),
  "text": (*_FILES, *_FIELDS),
  "jsonl": (*_FILES, *_FIELDS),
  "parquet": (*_FILES, *_FIELDS),
  "arrow": ("path", "split", "eval_split", *_FIELDS),
  "parallel": (*_FILES, "target_path", "eval_target_path"),
  "tfds": ("path", "split", "eval_split", *_FIELDS),
}
"""Which of the keys that name texts a source reads: setting another one is refused. A source that is missing: all."""

FILTERS = SOURCE_KEYS[SOURCE_KEYS.index("duplicates") :]
"""Those of them that leave documents out."""


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
  palette: str = ""  # image_modeling: the colours of the tokens, in hexadecimal; set from the training pictures
  captions: str = "a photo of a {}."  # image_text: what is written of a class in training, separated by "|"
  prompts: str = "a photo of a {}."  # image_text: the texts that stand for a class in zero-shot classification


def resolve_data(data: DataConfig) -> DataConfig:
  """The settings with the sources that the paths imply, and the names of the sources of a mixture.

  Raises:
    UserError: a setting that would not be read, or two sources of one name.
  """
  if not data.mixture:
    return _resolved(data, "data")
  for key in SOURCE_KEYS:
    value = getattr(data, key)
    if value != getattr(DataConfig, key):
      raise UserError(f"data.{key}={value} is not read beside data.mixture: set it in the sections of the mixture")
  mixture = [_resolved(source, f"data.mixture[{number}]") for number, source in enumerate(data.mixture)]
  names = [source_name(source) for source in mixture]
  for name in names:
    if not re.fullmatch(r"[\w.-]+", name):
      raise UserError(f"data.mixture: name={name!r} names metrics: use letters, digits, _, - and .")
    if name == "first" and data.first_steps:
      raise UserError("data.mixture: name=first is what data.first_steps calls its held-out rows: choose another name")
    if names.count(name) > 1:
      raise UserError(f"data.mixture has two sources of the name {name}: give each a name of its own")
  named = (dataclasses.replace(source, name=name) for source, name in zip(mixture, names, strict=True))
  return dataclasses.replace(data, mixture=tuple(named))


def check_task(data: DataConfig, task: str) -> None:
  """Raises UserError for a setting that only pre-training reads, beside a task."""
  for key in ("mixture", *FILTERS):
    if getattr(data, key) != getattr(DataConfig, key):
      raise UserError(f"data.{key} is for pre-training, and task.name={task} does not read it: unset one of them")


def _resolved(source: S, section: str) -> S:
  """A source with the kind that its paths imply: files named while `source` is still "embedded" are text.

  Raises:
    UserError: a key that such a source does not read.
  """
  if source.source == "embedded" and (source.path or source.eval_path or source.target_path):
    kind = "parallel" if source.target_path else "text"
    log.info("%s.path is set and %s.source is not: %s.source=%s is taken", section, section, section, kind)
    source = dataclasses.replace(source, source=kind)
  read = READ.get(source.source, SOURCE_KEYS)
  for key in {key: None for keys in READ.values() for key in keys if key not in read}:
    value = getattr(source, key)
    if value != getattr(SourceConfig, key):
      raise UserError(
        f"{section}.{key}={value} is not read by {section}.source={source.source} (which reads "
        f"{', '.join(read) or 'none of your files'}): unset it, or choose another source"
      )
  return source


def source_name(source: SourceConfig) -> str:
  """The name of a source: its own, or that of its data set, or of its file or folder without endings."""
  if isinstance(source, MixtureSource) and source.name:
    return source.name
  path = Path(source.path.partition("/")[0].partition(":")[0] if source.source == "tfds" else source.path)
  while re.search(r"[*?[]", path.name):  # of a glob, the folder
    path = path.parent
  return re.sub(r"[^\w-]", "_", path.name.partition(".")[0]) or source.source


def eval_key(data: SourceConfig) -> str:
  """The key that names held-out text."""
  return "data.eval_split" if data.source in ("tfds", "arrow") else "data.eval_path"


def check_data(data: DataConfig) -> None:
  """Raises UserError for a value that no source accepts, whether or not this source reads it."""
  if data.first_steps and not 2 <= data.first_seq_len <= data.seq_len:
    raise UserError(
      f"data.first_seq_len={data.first_seq_len} must lie between 2 and data.seq_len={data.seq_len}, as "
      f"data.first_steps={data.first_steps} is set"
    )
  for source in (data, *data.mixture):
    if source.document not in DOCUMENTS:
      raise UserError(f"data.document={source.document}: expected one of {', '.join(DOCUMENTS)}")
    check_split(source.eval_fraction, source.errors)
    if source.duplicates not in DUPLICATES:
      raise UserError(f"data.duplicates={source.duplicates}: expected one of {', '.join(DUPLICATES)}")
    try:
      re.compile(source.unwanted)
    except re.error as error:
      raise UserError(f"data.unwanted={source.unwanted}: not a regular expression ({error})") from error
  if not data.mixture_temperature > 0:
    raise UserError(f"data.mixture_temperature={data.mixture_temperature:g} must be above 0")
  weights = [source.weight for source in data.mixture]
  if any(not (weight >= 0 and math.isfinite(weight)) for weight in weights) or (any(weights) and not all(weights)):
    raise UserError(
      f"data.mixture has the weights {', '.join(f'{weight:g}' for weight in weights)}: give every source one above 0, "
      f"or none (each then counts by its rows)"
    )
