"""Scores of the form "texts": generated texts beside their references.

BLEU (Papineni et al. 2002) and chrF (Popovic 2015) by sacrebleu (Post 2018), from 0 to 100 as it gives them. ROUGE (Lin
2004) by rouge-score: F1 from 0 to 1, the best over the references, with the Porter stemmer (ROUGE-1.5.5's option -m).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfm_jax.tasks.scoring.answers import language_of

ROUGE = ("rouge1", "rouge2", "rougeL")
_TITLES = {"bleu": "BLEU", "chrf": "chrF"}


class Texts:
  """Generated texts with their references.

  BLEU and chrF add up counts of n-grams over the examples, so that a resample's score follows from each example's
  counts. Chinese is cut by characters: by sacrebleu's tokenizer "zh", also for ROUGE.

  Attributes:
    language: "zh", or "en" for all others; detected by the characters of the references unless given.
    sentence: [N] chrF of each text alone.
    rouge: [N, 3] ROUGE-1, ROUGE-2 and ROUGE-L of each text.
  """

  def __init__(self, rows: Sequence[Mapping[str, Any]], language: str = "") -> None:
    # Late: importing them takes a second, which commands that score nothing save.
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    references = [references_of(row) for row in rows]
    predictions = [str(row["prediction"]) for row in rows]
    self.language = language or language_of(text for texts in references for text in texts)
    chinese = self.language == "zh"
    self._metrics = {"bleu": BLEU(tokenize="zh" if chinese else "13a"), "chrf": CHRF()}
    most = max(map(len, references))
    streams: Any = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    self._counts = {
      name: np.array(metric._extract_corpus_statistics(predictions, streams), np.float64)
      for name, metric in self._metrics.items()
    }
    self.sentence = np.array([self._score("chrf", counts) for counts in self._counts["chrf"]])
    scorer = RougeScorer(ROUGE, use_stemmer=not chinese, tokenizer=_Characters() if chinese else None)
    scored = [scorer.score_multi(texts, text) for texts, text in zip(references, predictions, strict=True)]
    self.rouge = np.array([[one[name].fmeasure for name in ROUGE] for one in scored])

  def right(self) -> None:
    """None: a text is better or worse, not right or wrong."""

  def errors(self) -> np.ndarray:
    """How far each text is from its references: 100 - chrF, [N]."""
    return 100 - self.sentence

  def scores(self) -> dict[str, float]:
    """`bleu`, `chrf`, `rouge1`, `rouge2`, `rougeL`."""
    return {name: float(values[0]) for name, values in self.resampled(np.ones((1, len(self.sentence)))).items()}

  def resampled(self, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of resamples [R, N]; [R] each."""
    counted = {
      name: np.array([self._score(name, counts) for counts in weights @ self._counts[name]]) for name in self._metrics
    }
    means = weights @ self.rouge / weights.sum(axis=1, keepdims=True)
    return counted | dict(zip(ROUGE, means.T, strict=True))

  def signatures(self) -> dict[str, str]:
    """How the scores were computed, in sacrebleu's words: two numbers compare if their signatures are equal."""
    found = {_TITLES[name]: str(metric.get_signature()) for name, metric in self._metrics.items()}
    return found | {"ROUGE": "rouge-score, F1, " + ("characters" if self.language == "zh" else "Porter stemmer")}

  def _score(self, name: str, counts: np.ndarray) -> float:
    """BLEU or chrF of the counts of one or many texts."""
    return float(self._metrics[name]._compute_score_from_stats(counts.tolist()).score)


class _Characters:
  """Chinese characters, and the words of other scripts, as a tokenizer of rouge-score."""

  def __init__(self) -> None:
    from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh  # late, as above

    self._cut = TokenizerZh()

  def tokenize(self, text: str) -> list[str]:
    return self._cut(text.lower()).split()


def references_of(row: Mapping[str, Any]) -> list[str]:
  """The references of a row that has any: its label is one or a list."""
  return [row["label"]] if isinstance(row["label"], str) else list(row["label"])
