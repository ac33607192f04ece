"""An encoder and an encoder-decoder learn real text, on 8 emulated devices."""

import math
import os
from pathlib import Path

import pytest

from tests.support.launching import quick_fit
from tfm_jax.text.tokenizers.table import load_tokenizer
from tfm_jax.training.config import from_dict
from tfm_jax.training.keys.tree import defaults

DATA = os.environ.get("TFM_DATA_DIR", "")
pytestmark = pytest.mark.skipif(not DATA, reason="TFM_DATA_DIR does not name the folder with the real data sets")

VOCABULARY = 512
OBJECTIVES = {"bert": "mlm", "t5": "span_corruption"}
MARGIN = 0.8  # nats below the loss of a uniform guess, ln(vocabulary)


def config(family, strategy):
  c = defaults()
  c.family, c.objective.name, c.sharding.strategy = family, OBJECTIVES[family], strategy
  c.model.update({"num_layers": 2, "embed_dim": 64, "num_heads": 4, "mlp_dim": 128, "max_positions": 64})
  c.model.update({"dropout": 0.0, "attention_dropout": 0.0})
  c.tokenizer.update({"algorithm": "bpe", "vocab_size": VOCABULARY, "sentinels": 20 if family == "t5" else 0})
  c.data.update({"seq_len": 32})
  c.data.update({"source": "text", "document": "line", "path": str(Path(DATA) / "wikitext2" / "valid.txt.gz")})
  c.optimizer.update({"learning_rate": 5e-3, "warmup_steps": 5, "schedule": "linear"})
  c.train.update({"steps": 60, "batch_size": 16, "log_every": 20})
  c.eval.update({"every": 0, "batches": 4})
  c.checkpoint.every = 0
  return from_dict(c.to_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "strategy"), [("t5", "fsdp_tp")])
def test_held_out_loss_falls_well_below_a_uniform_guess(family, strategy, tmp_path):
  result = quick_fit(config(family, strategy), tmp_path / "run")
  uniform = math.log(load_tokenizer(tmp_path / "run" / "tokenizer").vocab_size)
  assert uniform == pytest.approx(math.log(VOCABULARY))
  assert result["loss"] < uniform - MARGIN, f"unigram entropy {result['unigram_entropy']:.3f}"
