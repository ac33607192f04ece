"""Llama, Mistral (with a window) and Qwen2 (with biases of queries, keys and values alone)."""

from collections.abc import Mapping
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.hf.table import Entry, Key, Table, linear, same
from tfm_jax.models.config import ModelConfig

KEYS = (
  Key("num_layers", "num_hidden_layers", 32),
  Key("embed_dim", "hidden_size", 4096),
  Key("num_heads", "num_attention_heads", 32),
  Key("mlp_dim", "intermediate_size", 11_008),
  Key("vocab_size", "vocab_size", 32_000),
  Key("max_positions", "max_position_embeddings", 2048),
  Key("activation", "hidden_act", "silu"),
  Key("attention_dropout", "attention_dropout", 0.0),
  Key("norm_epsilon", "rms_norm_eps", 1e-6),
  Key("tied", "tie_word_embeddings", False),
)
# Defaults that differ from those of Llama.
DEFAULTS: dict[str, dict[str, Any]] = {
  "llama": {},
  "mistral": {
    "intermediate_size": 14_336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
  },
  "qwen2": {"intermediate_size": 22_016, "vocab_size": 151_936, "max_position_embeddings": 32_768},
}


def entries(c: ModelConfig) -> list[Entry]:
  """Parameters and tensors."""
  layer = "model.layers.{}"
  return [
    *same("embed/token", "model.embed_tokens.weight"),
    *same("blocks/attn_norm/scale", f"{layer}.input_layernorm.weight"),
    *linear("blocks/attn/*q", f"{layer}.self_attn.q_proj"),
    *linear("blocks/attn/*k", f"{layer}.self_attn.k_proj"),
    *linear("blocks/attn/*v", f"{layer}.self_attn.v_proj"),
    *linear("blocks/attn/*o", f"{layer}.self_attn.o_proj"),
    *same("blocks/mlp_norm/scale", f"{layer}.post_attention_layernorm.weight"),
    *linear("blocks/mlp/*i", f"{layer}.mlp.gate_proj"),
    *linear("blocks/mlp/*g", f"{layer}.mlp.up_proj"),
    *linear("blocks/mlp/*o", f"{layer}.mlp.down_proj"),
    *same("final_norm/scale", "model.norm.weight"),
    *same("head/w", "lm_head.weight"),
  ]


def to_ours(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
  """Attention heads, biases, rotary positions and the window."""
  kind = theirs["model_type"]
  theirs = {**DEFAULTS[kind], **theirs}
  attention = theirs.get("attention_bias", False) if kind == "llama" else False
  window = theirs.get("sliding_window") if kind == "mistral" else None
  if kind == "qwen2" and theirs.get("use_sliding_window") and theirs.get("sliding_window"):
    raise UserError("config.json: use_sliding_window=true of Qwen2, a window in some layers alone, is not supported")
  heads = theirs.get("num_key_value_heads") or ours["num_heads"]
  return {
    "num_kv_heads": 0 if heads == ours["num_heads"] else heads,
    "head_dim": theirs.get("head_dim") or 0,
    "bias.qkv": attention or kind == "qwen2",
    "bias.out": attention,
    "bias.mlp": theirs.get("mlp_bias", False) if kind == "llama" else False,
    "window.size": window - 1 if window else 0,
    **rotation_to_ours(theirs),
  }


def rotation_to_ours(theirs: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of `rotary`, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`."""
  rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
  kind = rope.get("rope_type", rope.get("type", "default"))
  base = float(rope.get("rope_theta") or theirs.get("rope_theta") or 10_000.0)
  if rope.get("partial_rotary_factor", 1.0) != 1.0:
    raise UserError("config.json: partial_rotary_factor is not supported: all features are rotated here")
  match kind:
    case "default":
      return {"rotary.base": base}
    case "linear":
      return {"rotary.base": base, "rotary.factor": float(rope["factor"])}
    case "llama3":
      original = rope.get("original_max_position_embeddings") or theirs.get("max_position_embeddings", 2048)
      low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
      return {
        "rotary.base": base,
        "rotary.factor": float(rope["factor"]),
        "rotary.original": original,
        "rotary.low": low,
        "rotary.high": high,
      }
  raise UserError(f"config.json: rope_type={kind!r} is not one of default, linear, llama3")


def rotation_to_theirs(c: ModelConfig) -> dict[str, Any]:
  """The value of `rope_parameters`."""
  rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rotary.base}
  if c.rotary.original:
    rope |= {"rope_type": "llama3", "factor": c.rotary.factor, "low_freq_factor": c.rotary.low}
    rope |= {"high_freq_factor": c.rotary.high, "original_max_position_embeddings": c.rotary.original}
  elif c.rotary.factor != 1:
    rope |= {"rope_type": "linear", "factor": c.rotary.factor}
  return rope


def to_theirs(c: ModelConfig, kind: str) -> dict[str, Any]:
  """Inverse of `to_ours`. If no model type is requested, picks one that supports the features in use."""
  shared = {"num_key_value_heads": c.kv_heads, "rope_parameters": rotation_to_theirs(c)}
  kind = kind or ("mistral" if c.window.size else "qwen2" if c.has_bias("qkv") and not c.has_bias("out") else "llama")
  if kind == "mistral":
    window = c.window.size + 1 if c.window.size else None
    return {"model_type": "mistral", **shared, "head_dim": c.head_features, "sliding_window": window}
  if kind == "qwen2":
    return {"model_type": "qwen2", **shared, "use_sliding_window": False}
  biases = {"attention_bias": c.has_bias("qkv"), "mlp_bias": c.has_bias("mlp")}
  return {"model_type": "llama", **shared, "head_dim": c.head_features, **biases}


LLAMA = Table(
  family="llama",
  model_types=("llama", "mistral", "qwen2"),
  architectures={
    f"{name}{kind}": head
    for kind, head in (("ForCausalLM", "lm"), ("Model", "none"))
    for name in ("Llama", "Mistral", "Qwen2")
  },
  prefix="model.",
  keys=KEYS,
  entries=entries,
  ignored=(r".*rotary_emb\.inv_freq",),
  output="lm_head.weight",
  embedding="model.embed_tokens.weight",
  to_ours=to_ours,
  to_theirs=to_theirs,
)
