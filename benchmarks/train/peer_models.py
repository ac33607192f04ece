"""The peers' models with their losses, and their batches made of ours. Imports torch, and nothing of this package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

IGNORED = -100  # the label of what is not predicted
Tensors = dict[str, torch.Tensor]


class Built(NamedTuple):
  """A model with everything that a step needs.

  Attributes:
    network: the model with its weights.
    loss: (network, batch) -> the mean loss.
    batches: what `loss` reads.
    attention: the implementation of attention.
  """

  network: torch.nn.Module
  loss: Callable[[Any, Tensors], torch.Tensor]
  batches: list[Tensors]
  attention: str


def build(model: str, family: str, folder: Path, tuned: bool, arrays: dict[str, np.ndarray]) -> Built:
  """A peer.

  Args:
    model: "transformers" or "minimal".
    family: our name of the family.
    folder: config.json and the weights.
    tuned: whether the loss takes its cheapest form; otherwise it is the model's own, from `labels`.
    arrays: our batches, stacked.
  """
  if model == "minimal":
    from benchmarks.train.minimal_gpt import MinimalGPT

    network = MinimalGPT.load(folder)
    return Built(network, _logits_loss, _batches(_plain(arrays)), "scaled_dot_product_attention")
  network, attention = _load(folder)
  if not tuned:
    return Built(network, lambda network, batch: network(**batch).loss, _batches(_labelled(family, arrays)), attention)
  losses = {"bert": _masked_loss, "gpt": _causal_loss, "t5": _sequence_loss}
  return Built(network, losses[family], _batches(_plain(arrays)), attention)


def _load(folder: Path) -> tuple[Any, str]:
  """(the model of transformers, its attention): fused attention where the model has it."""
  import transformers

  transformers.logging.set_verbosity_error()
  kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
  try:
    return kind.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32), "sdpa"
  except ValueError:  # the model has no such form
    return kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32), "eager"


def _labelled(family: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Batches as transformers documents them: every position has a label, -100 where nothing is predicted."""
  if family == "t5":
    labels = np.where(arrays["decoder_weights"] > 0, arrays["decoder_targets"], IGNORED)
    own = {"input_ids": arrays["encoder_inputs"], "attention_mask": arrays["encoder_segment_ids"]}
    return own | {"decoder_input_ids": arrays["decoder_inputs"], "labels": labels}
  own = {"input_ids": arrays["inputs"], "attention_mask": arrays["segment_ids"]}
  if family == "gpt":  # transformers shifts the labels
    return own | {"labels": np.where(arrays["segment_ids"] > 0, arrays["inputs"], IGNORED)}
  labels = np.full_like(arrays["inputs"], IGNORED)
  at = np.nonzero(arrays["weights"] > 0)
  labels[(*at[:-1], arrays["mlm_positions"][at])] = arrays["targets"][at]
  return own | {"labels": labels}


def _plain(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Our own arrays, without positions; masks only where a batch has padding."""
  masks = ("segment_ids", "encoder_segment_ids")
  left_out = {"rows", "positions", "encoder_positions", "decoder_positions", "decoder_segment_ids"}
  left_out |= {name for name in masks if name in arrays and (arrays[name] > 0).all()}
  return {name: x for name, x in arrays.items() if name not in left_out}


def _batches(arrays: dict[str, np.ndarray]) -> list[Tensors]:
  """One dictionary of tensors per batch; ids as PyTorch wants them."""
  kinds = {name: x if x.dtype == np.float32 else x.astype(np.int64) for name, x in arrays.items()}
  return [
    {name: torch.from_numpy(x[i].copy()) for name, x in kinds.items()} for i in range(len(kinds[next(iter(kinds))]))
  ]


def _mean(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
  """The mean cross-entropy of what has a weight, in float32."""
  losses = F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), reduction="none")
  return (losses * weights.flatten()).sum() / weights.sum()


def _logits_loss(network: Any, batch: Tensors) -> torch.Tensor:
  return _mean(network(batch["inputs"]), batch["targets"], batch["weights"])


def _causal_loss(network: Any, batch: Tensors) -> torch.Tensor:
  logits = network(input_ids=batch["inputs"], attention_mask=batch.get("segment_ids"), use_cache=False).logits
  return _mean(logits, batch["targets"], batch["weights"])


def _masked_loss(network: Any, batch: Tensors) -> torch.Tensor:
  """The head reads the masked positions alone."""
  hidden = network.bert(input_ids=batch["inputs"], attention_mask=batch.get("segment_ids")).last_hidden_state
  at = batch["mlm_positions"].unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
  return _mean(network.cls(hidden.gather(1, at)), batch["targets"], batch["weights"])


def _sequence_loss(network: Any, batch: Tensors) -> torch.Tensor:
  logits = network(
    input_ids=batch["encoder_inputs"],
    attention_mask=batch.get("encoder_segment_ids"),
    decoder_input_ids=batch["decoder_inputs"],
    use_cache=False,
  ).logits
  return _mean(logits, batch["decoder_targets"], batch["decoder_weights"])
