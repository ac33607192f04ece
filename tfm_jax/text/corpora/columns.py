"""Texts in columns: Parquet files, and data sets that Hugging Face's `datasets` saved on disk (Arrow files)."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.corpus import Corpus, Counts, Document
from tfm_jax.text.corpora.files import UNDECODABLE, check_split, content_fingerprint, counted, decoded_value, expand
from tfm_jax.text.corpora.held_out import is_held_out

EVALUATED = ("validation", "dev")
"""Splits of a saved data set that are held out unless `data.eval_split` names another; the first that there is."""

_BATCH = 1024  # rows that are read at once
_END = b"\xff\xff\xff\xff\0\0\0\0"  # the last bytes of a complete stream of Arrow

Batches = Callable[[Path, Sequence[str]], Iterator[Any]]
"""(file, columns) -> record batches with these columns."""


class _Form(NamedTuple):
  """A format of files."""

  name: str  # as `data.source` has it
  schema: Callable[[Path], Any]  # a file's columns and their types
  batches: Batches


def parquet_corpus(
  path: str,
  eval_path: str = "",
  eval_fraction: float = 0.1,
  field: str = "",
  target_field: str = "",
  errors: str = "raise",
) -> Corpus:
  """Parquet files, whose rows are documents. They are read one after another, some rows at a time.

  Args:
    path: files, folders or globs, as in `text_corpus`. Of a folder, files that end in .parquet.
    eval_path: the same, for the held-out text; without it `eval_fraction` of the rows, by a hash of their text.
    eval_fraction: the share that is held out.
    field: the column of the text; a.b is a field of a struct; empty: `text`, or the only column of strings.
    target_field: of the other side of pairs; empty: there are no pairs.
    errors: what to do with bytes that are not UTF-8, see `text_corpus`.

  Raises:
    UserError: no such file or column; while reading, a damaged file or undecodable text.
  """
  files = _parquet_files(path, "data.path")
  held_out = _parquet_files(eval_path, "data.eval_path") if eval_path else []
  of = f"the {counted(held_out, 'file')} of data.eval_path" if eval_path else ""
  form = _Form("parquet", _parquet_schema, _parquet_batches)
  return _corpus(form, path, files, (held_out, of), eval_fraction, (field, target_field), errors)


def arrow_corpus(
  path: str,
  split: str = "train",
  eval_split: str = "",
  eval_fraction: float = 0.1,
  field: str = "",
  target_field: str = "",
  errors: str = "raise",
) -> Corpus:
  """A data set that `save_to_disk` of Hugging Face's `datasets` wrote: a folder of one split, or of several.

  Args:
    path: the folder.
    split: what is trained on, of a folder with several splits.
    eval_split: what is held out; empty: one of `EVALUATED`, or `eval_fraction` of the rows if there is none.
    eval_fraction, field, target_field, errors: as in `parquet_corpus`.

  Raises:
    UserError: as `parquet_corpus`.
  """
  folder = Path(path).expanduser()
  splits = _splits(folder, path)
  for key, name in (("data.split", split), ("data.eval_split", eval_split)):
    if name and splits and name not in splits:
      raise UserError(f"{key}={name}: {path} has no such split; it has {', '.join(splits)}")
  if not splits and eval_split:
    raise UserError(f"data.eval_split={eval_split}: {path} has one split only: leave it empty")
  if not splits and split != "train":
    raise UserError(f"data.split={split}: {path} has one split only: leave it at train")
  chosen = eval_split or next((name for name in EVALUATED if name in splits and name != split), "")
  if chosen == split:
    raise UserError(f"data.split and data.eval_split are both {split}: they would share rows")
  files = _arrow_files(folder / split if splits else folder)
  held_out = _arrow_files(folder / chosen) if chosen else []
  form = _Form("arrow", _arrow_schema, _arrow_batches)
  of = f"the split {chosen} (data.eval_split)" if chosen else ""
  return _corpus(form, path, files, (held_out, of), eval_fraction, (field, target_field), errors)


def _corpus(
  form: _Form,
  path: str,
  files: list[Path],
  held_out: tuple[list[Path], str],
  eval_fraction: float,
  fields: tuple[str, str],
  errors: str,
) -> Corpus:
  """The corpus of files of columns; held_out: the files of the held-out text, and their name in the log."""
  check_split(eval_fraction, errors)
  eval_files, of_eval_files = held_out
  names = _names(form.schema(files[0]), files[0], *fields)

  def read(part: str, counts: Counts) -> Iterator[Document]:
    counts["blank"] = documents = 0
    in_evaluation = part == "evaluation"
    if in_evaluation and not (eval_files or eval_fraction):
      return
    for file in eval_files if eval_files and in_evaluation else files:
      for texts in _rows(form, file, names, errors, counts):
        if any(not text or text.isspace() for text in texts):
          counts["blank"] += 1
        elif eval_files or is_held_out(texts[0], eval_fraction) == in_evaluation:
          documents += 1
          yield texts
    if not documents and (part == "train" or eval_files):
      raise UserError(f"data.path={path}: no text to {'evaluate' if in_evaluation else 'train'} on")

  kind = f"pairs of {names[0]!r} and {names[1]!r}" if len(names) > 1 else f"texts of {names[0]!r} (data.field)"
  share = f"{eval_fraction:.1%} of the rows, by a hash of their text (data.eval_fraction)"
  return Corpus(
    name=form.name,
    description=f"{path}: {counted(files, 'file')}; documents are {kind}",
    held_out=of_eval_files or share,
    fingerprint=content_fingerprint(
      ["columns", names, errors, 0 if eval_files else eval_fraction], [files, eval_files]
    ),
    read=read,
    sides=len(names),
    left_out={"blank": f"blank {'pairs' if len(names) > 1 else 'documents'}, left out", **UNDECODABLE},
  )


def _rows(form: _Form, file: Path, names: tuple[str, ...], errors: str, counts: Counts) -> Iterator[Document]:
  """The texts of each row of a file; "" where there is none. Raises UserError."""
  import pyarrow as pa

  _names(form.schema(file), file, names[0], names[1] if len(names) > 1 else "")
  number = 0
  try:
    for batch in form.batches(file, names):
      columns = [_column(batch, name).cast(pa.large_binary()).to_pylist() for name in names]
      for values in zip(*columns, strict=True):
        number += 1
        yield tuple(decoded_value(value or b"", f"{file}, row {number}", errors, counts) for value in values)
  except (pa.ArrowException, OSError) as error:
    raise UserError(f"cannot read {file} after row {number}: {_first_line(error)}; copy or write it again") from error


def _column(batch: Any, name: str) -> Any:
  """The strings of a column, or of a field of a struct."""
  import pyarrow as pa
  import pyarrow.compute as pc

  first, *inner = [name] if name in batch.schema.names else name.split(".")
  column = batch.column(first)
  column = pc.struct_field(column, inner) if inner else column
  return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _names(schema: Any, file: Path, field: str, target_field: str) -> tuple[str, ...]:
  """The columns of a document. Raises UserError."""
  texts = [*_texts(schema)]
  listed = ", ".join(texts) or "none"
  if not field:
    if target_field:
      raise UserError(f"data.target_field={target_field}: set data.field as well; the texts of {file} are {listed}")
    if "text" not in texts and len(texts) != 1:
      raise UserError(f"data.field is empty, and {file} has no column text: set it to one of its texts: {listed}")
    return ("text" if "text" in texts else texts[0],)
  for key, name in (("field", field), ("target_field", target_field)):
    if name and name not in texts:
      raise UserError(f"data.{key}={name}: {file} has no such column of texts; it has {listed}")
  return (field, target_field) if target_field else (field,)


def _texts(fields: Any, prefix: str = "") -> Iterator[str]:
  """The names of all columns of strings; those inside structs as "translation.en"."""
  import pyarrow as pa

  for field in fields:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_struct(kind):
      yield from _texts(kind, f"{prefix}{field.name}.")
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
      yield f"{prefix}{field.name}"


def _parquet_files(path: str, key: str) -> list[Path]:
  """The files that a path names. Raises UserError."""
  folders = [item for item in map(str.strip, path.split(",")) if item and Path(item).expanduser().is_dir()]
  inside = {file for folder in folders for file in Path(folder).expanduser().rglob("*")}
  files = [file for file in expand(path, key) if file not in inside or file.suffix == ".parquet"]
  if not files:
    raise UserError(f"{key}={path}: no file there ends in .parquet")
  return files


def _opened_parquet(file: Path) -> Any:
  import pyarrow as pa
  import pyarrow.parquet as pq  # late: it takes a moment, and reading other sources does not need it

  try:
    return pq.ParquetFile(file)
  except (pa.ArrowException, OSError) as error:
    raise UserError(f"{file} is not a Parquet file, or is truncated: {_first_line(error)}") from error


def _parquet_schema(file: Path) -> Any:
  with _opened_parquet(file) as opened:
    return opened.schema_arrow


def _parquet_batches(file: Path, names: Sequence[str]) -> Iterator[Any]:
  with _opened_parquet(file) as opened:
    yield from opened.iter_batches(_BATCH, columns=list(names))


def _splits(folder: Path, path: str) -> list[str]:
  """The splits of a saved data set; none if the folder is that of one. Raises UserError."""
  if (folder / "dataset_dict.json").is_file():
    return _json(folder / "dataset_dict.json", "splits")
  if not (folder / "state.json").is_file():
    raise UserError(
      f"data.path={path}: data.source=arrow reads a folder that save_to_disk wrote, and there is no state.json or "
      f"dataset_dict.json in it"
    )
  return []


def _arrow_files(folder: Path) -> list[Path]:
  """The files of a split, in order. Raises UserError for missing or truncated ones."""
  import pyarrow as pa

  try:
    files = [folder / entry["filename"] for entry in _json(folder / "state.json", "_data_files")]
  except (KeyError, TypeError) as error:
    raise UserError(f"_data_files in {folder / 'state.json'} does not name files: save the data set again") from error
  for file in files:
    try:
      with file.open("rb") as stream:
        stream.seek(-len(_END), 2)
        complete = stream.read() == _END
    except (pa.ArrowException, OSError) as error:
      raise UserError(f"cannot read {file}: {_first_line(error)}; copy or save the data set again") from error
    if not complete:
      raise UserError(f"{file} is truncated: copy or save the data set again")
  if not files:
    raise UserError(f"{folder / 'state.json'} names no files: the split is empty")
  return files


def _arrow_schema(file: Path) -> Any:
  with _opened_arrow(file) as reader:
    return reader.schema


def _arrow_batches(file: Path, names: Sequence[str]) -> Iterator[Any]:
  with _opened_arrow(file) as reader:
    for batch in reader:  # as large as whoever wrote the file made it
      yield from (batch.slice(begin, _BATCH) for begin in range(0, len(batch), _BATCH))


def _opened_arrow(file: Path) -> Any:
  import pyarrow as pa

  try:
    return pa.ipc.open_stream(pa.memory_map(str(file)))
  except (pa.ArrowException, OSError) as error:
    raise UserError(f"cannot read {file}: {_first_line(error)}; copy or save the data set again") from error


def _json(file: Path, key: str) -> list[Any]:
  """A list in the object in a file that `datasets` wrote. Raises UserError."""
  try:
    value = json.loads(file.read_text(encoding="utf-8"))[key]
    if not isinstance(value, list):
      raise ValueError("it is no list")
    return value
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"cannot read {key} in {file}: {_first_line(error)}; copy or save the data set again") from error


def _first_line(error: Exception) -> str:
  """What went wrong, in one line."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]
