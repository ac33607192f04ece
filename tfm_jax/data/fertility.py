"""How well a tokenizer fits the texts of each source: pieces per word, bytes per piece, unknown pieces."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tfm_jax.data.config import SourceConfig, source_name
from tfm_jax.text.corpora.table import Corpus
from tfm_jax.text.tokenizers.table import Tokenizer

CHARACTERS = 5_000_000  # of each source that are tokenised

_BATCH = 256  # texts that are tokenised at once


@dataclass(frozen=True)
class Fertility:
  """Counts over some text of one source.

  Attributes:
    source: its name.
    part: "held-out", or "train" if nothing is held out.
    words: runs of characters other than white space.
    pieces: ids that the tokenizer makes of them, with no special id added.
    unknown: those that are the unknown one.
    used: different ids.
  """

  source: str
  part: str
  text_bytes: int
  words: int
  pieces: int
  unknown: int
  used: int


def fertility(config: SourceConfig, corpus: Corpus, tokenizer: Tokenizer, characters: int = CHARACTERS) -> Fertility:
  """Tokenises the first documents of the held-out text, or of the training text if there is none. Raises UserError."""
  held_out = itertools.chain.from_iterable(corpus.evaluation())
  first = next(held_out, None)
  texts = itertools.chain.from_iterable(corpus.train()) if first is None else itertools.chain([first], held_out)
  size = words = pieces = unknown = 0
  used = np.zeros(tokenizer.vocab_size, bool)
  limited = _limited(texts, characters)
  while batch := list(itertools.islice(limited, _BATCH)):
    ids = np.concatenate(tokenizer.encode_batch(batch))
    size += sum(len(text.encode()) for text in batch)
    words += sum(len(text.split()) for text in batch)
    pieces += len(ids)
    unknown += int(np.count_nonzero(ids == tokenizer.unk_id))
    used[ids] = True
  part = "train" if first is None else "held-out"
  return Fertility(source_name(config), part, size, words, pieces, unknown, int(used.sum()))


def _limited(texts: Iterable[str], characters: int) -> Iterator[str]:
  """The texts up to this many characters."""
  for text in texts:
    yield text[:characters]
    characters -= len(text)
    if characters <= 0:
      return


def table(rows: Sequence[Fertility], vocab_size: int) -> str:
  """The sources one below the other."""
  width = max(6, *(len(row.source) for row in rows))
  columns = ["text", "bytes", "words", "pieces", "pieces/word", "bytes/piece", "unknown", "used"]
  lines = [f"{'source':{width}}" + "".join(f"  {column:>11}" for column in columns)]
  for row in rows:
    words, pieces = max(row.words, 1), max(row.pieces, 1)
    cells = [row.part, f"{row.text_bytes:,}", f"{row.words:,}", f"{row.pieces:,}", f"{row.pieces / words:.3f}"]
    cells += [f"{row.text_bytes / pieces:.3f}", f"{row.unknown / pieces:.3%}", f"{row.used / vocab_size:.0%}"]
    lines.append(f"{row.source:{width}}" + "".join(f"  {cell:>11}" for cell in cells))
  return "\n".join(lines)
