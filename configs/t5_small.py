r"""T5 small (Raffel et al. 2020), span corruption, 512 tokens in and 114 out: 2^19 steps of Adafactor with the learning
rate 1 / sqrt(max(step, 10,000)). `:1.1` is the variant with GEGLU, an output layer of its own and no dropout.

  python train.py --config=configs/t5_small.py --workdir=runs/t5_small \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python train.py --config=configs/t5_small.py:1.1 --workdir=runs/t5_small_1.1 \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

60,506,624 parameters (1.0) and 76,961,152 (1.1) with a vocabulary of 32,128. Measured: not yet run to the end.
"""

from configs import base

VARIANTS = ("1.0", "1.1")


def get_config(version="1.0"):
  c = base.get_config()
  c.family, c.objective.name, c.sharding.strategy = "t5", "span_corruption", "fsdp"
  c.model.update({"num_layers": 6, "embed_dim": 512, "num_heads": 8, "head_dim": 64, "mlp_dim": 2048})
  c.tokenizer.update({"vocab_size": 32_128, "sentinels": 100})
  c.data.update({"seq_len": 512, "target_len": 114})
  c.loss.z_loss = 1e-4
  c.optimizer.update({"name": "adafactor", "learning_rate": 1e-2, "schedule": "rsqrt_flat", "warmup_steps": 10_000})
  c.optimizer.grad_clip = 0.0
  c.train.update({"batch_size": 128, "steps": 2**19})
  c.eval.every = 5000
  if version == "1.1":
    c.model.update({"num_layers": 8, "num_heads": 6, "mlp_dim": 1024})
    c.model.update({"gated": True, "activation": "gelu_tanh", "tied": False})
    c.model.update({"dropout": 0.0, "attention_dropout": 0.0})
    c.train.batch_size = 256
  return c.lock()
