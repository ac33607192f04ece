"""Hugging Face checkpoints that are refused: in one line that names what is wrong, and nothing is left behind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.hf_compare import GOLDEN, Config, Tensors, assert_same, read, write
from tfm_jax.errors import UserError
from tfm_jax.hf.importing import import_checkpoint
from tfm_jax.training.load import load_run


def refuse(folder: Path, tensors: Tensors, config: Config, **more: Any) -> str:
  source, workdir = write(folder / "source", tensors, config), folder / "run"
  with pytest.raises(UserError) as raised:
    import_checkpoint(source, workdir, **more)
  assert sorted(path.name for path in folder.iterdir()) == ["source"]
  message = str(raised.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize(
  ("name", "missing", "misshapen"),
  [
    (
      "bert_mlm",
      ("bert.encoder.layer.0.output.dense.bias", "bert.embeddings.LayerNorm.weight"),
      "bert.embeddings.position_embeddings.weight",
    ),
    ("gpt2", ("transformer.h.1.mlp.c_fc.weight", "transformer.ln_f.bias"), "transformer.h.0.attn.c_attn.weight"),
    (
      "t5",
      ("encoder.block.1.layer.1.layer_norm.weight", "shared.weight"),
      "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    (
      "t5_encoder",
      ("encoder.block.1.layer.1.layer_norm.weight", "shared.weight"),
      "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    ("vit", ("vit.embeddings.cls_token", "vit.layernorm.bias"), "vit.embeddings.patch_embeddings.projection.weight"),
    ("llama", ("model.norm.weight", "model.layers.2.mlp.up_proj.weight"), "model.layers.0.self_attn.k_proj.weight"),
  ],
)
def test_missing_unexpected_and_misshapen_tensors_are_listed_together(name, missing, misshapen, tmp_path):
  tensors, config = read(name)
  for key in missing:
    del tensors[key]
  prefix = misshapen.split(".")[0]
  unexpected = (f"{prefix}.of.another.model", "adapter.weight")
  tensors |= {key: np.zeros(3, np.float32) for key in unexpected}
  tensors[misshapen] = np.concatenate([tensors[misshapen], tensors[misshapen]], axis=1)
  message = refuse(tmp_path, tensors, config)
  for key in (*missing, *unexpected, misshapen):
    assert key in message, key


def test_a_layer_more_than_the_configuration_says_is_unexpected(tmp_path):
  tensors, config = read("bert_mlm")
  last = {key: x for key, x in tensors.items() if ".layer.0." in key}
  message = refuse(tmp_path, tensors | {key.replace(".0.", ".1.", 1): x for key, x in last.items()}, config)
  assert "bert.encoder.layer.1." in message


@pytest.mark.parametrize(
  ("name", "changes", "named"),
  [
    ("bert_mlm", {"architectures": ["BartModel"]}, "BartModel"),
    ("t5", {"architectures": ["T5Model"]}, "MT5ForConditionalGeneration, T5ForTokenClassification"),
    ("bert_mlm", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("bert_mlm", {"is_decoder": True}, "is_decoder"),
    ("bert_mlm", {"hidden_act": "quick_gelu"}, "quick_gelu"),
    ("bert_mlm", {"vocab_size": 99}, "word_embeddings"),
    ("bert_mlm", {"num_attention_heads": 5}, "num_heads"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10.0, "factor": 2.0}}, "yarn"),
    (
      "qwen2_tied",
      {
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"],
      },
      "sliding_window",
    ),
    ("modernbert_mlm", {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}, "layer_types"),
    ("esm_mlm", {"token_dropout": True}, "token_dropout"),
    ("esm_mlm", {"position_embedding_type": "absolute"}, "position_embedding_type"),
    ("esm_mlm", {"rope_theta": 7.0}, "inv_freq"),
    ("gpt_neox", {"use_parallel_residual": True}, "use_parallel_residual"),
    ("gpt_neox", {"rope_parameters": None, "rotary_pct": 0.25}, "rotary_pct"),
    ("gpt_neox", {"rope_parameters": None}, "rotary_pct"),
    ("t5", {"feed_forward_proj": "gated-tanhshrink"}, "tanhshrink"),
  ],
)
def test_what_our_models_cannot_do_is_refused_by_name(name, changes, named, tmp_path):
  tensors, config = read(name)
  assert named in refuse(tmp_path, tensors, config | changes)


def test_a_folder_without_a_model_is_refused(tmp_path):
  with pytest.raises(UserError):
    import_checkpoint(tmp_path / "nothing", tmp_path / "run")
  tensors, config = read("bert_mlm")
  source = write(tmp_path / "source", tensors, config)
  (source / "config.json").unlink()
  with pytest.raises(UserError, match=r"config\.json"):
    import_checkpoint(source, tmp_path / "run")
  (source / "config.json").write_text("{")
  with pytest.raises(UserError, match=r"config\.json"):
    import_checkpoint(source, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_no_run_is_overwritten(tmp_path):
  import_checkpoint(GOLDEN / "bert_mlm", tmp_path / "run")
  before = load_run(tmp_path / "run")
  with pytest.raises(UserError, match="run"):
    import_checkpoint(GOLDEN / "bert_tokens", tmp_path / "run")
  assert_same(load_run(tmp_path / "run"), before)
