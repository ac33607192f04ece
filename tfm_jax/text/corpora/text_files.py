"""The corpus of the user's own text files: plain text, cut into documents, and JSON lines, one document per object."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.corpus import LINE_COUNTS, Corpus, Counts, Document
from tfm_jax.text.corpora.files import Line, content_fingerprint, counted, decoded, expand, former_fingerprint
from tfm_jax.text.corpora.held_out import check_documents, split_lines
from tfm_jax.text.corpora.opening import JSON_LINES, check_json_lines, ending

DOCUMENTS = ("block", "line", "file")
"""What `data.document` may be."""

SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which JSON can spell and UTF-8 cannot


def text_corpus(
  path: str,
  eval_path: str = "",
  eval_fraction: float = 0.1,
  document: str = "block",
  errors: str = "raise",
  field: str = "",
  target_field: str = "",
  json_lines: bool = False,
) -> Corpus:
  """Text files, cut into documents. Files that end in .jsonl or .ndjson hold one document per line.

  Args:
    path: a file, a folder (every file in it), a glob, or several of these with commas between. `~` is
      expanded; the files of a folder or glob come in sorted order.
    eval_path: the same, for the held-out text; without it the last `eval_fraction` of the text (in bytes,
      over all files in order) is held out, cut at the nearest line end; where that leaves nothing on one side,
      within the line, at white space (not if lines are documents).
    eval_fraction: from 0, which holds nothing out, to below 1.
    document: "block" (blank lines separate), "line" or "file" (which has to fit in memory). Line ends inside
      a document are kept. In JSON lines the text of each object is a document, whatever this says.
    errors: what to do with bytes that are not UTF-8: "raise", or "replace" by U+FFFD and count the lines.
    field: JSON lines: the key of the text in each object; dots lead into nested objects, and the texts of several
      keys with plus signs are joined; empty: `text`.
    target_field: JSON lines: the key of the other side of pairs, as `field`; empty: there are no pairs.
    json_lines: all files are JSON lines, whatever their endings.

  Raises:
    UserError: a missing, unreadable or empty file set, or a file that holds no text; while reading, undecodable
      text and lines that are no such objects (named by file and line), or no text.
  """
  if document not in DOCUMENTS:
    raise UserError(f"data.document={document}: expected one of {', '.join(DOCUMENTS)}")
  split = split_lines(path, eval_path, eval_fraction, errors, any_ending=json_lines)
  every = [*split.files, *split.eval_files]
  for file in every if json_lines else ():
    check_json_lines(file)
  in_json = frozenset(file for file in every if json_lines or ending(file) in JSON_LINES)
  if field and not in_json:
    raise UserError(f"data.field={field}: {path} is plain text, without fields; for JSON lines set data.source=jsonl")
  if target_field and len(in_json) < len(every):
    raise UserError(f"data.target_field={target_field}: {path} has files of plain text, which have no fields")
  split = split._replace(whole=frozenset(every) if document == "line" else in_json)
  keys: tuple[str, ...] = (field or "text", target_field) if target_field else (field or "text",)

  def read(part: str, counts: Counts) -> Iterator[Document]:
    counts["blank"] = documents = 0
    for file, lines in itertools.groupby(split.lines(part, counts), key=lambda line: line.file):
      if file in in_json:
        found = _json_texts(lines, keys, errors, counts)
      else:
        found = ((text,) for text in _documents(decoded(lines, errors, counts), document))
      for texts in found:
        if any(not text or text.isspace() for text in texts):
          counts["blank"] += 1
        else:
          documents += 1
          yield texts
    check_documents(documents, part, path, eval_path)

  settings: list[Any] = ["text", document, errors]
  former = former_fingerprint(settings, split.cut, every)
  if in_json:
    flags = [[file in in_json for file in group] for group in (split.files, split.eval_files)]
    settings += [["jsonl", *keys, flags]]
    former = ""  # earlier releases read JSON lines as plain text
  of = f"pairs of {keys[0]!r} and {keys[1]!r}" if target_field else f"texts of {keys[0]!r}"
  kind = f"{of} in JSON lines (data.field)" if in_json else f"{document}s (data.document)"
  if in_json and len(in_json) < len(every):
    kind = f"{document}s (data.document), and {kind}"
  return Corpus(
    name="jsonl" if json_lines else "text",
    description=f"{path}: {counted(split.files, 'file')}, {sum(split.sizes):,} bytes; documents are {kind}",
    held_out=split.held_out,
    fingerprint=content_fingerprint([*settings, split.cut], [split.files, split.eval_files]),
    former_fingerprint=former,
    read=read,
    sides=len(keys),
    left_out={"blank": "blank lines, left out" if document == "line" else "blank documents, left out", **LINE_COUNTS},
  )


def json_field(path: str, field: str) -> str:
  """The field, if JSON lines are among the files of a path; otherwise "". Raises UserError if there is no such file."""
  return field if any(ending(file) in JSON_LINES for file in expand(path, "data.path")) else ""


def _documents(lines: Iterable[str], document: str) -> Iterator[str]:
  """The documents of the lines of one file."""
  if document == "file":
    yield "".join(lines)
  elif document == "line":
    for line in lines:
      yield line.removesuffix("\n")
  else:
    for blank, block in itertools.groupby(lines, key=lambda line: not line or line.isspace()):
      if not blank:
        yield "".join(block).removesuffix("\n")


def _json_texts(lines: Iterable[Line], keys: Sequence[str], errors: str, counts: Counts) -> Iterator[Document]:
  """The texts of each line's JSON object; "" of a blank line. Raises UserError naming file and line."""
  lines, numbered = itertools.tee(lines)
  for line, text in zip(numbered, decoded(lines, errors, counts), strict=True):
    yield (
      tuple("" for _ in keys) if text.isspace() else _from_json(text, keys, errors, f"{line.file}, line {line.number}")
    )


def _from_json(line: str, keys: Sequence[str], errors: str, place: str) -> Document:
  """The texts under `keys` in the JSON object that `line` holds."""
  try:
    value: Any = json.loads(line)
  except (ValueError, RecursionError) as error:
    reason = f"at column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
    raise UserError(f"{place}: not a JSON object ({reason}); JSON lines have one object per line") from error
  if not isinstance(value, dict):
    raise UserError(f"{place}: not a JSON object but {_type(value)}; JSON lines have one object per line")
  return tuple(_joined(value, key, errors, place) for key in keys)


def _joined(value: dict[str, Any], field: str, errors: str, place: str) -> str:
  """The text under one key, or the texts under several with plus signs."""
  text = "".join(_value(value, key, place) for key in ([field] if field in value else field.split("+")))
  if SURROGATES.search(text):
    if errors == "raise":
      raise UserError(f"{place}: half of a character (\\ud800 to \\udfff); mend it, or set data.errors=replace")
    return SURROGATES.sub("\ufffd", text)
  return text


def _value(value: Any, field: str, place: str) -> str:
  """The text under one key, in which dots lead into nested objects. Raises UserError."""
  for key in [field] if field in value else field.split("."):
    if not isinstance(value, dict) or key not in value:
      keys = ", ".join(map(repr, value)) if isinstance(value, dict) else "none"
      raise UserError(f"{place}: no key {field!r}; set data.field to the key of the text (keys: {keys})")
    value = value[key]
  if not isinstance(value, str):
    raise UserError(f"{place}: the value of {field!r} is {_type(value)}, not a text; set data.field")
  return value


def _type(value: Any) -> str:
  """What JSON calls a value of this type."""
  names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
  return names.get(type(value), "a number")
