"""The block of the log that says what a run reads: documents, tokens and bytes, and what was left out."""

from collections.abc import Mapping, Sequence

from tfm_jax.objectives.plan import Split
from tfm_jax.text.corpora.table import Corpus

_PARTS = ("train", "evaluation")


def corpus_block(
  corpus: Corpus, splits: Sequence[Split], rows: Sequence[int], counts: Mapping[str, int], row_tokens: int
) -> str:
  """A table with the training and the held-out part side by side, below the name of the source.

  Args:
    corpus: the source.
    splits: the tokenised parts, training first.
    rows: the number of rows of each.
    counts: what reading the corpus counted, see `Corpus.counts`.
    row_tokens: tokens of text per row.
  """
  table: dict[str, Sequence[int]] = {
    "documents": [split.documents for split in splits],
    "tokens": [split.num_tokens for split in splits],
    "bytes of text": [split.text_bytes for split in splits],
    f"rows of {row_tokens:,} tokens": rows,
  }
  for name, label in corpus.left_out.items():
    numbers = [counts.get(f"{part}_{name}", 0) for part in _PARTS]
    if any(numbers):
      table[label] = numbers
  width = max(map(len, table))
  lines = [f"corpus ({corpus.name}): {corpus.description}", f"  {'':{width}}  {'train':>14}  {'held-out':>14}"]
  lines += [f"  {label:{width}}  {train:>14,}  {held_out:>14,}" for label, (train, held_out) in table.items()]
  lines.append(f"  held out: {corpus.held_out if splits[1].documents else 'nothing'}")
  left_out = {label: counts.get(f"train_{name}", 0) for name, label in corpus.left_out_of_both.items()}
  listed = [f"{count:,} {label}" for label, count in left_out.items() if count]
  if listed:
    lines.append(f"  left out of both: {', '.join(listed)}")
  return "\n".join(lines)


def mixture_block(names: Sequence[str], rows: Sequence[int], shares: Sequence[float]) -> str:
  """A table of the sources of a mixture: their training rows, their shares, and how often each row is seen.

  Args:
    names: of the sources.
    rows: the number of training rows of each.
    shares: of each among the rows of a batch.
  """
  width = max(6, *map(len, names))
  lines = [
    "mixture:",
    f"  {'source':{width}}  {'rows':>14}  {'share':>7}  passes while all rows are seen once on average",
  ]
  for name, count, share in zip(names, rows, shares, strict=True):
    lines.append(f"  {name:{width}}  {count:>14,}  {share:>7.2%}  {share * sum(rows) / count:.2f}")
  return "\n".join(lines)
