r"""Classes, tags and answers as text with T5's prefixes (Raffel et al. 2020), scored as the tasks themselves are.

  python train.py --config=configs/t5_tasks.py
  python train.py --config=configs/t5_tasks.py:squad --workdir=runs/squad_text
  python train.py --config=configs/t5_tasks.py:squad_base --config.init_from=runs/t5_base
  python train.py --config=configs/t5_tasks.py:base --config.init_from=runs/t5_base --config.task.source_task=stsb \
    --config.data.path=train.tsv --config.data.eval_path=dev.tsv

A variant names a task whose files are in TFM_DATA_DIR, SST-2 by default; NAME_base (base: SST-2) fine-tunes a T5-base
on it. Any task of `WRITERS` in tfm_jax/tasks/text_to_text.py can be named by task.source_task.
Measured: see docs/tasks.md.
"""

from configs import task

# Folder, files, and the most tokens of a source and of a target.
DATA = {
  "sst2": ("sst2", "train.tsv.gz", "dev.tsv.gz", 64, 16),
  "cola": ("cola", "train.tsv.gz", "dev.tsv.gz", 64, 16),
  "mrpc": ("mrpc", "train.tsv.gz", "", 128, 16),
  "rte": ("rte", "train.tsv.gz", "dev.tsv.gz", 256, 16),
  "conll2003": ("conll2003", "train.txt.gz", "dev.txt.gz", 128, 64),
  "squad": ("squad_v1", "train.json.gz", "dev_a.json.gz", 384, 32),
}
VARIANTS = ("base", *DATA, *(f"{name}_base" for name in DATA))


def get_config(variant=""):
  name = variant.removesuffix("base").removesuffix("_") or "sst2"
  c = task.generation("base" if variant.endswith("base") else "")
  c.task.update({"name": "text_to_text", "source_task": name})
  folder, train, dev, c.data.seq_len, c.data.target_len = DATA[name]
  c.data.update(task.files(folder, train, dev))
  if not dev:
    c.data.eval_fraction = 0.1  # the same examples as in the config of the task itself
  c.loss.label_smoothing = 0.0  # classes are a word or two, and wrong ones are as wrong as can be
  return c.lock()
