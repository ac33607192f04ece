"""T5 1.0 and 1.1, mT5, ByT5: two stacks, whose first blocks hold the table of relative positions, or the encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.hf.table import AS_IS, TWO_AXES, Entry, Key, Table, activation, linear, same, their_activation
from tfm_jax.models.config import ModelConfig

KEYS = (
  Key("num_layers", "num_layers", 6),
  Key("embed_dim", "d_model", 512),
  Key("num_heads", "num_heads", 8),
  Key("head_dim", "d_kv", 64),
  Key("mlp_dim", "d_ff", 2048),
  Key("vocab_size", "vocab_size", 32_128),
  Key("relative.buckets", "relative_attention_num_buckets", 32),
  Key("relative.distance", "relative_attention_max_distance", 128),
  Key("dropout", "dropout_rate", 0.1),
  Key("attention_dropout", "dropout_rate", 0.1),
  Key("norm_epsilon", "layer_norm_epsilon", 1e-6),
  Key("tied", "tie_word_embeddings", True),
)


def attention(ours: str, theirs: str) -> list[Entry]:
  """The four matrices of an attention layer."""
  return [row for n in "qkvo" for row in linear(f"{ours}/*{n}", f"{theirs}.{n}")]


def stack(c: ModelConfig, ours: str, theirs: str) -> list[Entry]:
  """The encoder or the decoder: what precedes the names of its parameters, and of its tensors."""
  block, mlp = f"{theirs}block.{{}}", 2 if theirs == "decoder." else 1
  feed_forward = f"{block}.layer.{mlp}.DenseReluDense"
  cross = [
    *same(f"{ours}blocks/cross_norm/scale", f"{block}.layer.1.layer_norm.weight"),
    *attention(f"{ours}blocks/cross", f"{block}.layer.1.EncDecAttention"),
  ]
  return [
    *same(f"{ours}relative/table", f"{theirs}block.0.layer.0.SelfAttention.relative_attention_bias.weight", TWO_AXES),
    *same(f"{ours}blocks/attn_norm/scale", f"{block}.layer.0.layer_norm.weight"),
    *attention(f"{ours}blocks/attn", f"{block}.layer.0.SelfAttention"),
    *(cross if theirs == "decoder." else []),
    *same(f"{ours}blocks/mlp_norm/scale", f"{block}.layer.{mlp}.layer_norm.weight"),
    *linear(f"{ours}blocks/mlp/*i", f"{feed_forward}.{'wi_0' if c.gated else 'wi'}"),
    *linear(f"{ours}blocks/mlp/*g", f"{feed_forward}.wi_1"),
    *linear(f"{ours}blocks/mlp/*o", f"{feed_forward}.wo"),
    *same(f"{ours}final_norm/scale", f"{theirs}final_layer_norm.weight"),
  ]


def entries(c: ModelConfig) -> list[Entry]:
  """Parameters and tensors."""
  return [
    *same("embed/token", "shared.weight"),
    *stack(c, "encoder/", "encoder."),
    *stack(c, "decoder/", "decoder."),
    *same("head/w", "lm_head.weight"),
  ]


def to_ours(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
  """Depths, the activation with its gate, and whether the output is scaled, as in T5 1.0 alone."""
  kind = theirs.get("feed_forward_proj", "gated-gelu" if theirs["model_type"] == "mt5" else "relu")
  if not isinstance(kind, str):
    raise UserError(f"config.json: feed_forward_proj={kind!r} is not the name of an activation")
  gated, name = kind.startswith("gated-"), kind.removeprefix("gated-")
  scaled = theirs.get("scale_decoder_outputs", theirs.get("tie_word_embeddings") is not False)
  return {
    "decoder_layers": theirs.get("num_decoder_layers") or ours["num_layers"],
    "gated": gated,
    "activation": "gelu_tanh" if kind == "gated-gelu" else activation(name),
    "scale_output": "always" if scaled and theirs["model_type"] == "t5" else "never",
  }


def to_theirs(c: ModelConfig, kind: str) -> dict[str, Any]:
  """Inverse of `to_ours`."""
  name = their_activation(c.activation)
  name = {"gelu_new": "gelu", "gelu": "gelu_python"}.get(name, name) if c.gated else name
  return {
    "model_type": kind or "t5",
    "num_decoder_layers": c.decoder_depth,
    "feed_forward_proj": f"gated-{name}" if c.gated else name,
    "is_encoder_decoder": True,
    **({} if kind == "mt5" else {"scale_decoder_outputs": c.scale_output == "always"}),
  }


T5 = Table(
  family="t5",
  model_types=("t5", "mt5"),
  architectures={"T5ForConditionalGeneration": "lm", "MT5ForConditionalGeneration": "lm"},
  prefix="",
  keys=KEYS,
  entries=entries,
  # A table that the first checkpoints contain and no model ever used.
  ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
  aliases=lambda c: {f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")},
  output="lm_head.weight",
  embedding="shared.weight",
  to_ours=to_ours,
  to_theirs=to_theirs,
)


def encoder_entries(c: ModelConfig) -> list[Entry]:
  """The encoder and its tagger. `lm_head.weight`, the output layer of a whole T5, has no part in either."""
  return [
    *same("embed/token", "transformer.shared.weight"),
    *stack(c, "", "transformer.encoder."),
    *linear("classifier/*", "classifier", layout=AS_IS),
    *same("head/w", "lm_head.weight"),
  ]


# A whole T5 is read by it too, if the import is asked for one of these architectures.
T5_ENCODER = T5._replace(
  family="t5_encoder",
  architectures={
    "T5ForTokenClassification": "token_classification",
    "MT5ForTokenClassification": "token_classification",
    "T5EncoderModel": "none",
    "MT5EncoderModel": "none",
  },
  prefix="transformer.",
  entries=encoder_entries,
  ignored=(),
  omitted=("decoder.",),
  aliases=lambda c: {f"transformer.{name}": "transformer.shared.weight" for name in T5.aliases(c)},
  output="",
  embedding="transformer.shared.weight",
  to_ours=lambda theirs, ours: {**to_ours(theirs, ours), "decoder_layers": 0},
  to_theirs=lambda c, kind: {**to_theirs(c, kind), "is_encoder_decoder": False},
  simplify=lambda c, params: (dataclasses.replace(c, decoder_layers=0), params),
)
