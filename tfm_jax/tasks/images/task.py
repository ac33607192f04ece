"""`ImageTask`: what all tasks on pictures share: opening files, batches, held-out pictures."""

import abc
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from tfm_jax.data.dataset import batches
from tfm_jax.data.images.augment import AugmentConfig, augmented, centred
from tfm_jax.data.images.batches import ImageBatches
from tfm_jax.data.images.store import ImageSet, class_names, open_images
from tfm_jax.errors import UserError
from tfm_jax.models.config import replaced
from tfm_jax.models.model import Model, labelled_fields, reads_images
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import Fields
from tfm_jax.ops.losses import LossTerms
from tfm_jax.runtime.reporting.png import data_uri
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.tasks.labelled.task import SOURCE, score_lines
from tfm_jax.tasks.scores import score
from tfm_jax.text.corpora.files import check_split
from tfm_jax.text.tokenizers.table import Tokenizer
from tfm_jax.training.config import Config
from tfm_jax.training.loss import LossFunction, make_loss
from tfm_jax.training.task import Batch, EvalStream, Predictions

log = logging.getLogger(__name__)

Prediction = dict[str, Any]
LISTED = 20  # classes whose probabilities a prediction has, or that a message names
THUMBNAIL = "image"
"""The key of a prediction with the picture itself, for pages; predictions.jsonl leaves it out."""


class ImageTask(abc.ABC):
  """Base class of tasks on pictures: everything of `training.task.Task`.

  Args:
    config: the resolved configuration, after `configure`.
    stored_tokenizer: the folder of the tokenizer of this run, for tasks that read text.

  Raises:
    UserError: a mistake in the files.
  """

  predicts: ClassVar[bool] = True
  lengths: tuple[int, ...] = ()
  family: ClassVar[str] = ""
  """The family that has the head, if the model must read images."""
  mixes: ClassVar[bool] = False
  """Whether it learns from mixtures of pictures, see `augment.mixup`."""
  head_name: ClassVar[str]
  """The prediction head, see `models.heads.table`."""
  form: ClassVar[str] = "classes"
  """What predictions look like, see `tasks.scores`; "": numbers of another kind."""

  # What a task adds.

  @classmethod
  @abc.abstractmethod
  def keys(cls, config: Config, images: ImageSet) -> dict[str, Any]:
    """The keys ("head.num_labels", "task.palette", ...) that follow from the training pictures. Raises UserError."""

  @abc.abstractmethod
  def arrays(self, images: ImageSet, index: np.ndarray, real: np.ndarray, draws: Draws | None) -> dict[str, np.ndarray]:
    """The arrays of a batch but `rows`, see `data.images.batches.Make`."""

  @abc.abstractmethod
  def predict(self, model: Model, params: Any, images: ImageSet, index: np.ndarray) -> list[Prediction]:
    """What the model predicts for pictures, as in predictions.jsonl. All processes call it."""

  def pictures(self, model: Model, params: Any, images: ImageSet, index: np.ndarray) -> dict[str, bytes]:
    """What the model draws about pictures: PNG files by name. All processes call it."""
    return {}

  def scores(self, predictions: Sequence[Prediction], intervals: bool = True) -> dict[str, float]:
    """The scores of predictions, see `tasks.scores`."""
    return score(self.form, predictions, intervals)

  # `Task`.

  @classmethod
  def configure(cls, config: Config) -> Config:
    """Sets the head and what else follows from the pictures. Raises UserError."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=SOURCE))
    config.augment.check()
    if config.augment.mixup and not cls.mixes:
      raise UserError(
        f"augment.mixup={config.augment.mixup:g} mixes classes: set it to 0 for task.name={config.task.name}"
      )
    cls.check_family(config)
    check_split(config.data.eval_fraction, config.data.errors)
    changes = cls.keys(config, cls.opened(config, config.data.path, "data.path"))
    sections: dict[str, dict[str, Any]] = {name: {} for name in ("task", "data", "train")}
    model: dict[str, Any] = {}
    for key, value in changes.items():
      section, _, name = key.partition(".")
      if section in sections:
        sections[section][name] = value
      else:
        model[key.removeprefix("model.")] = value
    others = {name: dataclasses.replace(getattr(config, name), **own) for name, own in sections.items()}
    return dataclasses.replace(config, model=replaced(config.model, model), **others)

  @classmethod
  def check_family(cls, config: Config) -> None:
    """Raises UserError if the model reads no images, and the task needs it to."""
    if cls.family and not reads_images(config.family):
      raise UserError(f"family={config.family} reads no images: task.name={config.task.name} needs family={cls.family}")

  @classmethod
  def opened(cls, config: Config, path: str, key: str) -> ImageSet:
    """The pictures at a path, as the configuration wants them. Raises UserError."""
    image, side = config.model.image, config.augment.stored
    size = (image.height, image.width)
    if min(size) < 1:
      raise UserError(f"image.height={image.height}, image.width={image.width}: set the size that the model reads")
    if side and side < max(size):
      raise UserError(f"augment.stored={side} is smaller than the {size[0]} x {size[1]} pixels that the model reads")
    return open_images(path, key, (side, side) if side else size, image.channels)

  def __init__(self, config: Config, stored_tokenizer: epath.PathLike | None = None) -> None:
    self.setup(config, self.find_tokenizer(config, stored_tokenizer))
    data, size = config.data, config.train.batch_size
    images = self.opened(config, data.path, "data.path")
    if data.eval_path:
      held_out = self.opened(config, data.eval_path, "data.eval_path")
      index, eval_index = np.arange(len(images)), np.arange(len(held_out))
    else:
      held_out, (index, eval_index) = images, images.split(data.eval_fraction)
    if not len(index):
      raise UserError(f"data.eval_fraction={data.eval_fraction:g} leaves no picture of {data.path} to train on")
    self.held_out = self.known(held_out, eval_index)
    if data.eval_path and not len(self.held_out):
      known = _some(self.classes)
      raise UserError(f"data.eval_path={data.eval_path}: no picture has one of the classes of data.path ({known})")
    self._images, self._held_out_images = images, held_out
    self._train = ImageBatches(self.known(images, index), size, config.seed, True, self._maker(images))
    self.num_rows = self._train.num_rows
    self._eval = None
    if len(self.held_out):
      limit = config.eval.batches
      self._eval = ImageBatches(self.held_out, size, config.seed, False, self._maker(held_out), limit)
    own = [images.fingerprint, held_out.fingerprint, 0 if data.eval_path else data.eval_fraction]
    self.fingerprints = {"data": "-".join(map(str, own))}
    if self.tokenizer is not None:
      self.fingerprints["tokenizer"] = self.tokenizer.fingerprint
    log.info("%s: %s pictures to train on, %s held out", config.task.name, f"{len(index):,}", f"{len(self.held_out):,}")

  @classmethod
  def of_run(cls, config: Config, tokenizer: Tokenizer | None) -> Self:
    """The task of a trained model, for `predict`: it reads no training pictures. Raises UserError."""
    task = cls.__new__(cls)
    task.setup(config, tokenizer)
    return task

  def setup(self, config: Config, tokenizer: Tokenizer | None) -> None:
    """What batches and predictions need."""
    self.config, self.tokenizer = config, tokenizer
    self.size = (config.model.image.height, config.model.image.width)
    self._numbers: dict[str, np.ndarray] = {}

  def find_tokenizer(self, config: Config, stored: epath.PathLike | None) -> Tokenizer | None:
    """The tokenizer, of tasks that read text."""
    return None

  def known(self, images: ImageSet, index: np.ndarray) -> np.ndarray:
    """Those of the pictures that the task can learn from."""
    return index

  @property
  def classes(self) -> list[str]:
    """The names of the classes of training, in the order of their numbers."""
    return self.config.model.head.labels.split("|")

  def names(self, images: ImageSet) -> Sequence[str]:
    """The names of the classes among which the pictures are classified."""
    return self.classes

  def numbers(self, images: ImageSet) -> np.ndarray:
    """int32 [N]: the place in `names` of the class of each picture; -1: it has none.

    Pictures have none if the names of all their folders are unknown: then these are no classes.

    Raises:
      UserError: some of the classes are unknown.
    """
    if images.fingerprint not in self._numbers:
      names, own = self.names(images), class_names(images, self.classes)
      unknown = [name for name in own if name not in names]
      if unknown and len(unknown) < len(own):
        raise UserError(f"pictures have the class {unknown[0]!r}, and the model was trained on {_some(names)}")
      if unknown:
        log.warning("pictures of %s have no class of the model (%s)", _some(unknown), _some(names))
      places = [-1 if unknown else names.index(name) for name in own]
      self._numbers[images.fingerprint] = np.array([*places, -1], np.int32)[images.labels]  # label -1: the last
    return self._numbers[images.fingerprint]

  @property
  def fields(self) -> Fields:
    """See `Task`: what the model and its head read."""
    return labelled_fields(self.config.family, self.config.model, self.config.data.seq_len, self.vocab_size)

  @property
  def vocab_size(self) -> int:
    """The number of token ids that the model reads; 0: it reads none."""
    return self.config.model.vocab_size or (self.tokenizer.vocab_size if self.tokenizer else 0)

  def train_batches(self, start: int, stop: int, rows: np.ndarray | None) -> Iterator[tuple[int, Batch]]:
    """See `Task`."""
    return batches(self._train, start, stop, rows, self.config.data.prefetch)

  @property
  def eval_streams(self) -> Mapping[str, EvalStream]:
    """See `Task`."""
    return {} if self._eval is None else {"eval": self._eval.batches}

  def loss(self, model: Model) -> LossFunction:
    """See `Task`."""
    return make_loss(model, self.config.loss)

  @abc.abstractmethod
  def eval_metrics(self, split: str, totals: LossTerms, predictions: Predictions) -> dict[str, float]:
    """See `Task`."""

  def report(self, model: Model, params: Any, metrics: Mapping[str, float], run: RunDirectory) -> list[str]:
    """Writes the predictions for all held-out pictures, if it `predicts`, and `pictures`; the lines have the scores."""
    if not len(self.held_out):
      return [
        f"nothing is held out: set data.eval_path, or data.eval_fraction (now {self.config.data.eval_fraction:g})"
      ]
    lines = []
    if self.predicts:
      found = self.predict(model, params, self._held_out_images, self.held_out)
      run.write_predictions([without_thumbnail(one) for one in found])
      lines = [*score_lines(self.scores(found)), f"every prediction: {run.predictions}"]
    for name, file in self.pictures(model, params, self._held_out_images, self.held_out).items():
      if run.writes:
        (run.path / name).write_bytes(file)
      lines.append(f"pictures: {run.path / name}")
    return lines

  # Parts for tasks.

  def pixels(self, images: ImageSet, index: np.ndarray, draws: Draws | None, config: AugmentConfig) -> np.ndarray:
    """uint8 [R, height, width, C]: pictures as the model sees them; with draws, as in training."""
    if draws is None:
      return centred(images.pixels[index], self.size)
    return augmented(images.pixels, index, self.size, config, draws)

  def outputs(self, model: Model, params: Any, stream: Iterator[Batch]) -> list[Mapping[str, np.ndarray]]:
    """What the model's head predicts for each batch. All processes call it."""
    predict = jax.jit(model.predict, out_shardings=model.placement.replicated)
    with tqdm(stream, "predicting", unit="batch", delay=5, disable=None) as steps:
      return [jax.device_get(predict(params, batch)) for batch in steps]

  def batches(self, images: ImageSet, index: np.ndarray) -> Iterator[Batch]:
    """The batches of pictures, for evaluation."""
    return ImageBatches(index, self.config.train.batch_size, 0, False, self._maker(images)).batches()

  def class_predictions(self, images: ImageSet, index: np.ndarray, probabilities_NC: np.ndarray) -> list[Prediction]:
    """Predictions of the form "classes", with thumbnails for the page of errors.

    Their `probabilities` are those of the likeliest `LISTED` classes and of the label, in the order of the classes.
    """
    names, labels = self.names(images), self.numbers(images)[index].tolist()
    best_NK = np.argsort(-probabilities_NC, axis=1, kind="stable")[:, :LISTED]
    rows = []
    for n, label, p, best in zip(index, labels, probabilities_NC, best_NK.tolist(), strict=True):
      listed = sorted({*best, label} - {-1})
      rows.append(
        {
          "prediction": names[best[0]],
          "label": None if label < 0 else names[label],
          "probabilities": {names[number]: round(float(p[number]), 6) for number in listed},
          "id": images.names[n],
          THUMBNAIL: Thumbnail(images, int(n)),
        }
      )
    return rows

  def _maker(self, images: ImageSet) -> Any:
    return lambda index, real, draws: self.arrays(images, index, real, draws)


def class_keys(config: Config, images: ImageSet) -> dict[str, Any]:
  """The keys of the classes: those of the training pictures, or of `head.labels` if it has all of them. UserError."""
  labels, path = config.model.head.labels, f"data.path={config.data.path}"
  if len(images.classes) < 2:
    have = f"are all of the class {images.classes[0]!r}" if images.classes else "have no classes"
    raise UserError(f"{path}: the pictures {have}: put those of each class into a folder of its name")
  own = labels.split("|") if labels else []
  classes = class_names(images, own)
  if any("|" in name for name in classes):
    raise UserError(f"{path}: the name of a class has a '|' in it; rename its folder")
  names = own if set(classes) <= set(own) else classes
  return {"head.num_labels": len(names), "head.labels": "|".join(names)}


def _some(names: Sequence[str]) -> str:
  """Names, for a message: the first ones of many."""
  return ", ".join([*names[:LISTED], *(["..."] if len(names) > LISTED else [])])


@dataclasses.dataclass(frozen=True)
class Thumbnail:
  """A picture of a set, which becomes text when it is shown: a page shows few of many predictions."""

  images: ImageSet
  number: int

  def __str__(self) -> str:
    return data_uri(self.images.pixels[self.number])


def without_thumbnail(prediction: Mapping[str, Any]) -> Prediction:
  """A prediction as predictions.jsonl has it."""
  return {name: value for name, value in prediction.items() if name != THUMBNAIL}


def scaled(pixels: np.ndarray) -> np.ndarray:
  """Bytes as float32 in -1 .. 1, as ViT reads them."""
  return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)
