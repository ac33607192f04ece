"""The corpus of a data set of TensorFlow Datasets: the texts of a field, or pairs of the texts of two fields."""

from collections.abc import Iterator

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.corpus import Corpus, Counts, Document
from tfm_jax.text.corpora.files import UNDECODABLE, check_split, content_fingerprint
from tfm_jax.text.corpora.held_out import is_held_out
from tfm_jax.text.tfds import TfdsData, open_splits


def tfds_corpus(
  path: str,
  split: str = "train",
  eval_split: str = "",
  eval_fraction: float = 0.1,
  field: str = "",
  target_field: str = "",
  errors: str = "raise",
) -> Corpus:
  """The examples of a prepared data set, each of which is a document. They are read one after another.

  Args:
    path, split, eval_split: see `text.tfds.open_splits`.
    eval_fraction: without a validation split, the share of the examples that is held out, by a hash of the text.
    field: of the text; empty: `text`, or the only field with a text.
    target_field: of the other side of pairs; empty: there are no pairs.
    errors: what to do with bytes that are not UTF-8, see `text_corpus`.

  Raises:
    UserError: no such data set, split or field; while reading, a damaged file or undecodable text.
  """
  check_split(eval_fraction, errors)
  train, held_out = open_splits(path, split, eval_split)
  names = _names(train.data, field, target_field)

  def read(part: str, counts: Counts) -> Iterator[Document]:
    counts["blank"] = 0
    in_evaluation = part == "evaluation"
    if in_evaluation and not (held_out or eval_fraction):
      return
    for texts in (held_out if held_out and in_evaluation else train).examples(names, errors, counts):
      if not held_out and is_held_out(texts[0], eval_fraction) != in_evaluation:
        continue
      if any(not text or text.isspace() for text in texts):
        counts["blank"] += 1
      else:
        yield texts

  settings = ["tfds", names, errors, split, held_out.split if held_out else eval_fraction]
  kind = f"pairs of {names[0]!r} and {names[1]!r}" if target_field else f"texts of {names[0]!r} (data.field)"
  share = f"{eval_fraction:.1%} of the examples, by a hash of their text (data.eval_fraction)"
  return Corpus(
    name="tfds",
    description=f"{train}: {len(train):,} examples; documents are {kind}",
    held_out=f"the split {held_out.split} (data.eval_split): {len(held_out):,} examples" if held_out else share,
    fingerprint=content_fingerprint(settings, [train.files, held_out.files if held_out else []]),
    read=read,
    sides=len(names),
    left_out={"blank": f"blank {'pairs' if target_field else 'documents'}, left out", **UNDECODABLE},
  )


def _names(data: TfdsData, field: str, target_field: str) -> tuple[str, ...]:
  """The fields of a document. Raises UserError."""
  texts = [name for name, each in data.fields.items() if each.is_text]
  if not field:
    if target_field:
      raise UserError(f"data.target_field={target_field}: set data.field as well; the texts of {data} are {_in(texts)}")
    if "text" not in texts and len(texts) != 1:
      raise UserError(f"data.field is empty, and {data} has no field text: set it to one of {_in(texts)}")
    return ("text" if "text" in texts else texts[0],)
  for key, name in (("field", field), ("target_field", target_field)):
    if name and name not in texts:
      what = "holds no single text there" if name in data.fields else "has no such field"
      raise UserError(f"data.{key}={name}: {data} {what}; its texts are {_in(texts)}")
  return (field, target_field) if target_field else (field,)


def _in(names: list[str]) -> str:
  return ", ".join(names) or "none"
