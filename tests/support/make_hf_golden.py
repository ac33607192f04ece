"""Asks transformers: writes golden files, fresh random models, or what it makes of checkpoints that others wrote.

Run by an interpreter that has torch and transformers (written with torch 2.13 and transformers 5.23), without network:

  python tests/support/make_hf_golden.py golden [CASE ...]       rewrites tests/golden/hf, or some cases of it
  python tests/support/make_hf_golden.py make --out=DIR [--seed=1] [CASE ...]    DIR/CASE: the same, with all gradients
  python tests/support/make_hf_golden.py load --made=DIR --exported=DIR [CASE ...]
      loads exported/CASE and writes exported/CASE.npz, the outputs on the inputs of made/CASE, and exported/CASE.json:
      the "warnings", and of what is not as in made/CASE the "config", {key: [made's, exported's]}, and the keys of
      the "state"; or else the "error"

A case's folder has config.json and model.safetensors, as `save_pretrained` writes them, and expected.npz: `in.NAME`
what it was fed, under transformers' names, `out.NAME` what came out, under ours, `loss`, and `gradients` [N, 2], of
each tensor of the sorted model.safetensors the norm and the `projection` of the loss's gradient, NaN where none is.
"""

import argparse
import contextlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from hf_cases import CASES, TRAINED, find, generator, make_inputs, projection
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"


def make_model(name: str, seed: int) -> torch.nn.Module:
  """The case's model with random numbers in every tensor, so that no zero and no one hides a mistake."""
  case = find(name)
  kind = getattr(transformers, case.architecture)
  model = kind._from_config(kind.config_class(**case.options), attn_implementation="eager").eval()
  if case.free_head:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
  draw = generator(name, seed)
  with torch.no_grad():
    for path, parameter in sorted(model.named_parameters()):
      is_scale = parameter.ndim == 1 and path.endswith("weight")
      values = draw.normal(1.0 if is_scale else 0.0, 0.3, parameter.shape)
      parameter.copy_(torch.from_numpy(values.astype(np.float32)))
  head = getattr(getattr(model, "cls", model), "predictions", getattr(model, "lm_head", None))
  if getattr(getattr(head, "decoder", None), "bias", None) is not None and head.bias is not None:
    # One bias under two names. With a free head transformers 5 has two and reads the decoder's.
    head.bias.data.copy_(head.decoder.bias.data)
  if case.family == "Esm":  # what it predicts of proteins is not exported: zeros
    for parameter in getattr(model, "esm", model).contact_head.parameters():
      parameter.data.zero_()
  return unpadded(model)


def released(tensors: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
  """The names in released files of ESM: transformers 5.23 saves norms as TensorFlow did, and a star for the layers."""
  named = {key.replace(".gamma", ".weight").replace(".beta", ".bias"): x for key, x in tensors.items()}
  stars = {key: named.pop(key) for key in list(named) if "*" in key}
  return named | {key.replace("*", str(i)): x.clone() for key, x in stars.items() for i in range(layers)}


def unpadded(model: torch.nn.Module) -> torch.nn.Module:
  """The model whose padding row has a gradient like any other."""
  for module in model.modules():
    if isinstance(module, torch.nn.Embedding):
      module.padding_idx = None
  return model


def save(name: str, model: torch.nn.Module, folder: Path) -> None:
  """config.json and model.safetensors alone."""
  shutil.rmtree(folder, ignore_errors=True)
  model.save_pretrained(folder)
  for path in folder.iterdir():
    if path.name not in ("config.json", "model.safetensors"):
      path.unlink()
  if find(name).family == "Esm":
    tensors = released(load_file(folder / "model.safetensors"), model.config.num_hidden_layers)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  (folder / "model.safetensors").chmod(0o644)
  if find(name).free_head:
    # As the files of google/t5-v1_1-small, google/byt5-small and google/mt5-small say it.
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = False
    config.pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def run(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
  """(outputs under our names, loss): transformers' own loss; of bare models the mean square of what comes out."""
  result = model(**{key: torch.from_numpy(x) for key, x in inputs.items()})
  if "last_hidden_state" in result:
    outputs = {"hidden": result.last_hidden_state}
    loss = result.last_hidden_state[torch.from_numpy(inputs["attention_mask"]) > 0].square().mean()
    if result.get("pooler_output") is not None:
      outputs["pooled"] = result.pooler_output
      loss = loss + result.pooler_output.square().mean()
    return outputs, loss
  if "start_logits" in result:
    outputs = {"logits": torch.stack([result.start_logits, result.end_logits], -1)}
  elif "prediction_logits" in result:
    outputs = {"logits": result.prediction_logits, "next_sentence": result.seq_relationship_logits}
  else:
    outputs = {"logits": result.logits}
  return outputs, result.loss


def arrays(outputs: dict[str, torch.Tensor], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Outputs with zeros at padding, where nothing is promised."""
  mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
  found = {name: x.detach().numpy() for name, x in outputs.items()}
  for name, x in found.items():
    if mask is not None and x.shape[:2] == mask.shape and name in ("logits", "hidden"):
      found[name] = np.where(mask[(...,) + (None,) * (x.ndim - 2)] > 0, x, np.float32(0))
  return found


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
  """The loss's gradient under the names of the file: saved as if it were the model, whose parameters are lost by it."""
  model.zero_grad()
  loss.backward()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(torch.full_like(parameter, torch.nan) if parameter.grad is None else parameter.grad)
    for buffer in model.buffers():
      if buffer.is_floating_point():
        buffer.fill_(torch.nan)
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    tensors = released(load_file(Path(folder) / "model.safetensors"), getattr(model.config, "num_hidden_layers", 0))
    return {key: x for key, x in tensors.items() if not x.isnan().all()}


def shifted(model: torch.nn.Module, labels: torch.Tensor) -> torch.Tensor:
  """What transformers lets the decoder read for these labels."""
  if hasattr(model, "_shift_right"):
    return model._shift_right(labels)
  shift = transformers.models.bart.modeling_bart.shift_tokens_right
  return shift(labels, model.config.pad_token_id, model.config.decoder_start_token_id)


def write_case(name: str, seed: int, folder: Path, full: bool) -> None:
  """A case's folder; `full`: with gradients.safetensors."""
  model, inputs = make_model(name, seed), make_inputs(name, seed)
  if "decoder_input_ids" in inputs:
    assert (shifted(model, torch.from_numpy(inputs["labels"])).numpy() == inputs["decoder_input_ids"]).all()
  save(name, model, folder)
  outputs, loss = run(model, inputs)
  expected = {f"in.{key}": x if x.dtype == np.float32 else x.astype(np.int32) for key, x in inputs.items()}
  expected |= {f"out.{key}": x for key, x in arrays(outputs, inputs).items()} | {"loss": loss.detach().numpy()}
  found = gradients(model, loss)
  names = sorted(load_file(folder / "model.safetensors"))
  none = torch.full((1,), torch.nan)
  pairs = [(x.norm().item(), projection(x.numpy())) for x in (found.get(key, none) for key in names)]
  np.savez_compressed(folder / "expected.npz", **expected, gradients=np.array(pairs, np.float32))
  if full:
    save_file(found, folder / "gradients.safetensors")


@contextlib.contextmanager
def heard() -> Any:
  """Everything that transformers and Python warn of meanwhile."""
  messages: list[str] = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = lambda record: messages.append(record.getMessage())
  logger = logging.getLogger("transformers")
  logger.addHandler(handler)
  transformers.utils.logging.warning_once.cache_clear()
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    yield messages
  logger.removeHandler(handler)
  messages += [str(warning.message) for warning in caught]


def load_case(name: str, made: Path, exported: Path) -> None:
  """What transformers makes of exported/NAME, see above."""
  config = json.loads((exported / name / "config.json").read_text())
  kind = getattr(transformers, config["architectures"][0])
  with heard() as messages:
    model = kind.from_pretrained(exported / name, attn_implementation="eager", dtype=torch.float32).eval()
  original = kind.from_pretrained(made / name, attn_implementation="eager", dtype=torch.float32)
  ours, theirs = (x.config.to_dict() for x in (model, original))
  keys = (theirs | ours).keys() - {"_name_or_path"}
  differences = {key: [theirs.get(key), ours.get(key)] for key in sorted(keys) if theirs.get(key) != ours.get(key)}
  state, expected_state = model.state_dict(), original.state_dict()
  changed = sorted(state.keys() ^ expected_state.keys())
  changed += [key for key in state.keys() & expected_state.keys() if not torch.equal(state[key], expected_state[key])]
  with np.load(made / name / "expected.npz") as expected:
    inputs = {key[3:]: expected[key] for key in expected.files if key.startswith("in.")}
  inputs = {key: x if x.dtype == np.float32 else x.astype(np.int64) for key, x in inputs.items()}
  with torch.no_grad():
    outputs, _ = run(model, inputs)
  np.savez(exported / f"{name}.npz", **arrays(outputs, inputs))
  report = {"warnings": messages, "config": differences, "state": changed}
  (exported / f"{name}.json").write_text(json.dumps(report, default=str))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=("golden", "make", "load"))
  parser.add_argument("cases", nargs="*")
  parser.add_argument("--out", type=Path, default=GOLDEN)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--made", type=Path)
  parser.add_argument("--exported", type=Path)
  args = parser.parse_intermixed_args()
  torch.set_num_threads(1)
  transformers.utils.logging.disable_progress_bar()
  if args.what == "load":
    for name in args.cases or [path.name for path in sorted(args.exported.iterdir()) if path.is_dir()]:
      try:
        load_case(name, args.made, args.exported)
      except Exception as error:  # the others are asked all the same
        (args.exported / f"{name}.json").write_text(json.dumps({"error": repr(error)}))
    return
  for name in args.cases or (CASES if args.what == "golden" else CASES | TRAINED):
    write_case(name, args.seed, args.out / name, full=args.what == "make")
  sizes = [path.stat().st_size for path in args.out.rglob("*") if path.is_file()]
  print(f"{args.out}: {len(sizes)} files, {sum(sizes):,} bytes")


if __name__ == "__main__":
  main()
