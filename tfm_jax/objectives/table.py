"""The objectives by `objective.name`."""

from tfm_jax.errors import UserError
from tfm_jax.objectives.bart import Denoising
from tfm_jax.objectives.causal import CausalLanguageModel
from tfm_jax.objectives.electra import Electra
from tfm_jax.objectives.mlm import MaskedLanguageModel
from tfm_jax.objectives.objective import PLAIN, Documents, Objective, ObjectiveConfig, Vocabulary
from tfm_jax.objectives.pairs import NextSentence, SentenceOrder
from tfm_jax.objectives.prefix_lm import PrefixLanguageModel
from tfm_jax.objectives.seq2seq import SequenceToSequence
from tfm_jax.objectives.span_corruption import SpanCorruption
from tfm_jax.objectives.ul2 import MixtureOfDenoisers

OBJECTIVES: dict[str, type[Objective]] = {
  "mlm": MaskedLanguageModel,
  "nsp": NextSentence,
  "sop": SentenceOrder,
  "electra": Electra,
  "causal": CausalLanguageModel,
  "prefix_lm": PrefixLanguageModel,
  "span_corruption": SpanCorruption,
  "ul2": MixtureOfDenoisers,
  "bart": Denoising,
  "seq2seq": SequenceToSequence,
}


def make_objective(
  config: ObjectiveConfig,
  vocabulary: Vocabulary,
  seq_len: int,
  target_len: int = 0,
  documents: Documents = PLAIN,
) -> Objective:
  """The objective that the config names. Raises UserError for an unknown name or an impossible setting."""
  if config.name not in OBJECTIVES:
    raise UserError(f"objective.name={config.name!r} is unknown: choose one of {', '.join(OBJECTIVES)}")
  return OBJECTIVES[config.name](config, vocabulary, seq_len, target_len, documents)
