"""ModernBERT: queries, keys and values in one tensor, as are the two halves of its gate."""

from collections.abc import Mapping
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.hf.table import AS_IS, Entry, Key, Table, linear, norm, same
from tfm_jax.hf.tables.bert import HEADS
from tfm_jax.models.config import ModelConfig

KEYS = (
  Key("num_layers", "num_hidden_layers", 22),
  Key("embed_dim", "hidden_size", 768),
  Key("num_heads", "num_attention_heads", 12),
  Key("mlp_dim", "intermediate_size", 1152),
  Key("vocab_size", "vocab_size", 50_368),
  Key("max_positions", "max_position_embeddings", 8192),
  Key("activation", "hidden_activation", "gelu"),
  Key("head.activation", "classifier_activation", "gelu"),
  Key("dropout", "embedding_dropout", 0.0),
  Key("attention_dropout", "attention_dropout", 0.0),
  Key("norm_epsilon", "norm_eps", 1e-5),
  Key("bias.qkv", "attention_bias", False),
  Key("bias.out", "attention_bias", False),
  Key("bias.mlp", "mlp_bias", False),
  Key("bias.norm", "norm_bias", False),
  Key("bias.transform", "classifier_bias", False),
  Key("head.bias", "decoder_bias", True),
  Key("tied", "tie_word_embeddings", True),
)
THETAS = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


def entries(c: ModelConfig) -> list[Entry]:
  """Parameters and tensors. The first block's first norm does not exist there; ours keeps its initial value."""
  layer = "model.layers.{}"
  return [
    *same("embed/token", "model.embeddings.tok_embeddings.weight"),
    *norm("embed/norm", "model.embeddings.norm"),
    *norm("blocks/attn_norm", f"{layer}.attn_norm"),
    *linear("blocks/attn/*q blocks/attn/*k blocks/attn/*v", f"{layer}.attn.Wqkv"),
    *linear("blocks/attn/*o", f"{layer}.attn.Wo"),
    *norm("blocks/mlp_norm", f"{layer}.mlp_norm"),
    *linear("blocks/mlp/*i blocks/mlp/*g", f"{layer}.mlp.Wi"),
    *linear("blocks/mlp/*o", f"{layer}.mlp.Wo"),
    *norm("final_norm", "model.final_norm"),
    *linear("head/dense/*", "head.dense"),
    *norm("head/norm", "head.norm"),
    *same("head/w", "decoder.weight"),
    *same("head/bias", "decoder.bias"),
    *linear("classifier/*", "classifier", layout=AS_IS),
  ]


def to_ours(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
  """Which layers have a window, its size, the bases of both kinds' rotations, and how rows are pooled."""
  layers = ours["num_layers"] if isinstance(ours["num_layers"], int) else 0
  types = theirs.get("layer_types")
  every = theirs.get("global_attn_every_n_layers", 3)
  if types is not None:
    full = [i for i, kind in enumerate(types) if kind == "full_attention"]
    every = (full[1] if len(full) > 1 else layers) if full else 0
    if len(types) != layers or full != (list(range(0, layers, every)) if every else []):
      raise UserError(f"config.json: layer_types={types} has no full attention in every n-th layer from the first")
  rope = theirs.get("rope_parameters") or {}
  bases = {}
  for kind, (key, default) in THETAS.items():
    one = rope.get(kind) or {}
    if one.get("rope_type", "default") != "default":
      raise UserError(f"config.json: rope_type={one['rope_type']!r} of {kind} is not supported, only 'default' is")
    bases[kind] = float(one.get("rope_theta") or theirs.get(key) or default)
  return {
    "window.size": theirs.get("local_attention", 128) // 2 if every != 1 else 0,
    "window.global_every": every if every != 1 else 0,
    "rotary.base": bases["full_attention"],
    "rotary.local_base": bases["sliding_attention"],
    "head.pooling": {"cls": "first"}.get(theirs.get("classifier_pooling", "cls"), theirs.get("classifier_pooling")),
  }


def to_theirs(c: ModelConfig, kind: str) -> dict[str, Any]:
  """The same."""
  size, every = c.window.size, c.window.global_every
  full = [not size or (bool(every) and i % every == 0) for i in range(c.num_layers)]
  return {
    "layer_types": ["full_attention" if whole else "sliding_attention" for whole in full],
    "local_attention": 2 * size or 128,
    "rope_parameters": {
      "full_attention": {"rope_type": "default", "rope_theta": c.rotary.base},
      "sliding_attention": {"rope_type": "default", "rope_theta": c.rotary.local_base},
    },
    "classifier_pooling": {"first": "cls"}.get(c.head.pooling, c.head.pooling),
    "mlp_dropout": c.dropout,
  }


MODERNBERT = Table(
  family="modernbert",
  model_types=("modernbert",),
  architectures={**{f"ModernBert{name}": head for name, head in HEADS.items()}, "ModernBertModel": "none"},
  prefix="model.",
  keys=KEYS,
  entries=entries,
  output="decoder.weight",
  embedding="model.embeddings.tok_embeddings.weight",
  to_ours=to_ours,
  to_theirs=to_theirs,
)
