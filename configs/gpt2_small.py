r"""GPT-2 small (Radford et al. 2019), causal language modelling on 1,024 tokens. The recipe is nanoGPT's: 600,000 steps
of 480 rows, a cosine schedule that ends at a tenth of the peak, no dropout.

  python train.py --config=configs/gpt2_small.py --workdir=runs/gpt2_small \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'

124,439,808 parameters with a vocabulary of 50,257. Measured: not yet run to the end.
"""

from configs import base


def get_config():
  c = base.get_config()
  c.family, c.objective.name, c.sharding.strategy = "gpt", "causal", "fsdp"
  c.model.update({"num_layers": 12, "embed_dim": 768, "num_heads": 12, "mlp_dim": 3072})
  c.model.update({"dropout": 0.0, "attention_dropout": 0.0})
  c.tokenizer.update({"algorithm": "bpe", "vocab_size": 50_257})
  c.data.seq_len = 1024
  c.optimizer.update({"learning_rate": 6e-4, "schedule": "cosine", "final_fraction": 0.1, "warmup_steps": 2000})
  c.optimizer.update({"weight_decay": 0.1, "beta2": 0.95, "grad_clip": 1.0})
  c.train.update({"batch_size": 480, "steps": 600_000})
  c.eval.update({"every": 2000, "batches": 4})
  return c.lock()
