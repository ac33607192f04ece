r"""Decoders of about a billion parameters, of the sizes of Llama 3.2 1B (Meta 2024) or TinyLlama (Zhang et al. 2024).
The recipe is TinyLlama's: 2 million tokens per step, a cosine schedule that ends at a tenth of the peak, 3 trillion
tokens in all.

  python train.py --config=configs/llama_1b.py --workdir=runs/llama_1b \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python train.py --config=configs/llama_1b.py:tinyllama --workdir=runs/tinyllama \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

1,235,814,400 parameters with the vocabulary of Llama 3, 128,256, and 1,100,048,384 with that of TinyLlama, 32,000.
Measured: not yet run.
"""

from configs import base

VARIANTS = ("3.2", "tinyllama")


def get_config(size="3.2"):
  c = base.get_config()
  c.family, c.objective.name, c.sharding.strategy = "llama", "causal", "fsdp"
  c.model.update({"embed_dim": 2048, "num_heads": 32, "max_positions": 2048})
  if size == "3.2":
    c.model.update({"num_layers": 16, "num_kv_heads": 8, "mlp_dim": 8192, "norm_epsilon": 1e-5, "tied": True})
    c.rotary.base = 500_000.0
  else:
    c.model.update({"num_layers": 22, "num_kv_heads": 4, "mlp_dim": 5632, "norm_epsilon": 1e-5})
  c.tokenizer.update({"algorithm": "bpe", "vocab_size": 128_256 if size == "3.2" else 32_000})
  c.data.seq_len = 2048
  c.optimizer.update({"learning_rate": 4e-4, "schedule": "cosine", "final_fraction": 0.1, "warmup_steps": 2000})
  c.optimizer.update({"weight_decay": 0.1, "beta2": 0.95, "grad_clip": 1.0})
  c.train.update({"batch_size": 1024, "steps": 1_430_000})
  c.eval.update({"every": 2000, "batches": 4})
  return c.lock()
