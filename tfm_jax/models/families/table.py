"""The families by name."""

from tfm_jax.errors import UserError
from tfm_jax.models.families import (
  bart,
  bert,
  clip,
  distilbert,
  electra,
  gpt,
  gru,
  llama,
  lstm,
  modernbert,
  qwen3,
  roberta,
  t5,
  t5_encoder,
  transformer,
  vit,
)
from tfm_jax.models.family import Family

FAMILIES: dict[str, Family] = {
  "bert": bert.FAMILY,
  "roberta": roberta.FAMILY,
  "distilbert": distilbert.FAMILY,
  "electra": electra.FAMILY,
  "modernbert": modernbert.FAMILY,
  "gpt": gpt.FAMILY,
  "llama": llama.FAMILY,
  "qwen3": qwen3.FAMILY,
  "t5": t5.FAMILY,
  "bart": bart.FAMILY,
  "t5_encoder": t5_encoder.FAMILY,
  "transformer": transformer.FAMILY,
  "vit": vit.FAMILY,
  "lstm": lstm.FAMILY,
  "lstm_encoder": lstm.ENCODER,
  "lstm_encoder_decoder": lstm.ENCODER_DECODER,
  "gru": gru.FAMILY,
  "gru_encoder": gru.ENCODER,
  "gru_encoder_decoder": gru.ENCODER_DECODER,
  "clip": clip.FAMILY,
}


def find_family(name: str) -> Family:
  """The family of that name. Raises UserError, which lists the names."""
  if name not in FAMILIES:
    raise UserError(f"family={name!r} is not one of {', '.join(FAMILIES)}")
  return FAMILIES[name]
