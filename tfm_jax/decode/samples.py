"""What a trained model does with some text, as lines to read: filled masks, a continuation, or decoded targets.

The parameters may lie on devices of several processes: all of them call `show`, and each gets the whole result.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tfm_jax.decode.generate import continued
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import Prompt
from tfm_jax.decode.start import any_rows
from tfm_jax.models.model import Model
from tfm_jax.text.tokenizers.table import Tokenizer

_ROWS = 3  # of the batch
_CONTEXT = 8  # tokens on either side of a mask
_TEMPERATURE = 0.8


def show(model: Model, params: Any, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]) -> list[str]:
  """Lines about the first rows of a batch, whose fields say what the objective is."""
  first = {name: np.asarray(x[:_ROWS]) for name, x in batch.items()}
  model = any_rows(model)
  if "mlm_positions" in first:
    return _fill_masks(model, params, tokenizer, first)
  if "decoder_inputs" in first:
    return _decode(model, params, tokenizer, first)
  return _continue(model, params, tokenizer, first)


def _fill_masks(model: Model, params: Any, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]) -> list[str]:
  """One mask of each row with its surroundings, the masked piece, and the three likeliest ones."""

  def likeliest(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    outputs = model.outputs(params, batch)
    logits = outputs.get("generator", outputs["logits"])[..., : tokenizer.vocab_size]  # the model's may be larger
    return jax.lax.top_k(jax.nn.softmax(logits), 3)

  probabilities, ids = _run(model, likeliest, params, batch)
  lines = ["filled masks (the masked piece -> the likeliest pieces):"]
  for row in range(len(batch["inputs"])):
    inputs, places = batch["inputs"][row], batch["mlm_positions"][row]
    masked = [j for j in range(len(places)) if batch["weights"][row, j] > 0 and inputs[places[j]] == tokenizer.mask_id]
    for j in masked[len(masked) // 2 :][:1]:
      place = places[j]
      left = _text(tokenizer, inputs[max(place - _CONTEXT, 0) : place])
      right = _text(tokenizer, inputs[place + 1 : place + 1 + _CONTEXT])
      guesses = ", ".join(
        f"{tokenizer.token(int(id))!r} {p:.0%}" for id, p in zip(ids[row, j], probabilities[row, j], strict=True)
      )
      target = tokenizer.token(int(batch["targets"][row, j]))
      lines.append(f"  {left} [MASK] {right}   {target!r} -> {guesses}")
  return lines


def _continue(model: Model, params: Any, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]) -> list[str]:
  """A sample that continues the first half of the first row."""
  row = batch["inputs"][0]
  prompt = max(len(row) // 2, 1)
  options = Options(max_new_tokens=max(len(row) - prompt, 1), temperature=_TEMPERATURE)
  read = Prompt(0, "", row[:prompt], row[:0], both_ways="prefix" in batch)
  ((sample,),) = continued(model, params, tokenizer, [read], options)
  return [
    f"a sample at temperature {_TEMPERATURE} (prompt | continuation):",
    f"  {_text(tokenizer, row[:prompt])} | {_text(tokenizer, np.array(sample.ids))}",
  ]


def _decode(model: Model, params: Any, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]) -> list[str]:
  """The likeliest target of each row, one token after the other, for the first segment of the row."""

  def first_segments(name: str, side: str) -> list[np.ndarray]:
    return [row[segments == 1] for row, segments in zip(batch[name], batch[f"{side}_segment_ids"], strict=True)]

  sources, targets = first_segments("encoder_inputs", "encoder"), first_segments("decoder_targets", "decoder")
  starts = batch["decoder_inputs"][:, :1]
  prompts = [Prompt(i, "", *ids) for i, ids in enumerate(zip(starts, sources, strict=True))]
  options = Options(max_new_tokens=max(map(len, targets)))
  lines = ["decoded (input -> target | what the model decodes):"]
  answers = continued(model, params, tokenizer, prompts, options)
  for source, target, (answer,) in zip(sources, targets, answers, strict=True):
    answer_ids = np.array(answer.ids[: len(target)])
    lines.append("  {} -> {} | {}".format(*(_text(tokenizer, ids) for ids in (source, target, answer_ids))))
  return lines


def _run(model: Model, function: Callable[[Any, Any], Any], params: Any, batch: Any) -> Any:
  """function(params, batch), compiled, as numpy arrays in every process."""
  return jax.device_get(jax.jit(function, out_shardings=model.placement.replicated)(params, batch))


def _text(tokenizer: Tokenizer, ids: np.ndarray, most: int = 160) -> str:
  """The text of ids on one line, cut; of the special ids the sentinels are shown."""
  first, *others = np.split(ids, np.flatnonzero(np.isin(ids, tokenizer.sentinel_ids)))
  parts = [tokenizer.decode(first), *(f"{tokenizer.token(int(x[0]))} {tokenizer.decode(x[1:])}" for x in others)]
  text = " ".join(" ".join(parts).split())
  text = "".join(c if c.isprintable() else "\ufffd" for c in text)  # the log stays text
  return text if len(text) <= most else text[: most - 3] + "..."
