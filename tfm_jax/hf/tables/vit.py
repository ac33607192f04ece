"""The Vision Transformer, as a classifier of images."""

from collections.abc import Mapping
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.hf.table import AS_IS, PATCHES, Entry, Key, Table, linear, norm, same
from tfm_jax.models.config import ModelConfig

KEYS = (
  Key("num_layers", "num_hidden_layers", 12),
  Key("embed_dim", "hidden_size", 768),
  Key("num_heads", "num_attention_heads", 12),
  Key("mlp_dim", "intermediate_size", 3072),
  Key("activation", "hidden_act", "gelu"),
  Key("dropout", "hidden_dropout_prob", 0.0),
  Key("attention_dropout", "attention_probs_dropout_prob", 0.0),
  Key("norm_epsilon", "layer_norm_eps", 1e-12),
  Key("image.channels", "num_channels", 3),
  Key("image.patch", "patch_size", 16),
  Key("bias.qkv", "qkv_bias", True),
)


def entries(c: ModelConfig) -> list[Entry]:
  """Parameters and tensors."""
  layer = "vit.encoder.layer.{}"
  return [
    *same("embed/class", "vit.embeddings.cls_token", ones=2),
    *same("embed/position", "vit.embeddings.position_embeddings", ones=1),
    *linear("embed/patch/*", "vit.embeddings.patch_embeddings.projection", PATCHES),
    *norm("blocks/attn_norm", f"{layer}.layernorm_before"),
    *linear("blocks/attn/*q", f"{layer}.attention.attention.query"),
    *linear("blocks/attn/*k", f"{layer}.attention.attention.key"),
    *linear("blocks/attn/*v", f"{layer}.attention.attention.value"),
    *linear("blocks/attn/*o", f"{layer}.attention.output.dense"),
    *norm("blocks/mlp_norm", f"{layer}.layernorm_after"),
    *linear("blocks/mlp/*i", f"{layer}.intermediate.dense"),
    *linear("blocks/mlp/*o", f"{layer}.output.dense"),
    *norm("final_norm", "vit.layernorm"),
    *linear("pooler/*", "vit.pooler.dense"),
    *linear("classifier/*", "classifier", layout=AS_IS),
  ]


def to_ours(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
  """The sizes of images and patches, each one number or two."""
  size = theirs.get("image_size", 224)
  sides = size if isinstance(size, list) else [size, size]
  if len(sides) != 2:
    raise UserError(f"config.json: image_size={size} is neither one number nor height and width")
  patch = theirs.get("patch_size", 16)
  if isinstance(patch, list):
    if len(set(patch)) != 1:
      raise UserError(f"config.json: patch_size={patch} is not supported: patches are squares here")
    patch = patch[0]
  return {"image.height": sides[0], "image.width": sides[1], "image.patch": patch}


VIT = Table(
  family="vit",
  model_types=("vit",),
  architectures={"ViTForImageClassification": "sequence_classification", "ViTModel": "none"},
  prefix="vit.",
  keys=KEYS,
  entries=entries,
  to_ours=to_ours,
  to_theirs=lambda c, kind: {
    "image_size": c.image.height if c.image.height == c.image.width else [c.image.height, c.image.width]
  },
)
