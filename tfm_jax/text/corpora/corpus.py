"""What a corpus is: documents of one text or of a pair of texts, in a training and a held-out part."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Document = tuple[str, ...]
"""(text,), or (source, target) in a parallel corpus."""

Counts = dict[str, int]
"""What reading a part counted, by name: documents, bytes (UTF-8), and what was left out or changed."""

LINE_COUNTS = {
  "cut_lines": "lines cut at the split",
  "undecodable_lines": "lines not UTF-8, replaced by U+FFFD",
  "nul_lines": "lines with NUL characters, kept",
}
"""Labels of the counts that reading text files adds, see `Corpus.left_out`."""


@dataclass
class Corpus:
  """Documents in two parts that never overlap, always in the same order.

  Attributes:
    name: the source, as `data.source` has it.
    description: for the log: which texts these are.
    fingerprint: changes whenever the documents may have changed.
    read: (part, counts) -> the documents of "train" or "evaluation"; it adds to `counts` while it reads.
    held_out: for the log: what is held out, and by which setting.
    former_fingerprint: what `fingerprint` was in earlier releases, for the runs that they started; empty: the same.
    sides: texts in a document: 1, or 2 (source and target).
    left_out: labels, for the log, of the counts of a part that say what was left out or changed.
    left_out_of_both: the same for counts that concern the corpus before it is split; those of "train" tell them.
    counts: `train_documents`, `evaluation_blank` and so on; those of a part are known once it has been read to its end.
  """

  name: str
  description: str
  fingerprint: str
  read: Callable[[str, Counts], Iterator[Document]]
  held_out: str = ""
  former_fingerprint: str = ""
  sides: int = 1
  left_out: Mapping[str, str] = field(default_factory=dict)
  left_out_of_both: Mapping[str, str] = field(default_factory=dict)
  counts: Counts = field(default_factory=dict)

  def train(self) -> Iterator[Document]:
    """The documents to train on."""
    return self._part("train")

  def evaluation(self) -> Iterator[Document]:
    """The held-out documents: possibly none."""
    return self._part("evaluation")

  def _part(self, part: str) -> Iterator[Document]:
    counts: Counts = {"documents": 0, "bytes": 0}
    for document in self.read(part, counts):
      counts["documents"] += 1
      counts["bytes"] += sum(len(text.encode()) for text in document)
      yield document
    self.counts.update({f"{part}_{name}": count for name, count in counts.items()})


def joined(corpora: Sequence[Corpus]) -> Corpus:
  """Several corpora one after another, as a tokenizer learns from a mixture; of one, itself."""
  if len(corpora) == 1:
    return corpora[0]
  return Corpus(
    name="mixture",
    description="; ".join(corpus.description for corpus in corpora),
    fingerprint=hashlib.sha256(json.dumps([corpus.fingerprint for corpus in corpora]).encode()).hexdigest()[:16],
    read=lambda part, counts: itertools.chain.from_iterable(corpus.read(part, {}) for corpus in corpora),
    sides=corpora[0].sides,
  )
