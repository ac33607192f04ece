"""GPT-NeoX (Black et al. 2022) without parallel residuals: what a GPT with rotary positions is exported as.

Published models (GPT-NeoX-20B, Pythia) are refused: their residuals are parallel, and only some features rotate.
"""

from collections.abc import Mapping
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.hf.table import PER_HEAD, Entry, Key, Table, linear, norm, same
from tfm_jax.hf.tables.llama import rotation_to_ours, rotation_to_theirs
from tfm_jax.models.config import ModelConfig

KEYS = (
  Key("num_layers", "num_hidden_layers", 44),
  Key("embed_dim", "hidden_size", 6144),
  Key("num_heads", "num_attention_heads", 64),
  Key("mlp_dim", "intermediate_size", 24_576),
  Key("vocab_size", "vocab_size", 50_432),
  Key("max_positions", "max_position_embeddings", 2048),
  Key("activation", "hidden_act", "gelu"),
  Key("dropout", "hidden_dropout", 0.0),
  Key("attention_dropout", "attention_dropout", 0.0),
  Key("norm_epsilon", "layer_norm_eps", 1e-5),
  Key("bias.qkv", "attention_bias", True),
  Key("bias.out", "attention_bias", True),
  Key("tied", "tie_word_embeddings", False),
)


def entries(c: ModelConfig) -> list[Entry]:
  """Parameters and tensors. Queries, keys and values of one attention head are neighbours."""
  layer = "gpt_neox.layers.{}"
  return [
    *same("embed/token", "gpt_neox.embed_in.weight"),
    *norm("blocks/attn_norm", f"{layer}.input_layernorm"),
    *linear("blocks/attn/*q blocks/attn/*k blocks/attn/*v", f"{layer}.attention.query_key_value", PER_HEAD),
    *linear("blocks/attn/*o", f"{layer}.attention.dense"),
    *norm("blocks/mlp_norm", f"{layer}.post_attention_layernorm"),
    *linear("blocks/mlp/*i", f"{layer}.mlp.dense_h_to_4h"),
    *linear("blocks/mlp/*o", f"{layer}.mlp.dense_4h_to_h"),
    *norm("final_norm", "gpt_neox.final_layer_norm"),
    *same("head/w", "embed_out.weight"),
  ]


def to_ours(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
  """Rotary positions; parallel residuals and partial rotations, which are the defaults, are refused."""
  if theirs.get("use_parallel_residual", True) is not False:
    raise UserError("config.json: use_parallel_residual=True is not supported, only False is")
  rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
  fraction = rope.get("partial_rotary_factor", theirs.get("rotary_pct", 0.25))
  if fraction != 1:
    key = "partial_rotary_factor" if "partial_rotary_factor" in rope else "rotary_pct"
    raise UserError(f"config.json: {key}={fraction} is not supported: all features are rotated here")
  base = rope.get("rope_theta", theirs.get("rotary_emb_base", 10_000.0))
  rope = {**rope, "rope_theta": base, "partial_rotary_factor": 1.0}
  return {"positions": "rotary", **rotation_to_ours({**theirs, "rope_parameters": rope})}


def to_theirs(c: ModelConfig, kind: str) -> dict[str, Any]:
  """Inverse of `to_ours`."""
  rope = {**rotation_to_theirs(c), "partial_rotary_factor": 1.0}
  return {"use_parallel_residual": False, "rope_parameters": rope}


GPT_NEOX = Table(
  family="gpt",
  model_types=("gpt_neox",),
  architectures={"GPTNeoXForCausalLM": "lm", "GPTNeoXModel": "none"},
  prefix="gpt_neox.",
  keys=KEYS,
  entries=entries,
  serves=lambda c: c.positions == "rotary",
  ignored=(r".*attention\.(bias|masked_bias)", r".*rotary_emb\.inv_freq"),
  aliases=lambda c: {"lm_head.weight": "embed_out.weight"},  # as transformers 5 names the module
  output="embed_out.weight",
  embedding="gpt_neox.embed_in.weight",
  to_ours=to_ours,
  to_theirs=to_theirs,
)
