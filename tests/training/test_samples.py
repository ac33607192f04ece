"""The lines about a trained model at the end of a run."""

import numpy as np

from tests.support.tiny import make_batch, make_model, params_of
from tfm_jax.decode.samples import _text, show
from tfm_jax.text.tokenizers.table import TokenizerConfig, train_tokenizer


def test_samples_of_span_corruption_show_the_sentinels():
  tokenizer = train_tokenizer(TokenizerConfig(kind="char", sentinels=3), ["the cat sat on the mat"])
  sentinels, batch = tokenizer.sentinel_ids, {name: x.copy() for name, x in make_batch("t5", rows=1).items()}
  source = np.concatenate([tokenizer.encode("the "), sentinels[:1], tokenizer.encode("sat"), sentinels[1:2]])
  target = np.concatenate([sentinels[:1], tokenizer.encode("cat "), sentinels[1:2]])
  for name, ids in (("encoder_inputs", source), ("decoder_targets", target)):
    batch[name][0, : len(ids)] = ids
    side = name.split("_")[0]
    batch[f"{side}_segment_ids"][0] = np.arange(batch[name].shape[1]) < len(ids)
  batch["decoder_inputs"][0, 0] = tokenizer.pad_id
  title, line = show(make_model("t5"), params_of("t5"), tokenizer, batch)
  assert title == "decoded (input -> target | what the model decodes):"
  assert line.startswith("  the <extra_id_0> sat <extra_id_1> -> <extra_id_0> cat <extra_id_1> | ")


def test_control_characters_stay_out_of_the_log():
  tokenizer = train_tokenizer(TokenizerConfig(kind="char"), ["a\x00b\x1b c"])
  assert _text(tokenizer, tokenizer.encode("a\x00b\x1b c")) == "a\ufffdb\ufffd c"
