"""Filled gaps in transformers: what ours is compared with. Runs under the peers' interpreter.

python tests/support/filling_peer.py MODEL_DIR TEXTS.json TOP              a masked language model with vocab.txt
python tests/support/filling_peer.py MODEL_DIR PROMPTS.json NEW END        T5: ids in, ids and log-probabilities out
"""

import json
import sys

import torch
import transformers


def masks(folder: str, texts: list[str], top: int) -> list[list[list[tuple[str, float]]]]:
  """For each text and mask the likeliest pieces with their probabilities, by transformers' own pipeline."""
  tokenizer = transformers.BertTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
  fill = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=top, device="cpu")
  found = []
  for text in texts:
    result = fill(text)
    several = result if isinstance(result[0], list) else [result]
    pairs = [[(tokenizer.convert_ids_to_tokens(one["token"]), one["score"]) for one in guesses] for guesses in several]
    found.append(pairs)
  return found


def written(folder: str, prompts: list[list[int]], new: int, end: int) -> list[dict[str, list]]:
  """For each prompt the ids that T5 writes greedily, and the log-probability of each."""
  model = transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
  options = {"max_new_tokens": new, "eos_token_id": end, "pad_token_id": 0, "decoder_start_token_id": 0}
  found = []
  for prompt in prompts:
    out = model.generate(
      torch.tensor([prompt]), do_sample=False, output_scores=True, return_dict_in_generate=True, **options
    )
    scores = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    found.append({"ids": out.sequences[0, 1:].tolist(), "logprobs": scores[0].tolist()})
  return found


if __name__ == "__main__":
  folder, given, *numbers = sys.argv[1:]
  ask = masks if len(numbers) == 1 else written
  print(json.dumps(ask(folder, json.loads(given), *map(int, numbers))))
