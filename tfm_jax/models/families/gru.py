"""GRUs (Cho et al. 2014): the three shapes of `lstm.py` with their cells."""

from tfm_jax.models.families.lstm import decoder, encoder, encoder_decoder
from tfm_jax.ops.recurrent import GRU

FAMILY = decoder(GRU)
ENCODER = encoder(GRU)
ENCODER_DECODER = encoder_decoder(GRU)
