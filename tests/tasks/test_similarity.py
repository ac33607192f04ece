"""Similar texts: their vectors, the contrastive loss, and the scale of labels."""

import jax
import numpy as np
import pytest

from tests.support.labelled import learn, read, task_of
from tests.support.tiny import make_model
from tfm_jax.ops.losses import LossConfig
from tfm_jax.training.loss import make_loss


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_vectors_of_similar_texts_are_near(tmp_path, labelled):
  draw = np.random.default_rng(0)
  lines = ["sentence1\tsentence2" + "\tscore" * labelled]
  for n in range(200):
    word = f"{'abcdefgh'[n % 8]}" * 4
    other = word if not labelled or draw.random() < 0.5 else "zzzz"
    lines.append(f"the {word}\ta {other}" + f"\t{5.0 if other == word else 0.0}" * labelled)
  (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
  result = learn("similarity", tmp_path / "train.tsv", data__seq_len=16, train__steps=60, model__dropout=0.0)
  if labelled:
    assert result["pearson"] > 0.9
  else:
    # Each text has 25 equal pairs, of which any may be the nearest: the nearest one is never of another word.
    assert result["loss"] < 2.5 and result["recall_at_10"] > 0.9


def test_the_contrastive_loss_against_numpy():
  model = make_model("bert", **{"head.name": "similarity", "head.pooling": "mean", "head.pooler": "none"})
  params = jax.jit(model.init)(jax.random.key(0))
  draw = np.random.default_rng(0)
  batch = {"inputs": draw.integers(5, 200, (4, 2, 8)).astype(np.int32), "segment_ids": np.ones((4, 2, 8), np.int32)}
  batch["segment_ids"][3] = 0  # a blank row, which fills the batch
  batch |= {"weights": np.array([1, 1, 1, 0], np.float32), "targets": np.zeros(4, np.float32)}
  terms = make_loss(model, LossConfig())(params, batch, None)
  pooled = lambda side: np.asarray(
    model.outputs(params, {"inputs": batch["inputs"][:, [side]], "segment_ids": batch["segment_ids"][:, [side]]})[
      "vectors"
    ]
  )
  a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (pooled(0)[:3], pooled(1)[:3]))
  y = a @ b.T / 0.05
  expected = np.mean(np.log(np.exp(y).sum(1)) - np.diag(y))
  assert float(terms.loss["labels"][0] / terms.loss["labels"][1]) == pytest.approx(expected, rel=1e-4)


def test_similar_labels_are_scaled_as_in_training(tmp_path):
  task = task_of("similarity", head={"head.num_labels": 1}, scale=5.0)
  (tmp_path / "a.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t4\n")
  rows = task.rows(read(task, tmp_path / "a.tsv"))
  assert rows.labels["targets"].tolist() == [pytest.approx(0.8)]


def test_predictions_have_the_scale_of_the_labels_and_ranks_only_without_them(tmp_path):
  task = task_of("similarity", head={"head.num_labels": 1}, scale=5.0)
  side = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
  vectors = np.stack([side, side[[0, 0, 1]]], axis=1)
  for column, labels in (("\tscore", ("\t5", "\t3", "\t4")), ("", ("", "", ""))):
    lines = [f"sentence1\tsentence2{column}", *(f"a\tb{label}" for label in labels)]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n")
    examples = read(task, tmp_path / "a.tsv")
    found = task.predictions(examples, task.rows(examples), {row: {"vectors": vectors[row]} for row in range(3)})
    assert [one["prediction"] for one in found] == pytest.approx([5.0, 3.0, 4.0])
    scores = task.scores(found, intervals=False)
    if labels[0]:
      assert scores["mean_absolute_error"] == pytest.approx(0.0, abs=1e-6) and "rank" not in found[0]
    else:
      assert [one["rank"] for one in found] == [1, 2, 1] and scores["recall_at_1"] == pytest.approx(2 / 3)
