"""ESM (Lin et al. 2023), the pre-norm relative of BERT with rotary positions: what such a BERT is exported as.

Pre-trained ESM-2 models are refused: they rescale embeddings by the number of masked tokens (`token_dropout`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.hf.table import Entry, Key, Params, Table, linear, norm, same
from tfm_jax.hf.tables.bert import FIXED, IGNORED, classifier
from tfm_jax.models.config import ModelConfig, replaced

KEYS = (
  Key("num_layers", "num_hidden_layers", 12),
  Key("embed_dim", "hidden_size", 768),
  Key("num_heads", "num_attention_heads", 12),
  Key("mlp_dim", "intermediate_size", 3072),
  Key("vocab_size", "vocab_size", 33),
  Key("max_positions", "max_position_embeddings", 1026),
  Key("rotary.base", "rope_theta", 10_000.0),
  Key("dropout", "hidden_dropout_prob", 0.1),
  Key("attention_dropout", "attention_probs_dropout_prob", 0.1),
  Key("norm_epsilon", "layer_norm_eps", 1e-12),
  Key("tied", "tie_word_embeddings", True),
)
RATES = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"


def entries(c: ModelConfig) -> list[Entry]:
  """Parameters and tensors. The classification head of rows contains the pooler."""
  layer = "esm.encoder.layer.{}"
  of_rows = c.head.name == "sequence_classification"
  return [
    *same("embed/token", "esm.embeddings.word_embeddings.weight"),
    *norm("embed/norm", "esm.embeddings.layer_norm"),
    *norm("blocks/attn_norm", f"{layer}.attention.LayerNorm"),
    *linear("blocks/attn/*q", f"{layer}.attention.self.query"),
    *linear("blocks/attn/*k", f"{layer}.attention.self.key"),
    *linear("blocks/attn/*v", f"{layer}.attention.self.value"),
    *linear("blocks/attn/*o", f"{layer}.attention.output.dense"),
    *norm("blocks/mlp_norm", f"{layer}.LayerNorm"),
    *linear("blocks/mlp/*i", f"{layer}.intermediate.dense"),
    *linear("blocks/mlp/*o", f"{layer}.output.dense"),
    *norm("final_norm", "esm.encoder.emb_layer_norm_after"),
    *linear("pooler/*", "classifier.dense" if of_rows else "esm.pooler.dense"),
    *linear("head/dense/*", "lm_head.dense"),
    *norm("head/norm", "lm_head.layer_norm"),
    *same("head/w", "lm_head.decoder.weight"),
    *same("head/bias", "lm_head.bias"),
    *classifier(c.head.name, "classifier.out_proj" if of_rows else "classifier"),
  ]


def to_ours(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
  """What distinguishes it from the preset of our BERT."""
  positions = theirs.get("position_embedding_type", "absolute")
  if positions != "rotary":
    raise UserError(f"config.json: position_embedding_type={positions!r} is not supported, only 'rotary' is")
  return {
    "positions": "rotary",
    "norm_order": "pre",
    "embed_norm": bool(theirs.get("emb_layer_norm_before")),
    "token_types": 0,
  }


def to_theirs(c: ModelConfig, kind: str) -> dict[str, Any]:
  """The same, and what our models never do."""
  return {"position_embedding_type": "rotary", "emb_layer_norm_before": c.embed_norm, "token_dropout": False}


def without_token_types(c: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
  """The same language model without token types.

  Pre-training on tokens only ever uses type 0: its vector is added to the embedding of each token. The output layer
  keeps the table as it was, so the two are no longer tied.
  """
  if not c.token_types or c.head.name != "lm":
    return c, params
  table, types = np.asarray(params["embed/token"]), np.asarray(params["embed/type"])
  kept = {path: x for path, x in params.items() if path != "embed/type"}
  output = {"head/w": table} if c.tied else {}
  return replaced(c, {"token_types": 0, "tied": False}), {**kept, "embed/token": table + types[:1], **output}


def extras(c: ModelConfig) -> dict[str, np.ndarray]:
  """Rotary frequencies, and the head that predicts contacts in proteins, which is part of every ESM: zeros."""
  shares = np.arange(0, c.head_features, 2, dtype=np.float32) / np.float32(c.head_features)
  rates = 1 / np.power(c.rotary.base, shares.astype(np.float64)).astype(np.float32)  # rounded as PyTorch rounds them
  contacts = "esm.contact_head.regression"
  return {RATES.format(layer): rates for layer in range(c.num_layers)} | {
    f"{contacts}.weight": np.zeros((1, c.num_layers * c.num_heads), np.float32),
    f"{contacts}.bias": np.zeros(1, np.float32),
  }


ESM = Table(
  family="bert",
  model_types=("esm",),
  architectures={
    "EsmForMaskedLM": "lm",
    "EsmForSequenceClassification": "sequence_classification",
    "EsmForTokenClassification": "token_classification",
    "EsmModel": "pooled",
  },
  prefix="esm.",
  keys=KEYS,
  entries=entries,
  serves=lambda c: c.positions == "rotary",
  fixed={**FIXED, "position_embedding_type": "rotary", "token_dropout": False, "is_folding_model": False},
  ignored=(*IGNORED, r"(esm\.)?contact_head\..*"),
  rotary_rates=r"(esm\.)?(encoder\.layer\.(\d+|\*)\.attention\.self\.)?rotary_embeddings\.inv_freq",
  output="lm_head.decoder.weight",
  embedding="esm.embeddings.word_embeddings.weight",
  to_ours=to_ours,
  to_theirs=to_theirs,
  simplify=without_token_types,
  extras=extras,
)
