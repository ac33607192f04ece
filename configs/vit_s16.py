r"""ViT-S/16 (Dosovitskiy et al. 2021) on folders of pictures by class, with the recipe of "Better plain ViT baselines
for ImageNet-1k" (Beyer et al. 2022), but with learned positions: 90 epochs in batches of 1024, random crops, flips,
RandAugment and mixup, the class from the mean of the patches.

  python train.py --config=configs/vit_s16.py --workdir=runs/vit_s16 \
    --config.data.path=imagenet/train --config.data.eval_path=imagenet/val
  python train.py --config=configs/vit_s16.py:fashion_mnist
  python train.py --config=configs/vit_s16.py:cifar10

The variants are smaller models with smaller patches, for two CPU cores, on the files in TFM_DATA_DIR.
Measured: see docs/images.md.
"""

from configs import base, task

VARIANTS = ("fashion_mnist", "cifar10")
FASHION = "T-shirt/top|Trouser|Pullover|Dress|Coat|Sandal|Shirt|Sneaker|Bag|Ankle boot"


def get_config(variant=""):
  c = base.get_config()
  c.family, c.task.name, c.head.pooling = "vit", "image_classification", "mean"
  c.eval.batches = 0
  c.optimizer.update({"schedule": "cosine", "learning_rate": 1e-3, "beta2": 0.999})
  if not variant:
    c.model.update({"num_layers": 12, "embed_dim": 384, "num_heads": 6, "mlp_dim": 1536})
    c.image.update({"height": 224, "width": 224, "patch": 16})
    c.augment.update({"stored": 256, "crop": "resized", "area": 0.05, "flip": True})
    c.augment.update({"operations": 2, "magnitude": 10.0, "mixup": 0.2})
    c.optimizer.warmup_steps = 10_000
    c.optimizer.weight_decay = 0.1  # the published code has 1e-4, which the peak learning rate does not multiply
    c.train.update({"batch_size": 1024, "epochs": 90.0})
    c.sharding.strategy = "fsdp"
    c.eval.every = 2500
    return c.lock()
  c.model.init = "xavier"
  c.optimizer.update({"weight_decay": 0.05, "warmup_fraction": 0.1})
  c.train.update({"batch_size": 128, "log_every": 20})
  c.eval.every = 500
  if variant == "fashion_mnist":
    c.model.update({"num_layers": 4, "embed_dim": 128, "num_heads": 4, "mlp_dim": 512})
    c.image.update({"height": 28, "width": 28, "channels": 1, "patch": 7})
    c.head.update({"labels": FASHION, "num_labels": 10})
    c.augment.update({"crop": "shift", "pad": 2, "flip": True})
    c.data.update(task.files("fashion_mnist", "train20k-images-idx3-ubyte.gz", "val5k-images-idx3-ubyte.gz"))
    c.train.epochs = 45.0
  elif variant == "cifar10":
    c.model.update({"num_layers": 6, "embed_dim": 192, "num_heads": 6, "mlp_dim": 768})
    c.image.update({"height": 32, "width": 32, "channels": 3, "patch": 4})
    c.augment.update({"crop": "shift", "pad": 4, "flip": True, "operations": 1, "magnitude": 5.0})
    c.data.update(task.files("cifar10", "train30k.tar.gz", "val1k.tar.gz"))
    c.train.epochs = 30.0
  else:
    raise ValueError(f"no such variant: {variant}; choose {' or '.join(VARIANTS)}")
  return c.lock()
