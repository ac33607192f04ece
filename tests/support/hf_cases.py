"""Tiny models of every Hugging Face architecture that is imported and exported: what they are and what they are fed.

Read by the tests and, under an interpreter with torch and transformers, by make_hf_golden.py: numpy only.
"""

import zlib
from typing import Any, NamedTuple

import numpy as np

IGNORED = -100  # a label that does not count


class Case(NamedTuple):
  """`options` are those of the architecture's config class. Nothing in them is a default that could hide a mistake."""

  architecture: str
  options: dict[str, Any]
  length: int = 9  # of the longest row
  free_head: bool = False  # T5 whose head is its own, as T5 1.1 was released: transformers 5 can load it, not make it

  @property
  def vocab_size(self) -> int:
    return self.options.get("vocab_size", 0)

  @property
  def family(self) -> str:
    """The part of the architecture's name that is its model."""
    return self.architecture.removesuffix("LMHeadModel").removesuffix("Model").split("For")[0]

  @property
  def head(self) -> str:
    """The other part, with one name for one thing; empty for a bare model."""
    if self.architecture == "ElectraForPreTraining":
      return "ReplacedTokens"
    if self.architecture.endswith("LMHeadModel"):
      return "CausalLM"
    return self.architecture.partition("For")[2]

  @property
  def num_labels(self) -> int:
    return self.options.get("num_labels", 2)


def bert(architecture: str, length: int = 9, **options: Any) -> Case:
  """A BERT; also the options that RoBERTa and ELECTRA share with it."""
  sizes = {"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 14}
  return Case(architecture, {"vocab_size": 37, "max_position_embeddings": 11, **sizes} | options, length)


def roberta(architecture: str, **options: Any) -> Case:
  """Its positions start behind the id of padding."""
  ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
  return bert(architecture, **{"max_position_embeddings": 13, **ids} | options)


def distilbert(architecture: str, **options: Any) -> Case:
  sizes = {"dim": 12, "n_heads": 3, "n_layers": 2, "hidden_dim": 14}
  return Case(architecture, {"vocab_size": 37, "max_position_embeddings": 10, **sizes} | options)


def gpt2(**options: Any) -> Case:
  ids = {"bos_token_id": 0, "eos_token_id": 0}
  sizes = {"n_embd": 12, "n_head": 3, "n_layer": 2, "n_positions": 10}
  return Case("GPT2LMHeadModel", {"vocab_size": 37, **sizes, **ids} | options)


def t5(architecture: str = "T5ForConditionalGeneration", free_head: bool = False, **options: Any) -> Case:
  """Long enough for the last bucket of relative positions to be used."""
  sizes = {"d_model": 12, "d_kv": 4, "num_heads": 3, "d_ff": 14, "num_layers": 2, "num_decoder_layers": 2}
  positions = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 9}
  ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
  return Case(architecture, {"vocab_size": 37, **sizes, **positions, **ids} | options, 13, free_head)


def bart(**options: Any) -> Case:
  """Both sides have positions of their own."""
  sizes = {"d_model": 12, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 14, "decoder_ffn_dim": 14}
  sizes |= {"encoder_attention_heads": 3, "decoder_attention_heads": 3, "max_position_embeddings": 14}
  ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "num_labels": 2}
  return Case("BartForConditionalGeneration", {"vocab_size": 37, **sizes, **ids} | options, 13)


def modernbert(architecture: str, **options: Any) -> Case:
  """A window of 4 lets a token see two neighbours on each side."""
  sizes = {"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 10}
  ids = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
  window = {"local_attention": 4, "max_position_embeddings": 16}
  window |= {} if "layer_types" in options else {"global_attn_every_n_layers": 2}
  return Case(architecture, {"vocab_size": 37, **sizes, **ids, **window} | options, 11)


def thetas(full: float, sliding: float) -> dict[str, dict[str, Any]]:
  """ModernBERT's rotary bases of the layers that see everything and of those that see a window."""
  bases = {"full_attention": full, "sliding_attention": sliding}
  return {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()}


def llama(architecture: str = "LlamaForCausalLM", **options: Any) -> Case:
  sizes = {"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 14}
  ids = {"bos_token_id": 1, "eos_token_id": 2}
  rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
  kv = {"num_key_value_heads": 1, "max_position_embeddings": 16}
  return Case(architecture, {"vocab_size": 37, **sizes, **ids, **rope, **kv} | options, 11)


def esm(architecture: str, **options: Any) -> Case:
  """Rotary: the kind to which a BERT of ours with rotary positions is exported."""
  ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "mask_token_id": 4}
  rotary = {"position_embedding_type": "rotary", "token_dropout": False, "layer_norm_eps": 1e-5}
  return bert(architecture, **ids | rotary | {"emb_layer_norm_before": False, "rope_theta": 100.0} | options)


def gpt_neox(**options: Any) -> Case:
  """Neither parallel residuals nor partial rotations."""
  sizes = {"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 14}
  rope = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0}
  ids = {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 16}
  plain = {"use_parallel_residual": False, "rope_parameters": rope}
  return Case("GPTNeoXForCausalLM", {"vocab_size": 37, **sizes, **plain, **ids} | options, 11)


def vit(**options: Any) -> Case:
  sizes = {"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 14}
  return Case("ViTForImageClassification", {**sizes, "num_labels": 3} | options)


# All three branches: with heads of 8 features the waves are 6, 20, 63 and 199 tokens long, the bounds 8 and 32.
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 100.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}

LABELS = {0: "contradiction", 1: "entailment, or not", 2: "B-PER"}

CASES: dict[str, Case] = {
  "bert_model": bert("BertModel", num_attention_heads=2, vocab_size=41, type_vocab_size=3),
  "bert_model_relu": bert("BertModel", hidden_act="relu", layer_norm_eps=1e-2, num_hidden_layers=1),
  "bert_pretraining": bert("BertForPreTraining", num_hidden_layers=3, hidden_size=8, num_attention_heads=4),
  "bert_pretraining_free": bert("BertForPreTraining", tie_word_embeddings=False, num_hidden_layers=1, vocab_size=30),
  "bert_mlm": bert("BertForMaskedLM", hidden_size=16, num_attention_heads=4, vocab_size=31, num_hidden_layers=1),
  "bert_mlm_free": bert("BertForMaskedLM", tie_word_embeddings=False, hidden_act="relu", type_vocab_size=1),
  "bert_mlm_tanh": bert("BertForMaskedLM", hidden_act="gelu_new", type_vocab_size=3, layer_norm_eps=1e-3),
  "bert_sequence": bert(
    "BertForSequenceClassification", num_labels=3, id2label=LABELS, label2id={v: k for k, v in LABELS.items()}
  ),
  "bert_sequence_relu": bert("BertForSequenceClassification", hidden_act="relu", num_labels=5, num_hidden_layers=1),
  "bert_regression": bert("BertForSequenceClassification", num_labels=1, vocab_size=45, num_hidden_layers=1),
  "bert_tokens": bert("BertForTokenClassification", num_labels=5, num_attention_heads=1),
  "bert_question": bert("BertForQuestionAnswering", num_hidden_layers=3, hidden_size=8, num_attention_heads=2),
  "roberta_model": roberta("RobertaModel", num_attention_heads=2, vocab_size=41),
  "roberta_mlm": roberta("RobertaForMaskedLM", hidden_size=8, num_attention_heads=4, num_hidden_layers=3),
  # Its head keeps gelu whatever hidden_act is.
  "roberta_mlm_relu": roberta("RobertaForMaskedLM", hidden_act="relu", layer_norm_eps=1e-2, num_hidden_layers=1),
  "roberta_mlm_free": roberta("RobertaForMaskedLM", tie_word_embeddings=False, pad_token_id=3, type_vocab_size=2),
  "roberta_sequence": roberta("RobertaForSequenceClassification", num_labels=3, hidden_act="relu"),
  "roberta_tokens": roberta("RobertaForTokenClassification", num_labels=5, type_vocab_size=2, pad_token_id=0),
  "roberta_question": roberta("RobertaForQuestionAnswering", hidden_act="gelu_new", num_hidden_layers=1),
  "distilbert_model": distilbert("DistilBertModel", n_heads=2, vocab_size=41),
  "distilbert_mlm": distilbert("DistilBertForMaskedLM", dim=8, n_heads=4, n_layers=3),
  "distilbert_mlm_relu": distilbert("DistilBertForMaskedLM", activation="relu", n_layers=1),
  "distilbert_mlm_free": distilbert("DistilBertForMaskedLM", tie_word_embeddings=False, vocab_size=30, n_layers=1),
  "distilbert_sequence": distilbert("DistilBertForSequenceClassification", num_labels=3),
  "distilbert_tokens": distilbert("DistilBertForTokenClassification", num_labels=5, activation="relu"),
  "distilbert_question": distilbert("DistilBertForQuestionAnswering", n_heads=1, n_layers=1),
  "electra_mlm": bert("ElectraForMaskedLM", embedding_size=8, hidden_act="relu", layer_norm_eps=1e-3),
  "electra_mlm_square": bert("ElectraForMaskedLM", embedding_size=12, type_vocab_size=3, num_hidden_layers=1),
  "electra_mlm_free": bert("ElectraForMaskedLM", embedding_size=16, tie_word_embeddings=False, num_hidden_layers=1),
  "electra_replaced": bert("ElectraForPreTraining", embedding_size=8, num_attention_heads=2, num_hidden_layers=3),
  "electra_replaced_square": bert("ElectraForPreTraining", embedding_size=12, hidden_act="relu", type_vocab_size=1),
  "gpt2": gpt2(activation_function="gelu_new", n_layer=3, n_head=2, n_embd=8),
  "gpt2_relu": gpt2(activation_function="relu", n_inner=14, layer_norm_epsilon=1e-2, vocab_size=45),
  "gpt2_unscaled": gpt2(activation_function="gelu", n_inner=10, scale_attn_weights=False),
  "gpt2_layers": gpt2(scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False, n_inner=14, n_layer=3),
  "t5": t5(feed_forward_proj="relu", num_decoder_layers=1, d_kv=5),
  "t5_gelu": t5(feed_forward_proj="gelu", num_layers=1, num_heads=2, layer_norm_epsilon=1e-2, vocab_size=45),
  "t5_silu": t5(feed_forward_proj="gated-silu", d_kv=3, num_layers=1, relative_attention_num_buckets=6),
  # What transformers 5 makes of a 1.1 of its own: one table at both ends, and no scale before the output.
  "t5_1_1_tied": t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=1),
  "t5_1_1": t5(
    feed_forward_proj="gated-gelu", tie_word_embeddings=False, free_head=True, relative_attention_max_distance=6
  ),
  "byt5": t5(
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    free_head=True,
    vocab_size=384,
    d_model=8,
    num_layers=3,
    num_decoder_layers=1,
  )._replace(length=7),
  "mt5": t5("MT5ForConditionalGeneration", feed_forward_proj="gated-gelu", num_heads=2, vocab_size=45),
  "mt5_free": t5("MT5ForConditionalGeneration", feed_forward_proj="gated-gelu", free_head=True, num_layers=1),
  "bart": bart(encoder_layers=3, scale_embedding=True),
  "bart_relu": bart(activation_function="relu", decoder_layers=1, vocab_size=45),
  # As deep as a decoder that is not there: an export says num_decoder_layers=num_layers.
  "t5_encoder": t5("T5EncoderModel", feed_forward_proj="relu", d_kv=5),
  "t5_encoder_tokens": t5("T5ForTokenClassification", feed_forward_proj="gated-gelu", num_labels=5),
  "mt5_encoder": t5("MT5EncoderModel", feed_forward_proj="gated-gelu", vocab_size=45),
  "modernbert_model": modernbert("ModernBertModel", num_hidden_layers=4, global_attn_every_n_layers=3),
  "modernbert_mlm": modernbert("ModernBertForMaskedLM", hidden_size=8, num_attention_heads=2, vocab_size=45),
  "modernbert_mlm_biases": modernbert(
    "ModernBertForMaskedLM",
    attention_bias=True,
    mlp_bias=True,
    norm_bias=True,
    classifier_bias=True,
    hidden_activation="gelu_pytorch_tanh",
    classifier_activation="relu",
    norm_eps=1e-2,
    num_hidden_layers=2,
  ),
  "modernbert_mlm_free": modernbert(
    "ModernBertForMaskedLM",
    tie_word_embeddings=False,
    decoder_bias=False,
    local_attention=6,
    norm_bias=True,
    rope_parameters=thetas(60.0, 15.0),
    layer_types=["full_attention", "sliding_attention", "sliding_attention"],
  ),
  "modernbert_cls": modernbert(
    "ModernBertForSequenceClassification", num_labels=3, classifier_pooling="cls", local_attention=2
  ),
  "modernbert_mean": modernbert(
    "ModernBertForSequenceClassification",
    num_labels=4,
    classifier_pooling="mean",
    mlp_bias=True,
    rope_parameters=thetas(30.0, 200.0),
  ),
  "modernbert_tokens": modernbert(
    "ModernBertForTokenClassification", num_labels=5, attention_bias=True, classifier_bias=True, num_hidden_layers=2
  ),
  # Answers are sought in padding too, and there each query must see a token: where it sees none, all weights are the
  # same on both sides, but only transformers sends a gradient through them.
  "modernbert_question": modernbert("ModernBertForQuestionAnswering", local_attention=6, num_attention_heads=2),
  "llama": llama(num_hidden_layers=3),
  "llama_groups": llama(num_attention_heads=4, num_key_value_heads=2, head_dim=6, attention_bias=True, mlp_bias=True),
  "llama_tied": llama(num_key_value_heads=3, tie_word_embeddings=True, rms_norm_eps=1e-2, vocab_size=45),
  "llama_linear": llama(rope_parameters={"rope_type": "linear", "rope_theta": 50.0, "factor": 2.5}),
  "llama3": llama(num_attention_heads=2, head_dim=8, rope_parameters=LLAMA3, max_position_embeddings=64),
  "mistral": llama("MistralForCausalLM", sliding_window=4),
  "mistral_tied": llama(
    "MistralForCausalLM", sliding_window=None, head_dim=6, num_key_value_heads=3, tie_word_embeddings=True
  ),
  "qwen2": llama("Qwen2ForCausalLM", num_attention_heads=2, num_hidden_layers=1, vocab_size=45),
  "qwen2_tied": llama("Qwen2ForCausalLM", num_key_value_heads=3, tie_word_embeddings=True, rms_norm_eps=1e-2),
  "esm_model": esm("EsmModel", num_attention_heads=2, emb_layer_norm_before=True, vocab_size=41),
  "esm_mlm": esm("EsmForMaskedLM", hidden_size=8, num_attention_heads=2, num_hidden_layers=3),
  "esm_mlm_free": esm("EsmForMaskedLM", tie_word_embeddings=False, layer_norm_eps=1e-2, rope_theta=30.0),
  "esm_sequence": esm("EsmForSequenceClassification", num_labels=3, num_hidden_layers=1),
  "esm_tokens": esm("EsmForTokenClassification", num_labels=5, emb_layer_norm_before=True),
  "gpt_neox": gpt_neox(hidden_act="gelu", num_hidden_layers=3, hidden_size=8, num_attention_heads=2),
  "gpt_neox_tied": gpt_neox(tie_word_embeddings=True, hidden_act="gelu_new", layer_norm_eps=1e-2),
  "gpt_neox_linear": gpt_neox(
    hidden_act="relu",
    attention_bias=False,
    num_attention_heads=1,
    vocab_size=45,
    rope_parameters={"rope_type": "linear", "rope_theta": 50.0, "factor": 2.5, "partial_rotary_factor": 1.0},
  ),
  "vit": vit(image_size=[8, 12], patch_size=4, num_channels=1),
  "vit_square": vit(image_size=6, patch_size=2, num_channels=3, qkv_bias=False, num_labels=5, layer_norm_eps=1e-2),
  "vit_relu": vit(image_size=[9, 6], patch_size=3, num_channels=3, hidden_act="relu", num_attention_heads=2),
}


# Wide enough for eight devices and for the ids of bytes: trained between import and export. Not golden.
TRAINED: dict[str, Case] = {
  "trained_bert": bert(
    "BertForMaskedLM",
    vocab_size=300,
    hidden_size=16,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=17,
  ),
  "trained_gpt2": gpt2(vocab_size=300, n_embd=16, n_head=4, n_positions=17),
  "trained_t5": t5(
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    free_head=True,
    vocab_size=300,
    d_model=16,
    num_heads=4,
    d_ff=24,
    num_decoder_layers=1,
  ),
}


def find(name: str) -> Case:
  return CASES.get(name) or TRAINED[name]


def generator(name: str, seed: int) -> np.random.Generator:
  """Random numbers of a case: the same whatever other cases there are."""
  return np.random.default_rng([seed, zlib.crc32(name.encode())])


def make_inputs(name: str, seed: int) -> dict[str, np.ndarray]:
  """What a case is fed, under the names of transformers: three rows, with padding on the right, and labels of which
  some do not count."""
  case, draw = find(name), generator(name, seed + 1_000_000)
  rows, T = 3, case.length
  if case.head == "ImageClassification":
    size = case.options["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    pixels = draw.normal(size=(rows, case.options["num_channels"], height, width)).astype(np.float32)
    return {"pixel_values": pixels, "labels": np.array([1, IGNORED, 2])}
  mask = (np.arange(T) < np.array([T, T - 3, 4])[:, None]).astype(np.int64)
  pad = case.options.get("pad_token_id", 0)
  ids = draw.integers(0, case.vocab_size, (rows, T))
  if case.family == "Roberta":
    ids[ids == pad] = pad + 1  # it would count its positions without them
  else:
    ids[0, 3] = pad  # a token like any other where the mask says so
  inputs = {"input_ids": np.where(mask, ids, pad), "attention_mask": mask}
  types = case.options.get("type_vocab_size", 2) if case.family in ("Bert", "Roberta", "Electra") else 0
  if types > 1:
    inputs["token_type_ids"] = draw.integers(0, types, (rows, T)) * mask

  def some(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """About two thirds of those labels that count."""
    return np.where(counts & (draw.random(labels.shape) < 0.7), labels, IGNORED)

  vocabulary = draw.integers(0, case.vocab_size, (rows, T))
  if case.head in ("MaskedLM", "PreTraining"):
    inputs["labels"] = some(vocabulary, mask > 0)
  if case.head == "PreTraining":
    inputs["next_sentence_label"] = np.array([1, 0, 0])
  elif case.head == "CausalLM":
    inputs["labels"] = some(inputs["input_ids"], mask > 0)
  elif case.head == "ConditionalGeneration":
    decoded = T - 2
    decoder_mask = (np.arange(decoded) < np.array([4, decoded, decoded - 1])[:, None]).astype(np.int64)
    labels = some(vocabulary[:, :decoded], decoder_mask > 0)
    start = np.full((rows, 1), case.options["decoder_start_token_id"])
    shifted = np.concatenate([start, labels[:, :-1]], axis=1)
    inputs["decoder_input_ids"] = np.where(shifted == IGNORED, pad, shifted)
    inputs |= {"decoder_attention_mask": decoder_mask, "labels": labels}
  elif case.head == "SequenceClassification":
    classes, numbers = np.array([1, IGNORED, case.num_labels - 1]), np.array([0.7, -1.2, 2.0], np.float32)
    inputs["labels"] = classes if case.num_labels > 1 else numbers
  elif case.head == "TokenClassification":
    inputs["labels"] = some(draw.integers(0, case.num_labels, (rows, T)), mask > 0)
  elif case.head == "ReplacedTokens":
    inputs["labels"] = draw.integers(0, 2, (rows, T)) * mask
  elif case.head == "QuestionAnswering":
    # A position behind the end does not count. Padding does: it has a share of the softmax.
    inputs |= {"start_positions": np.array([1, 0, T]), "end_positions": np.array([T - 1, 4, T])}
  return inputs


def projection(gradient: np.ndarray) -> float:
  """The dot product with a fixed vector that looks random: two arrangements of the same numbers have different ones."""
  return float(np.cos(np.arange(gradient.size, dtype=np.float64)) @ gradient.astype(np.float64).ravel())
