r"""Summaries of everyday dialogues (DialogSum), scored by ROUGE.

  python train.py --config=configs/dialogsum.py
  python train.py --config=configs/dialogsum.py --workdir=runs/mine \
    --config.data.path=train.jsonl --config.data.eval_path=dev.jsonl
  python train.py --config=configs/dialogsum.py:base --config.init_from=runs/t5_base

The files are JSON lines with `dialogue` and `summary`. Without paths, it is the dev set in TFM_DATA_DIR/dialogsum, of
which a tenth is held out: 450 dialogues are a test of the pipeline for a small model from scratch. The variant `base`
fine-tunes a T5-base. Measured: see docs/tasks.md.
"""

from configs import task

VARIANTS = ("base",)


def get_config(variant=""):
  c = task.generation(variant)
  c.task.name = "dialogue_summary"
  c.data.update(task.files("dialogsum", "dev.jsonl.gz", "") | {"eval_fraction": 0.1})
  c.data.update({"seq_len": 384, "target_len": 64})
  if variant:
    c.task.prefix = "summarize: "
    return c.lock()
  c.train.update({"batch_size": 16, "steps": 600})
  c.eval.update({"every": 200, "generate_every": 200})
  return c.lock()
