"""The objectives by `objective.name`."""

from tfm_jax.errors import UserError
from tfm_jax.objectives.causal import CausalLanguageModel
from tfm_jax.objectives.mlm import MaskedLanguageModel
from tfm_jax.objectives.objective import PLAIN, Documents, Objective, ObjectiveConfig, Vocabulary
from tfm_jax.objectives.pairs import NextSentence, SentenceOrder
from tfm_jax.objectives.seq2seq import SequenceToSequence
from tfm_jax.objectives.span_corruption import SpanCorruption

OBJECTIVES: dict[str, type[Objective]] = {
  "mlm": MaskedLanguageModel,
  "nsp": NextSentence,
  "sop": SentenceOrder,
  "causal": CausalLanguageModel,
  "span_corruption": SpanCorruption,
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
