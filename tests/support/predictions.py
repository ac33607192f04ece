"""Rows of predictions.jsonl of every form."""

import numpy as np


def class_row(prediction, label, text="", **probabilities):
  return {"prediction": prediction, "label": label, "probabilities": probabilities, "text": text}


def number_row(prediction, label, text=""):
  return {"prediction": prediction, "label": label, "text": text}


def tag_row(prediction, label):
  prediction, label = prediction.split(), None if label is None else label.split()
  words = [f"w{n}" for n in range(len(prediction))]
  return {"prediction": prediction, "label": label, "probabilities": [0.5] * len(words), "words": words}


def answer_row(prediction, label, no_answer=0.0, candidates=(), question="What is it?", context=""):
  best = [{"text": text, "start": 0, "end": len(text), "probability": 0.5} for text in candidates]
  span = {"start": -1, "end": -1} if not prediction else {"start": 0, "end": len(prediction)}
  text = {"question": question, "context": context or f"{prediction} and more"}
  return {
    "id": "",
    "prediction": prediction,
    "label": label,
    **span,
    "probabilities": best,
    "no_answer": no_answer,
  } | text


def random_rows(form, count=200, seed=0):
  """Rows of a form, of which some are wrong; texts of different lengths."""
  draw = np.random.default_rng(seed)
  text = lambda: "word " * int(draw.integers(1, 40))
  if form == "classes":
    names = ["a", "b", "c"]
    probabilities = draw.dirichlet([1, 1, 1], count)
    labels = draw.integers(0, 3, count)
    return [
      class_row(names[int(p.argmax())], names[n], text(), **dict(zip(names, map(float, p), strict=True)))
      for p, n in zip(probabilities, labels, strict=True)
    ]
  if form == "numbers":
    labels = draw.integers(0, 6, count) * 1.0
    return [number_row(float(n + e), float(n), text()) for n, e in zip(labels, draw.normal(size=count), strict=True)]
  if form == "tags":
    tags = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    rows = []
    for _ in range(count):
      label = list(draw.choice(tags, draw.integers(1, 12)))
      changed = [str(draw.choice(tags)) if draw.random() < 0.3 else tag for tag in label]
      rows.append(tag_row(" ".join(changed), " ".join(label)))
    return rows
  texts = ["the red fox", "A fox", "red, red fox!", "", "12", "the", "fox of the red hill"]
  pick = lambda: str(draw.choice(texts))
  return [answer_row(pick(), [pick() for _ in range(draw.integers(0, 3))], float(draw.random())) for _ in range(count)]


def text_row(prediction, label, text="a source"):
  return {"prediction": prediction, "label": label, "text": text, "logprob": -1.0}
