"""Evaluation of language models on text files: likelihood per token, word, byte and character.

Only the likelihood per word, byte or character can be compared between tokenizers: the total is divided by something
that the text has, whatever its tokens are.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from tfm_jax.decode.scoring import is_masked, score_documents
from tfm_jax.errors import UserError
from tfm_jax.text.corpora.text_files import json_field, text_corpus
from tfm_jax.training.load import Run

log = logging.getLogger(__name__)

RESAMPLES = 1000  # of the documents, for the intervals
_SHOWN = 100  # characters of a document in its row
_LARGEST = 700.0  # exp of more is beyond float64

Counts = dict[str, np.ndarray]
"""nll, tokens, words, bytes and characters of each document."""


def evaluate_text(
  run: Run,
  path: str,
  *,
  window: int | None = None,
  stride: int | None = None,
  document: str | None = None,
  line_ends: bool = True,
  intervals: bool = True,
  seed: int = 0,
) -> tuple[dict[str, float], Iterable[dict[str, Any]]]:
  """The likelihood of text files under a causal model, or their pseudo-likelihood under a masked one.

  A token is scored given those before it in its document, beginning with the symbol that the model's texts begin with;
  without such a symbol the first token of a document is only read (`unscored_tokens`). A masked model predicts each
  token from all others of its window (Salazar et al. 2020). End symbols are not scored.

  Args:
    run: a trained language model.
    path: files, a folder or a glob, as for `data.path`.
    window: most tokens that the model reads at once; None: `data.seq_len`, which it was trained on.
    stride: tokens from one window of a long document to the next; None: half a window. `decode.scoring` says what is
      scored where.
    document: "block" (blank lines separate documents), "line" or "file"; None: `data.document` of the run.
    line_ends: whether the end of a line counts as a word, as in the word-level perplexities of WikiText, whose texts
      have a word <eos> there. Words are what white space separates.
    intervals: whether to draw the documents again and again for 95 % intervals (if there are several documents).
    seed: of these draws.

  Returns:
    (scores, one row per document). Scores: `documents`, `tokens` (those scored), `unscored_tokens`, `unknown_tokens`,
    `words`, `bytes` (UTF-8), `characters`, `window`, `stride`; `nll`, the sum of -log p in nats; `token_perplexity` =
    exp(nll / tokens), of a masked model also as `pseudo_perplexity`; `word_perplexity` = exp(nll / words);
    `bits_per_byte`, `bits_per_character`; and the ends of intervals, as `word_perplexity_low` and `_high`. Rows: `text`
    (its beginning), `tokens`, `words`, `bytes`, `nll`, `bits_per_byte`.

  Raises:
    UserError: no causal or masked language model, no tokenizer, an impossible window, or files without text.
  """
  tokenizer, data = run.tokenizer, run.config.data
  if tokenizer is None:
    raise UserError("the run has no tokenizer, so it cannot read text: import it from a folder with tokenizer files")
  window = window or data.seq_len
  field = json_field(path, data.field) if data.source in ("text", "jsonl") else ""
  corpus = text_corpus(path, "", 0.0, document or data.document, data.errors, field)
  texts = [text for (text,) in corpus.train()]
  ids = tokenizer.encode_batch(texts)
  masked = is_masked(run.model)
  # disable=None: no bar where stderr is not a terminal.
  with tqdm(total=sum(map(len, ids)), desc=path, unit=" tokens", unit_scale=True, delay=2, disable=None) as bar:
    begin = -1 if masked else run.begin_id
    nll, tokens = score_documents(run.model, run.params, tokenizer, ids, window, stride, begin, bar.update)
  if not tokens.sum():
    raise UserError(f"{path}: nothing to score: no document has two tokens, and the model's texts begin with no symbol")
  counts = {"nll": nll, "tokens": tokens, **_counts(texts, line_ends)}
  unknown = sum(int((one == tokenizer.unk_id).sum()) for one in ids) if tokenizer.unk_id >= 0 else 0
  if unknown:
    log.warning(
      "%d tokens are unknown to the tokenizer: what they stand for is not scored, so scores are too good", unknown
    )
  symbols = sum(id >= 0 for id in (tokenizer.bos_id, tokenizer.eos_id)) if masked else 0
  scores = {
    "documents": float(len(texts)),
    **{name: float(values.sum()) for name, values in counts.items()},
    "unscored_tokens": float(sum(map(len, ids)) - tokens.sum()),
    "unknown_tokens": float(unknown),
    "window": float(window),
    "stride": float(stride or (window - symbols) // 2),
  }
  scores |= _scores({name: values.sum() for name, values in counts.items()})
  if masked:
    scores["pseudo_perplexity"] = scores["token_perplexity"]
  if intervals and len(texts) > 1:
    scores |= _intervals(counts, seed)
  return scores, _rows(texts, counts)


def _counts(texts: list[str], line_ends: bool) -> Counts:
  """What the texts have, whatever the tokenizer; the last line of a text has an end even where it is not written."""
  lines = lambda text: text.count("\n") + (not text.endswith("\n"))
  words = [len(text.split()) + (lines(text) if line_ends else 0) for text in texts]
  sizes = [len(text.encode()) for text in texts]
  return {"words": np.array(words), "bytes": np.array(sizes), "characters": np.array([len(text) for text in texts])}


def _scores(sums: Mapping[str, Any]) -> dict[str, Any]:
  """The scores of sums over documents, which may be arrays."""
  exp = lambda nats: np.exp(np.minimum(nats, _LARGEST))
  nll, bits = sums["nll"], sums["nll"] / math.log(2)
  with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have nothing but documents without tokens
    scores = {
      "token_perplexity": exp(nll / sums["tokens"]),
      "word_perplexity": exp(nll / sums["words"]),
      "bits_per_byte": bits / sums["bytes"],
      "bits_per_character": bits / sums["characters"],
    }
  return {name: float(value) if np.ndim(value) == 0 else value for name, value in scores.items()}


def _intervals(counts: Counts, seed: int) -> dict[str, float]:
  """The 95 % bootstrap interval of each score: documents are drawn with replacement."""
  draw, documents = np.random.default_rng(seed), len(counts["nll"])
  sums: dict[str, list[float]] = {name: [] for name in counts}
  for _ in range(RESAMPLES):
    times = np.bincount(draw.integers(documents, size=documents), minlength=documents)
    for name, values in counts.items():
      sums[name].append(float(times @ values))
  found: dict[str, float] = {}
  for name, values in _scores({name: np.array(values) for name, values in sums.items()}).items():
    low, high = np.nanpercentile(values, (2.5, 97.5))
    found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
  return found


def _rows(texts: list[str], counts: Counts) -> Iterator[dict[str, Any]]:
  """One object per document."""
  for i, text in enumerate(texts):
    numbers = {name: int(counts[name][i]) for name in ("tokens", "words", "bytes")}
    nll = float(counts["nll"][i])
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    yield {"text": shown, **numbers, "nll": nll, "bits_per_byte": nll / math.log(2) / max(numbers["bytes"], 1)}
