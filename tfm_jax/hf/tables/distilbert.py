"""DistilBERT: BERT under other names, without token types."""

from tfm_jax.hf.table import Entry, Key, Table, linear, norm, same
from tfm_jax.hf.tables.bert import HEADS, IGNORED, classifier
from tfm_jax.models.config import ModelConfig

KEYS = (
  Key("num_layers", "n_layers", 6),
  Key("embed_dim", "dim", 768),
  Key("num_heads", "n_heads", 12),
  Key("mlp_dim", "hidden_dim", 3072),
  Key("vocab_size", "vocab_size", 30_522),
  Key("max_positions", "max_position_embeddings", 512),
  Key("activation", "activation", "gelu"),
  Key("dropout", "dropout", 0.1),
  Key("attention_dropout", "attention_dropout", 0.1),
  Key("tied", "tie_word_embeddings", True),
)


def entries(c: ModelConfig) -> list[Entry]:
  """Parameters and tensors."""
  layer = "distilbert.transformer.layer.{}"
  return [
    *same("embed/token", "distilbert.embeddings.word_embeddings.weight"),
    *same("embed/position", "distilbert.embeddings.position_embeddings.weight"),
    *norm("embed/norm", "distilbert.embeddings.LayerNorm"),
    *linear("blocks/attn/*q", f"{layer}.attention.q_lin"),
    *linear("blocks/attn/*k", f"{layer}.attention.k_lin"),
    *linear("blocks/attn/*v", f"{layer}.attention.v_lin"),
    *linear("blocks/attn/*o", f"{layer}.attention.out_lin"),
    *norm("blocks/attn_norm", f"{layer}.sa_layer_norm"),
    *linear("blocks/mlp/*i", f"{layer}.ffn.lin1"),
    *linear("blocks/mlp/*o", f"{layer}.ffn.lin2"),
    *norm("blocks/mlp_norm", f"{layer}.output_layer_norm"),
    *linear("head/dense/*", "vocab_transform"),
    *norm("head/norm", "vocab_layer_norm"),
    *same("head/w", "vocab_projector.weight"),
    *same("head/bias", "vocab_projector.bias"),
    *linear("pooler/*", "pre_classifier"),
    *classifier(c.head.name),
  ]


DISTILBERT = Table(
  family="distilbert",
  model_types=("distilbert",),
  architectures={**{f"DistilBert{name}": head for name, head in HEADS.items()}, "DistilBertModel": "none"},
  prefix="distilbert.",
  keys=KEYS,
  entries=entries,
  ignored=IGNORED,
  output="vocab_projector.weight",
  embedding="distilbert.embeddings.word_embeddings.weight",
)
