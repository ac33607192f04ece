"""The values that keys of the configuration can have: names, and ranges of numbers; see `config.check_value`."""

from collections.abc import Callable, Iterable
from typing import Any

from tfm_jax.data.config import DUPLICATES
from tfm_jax.data.images.augment import CROPS
from tfm_jax.data.prepare import SOURCES
from tfm_jax.models.families.table import FAMILIES
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.init import INITS
from tfm_jax.objectives.table import OBJECTIVES
from tfm_jax.ops.attention import KERNELS
from tfm_jax.sharding.strategy import STRATEGIES, find_strategy
from tfm_jax.text.corpora.files import ERRORS
from tfm_jax.text.corpora.table import DOCUMENTS
from tfm_jax.text.tokenizers.subwords import ALGORITHMS
from tfm_jax.text.tokenizers.table import KINDS
from tfm_jax.training.optimization.optimizer import OPTIMIZERS, SCHEDULES

# Keys whose values are names, with the names: tables that others may extend, so they are read when needed.
CHOICES: dict[str, Callable[[], Iterable[str]]] = {
  "family": lambda: FAMILIES,
  "model.attention": lambda: ("auto", *reversed(KERNELS)),
  "model.init": lambda: INITS,
  "head.name": lambda: HEADS,
  "tokenizer.kind": lambda: KINDS,
  "tokenizer.algorithm": lambda: ALGORITHMS,
  "augment.crop": lambda: CROPS,
  "data.source": lambda: (*SOURCES, "files"),  # files: set by tasks
  "data.document": lambda: DOCUMENTS,
  "data.errors": lambda: ERRORS,
  "data.duplicates": lambda: DUPLICATES,
  "objective.name": lambda: OBJECTIVES,
  "optimizer.name": lambda: OPTIMIZERS,
  "optimizer.schedule": lambda: SCHEDULES,
  "sharding.strategy": lambda: STRATEGIES,
  "sharding.attention": lambda: ("auto", "ring", "ulysses"),
}

# Keys whose values can be made of several names: what raises UserError if a value is not.
COMPOSED: dict[str, Callable[[str], Any]] = {"sharding.strategy": find_strategy}

# 0 has a meaning in other keys
POSITIVE = (
  "train.steps",
  "train.batch_size",
  "train.log_every",
  "data.seq_len",
  "optimizer.layer_decay",
  "distill.temperature",
)
FRACTIONS = (  # from 0 to 1
  "loss.label_smoothing",
  "optimizer.final_fraction",
  "optimizer.warmup_fraction",
  "optimizer.layer_decay",
  "data.eval_fraction",
  "data.similarity",
  "data.min_letters",
  "data.max_repeated_lines",
  "objective.mask_rate",
  "objective.final_mask_rate",
  "objective.random_rate",
  "objective.keep_rate",
  "objective.noise_density",
  "objective.permute_rate",
  "objective.rotate_rate",
  "objective.delete_rate",
)
DECAYS = ("optimizer.beta1", "optimizer.beta2", "optimizer.momentum", "train.ema")
