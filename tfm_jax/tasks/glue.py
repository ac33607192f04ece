"""GLUE's nine tasks (Wang et al. 2018): the columns of their files, and the scores that the benchmark reports."""

from typing import NamedTuple


class Glue(NamedTuple):
  """One task. Names of columns are those of GLUE's own files and of plainer copies of them.

  `words`: T5's names of the classes, in the order of their numbers (Raffel et al. 2020, appendix D).
  """

  text: tuple[str, ...]
  pair: tuple[str, ...]
  label: tuple[str, ...]
  metrics: tuple[str, ...] = ("accuracy",)
  numbers: bool = False
  words: tuple[str, ...] = ()


GLUE: dict[str, Glue] = {
  "cola": Glue(("sentence",), (), ("label",), ("matthews",), words=("unacceptable", "acceptable")),
  "sst2": Glue(("sentence",), (), ("label",), words=("negative", "positive")),
  "mrpc": Glue(
    ("sentence1", "#1 String"),
    ("sentence2", "#2 String"),
    ("label", "Quality"),
    ("f1", "accuracy"),
    words=("not_equivalent", "equivalent"),
  ),
  "stsb": Glue(("sentence1",), ("sentence2",), ("label", "score"), ("pearson", "spearman"), numbers=True),
  "qqp": Glue(
    ("question1",), ("question2",), ("label", "is_duplicate"), ("f1", "accuracy"), words=("not_duplicate", "duplicate")
  ),
  "mnli": Glue(
    ("premise", "sentence1"),
    ("hypothesis", "sentence2"),
    ("label", "gold_label"),
    words=("entailment", "neutral", "contradiction"),
  ),
  "qnli": Glue(("question",), ("sentence",), ("label",), words=("entailment", "not_entailment")),
  "rte": Glue(("sentence1",), ("sentence2",), ("label",), words=("entailment", "not_entailment")),
  "wnli": Glue(("sentence1",), ("sentence2",), ("label",), words=("not_entailment", "entailment")),
}
