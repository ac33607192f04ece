"""BART: two stacks, each with positions and a norm of its embeddings. The output layer's bias is a buffer there."""

from collections.abc import Mapping
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.hf.table import Entry, Key, Table, linear, norm, same
from tfm_jax.models.config import ModelConfig

KEYS = (
  Key("num_layers", "encoder_layers", 12),
  Key("decoder_layers", "decoder_layers", 12),
  Key("embed_dim", "d_model", 1024),
  Key("num_heads", "encoder_attention_heads", 16),
  Key("mlp_dim", "encoder_ffn_dim", 4096),
  Key("vocab_size", "vocab_size", 50_265),
  Key("activation", "activation_function", "gelu"),
  Key("dropout", "dropout", 0.1),
  Key("attention_dropout", "attention_dropout", 0.0),
  Key("scale_embed", "scale_embedding", False),
  Key("tied", "tie_word_embeddings", True),
)
_OFFSET = 2  # rows of the table of positions before that of position 0


def attention(ours: str, theirs: str) -> list[Entry]:
  """The four linears of an attention layer."""
  return [row for n in "qkv" for row in linear(f"{ours}/*{n}", f"{theirs}.{n}_proj")] + linear(
    f"{ours}/*o", f"{theirs}.out_proj"
  )


def stack(side: str) -> list[Entry]:
  """The encoder or the decoder."""
  blocks, layer = f"{side}/blocks", f"model.{side}.layers.{{}}"
  cross = [
    *attention(f"{blocks}/cross", f"{layer}.encoder_attn"),
    *norm(f"{blocks}/cross_norm", f"{layer}.encoder_attn_layer_norm"),
  ]
  return [
    *same(f"{side}/embed/position", f"model.{side}.embed_positions.weight"),
    *norm(f"{side}/embed/norm", f"model.{side}.layernorm_embedding"),
    *attention(f"{blocks}/attn", f"{layer}.self_attn"),
    *norm(f"{blocks}/attn_norm", f"{layer}.self_attn_layer_norm"),
    *(cross if side == "decoder" else []),
    *linear(f"{blocks}/mlp/*i", f"{layer}.fc1"),
    *linear(f"{blocks}/mlp/*o", f"{layer}.fc2"),
    *norm(f"{blocks}/mlp_norm", f"{layer}.final_layer_norm"),
  ]


def entries(c: ModelConfig) -> list[Entry]:
  """Parameters and tensors."""
  return [
    *same("embed/token", "model.shared.weight"),
    *stack("encoder"),
    *stack("decoder"),
    *same("head/w", "lm_head.weight"),
    *same("head/bias", "final_logits_bias", ones=1),
  ]


def to_ours(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
  """The table of positions; both sides have the same heads and widths here."""
  for ours_key, key in (("num_heads", "decoder_attention_heads"), ("mlp_dim", "decoder_ffn_dim")):
    if theirs.get(key, ours[ours_key]) != ours[ours_key]:
      raise UserError(f"config.json: {key}={theirs[key]!r} is not supported, only that of the encoder is")
  return {"max_positions": theirs.get("max_position_embeddings", 1024) + _OFFSET, "position_offset": _OFFSET}


def to_theirs(c: ModelConfig, kind: str) -> dict[str, Any]:
  """Inverse of `to_ours`."""
  return {
    "max_position_embeddings": c.max_positions - _OFFSET,
    "decoder_attention_heads": c.num_heads,
    "decoder_ffn_dim": c.mlp_features,
    "num_hidden_layers": c.num_layers,
    "is_encoder_decoder": True,
  }


BART = Table(
  family="bart",
  model_types=("bart",),
  architectures={"BartForConditionalGeneration": "lm"},
  prefix="",
  keys=KEYS,
  entries=entries,
  aliases=lambda c: {f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in ("encoder", "decoder")},
  output="lm_head.weight",
  embedding="model.shared.weight",
  to_ours=to_ours,
  to_theirs=to_theirs,
)
