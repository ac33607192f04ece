"""Cases of hf_cases.py on our side: their batches, what the imported model makes of them, and how close it must be."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from tests.support.hf_cases import IGNORED, Case, projection
from tfm_jax.hf.exporting import tensors_of
from tfm_jax.models.config import ModelConfig
from tfm_jax.models.model import Model
from tfm_jax.ops.losses import total
from tfm_jax.training.load import Run
from tfm_jax.training.loss import LossConfig, make_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"

Tensors = dict[str, np.ndarray]
Config = dict[str, Any]

# Both sides compute in float32, in another order. Measured: 8e-6, 8e-7 and, relative to the tensor's, 1.3e-5; the
# smallest mistake there is to make, one form of GELU for the other, moves outputs by 2e-4.
OUTPUTS, LOSS, GRADIENTS = 5e-5, 1e-5, 2e-4
LIVE_OUTPUTS, LIVE_GRADIENTS = 1e-4, 1e-3  # of models that nobody has seen before


class Expected(NamedTuple):
  """What transformers was fed, and what it said."""

  inputs: dict[str, np.ndarray]  # under its names
  outputs: dict[str, np.ndarray]  # under ours
  loss: float
  gradients: dict[str, tuple[float, float]]  # name in the file -> norm, projection; of those that have one


class Found(NamedTuple):
  """The same of ours; whole gradients."""

  outputs: dict[str, np.ndarray]
  loss: float
  gradients: dict[str, np.ndarray]


def read_expected(folder: Path) -> Expected:
  """expected.npz of a case's folder."""
  with np.load(folder / "expected.npz") as file:
    values = {name: file[name] for name in file.files}
  parts = {kind: {k[len(kind) :]: x for k, x in values.items() if k.startswith(kind)} for kind in ("in.", "out.")}
  names = sorted(load_file(folder / "model.safetensors"))
  pairs = {k: (float(a), float(b)) for k, (a, b) in zip(names, values["gradients"], strict=True) if not np.isnan(a)}
  return Expected(parts["in."], parts["out."], float(values["loss"]), pairs)


def in_float32(model: Model) -> Model:
  """The model that computes in float32."""
  return dataclasses.replace(model, config=dataclasses.replace(model.config, dtype="float32"))


def make_batch(case: Case, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Our batch of transformers' inputs."""
  labels = inputs.get("labels")
  if case.head == "ImageClassification":
    return {"images": inputs["pixel_values"].transpose(0, 2, 3, 1), **_targets(labels)}
  if case.head == "ConditionalGeneration":
    targets = {f"decoder_{name}": x for name, x in _targets(labels).items()}
    sides = {"encoder_inputs": "input_ids", "encoder_segment_ids": "attention_mask"}
    sides |= {"decoder_inputs": "decoder_input_ids", "decoder_segment_ids": "decoder_attention_mask"}
    return {name: inputs[theirs] for name, theirs in sides.items()} | targets
  batch = {"inputs": inputs["input_ids"], "segment_ids": inputs["attention_mask"]}
  if "token_type_ids" in inputs:
    batch["token_types"] = inputs["token_type_ids"]
  if case.head == "QuestionAnswering":
    ends = np.stack([inputs["start_positions"], inputs["end_positions"]], axis=1)
    behind = (ends >= inputs["input_ids"].shape[1]).any(1, keepdims=True)
    targets = _targets(np.where(behind, IGNORED, ends))
    return batch | targets | {"weights": targets["weights"][:, 0]}
  if case.head == "ReplacedTokens":
    return batch | {"targets": labels, "weights": inputs["attention_mask"].astype(np.float32)}
  if case.head == "CausalLM":
    labels = np.concatenate([labels[:, 1:], np.full_like(labels[:, :1], IGNORED)], axis=1)
  if case.head == "PreTraining":
    batch["next_sentence"] = inputs["next_sentence_label"]
  return batch | (_targets(labels) if case.head else {})


def _targets(labels: np.ndarray) -> dict[str, np.ndarray]:
  counts = labels != IGNORED
  return {"targets": np.where(counts, labels, 0), "weights": counts.astype(np.float32)}


@functools.partial(jax.jit, static_argnums=0)
def _everything(model: Model, params: Any, batch: dict[str, jax.Array]) -> tuple[Any, Any, Any]:
  """One program: it is compilation that takes the time."""

  def loss(params: Any) -> tuple[jax.Array, Any]:
    outputs = model.outputs(params, batch)
    if "hidden" not in outputs:
      return total(make_loss(model, LossConfig())(params, batch, None).objective), outputs
    kept = (batch["segment_ids"] > 0)[:, :, None]
    squares = jnp.where(kept, jnp.square(outputs["hidden"]), 0).sum() / (kept.sum() * outputs["hidden"].shape[-1])
    return squares + (jnp.square(outputs["pooled"]).mean() if "pooled" in outputs else 0), outputs

  (value, outputs), gradients = jax.value_and_grad(loss, has_aux=True)(params)
  return outputs, value, gradients


def compute(model: Model, params: Any, case: Case, inputs: dict[str, np.ndarray]) -> Found:
  """What our model makes of transformers' inputs."""
  model = in_float32(model)
  outputs, loss, gradients = _everything(model, params, make_batch(case, inputs))
  found = {name: np.asarray(x) for name, x in outputs.items()}
  assert all(x.dtype == np.float32 for x in found.values())
  return Found(found, float(loss), tensors_of(model, gradients))


def check_outputs(case: Case, expected: Expected, found: dict[str, np.ndarray], atol: float = OUTPUTS) -> None:
  """Outputs have the same shapes, and are close wherever there is no padding."""
  assert found.keys() == expected.outputs.keys(), sorted(found)
  mask = expected.inputs.get("decoder_attention_mask", expected.inputs.get("attention_mask"))
  for name, theirs in expected.outputs.items():
    ours = found[name]
    assert ours.shape == theirs.shape, name
    if mask is not None and theirs.shape[:2] == mask.shape:
      ours, theirs = ours[mask > 0], theirs[mask > 0]
    assert np.abs(theirs).mean() > 0.05, "transformers' own outputs say too little"
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0, err_msg=name)


def check_gradients(expected: Expected, found: dict[str, np.ndarray], rtol: float = GRADIENTS) -> None:
  """Norm and projection of each tensor's gradient. What is nought but for rounding has a floor."""
  assert expected.gradients.keys() <= found.keys(), f"no gradient of {sorted(expected.gradients.keys() - found.keys())}"
  floor = 1e-6 * max(norm for norm, _ in expected.gradients.values())
  wrong = []
  for name, (norm, projected) in expected.gradients.items():
    ours = np.asarray(found[name], np.float32)
    pair = (float(np.linalg.norm(ours.astype(np.float64))), projection(ours))
    if not np.allclose(pair, (norm, projected), rtol=0, atol=rtol * norm + floor):
      wrong.append(f"{name}: norm, projection {pair}, not {(norm, projected)}")
  assert not wrong, "\n".join(wrong)


def check_whole_gradients(theirs: Tensors, found: Tensors, rtol: float) -> None:
  """Each number of each tensor's gradient, relative to the tensor's largest."""
  assert theirs.keys() <= found.keys(), f"no gradient of {sorted(theirs.keys() - found.keys())}"
  floor = 1e-6 * max(np.abs(x).max() for x in theirs.values())
  for name, x in theirs.items():
    np.testing.assert_allclose(found[name], x, rtol=0, atol=rtol * np.abs(x).max() + floor, err_msg=name)


def check_same_tensors(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> None:
  """Equal bit for bit under the same names; ours may say once more what is tied."""
  assert theirs.keys() <= ours.keys(), f"missing: {sorted(theirs.keys() - ours.keys())}"
  for name, x in theirs.items():
    assert x.dtype == ours[name].dtype and x.shape == ours[name].shape, name
    np.testing.assert_array_equal(x, ours[name], err_msg=name)
  bits = {x.tobytes() for x in theirs.values()}
  more = [name for name in ours if name not in theirs and ours[name].tobytes() not in bits]
  assert not more, f"unexpected: {more}"


def read_config(folder: Path) -> Config:
  return json.loads((folder / "config.json").read_text())


_IDS = {f"{kind}_token_id" for kind in ("pad", "bos", "eos", "cls", "sep", "decoder_start")}
ALIKE = {"gelu_pytorch_tanh": "gelu_new"}  # one function under two names


def check_same_config(case: Case, theirs: Config, ours: Config) -> None:
  """What the case sets, and what says which model it is."""
  keys = {"architectures", "model_type", *case.options}
  keys |= {"tie_word_embeddings", "scale_decoder_outputs", "id2label", "label2id"} & theirs.keys()
  keys -= {"num_labels"}  # the names of the labels say it
  keys -= {"global_attn_every_n_layers"}  # of old: the types of the layers say it
  _check_same_keys(keys - _IDS, theirs, ours)


def check_same_ids(case: Case, theirs: Config, ours: Config) -> None:
  """Ids of special tokens."""
  _check_same_keys(_IDS & case.options.keys(), theirs, ours)


def _check_same_keys(keys: set[str], theirs: Config, ours: Config) -> None:
  values = [{key: config.get(key) for key in sorted(keys)} for config in (ours, theirs)]
  pairs = {key: (a, values[1][key]) for key, a in values[0].items()}
  differing = {key: pair for key, pair in pairs.items() if len({str(ALIKE.get(str(x), x)) for x in pair}) > 1}
  assert not differing, f"(ours, theirs): {differing}"


def read(name: str) -> tuple[Tensors, Config]:
  """A golden case's tensors and configuration, to be changed."""
  return load_file(GOLDEN / name / "model.safetensors"), read_config(GOLDEN / name)


def write(folder: Path, tensors: Tensors, config: Config) -> Path:
  """A checkpoint in a new folder."""
  folder.mkdir(parents=True)
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def assert_same(a: Run, b: Run) -> None:
  """The same model with the same parameters, bit for bit."""
  for ours, theirs in ((a.config.family, b.config.family), (_plain(a.model.config), _plain(b.model.config))):
    assert ours == theirs, f"{ours} is not {theirs}"
  assert a.model.vocab_size == b.model.vocab_size
  assert_same_params(a.params, b.params)


def _plain(config: ModelConfig) -> ModelConfig:
  """With the numbers that 0 stands for."""
  return dataclasses.replace(
    config,
    num_kv_heads=config.kv_heads,
    head_dim=config.head_features,
    mlp_dim=config.mlp_features,
    embedding_dim=config.embed_features,
    decoder_layers=config.decoder_depth,
  )


def assert_same_params(a: Any, b: Any) -> None:
  """Equal bit for bit."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)
