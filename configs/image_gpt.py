r"""Image GPT, iGPT-S (Chen et al. 2020): a decoder that predicts each pixel of a picture from those before it, in 512
colours found by k-means; 32 x 32 pixels, 128 pictures per step, Adam with a cosine schedule, no dropout.

  python train.py --config=configs/image_gpt.py --workdir=runs/image_gpt --config.data.path=imagenet/train
  python train.py --config=configs/image_gpt.py:cifar10
  python train.py --config=configs/image_gpt.py:fashion_mnist
  python -m tfm_jax.tasks --workdir=runs/image_gpt

The variants are small models for two CPU cores, on the files in TFM_DATA_DIR: `cifar10` has 16 x 16 pixels of 64
colours, `fashion_mnist` 14 x 14 pixels of 16 greys. The command for evaluation writes completions.png and samples.png,
as a run does when it ends. Measured: see docs/images.md.
"""

from configs import base, task

VARIANTS = ("cifar10", "fashion_mnist")


def get_config(variant=""):
  c = base.get_config()
  c.family, c.task.name, c.objective.name = "gpt", "image_modeling", "causal"
  c.model.update({"dropout": 0.0, "attention_dropout": 0.0})
  c.optimizer.update({"schedule": "cosine", "learning_rate": 3e-3, "weight_decay": 0.0, "beta2": 0.95})
  if not variant:
    c.model.update({"num_layers": 24, "embed_dim": 512, "num_heads": 8, "mlp_dim": 2048, "vocab_size": 513})
    c.model.max_positions, c.data.seq_len = 1025, 1024
    c.image.update({"height": 32, "width": 32, "channels": 3})
    c.augment.update({"stored": 36, "crop": "shift", "pad": 2, "flip": True})
    c.optimizer.warmup_steps = 20_000  # our choice, not the paper's
    c.train.update({"batch_size": 128, "steps": 1_000_000})
    c.sharding.strategy = "fsdp"
    c.eval.update({"every": 10_000, "batches": 20})
    return c.lock()
  c.model.update({"num_layers": 4, "embed_dim": 128, "num_heads": 4, "mlp_dim": 512})
  c.optimizer.warmup_fraction = 0.05
  c.train.update({"batch_size": 32, "steps": 3000, "log_every": 20})
  c.eval.update({"every": 500, "batches": 20})
  if variant == "cifar10":
    c.image.update({"height": 16, "width": 16, "channels": 3})
    c.augment.flip = True
    c.model.vocab_size = 65
    c.model.max_positions, c.data.seq_len = 257, 256
    c.data.update(task.files("cifar10", "train30k.tar.gz", "val1k.tar.gz"))
  elif variant == "fashion_mnist":
    c.image.update({"height": 14, "width": 14, "channels": 1})
    c.model.vocab_size = 17
    c.model.max_positions, c.data.seq_len = 197, 196
    c.data.update(task.files("fashion_mnist", "train20k-images-idx3-ubyte.gz", "val5k-images-idx3-ubyte.gz"))
  else:
    raise ValueError(f"no such variant: {variant}; choose {' or '.join(VARIANTS)}")
  return c.lock()
