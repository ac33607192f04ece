"""Hugging Face checkpoints as the hub has them: other names, other dtypes, more or fewer tensors.

Each is a golden case with its tensors changed, and must give the same parameters, bit for bit.
"""

import json
import re
from collections.abc import Callable

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.hf_cases import CASES
from tests.support.hf_compare import (
  Config,
  Tensors,
  assert_same,
  assert_same_params,
  check_same_tensors,
  read,
  write,
)
from tfm_jax.errors import UserError
from tfm_jax.hf.exporting import export_checkpoint, tensors_of
from tfm_jax.hf.importing import import_checkpoint
from tfm_jax.models.networks.encoder_decoder import encoder_params
from tfm_jax.runtime.trees import flat
from tfm_jax.training.load import load_run

# Names of tensors.


def renamed(*pairs: tuple[str, str]) -> Callable[[Tensors, Config], None]:
  """Regular expressions and what stands for them."""

  def change(tensors: Tensors, config: Config) -> None:
    for name in list(tensors):
      new = name
      for pattern, other in pairs:
        new = re.sub(pattern, other, new)
      tensors[new] = tensors.pop(name)

  return change


def again(**copies: str) -> Callable[[Tensors, Config], None]:
  """Tensors under one more name each; `__` stands for a dot."""

  def change(tensors: Tensors, config: Config) -> None:
    for new, old in copies.items():
      assert new.replace("__", ".") not in tensors
      tensors[new.replace("__", ".")] = tensors[old].copy()

  return change


def with_masks_of_gpt2(tensors: Tensors, config: Config) -> None:
  for i in range(config["n_layer"]):
    tensors[f"transformer.h.{i}.attn.bias"] = np.tri(10, dtype=np.float32)[None, None]
    tensors[f"transformer.h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)


def with_masks_of_gpt_neox(tensors: Tensors, config: Config) -> None:
  for i in range(config["num_hidden_layers"]):
    tensors[f"gpt_neox.layers.{i}.attention.bias"] = np.tri(16, dtype=np.float32)[None, None]
    tensors[f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq"] = np.ones(2, np.float32)


def with_position_ids(prefix: str) -> Callable[[Tensors, Config], None]:
  def change(tensors: Tensors, config: Config) -> None:
    tensors[f"{prefix}.embeddings.position_ids"] = np.arange(config["max_position_embeddings"])[None]

  return change


def with_rotary_frequencies(tensors: Tensors, config: Config) -> None:
  for i in range(config["num_hidden_layers"]):
    tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)


def with_bias_of_cross_attention(tensors: Tensors, config: Config) -> None:
  """Files of T5 1.0 have one that nothing reads."""
  name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
  tensors[name] = np.ones_like(tensors["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"])


BERT_OLD_NORMS = renamed((r"LayerNorm\.weight", "LayerNorm.gamma"), (r"LayerNorm\.bias", "LayerNorm.beta"))
BERT_TABLE, T5_TABLE = "bert.embeddings.word_embeddings.weight", "shared.weight"

TENSORS: dict[str, tuple[str, Callable[[Tensors, Config], None]]] = {
  "gamma_and_beta": ("bert_pretraining", BERT_OLD_NORMS),
  "gamma_and_beta_of_the_head": ("bert_mlm", BERT_OLD_NORMS),
  "bert_without_prefix": ("bert_sequence", renamed((r"^bert\.", ""))),
  "bert_with_prefix": ("bert_model", renamed(("^", "bert."))),
  "roberta_without_prefix": ("roberta_tokens", renamed((r"^roberta\.", ""))),
  "roberta_with_prefix": ("roberta_model", renamed(("^", "roberta."))),
  "distilbert_without_prefix": ("distilbert_question", renamed((r"^distilbert\.", ""))),
  "distilbert_with_prefix": ("distilbert_model", renamed(("^", "distilbert."))),
  "electra_without_prefix": ("electra_mlm", renamed((r"^electra\.", ""))),
  "modernbert_without_prefix": ("modernbert_cls", renamed((r"^model\.", ""))),
  "modernbert_with_prefix": ("modernbert_model", renamed(("^", "model."))),
  "gpt2_without_prefix": ("gpt2", renamed((r"^transformer\.", ""))),
  "llama_without_prefix": ("llama", renamed((r"^model\.", ""))),
  "vit_without_prefix": ("vit", renamed((r"^vit\.", ""))),
  "esm_without_prefix": ("esm_mlm", renamed((r"^esm\.", ""))),
  "esm_of_transformers_5": (
    "esm_tokens",
    renamed((r"LayerNorm\.weight", "LayerNorm.gamma"), (r"layer\.\d+(\.\S*inv_freq)", r"layer.*\1")),
  ),
  "gpt_neox_of_transformers_5": ("gpt_neox", renamed((r"^embed_out", "lm_head"))),
  "gpt_neox_without_prefix": ("gpt_neox", renamed((r"^gpt_neox\.", ""))),
  "masks_of_gpt_neox": ("gpt_neox_tied", with_masks_of_gpt_neox),
  "masks_of_gpt2": ("gpt2_relu", with_masks_of_gpt2),
  "position_ids_of_bert": ("bert_tokens", with_position_ids("bert")),
  "position_ids_of_roberta": ("roberta_question", with_position_ids("roberta")),
  "position_ids_of_electra": ("electra_replaced", with_position_ids("electra")),
  "position_ids_of_distilbert": ("distilbert_sequence", with_position_ids("distilbert")),
  "rotary_frequencies": ("llama_groups", with_rotary_frequencies),
  "bias_of_cross_attention": ("t5", with_bias_of_cross_attention),
  "bert_head_again": (
    "bert_mlm",
    again(cls__predictions__decoder__weight=BERT_TABLE, cls__predictions__decoder__bias="cls.predictions.bias"),
  ),
  "bert_bias_again": ("bert_pretraining", again(cls__predictions__decoder__bias="cls.predictions.bias")),
  "roberta_head_again": (
    "roberta_mlm",
    again(lm_head__decoder__weight="roberta.embeddings.word_embeddings.weight", lm_head__decoder__bias="lm_head.bias"),
  ),
  "distilbert_head_again": (
    "distilbert_mlm",
    again(vocab_projector__weight="distilbert.embeddings.word_embeddings.weight"),
  ),
  "electra_head_again": ("electra_mlm", again(generator_lm_head__weight="electra.embeddings.word_embeddings.weight")),
  "modernbert_head_again": ("modernbert_mlm", again(decoder__weight="model.embeddings.tok_embeddings.weight")),
  "gpt2_head_again": ("gpt2", again(lm_head__weight="transformer.wte.weight")),
  "llama_head_again": ("llama_tied", again(lm_head__weight="model.embed_tokens.weight")),
  "qwen2_head_again": ("qwen2_tied", again(lm_head__weight="model.embed_tokens.weight")),
  "t5_tables_again": (
    "t5",
    again(encoder__embed_tokens__weight=T5_TABLE, decoder__embed_tokens__weight=T5_TABLE, lm_head__weight=T5_TABLE),
  ),
  "t5_1_1_tables_again": (
    "t5_1_1",
    again(encoder__embed_tokens__weight=T5_TABLE, decoder__embed_tokens__weight=T5_TABLE),
  ),
  "t5_encoder_with_prefix": ("t5_encoder", renamed(("^", "transformer."))),
  "t5_encoder_without_prefix": ("t5_encoder_tokens", renamed((r"^transformer\.", ""))),
  "t5_encoder_table_again": ("t5_encoder", again(encoder__embed_tokens__weight=T5_TABLE)),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", TENSORS)
def test_other_names_and_more_tensors_give_the_same_parameters(variant, imported, plain):
  name, change = TENSORS[variant]
  tensors, config = read(name)
  change(tensors, config)
  assert tensors.keys() != read(name)[0].keys()
  assert_same(imported(tensors, config), plain(name))


@pytest.mark.parametrize("name", ["bert_mlm", "gpt2", "t5_1_1"])
def test_rows_behind_the_last_id_are_cut_off(name, imported, plain):
  """Tables are padded to a multiple of something, and config.json does not always say so."""
  tensors, config = read(name)
  longer = {
    key: np.concatenate([x, np.full((3, *x.shape[1:]), 7, np.float32)]) if x.shape[0] == config["vocab_size"] else x
    for key, x in tensors.items()
  }
  assert any(longer[key].shape != x.shape for key, x in tensors.items())
  run = imported(longer, config)
  assert run.model == plain(name).model
  check_same_tensors(tensors, tensors_of(run.model, run.params))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["bert_mlm", "gpt2", "t5_1_1", "modernbert_mlm", "vit"])
def test_half_precision_files_become_float32_without_another_rounding(name, dtype, imported, plain):
  tensors, config = read(name)
  run = imported({key: x.astype(dtype) for key, x in tensors.items()}, config)
  rounded = jax.tree.map(lambda x: np.asarray(x).astype(dtype).astype(np.float32), plain(name).params)
  assert_same_params(run.params, rounded)


@pytest.mark.parametrize("name", ["bert_mlm", "llama", "t5"])
def test_shards_with_an_index_are_one_checkpoint(name, tmp_path, plain):
  tensors, config = read(name)
  names = sorted(tensors)
  shards = [names[: len(names) // 3], names[len(names) // 3 :]]
  folder = tmp_path / "source"
  folder.mkdir()
  weight_map = {}
  for i, keys in enumerate(shards, 1):
    file = f"model-{i:05}-of-00002.safetensors"
    save_file({key: tensors[key] for key in keys}, folder / file, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(keys, file)
  index = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  (folder / "config.json").write_text(json.dumps(config))
  import_checkpoint(folder, tmp_path / "run")
  assert_same(load_run(tmp_path / "run"), plain(name))


# More than one head, or none.


@pytest.mark.parametrize(
  ("name", "architecture", "dropped"),
  [
    # bert-base-uncased is such a file.
    ("bert_pretraining", "BertForMaskedLM", ("bert.pooler.", "cls.seq_relationship.")),
    ("bert_pretraining", "BertModel", ("cls.",)),
    ("roberta_sequence", "RobertaModel", ("classifier.",)),
    ("distilbert_mlm", "DistilBertModel", ("vocab_",)),
    ("modernbert_mlm", "ModernBertModel", ("head.", "decoder.")),
  ],
)
def test_heads_that_the_architecture_lacks_are_left_behind(name, architecture, dropped, imported):
  tensors, config = read(name)
  kept = {key: x for key, x in tensors.items() if not key.startswith(dropped)}
  config["architectures"] = [architecture]
  if architecture == "RobertaModel":  # its pooler starts afresh: the file has none
    whole, alone = imported(tensors, config).params, imported(kept, config).params
    assert_same_params(
      {k: x for k, x in whole.items() if k != "pooler"}, {k: x for k, x in alone.items() if k != "pooler"}
    )
  else:
    assert_same(imported(tensors, config), imported(kept, config))


@pytest.mark.parametrize(
  ("name", "architecture", "head"),
  [
    ("bert_mlm", "BertForSequenceClassification", ("pooler", "classifier")),
    ("bert_mlm", "BertForTokenClassification", ("classifier",)),
    ("roberta_mlm", "RobertaForQuestionAnswering", ("classifier",)),
    ("distilbert_mlm", "DistilBertForSequenceClassification", ("pooler", "classifier")),
    ("modernbert_model", "ModernBertForMaskedLM", ("head",)),
    ("t5_encoder", "T5ForTokenClassification", ("classifier",)),
  ],
)
def test_a_head_that_the_file_lacks_starts_afresh_if_asked_for(name, architecture, head, imported, plain):
  run = imported(*read(name), architecture=architecture)
  body = lambda params: {key: x for key, x in params.items() if key in ("embed", "blocks", "final_norm")}
  assert_same_params(body(run.params), body(plain(name).params))
  assert set(head) <= set(run.params)
  weights = [x for key in head for x in jax.tree.leaves(run.params[key]) if x.ndim > 1]
  assert weights and all(np.isfinite(x).all() and np.std(x) > 0 for x in weights)


@pytest.mark.parametrize("name", ["t5", "t5_1_1"])
def test_the_encoder_of_a_whole_t5_is_imported_if_asked_for(name, imported, plain, caplog):
  """Its decoder is left out, whole or in part, and the log says so; what belongs to neither is unexpected."""
  caplog.set_level("INFO", logger="tfm_jax")
  tensors, config = read(name)
  run = imported(tensors, config, architecture="T5EncoderModel")
  assert run.config.family == "t5_encoder" and run.model.config.decoder_layers == 0
  assert "as T5EncoderModel has no use for it: decoder.*" in caplog.text
  whole = encoder_params(flat(plain(name).params))
  assert_same_params(flat(run.params), {path: x for path, x in whole.items() if path != "head/w"})
  alone = {key: x for key, x in tensors.items() if key.startswith(("shared.", "encoder."))}
  assert_same(imported(alone, config | {"architectures": ["T5EncoderModel"]}), run)
  with pytest.raises(UserError, match=r"unexpected: decoders\.weight$"):
    imported(tensors | {"decoders.weight": np.ones(3, np.float32)}, config, architecture="T5EncoderModel")


def test_of_two_families_with_one_model_type_the_tensors_decide(imported, plain):
  """Where config.json names no architecture: a whole T5, its tagger or its encoder."""
  for name in ("t5", "t5_encoder", "t5_encoder_tokens"):
    tensors, config = read(name)
    del config["architectures"]
    assert_same(imported(tensors, config), plain(name))


def test_a_free_head_of_bert_has_the_bias_of_its_decoder(imported, plain, tmp_path):
  """transformers 5 has a second one there, which nothing reads."""
  tensors, config = read("bert_mlm_free")
  tensors["cls.predictions.bias"] = tensors["cls.predictions.bias"] + 1
  assert_same(imported(tensors, config), plain("bert_mlm_free"))


def test_tied_tensors_that_differ_are_never_dropped_in_silence(imported, plain):
  """transformers then believes the file, not the configuration."""
  tensors, config = read("bert_mlm_free")
  config["tie_word_embeddings"] = True
  try:
    run = imported(tensors, config)
  except UserError as error:
    assert "cls.predictions.decoder.weight" in str(error)
  else:
    assert_same(run, plain("bert_mlm_free"))


@pytest.mark.parametrize("name", ["bert_model", "gpt2", "modernbert_mlm"])
def test_variants_are_exported_under_the_names_of_today(name, tmp_path):
  prefix = {"bert_model": "bert.", "gpt2": "transformer.", "modernbert_mlm": "model."}[name]
  tensors, config = read(name)
  stripped = lambda key: key.removeprefix(prefix) if key.startswith(prefix) else key
  changed = {stripped(key) if name != "bert_model" else prefix + key: x for key, x in tensors.items()}
  import_checkpoint(write(tmp_path / "source", changed, config), tmp_path / "run")
  export_checkpoint(tmp_path / "run", tmp_path / "out")
  check_same_tensors(tensors, load_file(tmp_path / "out" / "model.safetensors"))


def test_variants_name_cases():
  assert {name for name, _ in TENSORS.values()} <= set(CASES)
