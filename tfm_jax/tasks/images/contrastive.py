"""Pictures and captions that learn to agree (CLIP, Radford et al. 2021), and classes by the texts that name them."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from etils import epath

from tfm_jax.data.images.store import ImageSet, class_names
from tfm_jax.data.prepare import find_tokenizer
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.objectives.draws import Draws
from tfm_jax.ops.losses import LossTerms
from tfm_jax.tasks.images.task import ImageTask, Prediction, class_keys, scaled
from tfm_jax.text.corpora.corpus import Corpus
from tfm_jax.text.tokenizers.table import Tokenizer
from tfm_jax.training.config import Config
from tfm_jax.training.task import Batch, EvalStream, Predictions

log = logging.getLogger(__name__)

_CAPTION = 220  # site of the draws


class ImageText(ImageTask):
  """Each picture with a caption made from its class, among all pairs of the global batch.

  Captions are `task.captions` with the name of the class in place of {}; which one is drawn per row and epoch. Held-out
  pictures are classified zero-shot: by the cosine of their vector with the mean vector of each class's `task.prompts`.

  Captions of one class are equal or nearly so, and count as wrong for the other pictures of that class, as in the
  paper. So the loss does not reach 0: with C classes in batches of B rows, log(B / C) is about the least.
  """

  family: ClassVar[str] = "clip"
  head_name: ClassVar[str] = "contrastive"

  @classmethod
  def keys(cls, config: Config, images: ImageSet) -> dict[str, Any]:
    """See `ImageTask`: the head, the classes, and no microbatches: parts of a batch would not see each other."""
    for key in ("captions", "prompts"):
      _templates(config, key)
    if config.train.microbatches > 1:
      raise UserError(
        f"train.microbatches={config.train.microbatches}: in parts, pictures would be compared with the captions of "
        f"their part alone; set it to 1 (or 0), and use more devices or model.remat=full if memory is short"
      )
    return {"head.name": cls.head_name, **class_keys(config, images), "train.microbatches": 1}

  def find_tokenizer(self, config: Config, stored: epath.PathLike | None) -> Tokenizer | None:
    """See `ImageTask`: by default trained on all captions."""
    names = class_names(self.opened(config, config.data.path, "data.path"), config.model.head.labels.split("|"))
    texts = [_written(template, name) for name in names for template in _templates(config, "captions")]
    corpus = Corpus(
      name="captions",
      description=f"{len(texts)} captions",
      fingerprint=f"captions of {texts}",
      read=lambda part, _: ((text,) for text in texts),
    )
    return find_tokenizer(config.tokenizer, corpus, stored)

  def setup(self, config: Config, tokenizer: Tokenizer | None) -> None:
    """See `ImageTask`."""
    assert tokenizer is not None
    if tokenizer.eos_id < 0:
      raise UserError(f"task.name={config.task.name} needs an end symbol, and this tokenizer has none")
    super().setup(config, tokenizer)
    self._captions: dict[str, np.ndarray] = {}

  def known(self, images: ImageSet, index: np.ndarray) -> np.ndarray:
    """See `ImageTask`: those with a class."""
    return index[self.numbers(images)[index] >= 0]

  def names(self, images: ImageSet) -> Sequence[str]:
    """See `ImageTask`: the classes of the pictures, whatever they are; if these have no two, those of training."""
    return class_names(images, self.classes) if len(images.classes) > 1 else self.classes

  def arrays(self, images: ImageSet, index: np.ndarray, real: np.ndarray, draws: Draws | None) -> dict[str, np.ndarray]:
    """See `ImageTask`."""
    labels = self.numbers(images)[index]
    captions_XCT = self._captions_of(images)
    chosen = np.zeros(len(index), np.int64) if draws is None else draws.integers(_CAPTION, 1, len(captions_XCT))[:, 0]
    return self._batch(
      scaled(self.pixels(images, index, draws, self.config.augment)),
      captions_XCT[chosen, np.maximum(labels, 0)],
      (real & (labels >= 0)).astype(np.float32),
    )

  def _batch(self, pixels: np.ndarray, ids_RT: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of pictures and texts; ids are -1 after the end of a text."""
    assert self.tokenizer is not None
    positions = np.broadcast_to(np.arange(ids_RT.shape[1], dtype=np.int32), ids_RT.shape)
    return {
      "images": pixels,
      "inputs": np.where(ids_RT < 0, np.int32(max(self.tokenizer.pad_id, 0)), ids_RT),
      "segment_ids": (ids_RT >= 0).astype(np.int32),
      "positions": np.ascontiguousarray(positions),
      "weights": weights,
    }

  def _captions_of(self, images: ImageSet) -> np.ndarray:
    """int32 [captions, classes, T]: the tokens of each caption of each class of a set."""
    if images.fingerprint not in self._captions:
      templates = _templates(self.config, "captions")
      self._captions[images.fingerprint] = self._tokens(templates, self.names(images))
    return self._captions[images.fingerprint]

  def _tokens(self, templates: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """int32 [templates, classes, T]: the texts with the end symbol; -1 after it."""
    assert self.tokenizer is not None
    length = self.config.data.seq_len
    out = np.full((len(templates), len(names), length), -1, np.int32)
    for i, template in enumerate(templates):
      for j, ids in enumerate(self.tokenizer.encode_batch([_written(template, name) for name in names])):
        if len(ids) >= length:
          log.warning("%r is longer than data.seq_len=%d and was cut", _written(template, names[j]), length)
        whole = np.append(ids[: length - 1], self.tokenizer.eos_id)
        out[i, j, : len(whole)] = whole
    return out

  # Zero-shot classification.

  @property
  def eval_streams(self) -> Mapping[str, EvalStream]:
    """See `Task`: batches of the prompts, which have no weight, then the held-out pairs."""
    held_out = self._eval
    if held_out is None:
      return {}

    def stream(rows: np.ndarray | None) -> Iterator[Batch]:
      yield from self._prompts(self._held_out_images, rows)
      yield from held_out.batches(rows)

    return {"eval": stream}

  def _prompts(self, images: ImageSet, rows: np.ndarray | None = None) -> Iterator[Batch]:
    """Batches of the prompts of all classes of a set, each with a blank picture."""
    image, size = self.config.model.image, self.config.train.batch_size
    ids = self._tokens(_templates(self.config, "prompts"), self.names(images)).reshape(-1, self.config.data.seq_len)
    here = np.arange(size) if rows is None else rows
    for first in range(0, len(ids), size):
      part = ids[np.minimum(first + here, len(ids) - 1)]
      pixels = np.zeros((len(part), image.height, image.width, image.channels), np.float32)
      batch = self._batch(pixels, part, np.zeros(len(part), np.float32))
      yield batch | {"rows": (first + here).astype(np.int32)}

  def _probabilities(self, images: ImageSet, outputs: Sequence[Mapping[str, np.ndarray]], count: int) -> np.ndarray:
    """float [count, classes], from what the head predicts for the batches of prompts and those of pictures."""
    classes, prompts = len(self.names(images)), len(_templates(self.config, "prompts"))
    of_prompts = -(-classes * prompts // self.config.train.batch_size)
    joined = lambda name, parts: np.concatenate([part[name] for part in parts])
    texts = joined("text_vectors", outputs[:of_prompts])[: classes * prompts].reshape(prompts, classes, -1).mean(0)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    logits = outputs[0]["scale"][0] * joined("image_vectors", outputs[of_prompts:])[:count] @ texts.T
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)

  def eval_metrics(self, split: str, totals: LossTerms, predictions: Predictions) -> dict[str, float]:
    """See `Task`: the accuracy of zero-shot classification."""
    assert self._eval is not None
    images, index = self._held_out_images, self._eval.index
    probabilities = self._probabilities(images, predictions, len(index))
    return {"zero_shot_accuracy": float((probabilities.argmax(1) == self.numbers(images)[index]).mean())}

  def predict(self, model: Model, params: Any, images: ImageSet, index: np.ndarray) -> list[Prediction]:
    """See `ImageTask`: zero-shot, among the classes of these pictures, which may be others than those of training."""
    outputs = self.outputs(model, params, itertools.chain(self._prompts(images), self.batches(images, index)))
    return self.class_predictions(images, index, self._probabilities(images, outputs, len(index)))


def _templates(config: Config, key: str) -> list[str]:
  """The texts of `task.captions` or `task.prompts`. Raises UserError."""
  templates = getattr(config.task, key).split("|")
  for template in templates:
    if "{}" not in template:
      raise UserError(f"task.{key}: {template!r} has no {{}}, which stands for the name of the class")
  return templates


def _written(template: str, name: str) -> str:
  """The text of a class, whose folder may be named with underscores."""
  return template.replace("{}", name.replace("_", " "))
