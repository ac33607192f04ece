r"""One-sentence summaries of papers from their abstracts (SciTLDR), scored by ROUGE, the best over several references.

  python train.py --config=configs/scitldr.py
  python train.py --config=configs/scitldr.py --workdir=runs/mine \
    --config.data.path=train.jsonl --config.data.eval_path=dev.jsonl
  python train.py --config=configs/scitldr.py:base --config.init_from=runs/t5_base

The files are JSON lines: `source`, the sentences of an abstract, and `target`, its summaries; by default in
TFM_DATA_DIR/scitldr. 2,000 abstracts teach a small model from scratch what summaries sound like, and little more: the
variant `base` fine-tunes a T5-base. Measured: see docs/tasks.md.
"""

from configs import task

VARIANTS = ("base",)


def get_config(variant=""):
  c = task.generation(variant)
  c.task.name = "summarization"
  c.data.update(task.files("scitldr", "train.jsonl.gz", "dev.jsonl.gz") | {"seq_len": 384, "target_len": 64})
  if variant:
    c.task.prefix = "summarize: "
    return c.lock()
  c.train.update({"batch_size": 16, "steps": 1500})
  c.eval.generate_every = 500
  return c.lock()
