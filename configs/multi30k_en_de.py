r"""English captions to German (Multi30k, task 1): a Transformer of 3 + 3 layers from scratch, scored by BLEU and chrF.

  python train.py --config=configs/multi30k_en_de.py
  python train.py --config=configs/multi30k_en_de.py --workdir=runs/mine \
    --config.data.path=train.en --config.data.target_path=train.de \
    --config.data.eval_path=val.en --config.data.eval_target_path=val.de
  python train.py --config=configs/multi30k_en_de.py:base --config.init_from=runs/t5_base
  python -m tfm_jax.tasks --workdir=runs/mine --data=test.en --targets=test.de --out=results --beams=4

Line n of both files belongs together. Without paths, they are in TFM_DATA_DIR/multi30k. 5,000 steps are 11 epochs. The
variant `base` fine-tunes a T5-base. Measured: see docs/tasks.md.
"""

from configs import task

VARIANTS = ("base",)


def get_config(variant=""):
  c = task.generation(variant)
  c.task.name = "translation"
  sources, targets = (task.files("multi30k", f"train.{side}.gz", f"val.{side}.gz") for side in ("en", "de"))
  c.data.update(sources | {"target_path": targets["path"], "eval_target_path": targets["eval_path"]})
  c.data.update({"seq_len": 64, "target_len": 64})
  if variant:
    c.task.prefix = "translate English to German: "
  return c.lock()
