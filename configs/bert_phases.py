r"""BERT (Devlin et al. 2018) in its two phases: 900,000 steps on rows of 128 tokens, then 100,000 on rows of 512, with
masked tokens and next sentences.

  python train.py --config=configs/bert_phases.py --workdir=runs/bert_phases \
    --config.data.source=text --config.data.path='corpus/*.txt.gz' --config.data.document=file
  python train.py --config=configs/bert_phases.py:wikipedia --workdir=runs/bert_phases

Documents should be long, such as articles: a row takes both of its texts from one. The step of each phase is compiled
on its own, and `eval_first` in metrics.jsonl is the held-out loss on short rows. 110,106,428 parameters with a
vocabulary of 30,522. Measured: not yet run to the end.
"""

from configs import bert_base

VARIANTS = bert_base.VARIANTS


def get_config(variant=""):
  c = bert_base.get_config(variant).unlock()
  c.objective.name, c.head.name = "nsp", "pretraining"
  c.tokenizer.kind = "wordpiece"
  c.data.update({"first_seq_len": 128, "first_steps": 900_000, "seq_len": 512})
  return c.lock()
