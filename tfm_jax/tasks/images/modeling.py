"""Pictures as sequences of tokens, one per pixel, which a decoder learns to continue (image GPT, Chen et al. 2020)."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tfm_jax.data.images.palette import Palette
from tfm_jax.data.images.store import ImageSet
from tfm_jax.decode.generate import continued
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import Prompt
from tfm_jax.decode.start import prepared
from tfm_jax.errors import UserError
from tfm_jax.models.families.table import find_family
from tfm_jax.models.model import Model
from tfm_jax.objectives.draws import Draws
from tfm_jax.objectives.objective import ROWS, Fields, along_row
from tfm_jax.ops.losses import LossTerms
from tfm_jax.runtime.reporting.png import grid, png
from tfm_jax.tasks.images.task import ImageTask, Prediction
from tfm_jax.text.tokenizers.table import Tokenizer
from tfm_jax.training.config import Config
from tfm_jax.training.loss import LossFunction
from tfm_jax.training.task import Predictions

BITS = "bits_per_pixel"
SHOWN, SAMPLES = 8, 4  # pictures that are completed, and how often
LARGE = 96  # pixels on a screen along the side of a small picture


class _Codes:
  """What generation asks of a tokenizer: pixels end with the picture, and the symbol that begins one never follows."""

  pad_id, eos_id = 0, -1

  def __init__(self, size: int) -> None:
    self.vocab_size = size

  def decode(self, ids: np.ndarray) -> str:
    """No text."""
    return ""


class ImageModeling(ImageTask):
  """Each pixel from those above it and to its left: the causal objective on tokens of a palette, row after row.

  The palette has `model.vocab_size` - 1 colours: greys, or the means of k-means over the training pictures. The last
  id begins a picture. `bits_per_pixel` is the loss in bits: of the pixels' palette colours, not of their full values.
  """

  predicts: ClassVar[bool] = False
  head_name: ClassVar[str] = "lm"
  form: ClassVar[str] = ""

  @classmethod
  def keys(cls, config: Config, images: ImageSet) -> dict[str, Any]:
    """See `ImageTask`: the length of rows, the palette."""
    if not find_family(config.family).causal:
      raise UserError(f"family={config.family} is no decoder: task.name=image_modeling needs one, such as gpt or llama")
    image = config.model.image
    index = np.arange(len(images)) if config.data.eval_path else images.split(config.data.eval_fraction)[0]
    palette = Palette.of(images, index, config.model.vocab_size - 1)
    length = image.height * image.width
    # Generation counts a position for the last pixel, which the model never reads.
    keys = {"head.name": cls.head_name, "data.seq_len": length, "model.max_positions": length + 1}
    return keys | {"task.palette": palette.text}

  def setup(self, config: Config, tokenizer: Tokenizer | None) -> None:
    """See `ImageTask`."""
    super().setup(config, tokenizer)
    self.palette = Palette.read(config.task.palette, config.model.image.channels)
    self.length = self.size[0] * self.size[1]

  @property
  def fields(self) -> Fields:
    """See `Task`."""
    ids, labels = (along_row(self.length, kind, self.vocab_size) for kind in ("ids", "labels"))
    return {"inputs": ids, "targets": labels, "weights": along_row(self.length, "weights"), "rows": ROWS}

  def arrays(self, images: ImageSet, index: np.ndarray, real: np.ndarray, draws: Draws | None) -> dict[str, np.ndarray]:
    """See `ImageTask`."""
    pixels = self.pixels(images, index, draws, self.config.augment)
    targets = self.palette.encode(pixels).reshape(len(index), self.length)
    weights = np.repeat(real.astype(np.float32)[:, None], self.length, axis=1)
    begin = np.full((len(index), 1), len(self.palette), np.int32)
    return {"inputs": np.concatenate([begin, targets[:, :-1]], 1), "targets": targets, "weights": weights}

  def loss(self, model: Model) -> LossFunction:
    """See `Task`: the head's loss, and the same in bits."""
    of_head = super().loss(model)

    def loss(params: Any, batch: Any, noise: Any) -> LossTerms:
      terms = of_head(params, batch, noise)
      ((nll, weight),) = terms.loss.values()
      return terms | LossTerms({}, {}, {BITS: (nll / math.log(2), weight)})

    return loss

  def eval_metrics(self, split: str, totals: LossTerms, predictions: Predictions) -> dict[str, float]:
    """See `Task`: nothing more."""
    return {}

  def predict(self, model: Model, params: Any, images: ImageSet, index: np.ndarray) -> list[Prediction]:
    """See `ImageTask`: the bits per pixel of each picture."""

    @jax.jit
    def bits(params: Any, batch: Any) -> jax.Array:
      log_p = jax.nn.log_softmax(model.logits(params, batch))
      own = jnp.take_along_axis(log_p, batch["targets"][:, :, None], 2)[:, :, 0]
      return jax.lax.with_sharding_constraint(-own.mean(1) / math.log(2), model.placement.replicated)

    found = np.concatenate([jax.device_get(bits(params, batch)) for batch in self.batches(images, index)])[: len(index)]
    return [{"id": images.names[n], BITS: round(float(value), 6)} for n, value in zip(index, found, strict=True)]

  def scores(self, predictions: Sequence[Prediction], intervals: bool = True) -> dict[str, float]:
    """See `ImageTask`: the mean, and its 95 % interval by the normal distribution."""
    values = np.array([one[BITS] for one in predictions])
    error = 1.96 * float(values.std()) / math.sqrt(len(values))
    mean = float(values.mean())
    return {BITS: mean} | ({f"{BITS}_low": mean - error, f"{BITS}_high": mean + error} if intervals else {})

  def pictures(self, model: Model, params: Any, images: ImageSet, index: np.ndarray) -> dict[str, bytes]:
    """See `ImageTask`: completions.png and samples.png.

    Rows of completions.png: a picture as the palette shows it, its upper half, and what the model draws below it.
    """
    shown = min(SHOWN, len(index))
    index = index[np.arange(shown) * len(index) // shown]  # neighbours are of one class
    ids = self.palette.encode(self.pixels(images, index, None, self.config.augment)).reshape(len(index), -1)
    half = self.size[0] // 2 * self.size[1]
    drawn = self.complete(model, params, ids[:, :half], SAMPLES)
    upper = np.where(
      np.arange(self.length) < half, ids, self.palette.encode(np.full_like(self.palette.colours[:1], 128))
    )
    rows = np.concatenate([ids[:, None], upper[:, None], drawn], axis=1)
    free = self.complete(model, params, ids[:1, :0], SHOWN * SAMPLES).reshape(SAMPLES, SHOWN, -1)
    return {"completions.png": self._png(rows), "samples.png": self._png(free)}

  def complete(
    self, model: Model, params: Any, ids_RP: np.ndarray, samples: int, options: Options | None = None
  ) -> np.ndarray:
    """Pictures that begin with the given pixels, as ids [R, samples, height * width]. All processes call it.

    Args:
      model, params: the model.
      ids_RP: the first P pixels of each picture.
      samples: pictures per beginning.
      options: of generation; None: drawn at temperature 1.
    """
    options = options or Options(temperature=1.0, samples=samples, max_new_tokens=self.length - ids_RP.shape[1])
    begin, none = np.array([len(self.palette)], np.int32), np.zeros(0, np.int32)
    prompts = [Prompt(n, "", np.concatenate([begin, ids]).astype(np.int32), none) for n, ids in enumerate(ids_RP)]
    codes: Any = _Codes(len(self.palette))
    found = continued(model, prepared(model, params), codes, prompts, options)
    new = np.array([[one.ids for one in row] for row in found])
    return np.concatenate([np.repeat(ids_RP[:, None], samples, 1), new], axis=2).astype(np.int32)

  def _png(self, ids_RCT: np.ndarray) -> bytes:
    pixels = self.palette.decode(ids_RCT.reshape(*ids_RCT.shape[:2], *self.size))
    return png(grid(pixels, scale=max(LARGE // max(self.size), 1)))
