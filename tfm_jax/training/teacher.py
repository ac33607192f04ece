"""The teacher of a run with `distill.teacher`: its model, which labels the batches of the student."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from tfm_jax.errors import UserError
from tfm_jax.models.config import ModelConfig, replaced
from tfm_jax.models.families.table import find_family
from tfm_jax.models.heads.table import HEADS
from tfm_jax.models.model import Model
from tfm_jax.objectives.objective import Fields
from tfm_jax.ops.losses import SoftTargets
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.text.tokenizers.table import load_tokenizer
from tfm_jax.training.config import Config, from_stored
from tfm_jax.training.distill import LESSON, DistillConfig, Lesson


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A teacher without its parameters, on the mesh of the student."""

  model: Model
  config: DistillConfig

  def teach(self, params: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with the `Lesson` of the teacher with these parameters, which reads it without dropout.

    Raises:
      UserError: its head predicts no classes.
    """
    c = self.config
    outputs = jax.lax.stop_gradient(self.model.apply(params, batch, hidden=c.cosine > 0))
    predicted = outputs.get("logits")
    if predicted is None or predicted.out is None:
      raise UserError(f"{_name(c)} has head.name={self.model.config.head.name}, which predicts no classes")
    soft = SoftTargets(predicted.h, predicted.out, c.temperature, c.soft, c.hard)
    return {**batch, LESSON: Lesson(soft, outputs["hidden"].h if c.cosine else None, c.cosine)}


def read_teacher(config: Config) -> tuple[str, ModelConfig, int]:
  """(family, model configuration, number of ids) of `distill.teacher`, which computes in the dtype of the student.

  Raises:
    UserError: there is no such run, it would misread the pairs of a task, or `loss.r_drop` is set as well.
  """
  if config.loss.r_drop:
    raise UserError(f"{_name(config.distill)} does not go with loss.r_drop={config.loss.r_drop:g}: set loss.r_drop=0")
  run = RunDirectory(config.distill.teacher)
  if not run.exists:
    raise UserError(f"{_name(config.distill)} is not a run directory: it has no config.json")
  theirs, folder = from_stored(run.read_config()), run.stored_tokenizer()
  if theirs.model.token_types > 1 >= config.model.token_types and config.task.texts == 2:
    raise UserError(
      f"{_name(config.distill)} tells the texts of a pair apart by token types, and batches of family={config.family} "
      f"have none: set model.token_types={theirs.model.token_types}"
    )
  size = theirs.model.vocab_size or (load_tokenizer(folder).vocab_size if folder else 0)
  changes = {"dtype": config.model.dtype, "attention": "auto", "remat": "none"}  # there is no backward pass
  return theirs.family, replaced(theirs.model, changes), size


def make_teacher(
  family: str, config: ModelConfig, vocab_size: int, distill: DistillConfig, student: Model, fields: Fields
) -> Teacher:
  """The teacher of a student, from what `read_teacher` gives.

  Args:
    family, config, vocab_size: of the teacher.
    distill: what is learned from it.
    student: the model that it teaches, whose mesh it shares.
    fields: those of the batches.

  Raises:
    UserError: it cannot teach this student on such batches.
  """
  teacher, name = Model(family, config, student.placement, vocab_size), _name(distill)
  if not (distill.soft or distill.cosine):
    raise UserError(f"{name} has nothing to teach: set distill.soft or distill.cosine")
  check_alike(name, teacher, student, fields)
  if distill.cosine and config.embed_dim != student.config.embed_dim:
    raise UserError(
      f"distill.cosine={distill.cosine:g} compares hidden states, and {name} has model.embed_dim={config.embed_dim} "
      f"where the student has {student.config.embed_dim}: set distill.cosine=0"
    )
  return Teacher(teacher, distill)


def check_alike(name: str, teacher: Model, student: Model, fields: Fields) -> None:
  """Raises UserError if a teacher does not predict what a student does, from the same batches.

  Args:
    name: of the teacher, such as "distill.teacher=runs/teacher".
    teacher, student: the two models.
    fields: those of the batches.
  """
  config, own = teacher.config, student.config
  if _kind(teacher) != _kind(student):
    raise UserError(f"{name} is {_kind(teacher)} and the student is {_kind(student)}: choose models of the same kind")
  heads = (config.head.name, own.head.name)
  from_objective = [HEADS[head].learns_from_objective for head in heads]
  if heads[0] != heads[1] and not all(from_objective):
    raise UserError(f"{name} has head.name={heads[0]} and the student has {heads[1]}: both must predict the same")
  theirs, ours = ((c.num_labels, c.labels) for c in (config.head, own.head))
  if not all(from_objective) and theirs != ours:
    raise UserError(f"{name} has the classes {theirs[1] or theirs[0]} and the student has {ours[1] or ours[0]}")
  if teacher.vocab_size != student.vocab_size:
    raise UserError(
      f"{name} has {teacher.vocab_size} ids and the student has {student.vocab_size}: both must read the same; take "
      f"the teacher's tokenizer (tokenizer.path), and set model.vocab_size if the teacher has it"
    )
  tokens = max((field.shape[-1] for field in fields.values() if field.kind == "ids"), default=0)
  places = config.max_positions - config.position_offset
  if config.positions == "learned" and not config.image.patch and tokens > places:
    raise UserError(f"{name} has {places} positions, and rows have {tokens} tokens: cut data.seq_len")


def _name(config: DistillConfig) -> str:
  """The teacher, for messages."""
  return f"distill.teacher={config.teacher}"


def _kind(model: Model) -> str:
  """What a model reads, and in which directions."""
  if model.encoder_decoder:
    return "an encoder-decoder"
  if model.config.image.patch:
    return "a model of images"
  return "a decoder" if find_family(model.family).causal else "an encoder"
