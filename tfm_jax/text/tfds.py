"""Data sets of TensorFlow Datasets (TFDS), read without TensorFlow.

TFDS keeps a prepared data set in DIR/NAME[/CONFIG]/VERSION, where DIR is `TFDS_DATA_DIR`. Preparing one needs
TensorFlow, on any machine; ArrayRecord files are read here without it. Only such folders are read: the code that TFDS
has for the data set by name is never imported.
"""

import dataclasses
import functools
import json
import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfm_jax.errors import UserError, nearest
from tfm_jax.text.corpora.corpus import Counts
from tfm_jax.text.corpora.files import decoded_value

EVALUATED = ("validation", "validation_matched", "dev")
"""Splits that are held out unless `data.eval_split` names another; the first that the data set has."""

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_FORMATS = ("array_record", "parquet")  # what is read without TensorFlow; the first that there is
_BATCH = 256  # records that are read at once
_LISTED = 10  # names in a message


class Field(NamedTuple):
  """One field of a data set: the keys that lead to it in an example, and the feature that TFDS declares."""

  keys: tuple[str, ...]
  feature: Any

  @property
  def is_text(self) -> bool:
    """Whether each example has one text here."""
    return self.feature.shape == () and self.feature.np_dtype == np.object_

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the classes, by number; empty if the field holds no class."""
    return tuple(self.feature.names) if getattr(self.feature, "num_classes", None) else ()


@dataclasses.dataclass(frozen=True)
class TfdsData:
  """A prepared data set, see `open_data`."""

  folder: Path
  builder: Any = dataclasses.field(compare=False, repr=False)

  def __str__(self) -> str:
    name, _, version = self.builder.info.full_name.rpartition("/")
    return f"{name}:{version}"

  @functools.cached_property
  def fields(self) -> dict[str, Field]:
    """The fields by name; those of a nested one as "translation.en"."""
    found = {".".join(field.keys): field for field in _fields(self.builder.info.features, ())}
    return {name: found[name] for name in sorted(found)}

  def split(self, split: str, setting: str) -> "TfdsSplit":
    """One split.

    Args:
      split: in TFDS's notation: "train", "train[:10%]", "train+validation".
      setting: where it is set, for messages.

    Raises:
      UserError: there is no such split, it is empty, or its files are missing or truncated.
    """
    splits = self.builder.info.splits
    names = ", ".join(sorted(splits)) or "none"
    try:
      shards = tuple(splits[split].file_instructions)
    except Exception as error:  # ValueError, KeyError, AssertionError, NotImplementedError, ...
      raise UserError(f"{setting}={split}: {self} has no such split; it has {names}") from error
    if not sum(shard.take for shard in shards):
      raise UserError(f"{setting}={split}: no examples of {self}; it has {names}")
    for shard in shards:
      _check_shard(Path(shard.filename), shard.examples_in_shard)
    return TfdsSplit(self, split, shards)


@dataclasses.dataclass(frozen=True)
class TfdsSplit:
  """The examples of one split, which are read one after another and never held all at once."""

  data: TfdsData
  split: str
  shards: tuple[Any, ...] = dataclasses.field(repr=False)  # TFDS's FileInstruction: file, skipped and taken examples

  def __str__(self) -> str:
    return f"{self.data} ({self.split})"

  def __len__(self) -> int:
    return sum(shard.take for shard in self.shards)

  @property
  def files(self) -> list[Path]:
    """What the examples depend on."""
    shards = dict.fromkeys(Path(shard.filename) for shard in self.shards)
    return [*shards, self.data.folder / "features.json", *sorted(self.data.folder.glob("*.labels.txt"))]

  def examples(self, names: Sequence[str], errors: str, counts: Counts) -> Iterator[tuple[Any, ...]]:
    """The values of these fields, example by example: texts, names of classes, numbers, or lists of them.

    None stands for a class that is not known, -1 in TFDS.

    Args:
      names: of fields; the others are not decoded.
      errors: what happens to bytes that are not UTF-8, see `data.errors`.
      counts: replaced texts are added, as `undecodable`.

    Raises:
      UserError: a damaged file, or a text that is not UTF-8.
    """
    from tensorflow_datasets import features

    fields = [self.data.fields[name] for name in names]
    declared = self.data.builder.info.features
    parser = features.FeaturesDict({key: declared[key] for key in sorted({field.keys[0] for field in fields})})
    parquet = self.data.builder.info.file_format.value == "parquet"
    batches = self._parquet_records() if parquet else self._array_records()
    begin, name = 0, str(self)
    while True:
      try:
        examples = [parser.deserialize_example_np(record) for record in next(batches, ())]
      except Exception as error:  # the reader and the parser have many
        raise UserError(
          f"cannot read {self}, examples {begin + 1} to {min(begin + _BATCH, len(self))}: {_first_line(error)}; "
          f"copy or prepare {self.data.folder} again"
        ) from error
      if not examples:
        return
      for number, example in enumerate(examples, begin):
        values = (functools.reduce(operator.getitem, field.keys, example) for field in fields)
        place = f"{name}, example {number + 1}"
        yield tuple(
          self._plain(value, field.feature, place, errors, counts) for field, value in zip(fields, values, strict=True)
        )
      begin += len(examples)

  def _array_records(self) -> Iterator[Sequence[bytes]]:
    """The serialised examples, `_BATCH` at a time."""
    from tensorflow_datasets import decode

    raw = decode.DeserializeMethod.RAW_BYTES
    records = self.data.builder.as_data_source(self.split, deserialize_method=raw)
    for begin in range(0, len(self), _BATCH):
      yield records.__getitems__(range(begin, min(begin + _BATCH, len(self))))

  def _parquet_records(self) -> Iterator[Sequence[bytes]]:
    """The same of Parquet files. TFDS's own reader holds them all in memory, and does not slice splits."""
    import pyarrow.parquet as pq

    for shard in self.shards:
      skip, left = shard.skip, shard.take
      with pq.ParquetFile(shard.filename) as file:
        for batch in file.iter_batches(_BATCH, columns=["data"]):
          records = batch.column(0).to_pylist()[skip : skip + left]
          skip, left = max(skip - len(batch), 0), left - len(records)
          if records:
            yield records
          if not left:
            break

  def _plain(self, value: Any, feature: Any, place: str, errors: str, counts: Counts) -> Any:
    """A value as TFDS decodes it, as one of Python."""
    if isinstance(value, bytes):
      return decoded_value(value, place, errors, counts)
    if isinstance(value, (list, np.ndarray)):
      inner = getattr(feature, "feature", feature)
      return [self._plain(one, inner, place, errors, counts) for one in value]
    classes = Field((), feature).classes
    # GLUE marks numbers that are not known in the same way as classes.
    if value == -1 and (classes or self.data.builder.name == "glue"):
      return None
    if classes:
      return classes[value]
    # 2.4 in float32 is 2.4000000953674316 as Python's float.
    return float(str(np.float32(value))) if feature.np_dtype == np.float32 else value


def open_splits(path: str, split: str, eval_split: str) -> tuple[TfdsSplit, TfdsSplit | None]:
  """The examples to train on, and those that the data set itself holds out, if any.

  Args:
    path: NAME[/CONFIG][:VERSION].
    split: the training split, in TFDS's notation.
    eval_split: the same for what is held out; empty: one of `EVALUATED` that shares no example with `split`.

  Raises:
    UserError: no such data set or split, files that only TensorFlow reads, or two splits that share examples.
  """
  data = open_data(path)
  train = data.split(split, "data.split")
  if eval_split:
    held_out = data.split(eval_split, "data.eval_split")
    if _overlap(train, held_out):
      raise UserError(f"data.split={split} and data.eval_split={eval_split} of {data} share examples")
    return train, held_out
  for name in EVALUATED:
    if name in data.builder.info.splits and not _overlap(train, other := data.split(name, "data.eval_split")):
      return train, other
  return train, None


def open_data(path: str) -> TfdsData:
  """The prepared data set NAME[/CONFIG][:VERSION] below `TFDS_DATA_DIR`; without a version, the latest.

  Raises:
    UserError: there is none, or it is stored in files that only TensorFlow reads; the message tells how to prepare it.
  """
  folder = _folder(path)
  info = _json(folder / "dataset_info.json")
  _json(folder / "features.json")
  stored = info.get("fileFormat") or "tfrecord"
  present = (stored, *info.get("alternativeFileFormats", ()))
  readable = next((name for name in _FORMATS if name in present), "")
  if not readable:
    raise UserError(
      f"data.path={path}: {folder} holds {stored} files, which only TensorFlow reads; where TensorFlow is installed, "
      f"run once: tfds convert_format --dataset_version_dir={folder} --out_file_format={_FORMATS[0]}"
    )
  # Imported late: it takes a second, and reading other sources does not need it.
  from tensorflow_datasets import builder_from_directory

  builder = builder_from_directory(folder)
  if stored != readable:  # its files lie beside others
    builder.info.set_file_format(readable, override=True, override_if_initialized=True)
  return TfdsData(folder, builder)


def _folder(path: str) -> Path:
  """The folder of NAME[/CONFIG][:VERSION]. Raises UserError, which lists what there is."""
  match = _NAME.fullmatch(path)
  if not match:
    raise UserError(f"data.path={path}: data.source=tfds expects NAME[/CONFIG][:VERSION], such as glue/sst2")
  setting = os.environ.get("TFDS_DATA_DIR")
  root = Path(setting or "~/tensorflow_datasets").expanduser()
  where = f"TFDS_DATA_DIR={root}" if setting else f"{root} (the default, as TFDS_DATA_DIR is not set)"
  advice = (
    f"set TFDS_DATA_DIR, or prepare it where TensorFlow is installed: tfds build {match['name']}"
    f"{'/' + match['config'] if match['config'] else ''} --file_format={_FORMATS[0]} --data_dir={root}"
  )
  if not root.is_dir():
    raise UserError(f"data.path={path}: there is no folder {where}; {advice}")
  folder = root / match["name"] / (match["config"] or _default_config(root / match["name"]))
  versions = _versions(folder)
  if not versions:
    prepared = sorted({file.parents[1].relative_to(root).as_posix() for file in _infos(root)})
    similar = nearest(path, prepared)
    hint = f", did you mean {similar}?" if similar else ""
    raise UserError(f"data.path={path}: {where} has {_listed(prepared)}, and not this{hint}; {advice}")
  if match["version"] and match["version"] not in versions:
    raise UserError(f"data.path={path}: {folder} has no such version; it has {_listed(versions)}; {advice}")
  return folder / (match["version"] or versions[-1])


def _default_config(folder: Path) -> str:
  """The configuration that a name without one stands for, as TFDS notes it; "" if there is none."""
  file = folder / ".config" / "metadata.json"
  return _json(file).get("default_config_name", "") if file.is_file() else ""


def _versions(folder: Path) -> list[str]:
  """The prepared versions, the latest last."""
  found = [file.parent.name for file in folder.glob("*/dataset_info.json")]
  numbered = [name for name in found if re.fullmatch(r"\d+\.\d+\.\d+", name)]
  return sorted(numbered, key=lambda name: [int(part) for part in name.split(".")])


def _infos(root: Path) -> Iterator[Path]:
  """The description of every data set: NAME/VERSION, NAME/CONFIG/VERSION."""
  for pattern in ("*/*/dataset_info.json", "*/*/*/dataset_info.json"):
    yield from root.glob(pattern)


def _json(file: Path) -> Mapping[str, Any]:
  """The object in a file that TFDS wrote. Raises UserError."""
  try:
    content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
  except (OSError, ValueError) as error:
    raise UserError(f"cannot read {file}: {_first_line(error)}; copy or prepare the data set again") from error


def _check_shard(file: Path, examples: int) -> None:
  """Raises UserError if a file is missing or has not as many records as TFDS noted: a truncated one opens as empty."""
  if not file.is_file():
    raise UserError(f"{file} is missing: copy or prepare the data set again")
  try:
    records = _records(file)
  except Exception as error:  # of C++
    raise UserError(
      f"cannot read {file}, which is truncated or damaged ({_first_line(error)}): copy or prepare the data set again"
    ) from error
  if records != examples:
    raise UserError(
      f"{file} has {records:,} records, and dataset_info.json counts {examples:,}: it is truncated or of another "
      f"version; copy or prepare the data set again"
    )


def _records(file: Path) -> int:
  """The number of records of a file."""
  if ".parquet" in file.name:
    import pyarrow.parquet as pq

    rows: int = pq.read_metadata(file).num_rows
    return rows
  from array_record.python.array_record_data_source import ArrayRecordDataSource  # tensorflow_datasets depends on it

  return len(ArrayRecordDataSource(str(file)))


def _fields(features: Any, keys: tuple[str, ...]) -> Iterator[Field]:
  """The fields of a dictionary of features, which may be nested."""
  from tensorflow_datasets import features as kinds

  for name, feature in features.items():
    if isinstance(feature, kinds.FeaturesDict):
      yield from _fields(feature, (*keys, name))
    else:
      yield Field((*keys, name), feature)


def _overlap(one: TfdsSplit, other: TfdsSplit) -> bool:
  """Whether two splits share examples."""
  return any(
    a.filename == b.filename and a.skip < b.skip + b.take and b.skip < a.skip + a.take
    for a in one.shards
    for b in other.shards
  )


def _listed(names: Sequence[str]) -> str:
  """The first names, for a message."""
  more = f", ... ({len(names)} in all)" if len(names) > _LISTED else ""
  return ", ".join(names[:_LISTED]) + more if names else "nothing"


def _first_line(error: Exception) -> str:
  """What went wrong, in one line."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]
