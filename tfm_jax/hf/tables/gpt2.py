"""GPT-2: its linears are stored [inputs, outputs] (as a convolution of width 1), queries, keys and values in one."""

from tfm_jax.hf.table import AS_IS, Entry, Key, Table, linear, norm, same
from tfm_jax.models.config import ModelConfig

KEYS = (
  Key("num_layers", "n_layer", 12),
  Key("embed_dim", "n_embd", 768),
  Key("num_heads", "n_head", 12),
  Key("vocab_size", "vocab_size", 50_257),
  Key("max_positions", "n_positions", 1024),
  Key("activation", "activation_function", "gelu_new"),
  Key("dropout", "resid_pdrop", 0.1),
  Key("attention_dropout", "attn_pdrop", 0.1),
  Key("norm_epsilon", "layer_norm_epsilon", 1e-5),
  Key("scale_attention", "scale_attn_weights", True),
  Key("scale_by_layer", "scale_attn_by_inverse_layer_idx", False),
  Key("tied", "tie_word_embeddings", True),
)


def entries(c: ModelConfig) -> list[Entry]:
  """Parameters and tensors."""
  layer = "transformer.h.{}"
  return [
    *same("embed/token", "transformer.wte.weight"),
    *same("embed/position", "transformer.wpe.weight"),
    *norm("blocks/attn_norm", f"{layer}.ln_1"),
    *linear("blocks/attn/*q blocks/attn/*k blocks/attn/*v", f"{layer}.attn.c_attn", AS_IS),
    *linear("blocks/attn/*o", f"{layer}.attn.c_proj", AS_IS),
    *norm("blocks/mlp_norm", f"{layer}.ln_2"),
    *linear("blocks/mlp/*i", f"{layer}.mlp.c_fc", AS_IS),
    *linear("blocks/mlp/*o", f"{layer}.mlp.c_proj", AS_IS),
    *norm("final_norm", "transformer.ln_f"),
    *same("head/w", "lm_head.weight"),
  ]


GPT2 = Table(
  family="gpt",
  model_types=("gpt2",),
  architectures={"GPT2LMHeadModel": "lm", "GPT2Model": "none"},
  prefix="transformer.",
  keys=KEYS,
  entries=entries,
  fixed={"add_cross_attention": False},
  ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # masks
  output="lm_head.weight",
  embedding="transformer.wte.weight",
  to_ours=lambda theirs, ours: {"mlp_dim": theirs.get("n_inner") or 4 * ours["embed_dim"]},
  to_theirs=lambda c, kind: {"n_inner": c.mlp_features, "embd_pdrop": c.dropout},
)
