r"""BART-base (Lewis et al. 2020): an encoder-decoder that restores text. 30 % of the tokens are removed in spans that
become one mask each, and all sentences of a row change places.

  python train.py --config=configs/bart_base.py --workdir=runs/bart \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python -m tfm_jax.hf export --workdir=runs/bart --out=bart_hf

Noise, 500,000 steps and 8,000 rows are those of the paper's large model; it tells no learning rate, so that is
RoBERTa's. An export is a BartForConditionalGeneration, and bart-base imports. 139,420,416 trained parameters with a
vocabulary of 50,265. Measured: not yet run to the end.
"""

from configs import base


def get_config():
  c = base.get_config()
  c.family, c.objective.name, c.sharding.strategy = "bart", "bart", "fsdp"
  c.objective.update({"noise_density": 0.3, "mean_span": 3.0, "permute_rate": 1.0})
  c.model.update({"num_layers": 6, "embed_dim": 768, "num_heads": 12, "mlp_dim": 3072})
  c.tokenizer.update({"kind": "gpt2", "vocab_size": 50_265})
  c.data.seq_len = 512
  c.optimizer.update({"name": "adamw", "learning_rate": 6e-4, "schedule": "linear", "warmup_steps": 24_000})
  c.optimizer.update({"weight_decay": 0.01, "beta2": 0.98, "epsilon": 1e-6, "grad_clip": 0.0})
  c.optimizer.frozen = "head/bias"  # exports have it, as final_logits_bias, and BART does not train it
  c.train.update({"batch_size": 8000, "steps": 500_000})
  c.eval.update({"every": 5000, "batches": 1})
  return c.lock()
