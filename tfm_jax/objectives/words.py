"""Words, n-grams and sentences of rows of tokens, from what `Vocabulary.pieces` says about each id."""

import numpy as np

from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import Vocabulary

# Bits of `Vocabulary.pieces`.
JOINS = 1  # begins with a letter or digit and no space: continues the word before it, if that is open
OPEN = 2  # ends with a letter or digit
INSIDE = 4  # continues whatever precedes it, as "##ing" and all bytes of a character but its first
UNSPACED = 8  # one character of a script without spaces between words (Han, kana)
ENDS_SENTENCE = 16  # ends with a full stop, perhaps in quotation marks or brackets, or is a line end
CLOSES = 32  # closes a quotation or a bracket, and is nothing else

# Shares of words of 1, 2, 3 and 4 characters into which a run of unspaced characters is cut. Most Chinese words have
# one or two; there is no segmenter here that knows where they end.
_UNSPACED_WORDS = (0.4, 0.5, 0.05, 0.05)


def pieces_of(vocabulary: Vocabulary) -> np.ndarray:
  """The bits of each id, uint8 [size]; 0 if nothing is known of the pieces: each token is a word then."""
  if not vocabulary.pieces:
    return np.zeros(vocabulary.size, np.uint8)
  return np.frombuffer(vocabulary.pieces, np.uint8)


def sentence_ends(pieces: np.ndarray) -> np.ndarray:
  """Which tokens are the last of a sentence, bool [R, L], from their bits, uint8 [R, L].

  A mark that closes a quotation belongs to the sentence that ends before it. A second one opens the next quotation:
  WordPiece does not tell both sides apart.
  """
  ends, closes = pieces & ENDS_SENTENCE > 0, pieces & CLOSES > 0
  last = ends.copy()
  last[:, :-1] &= ~closes[:, 1:]
  last[:, 1:] |= ends[:, :-1] & closes[:, 1:]
  return last


def word_starts(
  draws: Draws, site: int, pieces: np.ndarray, ordinary: np.ndarray, segment_ids: np.ndarray
) -> np.ndarray:
  """Which tokens begin a word, bool [R, L].

  Args:
    draws: the random numbers of the rows; they cut runs of unspaced characters into words.
    site: names this use of random numbers.
    pieces: the bits of each token, uint8 [R, L].
    ordinary: tokens that belong to words, bool [R, L]; others separate words.
    segment_ids: [R, L]; no word spans two segments.
  """
  before = np.zeros_like(pieces)
  before[:, 1:] = pieces[:, :-1]
  joins = (pieces & INSIDE > 0) | ((pieces & JOINS > 0) & (before & OPEN > 0))
  unspaced = pieces & before & UNSPACED > 0
  if unspaced.any():
    joins |= unspaced & ~runs(draws, site, pieces.shape[1], _UNSPACED_WORDS)
  return ordinary & ~(joins & follows(ordinary, segment_ids))


def ngram_starts(
  draws: Draws, site: int, starts: np.ndarray, ordinary: np.ndarray, segment_ids: np.ndarray, longest: int
) -> np.ndarray:
  """Which tokens begin an n-gram of words, bool [R, L]: n is drawn from 1 .. `longest` in proportion to 1 / n.

  `starts`: where words begin; n-grams end at tokens that are not ordinary and at segments. (Lan et al. 2020)
  """
  shares = 1 / np.arange(1, longest + 1)
  begins = runs(draws, site, starts.shape[1], tuple(shares / shares.sum()))
  word = np.maximum(np.cumsum(starts, axis=1) - 1, 0)
  return starts & (np.take_along_axis(begins, word, axis=1) | ~follows(ordinary, segment_ids))


def follows(ordinary: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
  """Which tokens are ordinary and follow an ordinary one of their segment, bool [R, L]."""
  both = np.zeros_like(ordinary)
  both[:, 1:] = ordinary[:, 1:] & ordinary[:, :-1] & (segment_ids[:, 1:] == segment_ids[:, :-1])
  return both


def runs(draws: Draws, site: int, count: int, shares: tuple[float, ...]) -> np.ndarray:
  """Cuts `count` things into runs, of length n with probability shares[n - 1]: True where one begins, [R, count]."""
  lengths = 1 + np.searchsorted(np.cumsum(shares)[:-1], draws.uniform(site, count), side="right")
  begins = np.zeros((len(lengths), count + 1), bool)
  begins[:, 0] = True
  np.put_along_axis(begins, np.minimum(np.cumsum(lengths, axis=1), count), True, axis=1)
  return begins[:, :count]


def choose_units(draws: Draws, site: int, starts: np.ndarray, members: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Chooses whole units in random order until they have counts[r] tokens; those that would exceed it are passed over.

  This is the rule of BERT's whole-word masking, so a row whose units are all longer than its count gets none.

  Args:
    draws: the random numbers of the rows.
    site: names this use of random numbers.
    starts: where units begin, bool [R, L].
    members: tokens of units, bool [R, L]; each belongs to the last unit that began.
    counts: int [R].

  Returns:
    The tokens of the chosen units, bool [R, L].
  """
  rows, length = starts.shape
  unit = np.maximum(np.cumsum(starts, axis=1) - 1, 0)
  flat = (np.arange(rows)[:, None] * length + unit)[members]
  sizes = np.bincount(flat, minlength=rows * length).reshape(rows, length)
  order = np.argsort(draws.bits(site, length), axis=1, kind="stable")
  in_order = np.take_along_axis(sizes, order, axis=1)
  left, taken = counts.astype(np.int64), np.zeros_like(starts)
  open_units = in_order > 0
  while True:
    open_units &= in_order <= left[:, None]
    if not open_units.any():
      break
    take = open_units & (np.cumsum(in_order * open_units, axis=1) <= left[:, None])
    taken |= take
    open_units &= ~take
    left = left - (in_order * take).sum(axis=1)
  chosen = np.zeros_like(starts)
  np.put_along_axis(chosen, order, taken, axis=1)
  return members & np.take_along_axis(chosen, unit, axis=1)


def slots_of(chosen: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray]:
  """The places of True in each row, ascending: (positions int32 [R, slots], 0 where unused; used bool [R, slots])."""
  length = chosen.shape[1]
  places = np.sort(np.where(chosen, np.arange(length, dtype=np.int32), np.int32(length)), axis=1)[:, :slots]
  used = places < length
  return np.where(used, places, np.int32(0)), used
