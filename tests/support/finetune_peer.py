"""Ten fine-tuning steps in transformers: the losses that ours are compared with. Runs under the peers' interpreter.

python tests/support/finetune_peer.py MODEL_DIR BATCHES.npz SETTINGS.json
"""

import json
import sys
import types

import numpy as np
import torch
import transformers


class MeanClassifier(torch.nn.Module):
  """A bare encoder with our head: the mean over the tokens that are no padding, and a linear; transformers has none."""

  def __init__(self, encoder: torch.nn.Module, classifier: dict) -> None:
    super().__init__()
    self.encoder = encoder
    self.w, self.b = (torch.nn.Parameter(torch.tensor(classifier[name])) for name in "wb")

  def forward(self, input_ids, attention_mask, labels):
    hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    real = attention_mask[:, :, None].to(hidden.dtype)
    logits = torch.nn.functional.linear((hidden * real).sum(1) / real.sum(1), self.w, self.b)
    return types.SimpleNamespace(loss=torch.nn.functional.cross_entropy(logits, labels))


def main(folder: str, batches: str, settings: dict) -> None:
  """Prints the losses as JSON."""
  name = json.load(open(f"{folder}/config.json"))["architectures"][0]
  config = transformers.AutoConfig.from_pretrained(folder)
  names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "mlp_dropout", "dropout_rate")
  for key in names:
    if hasattr(config, key):
      setattr(config, key, 0.0)
  model = getattr(transformers, name).from_pretrained(folder, config=config, dtype=torch.float32)
  model = (MeanClassifier(model, settings["classifier"]) if "classifier" in settings else model).train()
  betas = settings["beta1"], settings["beta2"]
  optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=betas, eps=settings["epsilon"], weight_decay=0.0)
  losses = []
  for batch, rate in zip(_batches(np.load(batches), name), settings["rates"], strict=True):
    for group in optimizer.param_groups:
      group["lr"] = rate
    loss = model(**batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings["grad_clip"])
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
  print(json.dumps(losses))


def _batches(arrays: dict, name: str):
  """The batches with the names and conventions of transformers."""
  for step in range(len(arrays["targets"])):
    one = {key: torch.from_numpy(arrays[key][step]) for key in arrays}
    if "images" in one:
      yield {"pixel_values": one["images"].permute(0, 3, 1, 2), "labels": one["targets"].long()}
      continue
    batch = {"input_ids": one["inputs"].long(), "attention_mask": one["segment_ids"].long()}
    if "token_types" in one and "Roberta" not in name:
      batch["token_type_ids"] = one["token_types"].long()
    targets = one["targets"]
    if "QuestionAnswering" in name:
      batch |= {"start_positions": targets[:, 0].long(), "end_positions": targets[:, 1].long()}
    elif "TokenClassification" in name:
      batch["labels"] = torch.where(one["weights"] > 0, targets.long(), torch.tensor(-100))
    else:
      batch["labels"] = targets if targets.is_floating_point() else targets.long()
    yield batch


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
