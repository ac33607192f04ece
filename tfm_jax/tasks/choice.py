"""Evaluation of language models by likelihood, without training: the likeliest of several endings, and the last word.

Files are JSON lines: HellaSwag and others with a list of endings (Zellers et al. 2019), PIQA (Bisk et al. 2020), COPA
(Roemmele et al. 2011), and LAMBADA (Paperno et al. 2016), whose texts end with the word to predict. Prompts are as in
EleutherAI's lm-eval.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tfm_jax.decode.likelihood import Likelihood, likelihoods
from tfm_jax.errors import UserError
from tfm_jax.tasks.scoring.bootstrap import percentiles, resamples
from tfm_jax.text.corpora.files import find_text_files
from tfm_jax.text.examples.tables import Column, Row, check_text, read_table
from tfm_jax.training.load import Run

_COLUMNS = {
  "text": Column("", ("ctx", "premise", "goal", "query", "context", "text", "sentence")),
  "endings": Column("", ("endings", "choices", "candidates", "options"), required=False),
  "first": Column("", ("sol1", "choice1"), required=False),
  "second": Column("", ("sol2", "choice2"), required=False),
  "goal": Column("", ("goal",), required=False),
  "activity": Column("", ("activity_label",), required=False),
  "beginning": Column("", ("ctx_a",), required=False),
  "begun": Column("", ("ctx_b",), required=False),
  "relation": Column("", ("question",), required=False),
  "label": Column("", ("label", "answer"), required=False),
}
_HELLASWAG = ("activity", "beginning", "begun")
_CONNECTIVES = {"cause": "because", "effect": "therefore"}


class Item(NamedTuple):
  """A prompt and its endings, of which the one numbered `label` (from 0; None: not known) is right.

  An item with one ending asks for a last word.
  """

  prompt: str
  endings: tuple[str, ...]
  label: int | None


def evaluate_choices(
  run: Run, path: str, *, shots: int = 0, examples: str = "", seed: int = 0, batch_size: int = 16
) -> tuple[dict[str, float], list[dict[str, Any]]]:
  """Scores a language model on items of a file.

  Args:
    run: a decoder or an encoder-decoder with the head of a language model.
    path: the file, JSON lines.
    shots: solved examples in front of each prompt, separated by blank lines.
    examples: the file that they are drawn from, such as the training set.
    seed: of the draws, of which each item has its own.
    batch_size: most rows at once.

  Returns:
    (scores, one row per item). Of choices: `accuracy`, the share of items whose right ending has the largest
    log-probability, and `accuracy_normalised`, per character of the ending. Of last words: `accuracy`, the share that
    greedy decoding gives, and `perplexity` per word. Shares have the 95 % interval NAME_low to NAME_high.

  Raises:
    UserError: another form of file, shots without a file of examples, or a model that generates no text.
  """
  items = read_items(path)
  if shots:
    if not examples:
      raise UserError(f"--shots={shots} needs solved examples: say --examples=FILE, such as the training set")
    solved = [item for item in read_items(examples) if item.label is not None]
    if len(solved) < shots:
      raise UserError(f"{examples} has {len(solved)} solved examples, fewer than --shots={shots}")
    items = [_with_shots(item, solved, shots, seed, number) for number, item in enumerate(items)]
  pairs = [(item.prompt, f" {ending}") for item in items for ending in item.endings]
  with tqdm(total=len(pairs), desc=path, unit=" endings", delay=2, disable=None) as bar:
    found = likelihoods(run.model, run.params, run.its_tokenizer(), run.symbols, pairs, batch_size, bar.update)
  ends = np.cumsum([len(item.endings) for item in items])
  rows = [_row(item, found[end - len(item.endings) : end]) for item, end in zip(items, ends.tolist(), strict=True)]
  return _scores(items, rows), rows


def read_items(path: str) -> list[Item]:
  """The items of JSON lines, all of one kind. Raises UserError, which names file and line."""
  rows = read_table(find_text_files(path, "--data", any_ending=True), _COLUMNS)
  items = [_item(row) for row in rows]
  for row, item in zip(rows, items, strict=True):
    if (len(item.endings) == 1) != (len(items[0].endings) == 1):
      there, here = ("no endings", "some") if len(items[0].endings) == 1 else ("endings", "none")
      raise UserError(f"{row.place}: {here}, where {rows[0].place} has {there}: divide the file")
  return items


def _item(row: Row) -> Item:
  place, values = row.place, row.values
  pair = [values["first"], values["second"]]
  endings = pair if values["endings"] is None and pair != [None, None] else values["endings"]
  several = isinstance(endings, list) and len(endings) > 1
  of_hellaswag = all(isinstance(values[name], str) for name in _HELLASWAG)
  text = "{activity}: {beginning} ".format(**values) + values["begun"].capitalize() if of_hellaswag else values["text"]
  texts = [text, *(endings if several else [])]
  if not (several or endings is None) or not all(isinstance(text, str) and text.strip() for text in texts):
    raise UserError(f"{place}: expected a text, and a list of endings or the keys choice1 and choice2 (sol1 and sol2)")
  text, *others = (check_text(text, place) for text in texts)
  if not several:
    before, _, word = text.rstrip().rpartition(" ")
    if not before:
      raise UserError(f"{place}: one word, and a text is expected whose last word is predicted")
    return Item(before, (word,), 0)
  if of_hellaswag:
    text, *others = map(_unmarked, (text, *others))
  elif connective := _CONNECTIVES.get(str(values["relation"])):
    text = f"{text.strip().removesuffix('.')} {connective}"
    others = [ending[:1].lower() + ending[1:] for ending in others]
  elif values["goal"] is not None:
    text = f"Question: {text}\nAnswer:"
  label = values["label"]
  if label in (None, ""):
    return Item(text, tuple(others), None)
  if not str(label).isdecimal() or int(label) >= len(others):
    raise UserError(f"{place}: the label {label!r} is no number of an ending from 0 to {len(others) - 1}")
  return Item(text, tuple(others), int(label))


def _unmarked(text: str) -> str:
  """A text of HellaSwag without the marks that its part from WikiHow has, such as [header]."""
  return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _with_shots(item: Item, solved: Sequence[Item], shots: int, seed: int, number: int) -> Item:
  """The item after solved examples, which are drawn for its number; it is none of them itself."""
  drawn = np.random.default_rng((seed, number)).choice(len(solved), min(shots + 1, len(solved)), replace=False)
  others = [solved[place] for place in drawn.tolist() if solved[place].prompt != item.prompt][:shots]
  texts = [f"{other.prompt} {other.endings[other.label or 0]}" for other in others]
  return item._replace(prompt="\n\n".join([*texts, item.prompt]))


def _row(item: Item, found: Sequence[Likelihood]) -> dict[str, Any]:
  """What predictions.jsonl says about an item; endings are numbered from 1."""
  logprobs = np.array([one.logprob for one in found])
  if len(found) == 1:
    (word,) = item.endings
    return {
      "prediction": word if found[0].likeliest else None, "label": word, "logprob": round(found[0].logprob, 6),
      "text": item.prompt,
    }  # fmt: skip
  normalised = logprobs / np.array([len(ending) for ending in item.endings])
  return {
    "prediction": str(int(np.argmax(logprobs)) + 1),
    "normalised": str(int(np.argmax(normalised)) + 1),
    "label": None if item.label is None else str(item.label + 1),
    "logprobs": [round(float(value), 6) for value in logprobs],
    "text": item.prompt,
    "choices": list(item.endings),
  }


def _scores(items: Sequence[Item], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  labelled = [row for row in rows if row["label"] is not None]
  if not labelled:
    return {}
  right = lambda key: np.array([row[key] == row["label"] for row in labelled], np.float64)
  scores = _share("accuracy", right("prediction"))
  if all(len(item.endings) == 1 for item in items):
    return scores | {"perplexity": float(np.exp(-np.mean([row["logprob"] for row in labelled])))}
  return scores | _share("accuracy_normalised", right("normalised"))


def _share(name: str, right: np.ndarray) -> dict[str, float]:
  """A share with its bootstrap interval."""
  drawn = np.concatenate([weights @ right / len(right) for weights in resamples(len(right), seed=0)])
  low, high = percentiles(drawn)
  return {name: float(right.mean()), f"{name}_low": low, f"{name}_high": high}
