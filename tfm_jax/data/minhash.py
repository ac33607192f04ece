"""Near duplicates by MinHash (Broder 1997): texts that share most of their runs of five words."""

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from tfm_jax.objectives.draws import GOLDEN, mix

FUNCTIONS = 128  # hash functions: the error of an estimated similarity of 0.8 is 0.035
SHINGLE = 5  # words of a run
NONE = np.uint32(0xFFFFFFFF)  # the signature of a text without words

_ROWS = 8  # functions per band: of 16 bands, one is equal with probability 0.95 at a similarity of 0.8
_LONGEST = 1 << 20  # characters of a text that count
_EARLIER = 4  # texts of a band that a text is compared with, beside the first
_PAIRS = 1 << 16  # pairs of signatures that are compared at once
_PART = 1 << 23  # keys that are sorted at once

_FACTORS = mix(np.arange(1, FUNCTIONS + 1, dtype=np.uint64) * GOLDEN) | np.uint64(1)
_TERMS = mix(np.arange(1001, FUNCTIONS + 1001, dtype=np.uint64) * GOLDEN)
_PLACES = mix(np.arange(2001, SHINGLE + 2001, dtype=np.uint64) * GOLDEN) | np.uint64(1)
_BASE = 0x100000001B3  # odd, so that its powers have inverses modulo 2**64


def _letters() -> np.ndarray:
  """Byte of UTF-8 -> its value in a hash: case is folded, and 0 for ASCII that separates words."""
  table = np.arange(1, 257, dtype=np.uint64)
  for byte in range(128):
    character = chr(byte).lower()
    table[byte] = ord(character) + 1 if character.isalnum() else 0
  return table


_LETTERS = _letters()


@functools.cache
def _separators() -> re.Pattern[str]:
  """Runs of characters beyond ASCII that separate words: neither letters and digits nor marks, such as vowel signs."""
  marks = [code for code in range(0x300, 0x20000) if unicodedata.category(chr(code)).startswith("M")]
  runs = [[code for _, code in run] for _, run in itertools.groupby(enumerate(marks), lambda pair: pair[1] - pair[0])]
  return re.compile(rf"[^\x00-\x7f\w{''.join(f'{chr(run[0])}-{chr(run[-1])}' for run in runs)}]+")


def _plain(text: str) -> str:
  """The text without what is folded or separates words beyond ASCII, which `_LETTERS` does for ASCII."""
  return text if text.isascii() else _separators().sub(" ", text.lower())


def signatures(texts: Sequence[str]) -> np.ndarray:
  """The smallest values of 128 hash functions over the shingles of each text, uint32 [texts, 128].

  The share of functions in which two texts agree estimates the Jaccard similarity of their sets of shingles. A shingle
  is five words (a shorter text is one shingle); words are separated by spaces, punctuation and symbols of all scripts,
  and each character of Chinese, Japanese and Korean is a word. Case does not count. `NONE`: a text without words.
  """
  raw = [_plain(text[:_LONGEST]).encode() + b" " for text in texts]
  data = np.frombuffer(b"".join(raw), np.uint8)
  ends = np.cumsum([len(one) for one in raw])
  letters = _LETTERS[data]
  is_letter = letters > 0
  ideograph = (data >= 0xE3) & (data <= 0xED)  # the first of three bytes
  starts = np.flatnonzero(is_letter & (~np.concatenate([[False], is_letter[:-1]]) | ideograph))
  result = np.full((len(texts), FUNCTIONS), NONE)
  if not len(starts):
    return result
  words = _word_hashes(letters, starts)
  owner = np.searchsorted(ends, starts, side="right")
  shingles = np.zeros(len(words), np.uint64)
  for j in range(min(SHINGLE, len(words))):
    same = owner[j:] == owner[: len(owner) - j]
    shingles[: len(words) - j] += np.where(same, words[j:] * _PLACES[j], np.uint64(0))
  last = np.concatenate([owner[SHINGLE - 1 :], np.full(min(SHINGLE - 1, len(owner)), -1)])[: len(owner)]
  first = np.concatenate([[True], owner[1:] != owner[:-1]])
  kept = (last == owner) | first
  shingles, owner = mix(shingles[kept]), owner[kept]
  begins = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
  for k in range(FUNCTIONS):
    values = ((shingles * _FACTORS[k] + _TERMS[k]) >> np.uint64(32)).astype(np.uint32)
    result[owner[begins], k] = np.minimum.reduceat(values, begins)
  return result


def _word_hashes(letters: np.ndarray, starts: np.ndarray) -> np.ndarray:
  """A polynomial hash of the letters from each start to the next."""
  base, inverse = (np.full(len(letters), value, np.uint64) for value in (_BASE, pow(_BASE, -1, 1 << 64)))
  base[0] = inverse[0] = 1
  sums = np.concatenate([[np.uint64(0)], np.cumsum(letters * np.cumprod(base))])
  parts = sums[np.append(starts[1:], len(letters))] - sums[starts]
  return mix(parts * np.cumprod(inverse)[starts])


def near_duplicates(signed: np.ndarray, candidates: np.ndarray, similarity: float) -> np.ndarray:
  """Which texts resemble an earlier one, bool [texts]: of each group of similar texts the first stays.

  Two texts are compared if their signatures agree in a whole band (8 of 128 values); of many texts with one band, each
  is compared with the first and with the four before it, so that the work grows with the number of texts.

  Args:
    signed: uint32 [texts, 128], possibly memory-mapped.
    candidates: bool [texts], those that take part.
    similarity: the smallest estimated Jaccard similarity of duplicates.
  """
  result = np.zeros(len(signed), bool)
  candidates = candidates & (signed[:, 0] != NONE)
  for begin in range(0, FUNCTIONS, _ROWS):
    keys = _band_keys(signed, begin)
    for members in _parts(keys, candidates):
      order = members[np.argsort(keys[members], kind="stable")]
      for earlier, later in _pairs(order, keys[order]):
        fresh = ~result[later]
        earlier, later = earlier[fresh], later[fresh]
        for start in range(0, len(later), _PAIRS):
          a, b = earlier[start : start + _PAIRS], later[start : start + _PAIRS]
          result[b[(signed[a] == signed[b]).mean(axis=1) >= similarity]] = True
  return result


def _band_keys(signed: np.ndarray, begin: int) -> np.ndarray:
  """A hash of one band of each signature, uint64 [texts]."""
  keys = np.zeros(len(signed), np.uint64)
  for start in range(0, len(signed), _PAIRS):
    band = signed[start : start + _PAIRS, begin : begin + _ROWS].astype(np.uint64)
    for column in band.T:
      keys[start : start + _PAIRS] = mix((keys[start : start + _PAIRS] ^ column) + GOLDEN)
  return keys


def _parts(keys: np.ndarray, candidates: np.ndarray) -> Iterator[np.ndarray]:
  """The candidates' numbers in parts of about `_PART`; equal keys are in the same part."""
  parts = np.uint64(-(-int(candidates.sum()) // _PART) or 1)
  for part in range(int(parts)):
    yield np.flatnonzero(candidates & (keys % parts == part))


def _pairs(order: np.ndarray, keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(earlier, later) texts of equal keys: each with those just before it, and with the first."""
  for distance in range(1, _EARLIER + 1):
    same = np.flatnonzero(keys[distance:] == keys[:-distance])
    yield order[same], order[same + distance]
  if len(keys):
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    leader = np.repeat(first, np.diff(np.append(first, len(keys))))
    far = np.flatnonzero(np.arange(len(keys)) - leader > _EARLIER)
    yield order[leader[far]], order[far]


def repeated(digests: np.ndarray, candidates: np.ndarray) -> np.ndarray:
  """Which texts have the digest (uint64 [texts, 2]) of an earlier candidate (bool [texts]): bool [texts]."""
  result = np.zeros(len(digests), bool)
  keys = digests[:, 0]
  for members in _parts(np.asarray(keys), candidates):
    both = np.asarray(digests[members])
    order = np.lexsort((members, both[:, 1], both[:, 0]))
    same = (both[order[1:]] == both[order[:-1]]).all(axis=1)
    result[members[order[1:][same]]] = True
  return result
