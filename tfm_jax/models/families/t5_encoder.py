"""The encoder of T5 alone (Raffel et al. 2020), with the heads of encoders.

A row is pooled as the mean over its tokens (Sentence-T5, Ni et al. 2022): T5 puts no symbol before a text whose vector
could stand for it.
"""

from tfm_jax.models.config import replaced
from tfm_jax.models.families import t5
from tfm_jax.models.family import EVERY_HEAD, Family
from tfm_jax.models.networks.single import Single

FAMILY = Family(
  module=Single,
  preset=replaced(t5.FAMILY.preset, {"head.pooling": "mean"}),
  heads=EVERY_HEAD,
  objectives=("mlm", "electra"),
)
