r"""The Transformer of Vaswani et al. 2017, big: the recipe of transformer_base.py at another size, with more dropout,
more steps, and the learning rate that the paper's formula gives for this width.

  python train.py --config=configs/transformer_big.py --workdir=runs/transformer_big \
    --config.data.source=parallel --config.data.path=train.en.gz --config.data.target_path=train.de.gz

214,245,376 parameters with a vocabulary of 37,000. Measured: not yet run to the end.
"""

from configs import transformer_base


def get_config():
  c = transformer_base.get_config()
  c.model.update({"num_layers": 6, "embed_dim": 1024, "num_heads": 16, "mlp_dim": 4096, "dropout": 0.3})
  c.optimizer.learning_rate = (c.model.embed_dim * 4000) ** -0.5
  c.train.steps = 300_000
  return c
