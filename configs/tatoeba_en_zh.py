r"""English sentences to Chinese (Tatoeba): a Transformer of 3 + 3 layers from scratch, scored by BLEU and chrF.

  python train.py --config=configs/tatoeba_en_zh.py
  python train.py --config=configs/tatoeba_en_zh.py --workdir=runs/mine --config.data.path=pairs.tsv
  python train.py --config=configs/tatoeba_en_zh.py:base --config.init_from=runs/t5_base

The file is a table without a header: English, tab, Chinese; by default in TFM_DATA_DIR/tatoeba_en_zh. A twentieth is
held out, equal English sentences on one side. BLEU counts Chinese characters. The variant `base` fine-tunes a T5-base
whose tokenizer knows Chinese. Measured: see docs/tasks.md.
"""

from configs import task

VARIANTS = ("base",)


def get_config(variant=""):
  c = task.generation(variant)
  c.task.update({"name": "translation", "text": "1", "label": "2"})
  c.data.update(task.files("tatoeba_en_zh", "train.tsv.gz", "") | {"seq_len": 64, "target_len": 64})
  if variant:
    c.task.prefix = "translate English to Chinese: "
  return c.lock()
