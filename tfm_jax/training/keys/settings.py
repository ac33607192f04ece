"""The settings of the training loop and of its evaluations."""

import dataclasses

from tfm_jax.errors import UserError
from tfm_jax.training.compiled.ramp import Ramp


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The training loop."""

  steps: int = 1000  # number of updates, unless `epochs` says it
  epochs: float = 0.0  # passes over the training rows, from which train.steps is computed; 0: train.steps counts
  batch_size: int = 32  # rows of the global batch
  ramp_from: int = 0  # rows of the first batches, which are doubled until they are batch_size; 0: no ramp
  ramp_steps: int = 0  # steps after which they are doubled
  microbatches: int = 0  # parts of the batch that are computed one after the other; 0: as many as memory requires
  ema: float = 0.0  # decay of an average of the parameters, which evaluation and load_run use; 0: the last ones
  unfreeze_every: int = 0  # steps after which one more layer is trained, from the head down; 0: all are from the start
  log_every: int = 50  # steps between training records in metrics.jsonl
  layer_norms: bool = False  # training records have the norms of each layer's gradient, parameters and update
  wandb: str = ""  # the project at Weights & Biases that records are sent to as well; empty: none
  profile_at: int = 0  # step at which a profile of three steps is written; 0: none

  @property
  def ramp(self) -> Ramp:
    """The sizes of the batches. Raises UserError."""
    if self.ramp_steps and not self.ramp_from:
      raise UserError(f"train.ramp_steps={self.ramp_steps} is a part of a ramp: set train.ramp_from")
    return Ramp(self.ramp_from or self.batch_size, self.ramp_steps if self.ramp_from else 1, self.batch_size)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation on held-out data: at step 0, every `eval.every` steps and at the end."""

  every: int = 500  # steps between evaluations; 0: only at the start and the end
  batches: int = 20  # batches, of the training batch size, always the same ones; 0: all
  metric: str = ""  # metric by which the best checkpoint is chosen and kept, such as accuracy or loss; empty: the last
  # tasks that generate: steps between evaluations that also score generated texts; 0: only the last evaluation does
  generate_every: int = 0
  generate_examples: int = 200  # held-out examples that these generate for, greedily; 0: all
  patience: int = 0  # evaluations without an improvement of eval.metric after which training ends; 0: never
