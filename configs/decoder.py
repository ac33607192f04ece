r"""Decoders as they are trained today, at sizes with published measurements: family llama (RMSNorm, rotary positions,
SwiGLU, an output layer of its own), so that a trained model can be exported.

  python -m tfm_jax.compare --config=configs/decoder.py:7b --strategies=fsdp,fsdp_tp,hsdp --topology=v5p:8x8x8 \
    --out=runs/7b
  python -m tfm_jax.compare.calibration

A variant is a size, or the name of a published run (`RUNS`) with its batch, remat and mesh; `decoder.py` without a
variant is the 7b. Measured: forecast only, see the calibration table of `tfm_jax.compare`; not yet trained.
"""

from configs import base

# num_layers, embed_dim, num_heads, num_kv_heads (0: all), mlp_dim, vocabulary, context
SIZES = {
  "7b": (32, 4096, 32, 0, 11008, 32_000, 2048),
  "8b": (32, 4096, 32, 8, 14336, 128_256, 8192),
  "16b": (32, 4096, 64, 0, 28672, 32_000, 2048),
  "32b": (32, 8192, 64, 0, 28672, 32_000, 2048),
  "64b": (64, 8192, 64, 0, 28672, 32_000, 2048),
  "70b": (80, 8192, 64, 8, 28672, 32_000, 4096),
  "128b": (64, 8192, 128, 0, 57344, 32_000, 2048),
  "512b": (128, 16384, 128, 0, 57344, 32_000, 2048),
}
# size, chips, rows per chip, remat, strategy, sizes of mesh axes
RUNS = {
  "v5e_16b": ("16b", 256, 6, "full", "fsdp", {}),
  "v5e_16b_2_slices": ("16b", 512, 6, "full", "hsdp", {"replica": 2}),
  "v5e_16b_4_slices": ("16b", 1024, 6, "full", "hsdp", {"replica": 4}),
  "v5e_32b": ("32b", 256, 4, "full", "fsdp", {}),
  "v5p_32b": ("32b", 64, 6, "dots", "fsdp_tp_stream", {"data": 16, "model": 4}),
  "v5p_64b": ("64b", 64, 3, "dots", "fsdp_tp_stream", {"data": 16, "model": 4}),
  "v5p_128b": ("128b", 128, 1, "dots", "fsdp_tp_stream", {"data": 16, "model": 8}),
  "v5p_512b": ("512b", 512, 2, "full", "fsdp_tp_stream", {"data": 64, "model": 8}),
  "v5e_128b": ("128b", 256, 1, "offload", "fsdp_tp_stream", {"data": 16, "model": 16}),
  "v6e_8b": ("8b", 256, 4, "offload", "fsdp", {}),
  "v6e_70b": ("70b", 256, 4, "full", "fsdp", {}),
}
VARIANTS = (*SIZES, *RUNS)


def get_config(variant="7b"):
  size, chips, rows, remat, strategy, mesh = RUNS.get(variant) or (variant, 512, 4, "full", "fsdp", {})
  layers, width, heads, kv_heads, mlp, vocabulary, context = SIZES[size]
  c = base.get_config()
  c.family, c.objective.name, c.sharding.strategy = "llama", "causal", strategy
  c.sharding.update(mesh)
  c.model.update({"num_layers": layers, "embed_dim": width, "num_heads": heads, "num_kv_heads": kv_heads})
  c.model.update({"head_dim": 128, "mlp_dim": mlp, "max_positions": context, "remat": remat})
  c.tokenizer.update({"algorithm": "bpe", "vocab_size": vocabulary})
  c.data.seq_len = context
  c.optimizer.update({"learning_rate": 3e-4, "schedule": "cosine", "final_fraction": 0.1, "warmup_steps": 2000})
  c.optimizer.update({"weight_decay": 0.1, "beta2": 0.95, "grad_clip": 1.0})
  c.train.update({"batch_size": chips * rows, "microbatches": 1, "steps": 100_000})
  return c.lock()
