"""What every experiment file starts from: the tree of all keys with their defaults, sizes and recipes that recur."""

from tfm_jax.training.config import defaults as get_config

SIZES = {
  "small": {"num_layers": 6, "embed_dim": 512, "num_heads": 8, "mlp_dim": 2048},
  "base": {"num_layers": 12, "embed_dim": 768, "num_heads": 12, "mlp_dim": 3072},
  "large": {"num_layers": 24, "embed_dim": 1024, "num_heads": 16, "mlp_dim": 4096},
}
GPT2_SIZES = {
  "small": SIZES["base"],
  "medium": SIZES["large"],
  "large": {"num_layers": 36, "embed_dim": 1280, "num_heads": 20, "mlp_dim": 5120},
  "xl": {"num_layers": 48, "embed_dim": 1600, "num_heads": 25, "mlp_dim": 6400},
}
T5_1_1_SIZES = {
  "small": {"num_layers": 8, "embed_dim": 512, "num_heads": 6, "head_dim": 64, "mlp_dim": 1024},
  "base": {"num_layers": 12, "embed_dim": 768, "num_heads": 12, "head_dim": 64, "mlp_dim": 2048},
  "large": {"num_layers": 24, "embed_dim": 1024, "num_heads": 16, "head_dim": 64, "mlp_dim": 2816},
}


def bert(size):
  """The recipe of BERT: 1M steps of 256 rows of 128 tokens, Adam with decoupled decay, linear to zero."""
  c = get_config()
  c.family, c.objective.name, c.sharding.strategy = "bert", "mlm", "fsdp"
  c.model.update(SIZES[size])
  c.tokenizer.vocab_size = 30_522
  c.data.seq_len = 128
  c.optimizer.update({"name": "adamw", "learning_rate": 1e-4, "schedule": "linear", "warmup_steps": 10_000})
  c.optimizer.update({"weight_decay": 0.01, "beta2": 0.999, "epsilon": 1e-6, "grad_clip": 1.0})
  c.train.update({"batch_size": 256, "steps": 1_000_000})
  c.eval.update({"every": 5000, "batches": 4})
  return c


def gpt2(size):
  """The recipe of nanoGPT for GPT-2: 600,000 steps of 480 rows of 1,024 tokens, cosine to a tenth, no dropout."""
  c = get_config()
  c.family, c.objective.name, c.sharding.strategy = "gpt", "causal", "fsdp"
  c.model.update(GPT2_SIZES[size] | {"dropout": 0.0, "attention_dropout": 0.0})
  c.tokenizer.update({"algorithm": "bpe", "vocab_size": 50_257})
  c.data.seq_len = 1024
  rate = {"small": 6e-4, "medium": 3e-4, "large": 2.5e-4, "xl": 2e-4}[size]
  c.optimizer.update({"learning_rate": rate, "schedule": "cosine", "final_fraction": 0.1, "warmup_steps": 2000})
  c.optimizer.update({"weight_decay": 0.1, "beta2": 0.95, "grad_clip": 1.0})
  c.train.update({"batch_size": 480, "steps": 600_000})
  c.eval.update({"every": 2000, "batches": 4})
  return c


def t5(size, version):
  """The recipe of T5: Adafactor, 1/sqrt(max(step, 10,000)), 2^19 steps; 1.1: a GEGLU, a free head, no dropout."""
  c = get_config()
  c.family, c.objective.name, c.sharding.strategy = "t5", "span_corruption", "fsdp"
  c.model.update({"1.0": SIZES, "1.1": T5_1_1_SIZES}[version][size])
  if version == "1.1":
    c.model.update({"gated": True, "activation": "gelu_tanh", "tied": False})
    c.model.update({"dropout": 0.0, "attention_dropout": 0.0})
  else:
    c.model.head_dim = 64
  c.tokenizer.update({"vocab_size": 32_128, "sentinels": 100})
  c.data.update({"seq_len": 512, "target_len": 114})
  c.loss.z_loss = 1e-4
  c.optimizer.update({"name": "adafactor", "learning_rate": 1e-2, "schedule": "rsqrt_flat", "warmup_steps": 10_000})
  c.optimizer.grad_clip = 0.0
  c.train.update({"batch_size": {"1.0": 128, "1.1": 256}[version], "steps": 2**19})
  c.eval.every = 5000
  return c


def transformer(size):
  """The recipe of Vaswani et al. 2017: Adam, inverse square root of the step, label smoothing 0.1."""
  c = get_config()
  c.family, c.objective.name, c.sharding.strategy = "transformer", "seq2seq", "fsdp"
  c.model.update({"base": SIZES["small"], "big": SIZES["large"] | {"num_layers": 6}}[size])
  c.model.dropout = {"base": 0.1, "big": 0.3}[size]
  c.tokenizer.update({"algorithm": "bpe", "vocab_size": 37_000})
  # 25,000 tokens a side and step, as in the paper, are about 196 full rows of 128.
  c.data.update({"seq_len": 128, "target_len": 128})
  c.loss.label_smoothing = 0.1
  # The paper's D^-0.5 min(step^-0.5, step warmup^-1.5) has its peak, (D warmup)^-0.5, at `warmup_steps`.
  peak = (c.model.embed_dim * 4000) ** -0.5
  c.optimizer.update({"name": "adam", "learning_rate": peak, "schedule": "rsqrt", "warmup_steps": 4000})
  c.optimizer.update({"beta2": 0.98, "epsilon": 1e-9, "grad_clip": 0.0})
  c.train.update({"batch_size": 192, "steps": {"base": 100_000, "big": 300_000}[size]})
  c.eval.every = 2000
  return c
