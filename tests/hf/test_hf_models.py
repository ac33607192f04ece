"""Imported Hugging Face checkpoints against what transformers itself made of them: golden/hf, by make_hf_golden.py."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.hf_cases import CASES, Case
from tests.support.hf_compare import (
  GOLDEN,
  LOSS,
  Expected,
  Found,
  check_gradients,
  check_outputs,
  check_same_config,
  check_same_ids,
  check_same_tensors,
  compute,
  read_config,
  read_expected,
)
from tfm_jax.hf.exporting import export_checkpoint
from tfm_jax.hf.importing import import_checkpoint
from tfm_jax.training.load import Run, load_run


@dataclasses.dataclass(frozen=True)
class Imported:
  """A golden case, imported once for all tests of it."""

  case: Case
  folder: Path
  workdir: Path
  run: Run
  expected: Expected
  ours: Found

  def exported(self) -> Path:
    """The checkpoint written from the run, once."""
    out = self.workdir.parent / "out"
    if not out.exists():
      export_checkpoint(self.workdir, out)
    return out


# The same architectures with another activation, with free or tied tables and other single settings are slow.
SLOW = ("_relu", "_gelu", "_silu", "_square", "_tanh", "_free", "_tied", "_linear")
SLOW += ("_biases", "_mean", "_groups", "_unscaled", "_layers")
SELECTED = [pytest.param(name, marks=pytest.mark.slow if name.endswith(SLOW) else ()) for name in CASES]


@pytest.fixture(scope="module", params=SELECTED)
def imported(request, tmp_path_factory) -> Any:
  folder, workdir = GOLDEN / request.param, tmp_path_factory.mktemp(request.param) / "run"
  import_checkpoint(folder, workdir)
  run, case, expected = load_run(workdir), CASES[request.param], read_expected(folder)
  return Imported(case, folder, workdir, run, expected, compute(run.model, run.params, case, expected.inputs))


def test_the_outputs_are_those_of_transformers(imported):
  check_outputs(imported.case, imported.expected, imported.ours.outputs)


def test_the_loss_is_that_of_transformers(imported):
  assert imported.ours.loss == pytest.approx(imported.expected.loss, abs=LOSS, rel=LOSS)


def test_the_gradient_of_each_tensor_is_that_of_transformers(imported):
  check_gradients(imported.expected, imported.ours.gradients)


def test_the_export_is_the_file_that_was_imported(imported):
  out = imported.exported()
  check_same_tensors(load_file(imported.folder / "model.safetensors"), load_file(out / "model.safetensors"))
  check_same_config(imported.case, read_config(imported.folder), read_config(out))


def test_the_export_names_the_same_special_tokens(imported):
  check_same_ids(imported.case, read_config(imported.folder), read_config(imported.exported()))


def test_a_source_without_a_tokenizer_gives_a_run_without_one(imported):
  assert imported.run.tokenizer is None


# The golden files themselves.


@pytest.mark.parametrize("name", CASES)
def test_golden_rows_have_padding_and_labels_that_do_not_count(name):
  case, expected = CASES[name], read_expected(GOLDEN / name)
  labels = expected.inputs.get("labels")
  if case.head == "ImageClassification":
    assert (labels == -100).any()
    return
  mask = expected.inputs["attention_mask"]
  assert {0, 1} == set(mask.ravel()) and (np.diff(mask, axis=1) <= 0).all() and mask.all(1).any()
  if case.head == "ConditionalGeneration":
    assert not expected.inputs["decoder_attention_mask"].all()
  if labels is not None and case.head != "ReplacedTokens" and labels.dtype != np.float32:
    assert (labels == -100).any() and (labels != -100).any()


def test_there_is_a_golden_folder_for_each_case_and_no_other():
  assert {path.name for path in GOLDEN.iterdir()} == set(CASES)
  assert sum(path.stat().st_size for path in GOLDEN.rglob("*")) < 2_000_000


def test_comparisons_notice_small_mistakes():
  """One number in a hundredth of an output, a gradient of another layout, a tensor of other bits."""
  case, expected = CASES["bert_mlm"], read_expected(GOLDEN / "bert_mlm")
  logits = expected.outputs["logits"].copy()
  check_outputs(case, expected, {"logits": logits})
  with pytest.raises(AssertionError, match="logits"):
    check_outputs(case, expected, {"logits": np.pad(logits, ((0, 0), (0, 0), (0, 1)))})
  logits[0, 2, 5] += 3e-4
  with pytest.raises(AssertionError, match="logits"):
    check_outputs(case, expected, {"logits": logits})
  tensors = load_file(GOLDEN / "bert_mlm" / "model.safetensors")
  key = next(name for name in tensors if name.endswith("query.weight"))
  with pytest.raises(AssertionError, match=r"query\.weight"):
    check_same_tensors(tensors, tensors | {key: np.nextafter(tensors[key], np.float32(9))})
  with pytest.raises(AssertionError, match="extra"):
    check_same_tensors(tensors, tensors | {"extra": np.ones(3, np.float32)})
