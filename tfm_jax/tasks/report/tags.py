"""Errors of the form "tags"."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from tfm_jax.runtime.reporting import page
from tfm_jax.runtime.reporting.page import Html
from tfm_jax.tasks.report.classes import class_rows, class_table
from tfm_jax.tasks.report.parts import Row, confusion, matrix, plain, section_by_length
from tfm_jax.tasks.scoring.tags import Entity, Tags, bio_faults, entities, marks_entities

NONE = "(none)"
KINDS = {
  "right": "right",
  "type": "wrong type, right words",
  "boundary": "right type, wrong boundary",
  "both": "wrong type and boundary",
  "missed": "missed",
  "extra": "extra: the label has no entity there",
}
LEGEND = (
  '<ul class="legend"><li><mark class="right label">right</mark></li>'
  '<li><mark class="predicted">predicted</mark>, but wrong</li><li><mark class="label">label</mark></li>'
  '<li><span class="tag wrong">LOC, is ORG</span>predicted LOC, the label is ORG</li></ul>'
)


@dataclasses.dataclass(frozen=True)
class Match:
  """An entity of the label with the predicted one that it was taken for; one of them is None if there is no other."""

  kind: str
  label: Entity | None
  prediction: Entity | None

  @property
  def words(self) -> range:
    """The words of both."""
    both = [one for one in (self.label, self.prediction) if one]
    return range(min(one[1] for one in both), max(one[2] for one in both) + 1)

  def text(self) -> str:
    """Short text about the types."""
    label, prediction = (one[0] if one else "" for one in (self.label, self.prediction))
    return {
      "right": label,
      "type": f"{prediction}, is {label}",
      "boundary": f"{label}, wrong boundary",
      "both": f"{prediction}, is {label} with another boundary",
      "missed": f"missed {label}",
      "extra": f"{prediction}, is no entity",
    }[self.kind]


class TagsReport:
  """A `FormReport` of tags."""

  order = (
    "Sentences, the most confident mistakes first: by the highest probability of a wrong tag. "
    "Coloured: predicted entities. Underlined: those of the label."
  )
  full = True

  def __init__(self, rows: Sequence[Row]) -> None:
    self._rows = rows
    self._labelled = [row for row in rows if row["label"] is not None]
    self._entities = marks_entities(rows)

  def mistakes(self) -> list[int]:
    """By descending probability of the most confident wrong tag."""
    sure = {}
    for i, row in enumerate(self._rows):
      if row["label"] is None or row["label"] == row["prediction"]:
        continue
      if self._entities and set(entities(row["label"])) == set(entities(row["prediction"])):
        continue
      wrong = [n for n, (a, b) in enumerate(zip(row["label"], row["prediction"], strict=True)) if a != b]
      probabilities = row.get("probabilities") or [0.0] * len(row["words"])
      sure[i] = max(probabilities[n] for n in wrong)
    return sorted(sure, key=lambda i: -sure[i])

  def example(self, row: Row) -> str:
    """Nothing: the verdict has the words."""
    return ""

  def verdict(self, row: Row) -> str:
    """The sentence with its entities marked."""
    if not self._entities:
      return self._tagged(row)
    if row["label"] is None:
      found = [Match("extra", None, entity) for entity in entities(row["prediction"])]
      return f'<p class="text sentence">{_marked(row["words"], found, judged=False)}</p>'
    found = aligned(entities(row["label"]), entities(row["prediction"]))
    return f'<p class="text sentence">{_marked(row["words"], found)}</p>'

  def short(self, row: Row) -> tuple[str, str]:
    """The wrong entities; the sentence."""
    wrong = [f"{' '.join(row['words'][n] for n in one.words)}: {one.text()}" for one in self._matches(row)]
    return plain("; ".join(wrong)), plain(" ".join(row["words"]))

  def sections(self) -> list[str]:
    """Kinds of errors, scores and confusion of types, scores by length."""
    by_length = section_by_length("tags", self._labelled, lambda row: " ".join(row["words"]), "sentence", self._main)
    if not self._entities:
      return [self._of_tags(), by_length]
    matches = [aligned(entities(row["label"]), entities(row["prediction"])) for row in self._labelled]
    return [self._kinds(matches), self._types(), self._confusion(matches), by_length]

  @property
  def _main(self) -> str:
    return "f1" if self._entities else "accuracy"

  def _matches(self, row: Row) -> list[Match]:
    """What is wrong in a sentence."""
    if not self._entities:
      pairs = enumerate(zip(row["label"], row["prediction"], strict=True))
      return [Match("type", (a, n, n), (b, n, n)) for n, (a, b) in pairs if a != b]
    return [one for one in aligned(entities(row["label"]), entities(row["prediction"])) if one.kind != "right"]

  def _tagged(self, row: Row) -> str:
    """Words with the tags that are wrong."""
    labels = row["label"] or row["prediction"]
    out = []
    for word, prediction, label in zip(row["words"], row["prediction"], labels, strict=True):
      wrong = prediction != label
      said = f'<span class="tag wrong">{escape(prediction)}, is {escape(label)}</span>' if wrong else ""
      out.append(f'<mark class="predicted">{escape(word)}</mark>{said}' if wrong else escape(word))
    return f'<p class="text sentence">{" ".join(out)}</p>'

  def _kinds(self, matches: Sequence[Sequence[Match]]) -> str:
    """How many entities of each kind, with examples."""
    counts = Counter(one.kind for own in matches for one in own)
    total = max(sum(counts.values()), 1)
    examples: dict[str, list[str]] = {}
    for row, own in zip(self._labelled, matches, strict=True):
      for one in own:
        texts = examples.setdefault(one.kind, [])
        text = f"{' '.join(row['words'][n] for n in one.words)} ({one.text()})"
        if len(texts) < 4 and text not in texts and len(text) < 60:
          texts.append(text)
    some = lambda kind: Html(f'<span class="soft">{escape("; ".join(examples.get(kind, ())))}</span>')
    rows = [
      [
        title, some(kind) if kind != "right" else "",
        page.bar(counts[kind] / total, kind="good" if kind == "right" else "bad"), f"{counts[kind]:,}",
      ]
      for kind, title in KINDS.items()
    ]  # fmt: skip
    faults = sum(bio_faults(row["prediction"]) for row in self._labelled)
    explained = f"Every entity of the label with the predicted one that shares words with it. BIO faults: {faults:,}."
    listed = page.table(["entities", "such as", "", "count"], rows, text_columns=3, kind="kinds")
    return page.section("Kinds of errors", explained, listed)

  def _types(self) -> str:
    """Precision, recall and F1 per type."""
    by_type = Tags(self._labelled).by_type()
    right, predicted, labelled = np.array(list(by_type.values()), int).reshape(-1, 3).T
    rows = class_rows(list(by_type), right, predicted, labelled)
    explained = "Support is the number of entities of this type in the labels."
    return page.section("Types of entities", explained, class_table("type", rows))

  def _confusion(self, matches: Sequence[Sequence[Match]]) -> str:
    """Which type is taken for which."""
    pairs = [
      (one.label[0] if one.label else NONE, one.prediction[0] if one.prediction else NONE)
      for own in matches for one in own
    ]  # fmt: skip
    names = sorted({name for pair in pairs for name in pair} - {NONE})
    shown, counts = confusion(pairs, [*names, NONE])
    explained = (
      f"Entities that share words, with whatever boundary. The column {NONE} counts missed, the row extra ones."
    )
    return page.section("Confusion of types", explained, matrix(shown, shown, counts))

  def _of_tags(self) -> str:
    """Precision, recall and confusion of tags that mark no entities."""
    pairs = [pair for row in self._labelled for pair in zip(row["label"], row["prediction"], strict=True)]
    names = sorted({name for pair in pairs for name in pair})
    count = lambda values: np.array([values[name] for name in names])
    labelled, predicted = (count(Counter(pair[side] for pair in pairs)) for side in (0, 1))
    right = count(Counter(a for a, b in pairs if a == b))
    shown, counts = confusion(pairs, names)
    table = class_table("tag", class_rows(names, right, predicted, labelled))
    return page.section("Tags", "Support is the number of words with this label.", table) + page.section(
      "Confusion matrix", "One row per label; percentages are shares of the row.", matrix(shown, shown, counts)
    )


def aligned(labels: Iterable[Entity], predictions: Iterable[Entity]) -> list[Match]:
  """Matches each entity of the label with at most one predicted entity: an equal one, else that of the same words,
  else the one that shares the most words. In the order of the words."""
  left, rest = sorted(set(labels), key=_place), sorted(set(predictions), key=_place)
  out = []

  def take(kind: str, label: Entity, prediction: Entity) -> None:
    left.remove(label)
    rest.remove(prediction)
    out.append(Match(kind, label, prediction))

  for one in [one for one in left if one in rest]:
    take("right", one, one)
  for label, prediction in [(a, b) for a in left for b in rest if a[1:] == b[1:]]:
    take("type", label, prediction)
  shared = lambda a, b: min(a[2], b[2]) - max(a[1], b[1]) + 1
  pairs = sorted((-shared(a, b), a[0] != b[0], a, b) for a in left for b in rest if shared(a, b) > 0)
  for _, other_type, label, prediction in pairs:
    if label in left and prediction in rest:
      take("both" if other_type else "boundary", label, prediction)
  out += [Match("missed", one, None) for one in left] + [Match("extra", None, one) for one in rest]
  return sorted(out, key=lambda one: one.words.start)


def _place(entity: Entity) -> tuple[int, int, str]:
  """For sorting by words."""
  return entity[1], entity[2], entity[0]


def _marked(words: Sequence[str], matches: Sequence[Match], judged: bool = True) -> str:
  """A sentence with its entities: predicted words coloured, words of the label underlined, types behind them."""
  kinds: list[set[str]] = [set() for _ in words]
  tags: list[list[str]] = [[] for _ in words]
  for one in matches:
    if one.prediction:
      for n in range(one.prediction[1], one.prediction[2] + 1):
        kinds[n].add("right" if one.kind == "right" or not judged else "predicted")
    if one.label:
      for n in range(one.label[1], one.label[2] + 1):
        kinds[n].add("label")
    text = one.text() if judged else one.prediction[0] if one.prediction else ""
    wrong = " wrong" if one.kind != "right" and judged else ""
    tags[one.words[-1]].append(f'<span class="tag{wrong}">{escape(text)}</span>')
  out, n = [], 0
  while n < len(words):
    end = n + 1
    while end < len(words) and kinds[end] == kinds[n] and not tags[end - 1]:
      end += 1
    text = escape(" ".join(words[n:end]))
    out.append(
      (f'<mark class="{" ".join(sorted(kinds[n]))}">{text}</mark>' if kinds[n] else text) + "".join(tags[end - 1])
    )
    n = end
  return " ".join(out)
