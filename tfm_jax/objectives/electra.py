"""ELECTRA's rows (Clark et al. 2020): masks, in whose place a generator writes; the model finds what it wrote."""

from typing import ClassVar

from tfm_jax.objectives.masking import Masking
from tfm_jax.objectives.mlm import MaskedRows


class Electra(MaskedRows):
  """The rows of masked language modelling, in which every chosen token becomes the mask token.

  As in the paper. The authors' code leaves 15 % of the chosen tokens as they are in the generator's input.
  """

  head: ClassVar[str] = "electra"

  def setup(self) -> None:
    self.masking = Masking(self.config, self.vocabulary, self.seq_len, random_rate=0.0, keep_rate=0.0)
