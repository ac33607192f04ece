"""The heads by name."""

from tfm_jax.models.heads.answers import QUESTION_ANSWERING
from tfm_jax.models.heads.contrastive import CONTRASTIVE
from tfm_jax.models.heads.features import NONE, POOLED
from tfm_jax.models.heads.groups import MULTIPLE_CHOICE, SIMILARITY
from tfm_jax.models.heads.head import Head
from tfm_jax.models.heads.language import LM, PRETRAINING
from tfm_jax.models.heads.rows import SEQUENCE_CLASSIFICATION
from tfm_jax.models.heads.tokens import ELECTRA, REPLACED_TOKEN_DETECTION, TOKEN_CLASSIFICATION

HEADS: dict[str, Head] = {
  "lm": LM,
  "pretraining": PRETRAINING,
  "none": NONE,
  "pooled": POOLED,
  "sequence_classification": SEQUENCE_CLASSIFICATION,
  "token_classification": TOKEN_CLASSIFICATION,
  "question_answering": QUESTION_ANSWERING,
  "multiple_choice": MULTIPLE_CHOICE,
  "similarity": SIMILARITY,
  "contrastive": CONTRASTIVE,
  "replaced_token_detection": REPLACED_TOKEN_DETECTION,
  "electra": ELECTRA,
}
