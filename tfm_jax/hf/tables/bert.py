"""BERT, RoBERTa and ELECTRA: one stack of blocks under three prefixes, with different heads."""

from collections.abc import Mapping
from typing import Any

from tfm_jax.hf.table import AS_IS, Entry, Key, Params, Table, linear, norm, same
from tfm_jax.models.config import ModelConfig, replaced

KEYS = (
  Key("num_layers", "num_hidden_layers", 12),
  Key("embed_dim", "hidden_size", 768),
  Key("num_heads", "num_attention_heads", 12),
  Key("mlp_dim", "intermediate_size", 3072),
  Key("vocab_size", "vocab_size", 30_522),
  Key("max_positions", "max_position_embeddings", 512),
  Key("token_types", "type_vocab_size", 2),
  Key("activation", "hidden_act", "gelu"),
  Key("dropout", "hidden_dropout_prob", 0.1),
  Key("attention_dropout", "attention_probs_dropout_prob", 0.1),
  Key("norm_epsilon", "layer_norm_eps", 1e-12),
  Key("tied", "tie_word_embeddings", True),
)
FIXED = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
IGNORED = (r".*embeddings\.(position_ids|token_type_ids)",)
HEADS = {
  "ForMaskedLM": "lm",
  "ForSequenceClassification": "sequence_classification",
  "ForTokenClassification": "token_classification",
  "ForQuestionAnswering": "question_answering",
}


def tower(prefix: str) -> list[Entry]:
  """Embeddings and blocks."""
  layer = f"{prefix}encoder.layer.{{}}"
  return [
    *same("embed/token", f"{prefix}embeddings.word_embeddings.weight"),
    *same("embed/position", f"{prefix}embeddings.position_embeddings.weight"),
    *same("embed/type", f"{prefix}embeddings.token_type_embeddings.weight"),
    *norm("embed/norm", f"{prefix}embeddings.LayerNorm"),
    *linear("blocks/attn/*q", f"{layer}.attention.self.query"),
    *linear("blocks/attn/*k", f"{layer}.attention.self.key"),
    *linear("blocks/attn/*v", f"{layer}.attention.self.value"),
    *linear("blocks/attn/*o", f"{layer}.attention.output.dense"),
    *norm("blocks/attn_norm", f"{layer}.attention.output.LayerNorm"),
    *linear("blocks/mlp/*i", f"{layer}.intermediate.dense"),
    *linear("blocks/mlp/*o", f"{layer}.output.dense"),
    *norm("blocks/mlp_norm", f"{layer}.output.LayerNorm"),
  ]


def classifier(head: str, name: str = "classifier") -> list[Entry]:
  """The last linear of a head that classifies."""
  return linear("classifier/*", "qa_outputs" if head == "question_answering" else name, layout=AS_IS)


def output_bias(c: ModelConfig, prefix: str) -> str:
  """The tensor that is used as the output layer's bias: files hold two, which differ if the layer is not tied."""
  return f"{prefix}bias" if c.tied else f"{prefix}decoder.bias"


def bias_twice(c: ModelConfig, prefix: str) -> dict[str, str]:
  """The other tensor of that bias."""
  return {f"{prefix}decoder.bias" if c.tied else f"{prefix}bias": output_bias(c, prefix)}


def bert_entries(c: ModelConfig) -> list[Entry]:
  """BERT."""
  return [
    *tower("bert."),
    *linear("pooler/*", "bert.pooler.dense"),
    *linear("head/dense/*", "cls.predictions.transform.dense"),
    *norm("head/norm", "cls.predictions.transform.LayerNorm"),
    *same("head/w", "cls.predictions.decoder.weight"),
    *same("head/bias", output_bias(c, "cls.predictions.")),
    *linear("next_sentence/*", "cls.seq_relationship", layout=AS_IS),
    *classifier(c.head.name),
  ]


BERT = Table(
  family="bert",
  model_types=("bert",),
  architectures={
    "BertForPreTraining": "pretraining",
    **{f"Bert{name}": head for name, head in HEADS.items()},
    "BertModel": "pooled",
  },
  prefix="bert.",
  keys=KEYS,
  entries=bert_entries,
  fixed=FIXED,
  ignored=IGNORED,
  aliases=lambda c: bias_twice(c, "cls.predictions."),
  output="cls.predictions.decoder.weight",
  embedding="bert.embeddings.word_embeddings.weight",
)


def roberta_entries(c: ModelConfig) -> list[Entry]:
  """RoBERTa: its classification head contains the pooler, under other names."""
  classifies = c.head.name == "sequence_classification"
  return [
    *tower("roberta."),
    *linear("pooler/*", "classifier.dense" if classifies else "roberta.pooler.dense"),
    *linear("head/dense/*", "lm_head.dense"),
    *norm("head/norm", "lm_head.layer_norm"),
    *same("head/w", "lm_head.decoder.weight"),
    *same("head/bias", output_bias(c, "lm_head.")),
    *classifier(c.head.name, "classifier.out_proj" if classifies else "classifier"),
  ]


def roberta_to_ours(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
  """Positions start after the position of padding."""
  pad = theirs.get("pad_token_id")
  return {"position_offset": 1 + (1 if not isinstance(pad, int) else pad)}


ROBERTA = Table(
  family="roberta",
  model_types=("roberta",),
  architectures={**{f"Roberta{name}": head for name, head in HEADS.items()}, "RobertaModel": "pooled"},
  prefix="roberta.",
  keys=KEYS,
  entries=roberta_entries,
  fixed=FIXED,
  ignored=IGNORED,
  aliases=lambda c: bias_twice(c, "lm_head."),
  output="lm_head.decoder.weight",
  embedding="roberta.embeddings.word_embeddings.weight",
  to_ours=roberta_to_ours,
  to_theirs=lambda c, kind: {"pad_token_id": c.position_offset - 1},
)


def electra_entries(c: ModelConfig) -> list[Entry]:
  """ELECTRA, generator and discriminator."""
  return [
    *tower("electra."),
    *linear("embed/project/*", "electra.embeddings_project"),
    *linear("head/dense/*", "generator_predictions.dense"),
    *norm("head/norm", "generator_predictions.LayerNorm"),
    *same("head/w", "generator_lm_head.weight"),
    *same("head/bias", "generator_lm_head.bias"),
    *linear("dense/*", "discriminator_predictions.dense"),
    *linear("classifier/*", "discriminator_predictions.dense_prediction", layout=AS_IS),
  ]


def electra_to_ours(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
  """Embedding tables as wide as the model have no projection."""
  width = theirs.get("embedding_size", 128)
  return {"embedding_dim": 0 if width == ours["embed_dim"] else width}


def electra_alone(c: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
  """The model without the generator that it was trained with."""
  if c.head.name != "electra":
    return c, params
  ours = {path: x for path, x in params.items() if not path.startswith("generator/")}
  return replaced(c, {"head.name": "replaced_token_detection"}), ours


ELECTRA_DEFAULTS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
ELECTRA = Table(
  family="electra",
  model_types=("electra",),
  architectures={
    "ElectraForMaskedLM": "lm",
    "ElectraForPreTraining": "replaced_token_detection",
    "ElectraModel": "none",
  },
  prefix="electra.",
  keys=tuple(key._replace(default=ELECTRA_DEFAULTS.get(key.theirs, key.default)) for key in KEYS),
  entries=electra_entries,
  fixed=FIXED,
  ignored=IGNORED,
  output="generator_lm_head.weight",
  embedding="electra.embeddings.word_embeddings.weight",
  to_ours=electra_to_ours,
  to_theirs=lambda c, kind: {"embedding_size": c.embed_features},
  simplify=electra_alone,
)
