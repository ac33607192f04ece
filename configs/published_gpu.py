r"""Published training runs on GPUs, to hold forecasts against; see docs/gpus.md.

  python -m tfm_jax.compare.calibration --only=vit_b16_h100
  python -m tfm_jax.compare --config=configs/published_gpu.py:llama2_7b --strategies=fsdp --topology=h100:8 \
    --out=runs/7b

From NVIDIA/JAX-Toolbox, docs/frameworks/maxtext and rosetta/rosetta/projects/{pax,t5x,vit}/README.md; sizes and remat
of the GPTs from google/paxml, contrib/gpu/scripts_gpu/configs.py. For ViT and T5 1.1 remat is not told: none. Blocks
are a loop here; those of the GPT of 126M and of the Llama were unrolled.
Measured: forecast only.
"""

from configs import base, decoder, t5_large, t5_small

# name -> (model, GPUs, rows per GPU, strategy, remat, attention); xla: published without a fused kernel
RUNS = {
  "vit_b16_a100": ("vit_b16", 8, 512, "dp", "none", "xla"),
  "vit_b16_h100": ("vit_b16", 8, 512, "dp", "none", "xla"),
  "vit_g14_8": ("vit_g14", 8, 16, "dp", "none", "xla"),
  "vit_g14_32": ("vit_g14", 32, 16, "dp", "none", "xla"),
  "gpt_126m_a100": ("gpt_126m", 64, 4, "dp", "none", "xla"),
  "gpt_126m_h100": ("gpt_126m", 64, 4, "dp", "none", "auto"),
  "gpt_5b_a100": ("gpt_5b", 256, 8, "fsdp", "dots", "xla"),
  "gpt_175b_a100": ("gpt_175b", 256, 6, "fsdp", "full", "xla"),
  "gpt_175b_h100": ("gpt_175b", 256, 6, "fsdp", "full", "auto"),
  "t5_small": ("t5_small", 8, 256, "dp", "none", "xla"),
  "t5_large": ("t5_large", 64, 32, "dp", "none", "xla"),
  "t5_xl": ("t5_xl", 144, 8, "dp", "none", "xla"),
  "llama2_7b": ("llama2_7b", 8, 2, "fsdp", "dots", "auto"),
}
VARIANTS = tuple(RUNS)
# layers, width, heads, feed-forward
GPT = {"gpt_126m": (12, 768, 12, 3072), "gpt_5b": (24, 4096, 32, 16384), "gpt_175b": (96, 12288, 96, 49152)}
VIT = {"vit_b16": (12, 768, 12, 3072), "vit_g14": (48, 1664, 16, 8192)}


def get_config(name="llama2_7b"):
  model, gpus, rows, strategy, remat, attention = RUNS[name]
  if model.startswith("t5"):
    c = (t5_small if model == "t5_small" else t5_large).get_config("1.1")
    c.unlock()
    if model == "t5_xl":
      c.model.update({"embed_dim": 2048, "num_heads": 32, "mlp_dim": 5120})
    c.optimizer.update({"name": "adamw", "schedule": "rsqrt", "learning_rate": 1e-3})
  elif model == "llama2_7b":
    c = decoder.get_config("7b")
    c.unlock()
    c.model.max_positions = c.data.seq_len = 4096
  else:
    c = base.get_config()
    layers, width, heads, mlp = (GPT | VIT)[model]
    c.model.update({"num_layers": layers, "embed_dim": width, "num_heads": heads, "mlp_dim": mlp})
    c.model.update({"dropout": 0.0, "attention_dropout": 0.0})
    if model in GPT:
      c.family, c.objective.name = "gpt", "causal"
      c.tokenizer.update({"algorithm": "bpe", "vocab_size": 50_304})
      c.data.seq_len = c.model.max_positions = 2048
    else:
      c.family, c.task.name, c.head.pooling, c.head.num_labels = "vit", "image_classification", "mean", 1000
      c.image.update({"height": 224, "width": 224, "patch": int(model[-2:])})
  c.sharding.strategy, c.model.remat, c.model.attention = strategy, remat, attention
  c.train.update({"batch_size": gpus * rows, "microbatches": 1})
  return c.lock()
