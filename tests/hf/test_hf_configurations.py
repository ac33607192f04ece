"""Hugging Face configurations as the hub has them: older keys, and what was the default left out.

Each is a golden case with its configuration changed, and must give the same parameters, bit for bit.
"""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.hf_cases import CASES
from tests.support.hf_compare import Config, assert_same, read


def old_rope(config: Config) -> None:
  """Before transformers 5."""
  rope = config.pop("rope_parameters")
  config["rope_theta"] = rope.pop("rope_theta")
  config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
  if rope["rope_type"] == "linear":  # still older
    config["rope_scaling"] = {"type": "linear", "factor": rope["factor"]}


def old_gpt_neox(config: Config) -> None:
  rope = config.pop("rope_parameters")
  config |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": 1.0}
  for key in ("attention_bias", "hidden_act", "tie_word_embeddings"):
    del config[key]


def old_modernbert(config: Config) -> None:
  rope = config.pop("rope_parameters")
  config["global_rope_theta"] = rope["full_attention"]["rope_theta"]
  config["local_rope_theta"] = rope["sliding_attention"]["rope_theta"]
  if "global_attn_every_n_layers" in config:
    del config["layer_types"]


def old_qwen2(config: Config) -> None:
  """It names a window that it does not use."""
  old_rope(config)
  del config["layer_types"]
  config |= {"use_sliding_window": False, "sliding_window": 3, "max_window_layers": 1}


def without(*keys: str, **more: Any) -> Callable[[Config], None]:
  def change(config: Config) -> None:
    for key in keys:
      config.pop(key)
    config.update(more)

  return change


BERT_NEW = ("tie_word_embeddings", "add_cross_attention", "is_decoder", "bos_token_id", "eos_token_id", "dtype")
CONFIGS: dict[str, tuple[str, Callable[[Config], None]]] = {
  "bert": (
    "bert_mlm",
    without(
      *BERT_NEW,
      "use_cache",
      "classifier_dropout",
      "type_vocab_size",
      "layer_norm_eps",
      "hidden_act",
      "pad_token_id",
      position_embedding_type="absolute",
      gradient_checkpointing=False,
      torch_dtype="float16",
    ),
  ),
  "roberta": ("roberta_mlm", without(*BERT_NEW, "use_cache", position_embedding_type="absolute")),
  "distilbert": ("distilbert_mlm", without("tie_word_embeddings", "dtype", "sinusoidal_pos_embds", tie_weights_=True)),
  "electra": ("electra_mlm_square", without(*BERT_NEW, "hidden_act", "layer_norm_eps")),
  "gpt2": (
    "gpt2",
    without(
      "activation_function",
      "n_inner",
      "scale_attn_weights",
      "scale_attn_by_inverse_layer_idx",
      "tie_word_embeddings",
      "reorder_and_upcast_attn",
      "add_cross_attention",
      "pad_token_id",
      n_ctx=10,
      n_special=0,
      task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    ),
  ),
  "t5": (
    "t5",
    without(
      "feed_forward_proj",
      "dense_act_fn",
      "is_gated_act",
      "tie_word_embeddings",
      "scale_decoder_outputs",
      "is_decoder",
      "classifier_dropout",
      n_positions=512,
      output_past=True,
    ),
  ),
  "t5_1_1": ("t5_1_1", without("dense_act_fn", "is_gated_act", "num_decoder_layers", output_past=True)),
  "t5_1_1_from_transformers_5": ("t5_1_1", without(tie_word_embeddings=True, scale_decoder_outputs=False)),
  "byt5": ("byt5", without("dense_act_fn", "is_gated_act", tokenizer_class="ByT5Tokenizer")),
  "modernbert": ("modernbert_mlm", old_modernbert),
  "modernbert_bases": ("modernbert_mean", old_modernbert),
  "modernbert_defaults": (
    "modernbert_mlm",
    without(
      "hidden_activation",
      "norm_bias",
      "norm_eps",
      "attention_bias",
      "mlp_bias",
      "decoder_bias",
      "classifier_pooling",
      "classifier_bias",
      "classifier_activation",
      "tie_word_embeddings",
      reference_compile=None,
      layer_norm_eps=1e-5,
      position_embedding_type="absolute",
    ),
  ),
  "llama": ("llama", old_rope),
  "llama_linear": ("llama_linear", old_rope),
  "llama3": ("llama3", old_rope),
  "llama_defaults": (
    "llama_tied",
    without("num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "hidden_act", torch_dtype="bfloat16"),
  ),
  "mistral": ("mistral", old_rope),
  "mistral_without_head_dim": ("mistral", without("head_dim", "hidden_act")),
  "qwen2": ("qwen2", old_qwen2),
  "esm": ("esm_mlm", without(*BERT_NEW, "use_cache", "emb_layer_norm_before", "is_folding_model", esmfold_config=None)),
  "gpt_neox": ("gpt_neox", old_gpt_neox),
  "vit": ("vit_square", without("dtype", "pooler_act", "pooler_output_size", image_size=[6, 6])),
  "vit_defaults": ("vit_relu", without("qkv_bias", "layer_norm_eps", "num_channels")),
}


@pytest.mark.parametrize("variant", CONFIGS)
def test_older_configurations_say_the_same(variant, imported, plain):
  name, change = CONFIGS[variant]
  tensors, config = read(name)
  change(config)
  assert config != read(name)[1]
  assert_same(imported(tensors, config), plain(name))


def test_configurations_name_cases():
  assert {name for name, _ in CONFIGS.values()} <= set(CASES)
