"""GLUE's nine tasks (Wang et al. 2018): the columns of their files, and the scores that the benchmark reports."""

from typing import NamedTuple


class Glue(NamedTuple):
  """One task. Names of columns are those of GLUE's own files and of plainer copies of them."""

  text: tuple[str, ...]
  pair: tuple[str, ...]
  label: tuple[str, ...]
  metrics: tuple[str, ...] = ("accuracy",)
  numbers: bool = False


GLUE: dict[str, Glue] = {
  "cola": Glue(("sentence",), (), ("label",), ("matthews",)),
  "sst2": Glue(("sentence",), (), ("label",)),
  "mrpc": Glue(("sentence1", "#1 String"), ("sentence2", "#2 String"), ("label", "Quality"), ("f1", "accuracy")),
  "stsb": Glue(("sentence1",), ("sentence2",), ("label", "score"), ("pearson", "spearman"), numbers=True),
  "qqp": Glue(("question1",), ("question2",), ("label", "is_duplicate"), ("f1", "accuracy")),
  "mnli": Glue(("premise", "sentence1"), ("hypothesis", "sentence2"), ("label", "gold_label")),
  "qnli": Glue(("question",), ("sentence",), ("label",)),
  "rte": Glue(("sentence1",), ("sentence2",), ("label",)),
  "wnli": Glue(("sentence1",), ("sentence2",), ("label",)),
}
