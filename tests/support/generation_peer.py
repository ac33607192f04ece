"""Generation in transformers: the ids that ours are compared with. Runs under the peers' interpreter.

python tests/support/generation_peer.py MODEL_DIR PROMPTS.json SETTINGS.json
"""

import json
import sys

import torch
import transformers


def main(folder: str, prompts: list[list[int]], settings: dict[str, dict]) -> None:
  """Prints, for each setting, the new ids of each prompt, the best text first, as JSON."""
  name = json.load(open(f"{folder}/config.json"))["architectures"][0]
  model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
  found = {}
  for setting, options in settings.items():
    found[setting] = []
    for prompt in prompts:
      ids = torch.tensor([prompt])
      kind = {"attention_mask": torch.ones_like(ids), "do_sample": False, **options}
      with torch.no_grad():
        out = model.generate(ids, **kind)
      before = 1 if model.config.is_encoder_decoder else len(prompt)
      found[setting].append([row[before:].tolist() for row in out])
  print(json.dumps(found))


if __name__ == "__main__":
  main(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]))
