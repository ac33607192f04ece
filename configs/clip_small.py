r"""CLIP (Radford et al. 2021) at the size ViT-S/16: two towers of 384 features and 12 blocks, that learn which picture
and which caption belong together, among all pairs of the batch. Captions are made from the names of the classes.

  python train.py --config=configs/clip_small.py --workdir=runs/clip_small \
    --config.data.path=imagenet/train --config.data.eval_path=imagenet/val
  python train.py --config=configs/clip_small.py:cifar10
  python train.py --config=configs/clip_small.py:fashion_mnist
  python -m tfm_jax.tasks --workdir=runs/clip_small --data=pictures

The last command classifies pictures in folders whose names need not be those of training. The variants are small
models for two CPU cores, on the files in TFM_DATA_DIR. Measured: see docs/images.md.
"""

from configs import base, task
from configs.vit_s16 import FASHION

VARIANTS = ("cifar10", "fashion_mnist")


def get_config(variant=""):
  c = base.get_config()
  c.family, c.task.name = "clip", "image_text"
  c.eval.batches = 0
  c.task.captions = "a photo of a {}.|a picture of a {}.|this is a {}.|one {}, seen from nearby."
  c.task.prompts = "a photo of a {}.|a picture of a {}."
  c.optimizer.update({"schedule": "cosine", "learning_rate": 1e-3, "weight_decay": 0.2, "beta2": 0.98})
  if not variant:
    c.model.update({"num_layers": 12, "embed_dim": 384, "num_heads": 6, "mlp_dim": 1536})
    c.image.update({"height": 224, "width": 224, "patch": 16})
    c.tokenizer.vocab_size = 2000
    c.data.seq_len = 77
    c.augment.update({"stored": 256, "crop": "resized", "area": 0.5})
    c.optimizer.update({"learning_rate": 5e-4, "warmup_steps": 2000, "epsilon": 1e-6})
    c.train.update({"batch_size": 4096, "epochs": 32.0})
    c.sharding.strategy = "fsdp"
    c.eval.every = 1000
    return c.lock()
  c.model.update({"num_layers": 4, "decoder_layers": 2, "embed_dim": 128, "num_heads": 4, "mlp_dim": 512})
  c.tokenizer.kind, c.data.seq_len = "byte", 48
  c.model.init = "xavier"
  c.optimizer.update({"learning_rate": 5e-4, "warmup_fraction": 0.1})
  c.train.update({"batch_size": 128, "steps": 1500, "log_every": 20})
  c.eval.every = 250
  if variant == "cifar10":
    c.image.update({"height": 32, "width": 32, "channels": 3, "patch": 4})
    c.augment.update({"crop": "shift", "pad": 4, "flip": True})
    c.data.update(task.files("cifar10", "train30k.tar.gz", "val1k.tar.gz"))
  elif variant == "fashion_mnist":
    c.image.update({"height": 28, "width": 28, "channels": 1, "patch": 7})
    c.head.update({"labels": FASHION, "num_labels": 10})
    c.augment.update({"crop": "shift", "pad": 2, "flip": True})
    c.data.update(task.files("fashion_mnist", "train20k-images-idx3-ubyte.gz", "val5k-images-idx3-ubyte.gz"))
  else:
    raise ValueError(f"no such variant: {variant}; choose {' or '.join(VARIANTS)}")
  return c.lock()
