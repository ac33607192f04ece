r"""A small decoder with experts, of the sizes of Granite 3.0 1B-A400M (Granite Team 2024): each of 24 feed-forward
layers has 32 experts, of which a token uses 8. The family is llama, without Granite's constant factors; the recipe is
that of llama_1b.py, with the factors of the losses of experts as in OLMoE (Muennighoff et al. 2024).

  python train.py --config=configs/moe_small.py --workdir=runs/moe_small \
    --config.data.source=text --config.data.path='corpus/*.txt.gz'
  python -m tfm_jax.compare --config=configs/moe_small.py --strategies=fsdp,fsdp_ep --topology=v5e:4x4 \
    --out=runs/moe_small_forecast

1,334,625,280 parameters with a vocabulary of 49,152, of which a token uses 428,655,616. Measured: not yet run.
"""

from configs import llama_1b


def get_config():
  c = llama_1b.get_config("tinyllama")
  c.sharding.strategy = "fsdp_ep"
  c.model.update({"num_layers": 24, "embed_dim": 1024, "num_heads": 16, "num_kv_heads": 8, "mlp_dim": 512})
  c.model.tied = True
  c.experts.update({"count": 32, "top_k": 8, "capacity": 1.25, "group": 256, "balance": 0.01, "z_loss": 0.001})
  c.tokenizer.vocab_size = 49_152
  return c
