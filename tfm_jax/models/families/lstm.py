"""LSTMs (Hochreiter & Schmidhuber 1997): a language model, an encoder, and an encoder-decoder with attention.

Layers are stacked without residuals, with dropout between them and not in time (Zaremba et al. 2014).
"""

from tfm_jax.models.config import ModelConfig, replaced
from tfm_jax.models.family import DECODER_HEADS, EVERY_HEAD, Family
from tfm_jax.models.networks.encoder_decoder import EncoderDecoder
from tfm_jax.models.networks.single import Single
from tfm_jax.ops.recurrent import LSTM, Cell

PRESET = ModelConfig(num_layers=2, positions="none", dropout=0.1, scale_embed=True, init="xavier")


def decoder(cell: Cell) -> Family:
  """A language model, which reads from left to right."""
  preset = replaced(PRESET, {"head.pooling": "last", "num_heads": 1})
  return Family(Single, preset, heads=DECODER_HEADS, objectives=("causal",), causal=True, cell=cell)


def encoder(cell: Cell) -> Family:
  """Two directions side by side (Schuster & Paliwal 1997), for classifiers and taggers; rows are pooled as means."""
  preset = replaced(PRESET, {"head.pooling": "mean", "num_heads": 1})
  return Family(Single, preset, heads=EVERY_HEAD, objectives=("mlm", "nsp", "sop", "electra"), cell=cell)


def encoder_decoder(cell: Cell) -> Family:
  """An encoder in two directions, and a decoder with attention over its output (Luong et al. 2015)."""
  preset = replaced(PRESET, {"num_heads": 4})
  objectives = ("span_corruption", "seq2seq", "ul2", "bart")
  return Family(EncoderDecoder, preset, heads=("lm",), objectives=objectives, cell=cell)


FAMILY = decoder(LSTM)
ENCODER = encoder(LSTM)
ENCODER_DECODER = encoder_decoder(LSTM)
