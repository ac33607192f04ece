"""What a corpus is: documents of one text or of a pair of texts, in a training and a held-out part."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

Document = tuple[str, ...]
"""(text,), or (source, target) in a parallel corpus."""

Counts = dict[str, int]
"""What one reading met, by name: documents, bytes (UTF-8), and what was skipped or replaced."""


@dataclass
class Corpus:
  """Documents in two parts that never overlap, always in the same order.

  Attributes:
    name: the source, as `data.source` has it.
    description: one line for the log: which corpus, and how to switch.
    fingerprint: changes whenever the documents may have changed.
    read: (part, counts) -> the documents of "train" or "evaluation"; it counts what it meets.
    former_fingerprint: what `fingerprint` was in earlier releases, for the runs that they made; empty: the same.
    sides: texts in a document: 1, or 2 (source and target, text and pair).
    classes: the names of the labels, where documents are labelled.
    labels: part -> the class of each of its documents, as an index into `classes`.
    counts: what was read and skipped, `train_documents`, `evaluation_blank` and so on; those of a part are
      there once it has been iterated to its end.
  """

  name: str
  description: str
  fingerprint: str
  read: Callable[[str, Counts], Iterator[Document]]
  former_fingerprint: str = ""
  sides: int = 1
  classes: tuple[str, ...] = ()
  labels: Callable[[str], Iterable[int]] = lambda part: ()
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
