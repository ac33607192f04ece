"""Palettes: pixels as tokens, and back (Chen et al. 2020, "Generative Pretraining from Pixels")."""

from typing import Self

import numpy as np

from tfm_jax.cache import recall, remember
from tfm_jax.data.images.store import ImageSet
from tfm_jax.data.permutation import permute
from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws

_FORMAT = 1  # part of the key in the cache
_PIXELS = 1 << 16  # colours that k-means reads
_ROUNDS = 20
_BITS = 6  # of a channel decide the nearest colour: 4 neighbouring values of a channel have the same


class Palette:
  """Colours by token id.

  Args:
    colours: uint8 [K, channels].
  """

  def __init__(self, colours: np.ndarray) -> None:
    self.colours = colours
    if colours.shape[1] == 1:
      self._nearest = _nearest(np.arange(256, dtype=np.float32)[:, None], colours)
    else:
      values = (np.arange(1 << _BITS, dtype=np.float32) + 0.5) * (256 >> _BITS) - 0.5
      cube = np.stack(np.meshgrid(values, values, values, indexing="ij"), -1)
      self._nearest = _nearest(cube.reshape(-1, 3), colours)

  def __len__(self) -> int:
    return len(self.colours)

  @classmethod
  def of(cls, images: ImageSet, index: np.ndarray, size: int) -> Self:
    """The palette of training pictures: evenly spaced greys, or the means of k-means over pixels. Raises UserError."""
    channels = images.pixels.shape[3]
    if not 2 <= size <= (256 if channels == 1 else 1 << 16):
      raise UserError(
        f"model.vocab_size={size + 1}: set it to the number of colours plus one, the symbol that begins a picture"
        f"{': at most 257 for greys' if channels == 1 else ''}"
      )
    if channels == 1:
      return cls(np.rint(np.linspace(0, 255, size)).astype(np.uint8)[:, None])
    key = [_FORMAT, images.fingerprint, size, len(index)]
    known = recall("palettes", key)
    if not isinstance(known, str):
      known = cls(_means(images, index, size)).text
      remember("palettes", key, known)
    return cls.read(known, channels)

  @property
  def text(self) -> str:
    """The colours in hexadecimal."""
    return self.colours.tobytes().hex()

  @classmethod
  def read(cls, text: str, channels: int) -> Self:
    """The palette that `text` describes."""
    return cls(np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, channels))

  def encode(self, pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., channels] -> int32 [...], the ids of the nearest colours."""
    if pixels.shape[-1] == 1:
      return self._nearest[pixels[..., 0]]
    red, green, blue = (pixels[..., n].astype(np.int32) >> 8 - _BITS for n in range(3))
    return self._nearest[(red << 2 * _BITS) | (green << _BITS) | blue]

  def decode(self, ids: np.ndarray) -> np.ndarray:
    """int [...] -> uint8 [..., channels]."""
    return self.colours[ids]


def _nearest(x_NC: np.ndarray, colours_KC: np.ndarray) -> np.ndarray:
  """int32 [N]: the nearest colour of each x, the first of equal ones."""
  centres = colours_KC.astype(np.float32)
  bias = 0.5 * np.square(centres).sum(1)
  parts = [x_NC[n : n + 4096] for n in range(0, len(x_NC), 4096)]
  return np.concatenate([(bias - part @ centres.T).argmin(1) for part in parts]).astype(np.int32)


def _means(images: ImageSet, index: np.ndarray, size: int) -> np.ndarray:
  """uint8 [size, 3]: k-means over some pixels, begun as by k-means++ (Arthur and Vassilvitskii 2007)."""
  _, height, width, channels = images.pixels.shape
  total = len(index) * height * width
  n = np.arange(min(_PIXELS, total))
  picture, place = np.divmod(permute(n, total, 0, 0 * n), height * width)
  x = images.pixels[index[picture], place // width, place % width].astype(np.float32)
  distinct = len(np.unique(x, axis=0))
  if distinct < size:
    raise UserError(f"model.vocab_size={size + 1}: the pictures have only {distinct:,} colours")
  centres = np.empty((size, channels), np.float32)
  distances, shares = np.ones(len(x), np.float32), Draws.of(0, 0, np.zeros(1)).uniform(0, size)[0]
  for k in range(size):  # each centre is a pixel, drawn in proportion to the square of its distance from the others
    sums = np.cumsum(distances, dtype=np.float64)
    centres[k] = x[np.searchsorted(sums, shares[k] * sums[-1], side="right")]
    distances = np.minimum(distances if k else np.inf, np.square(x - centres[k]).sum(1))
  for _ in range(_ROUNDS):
    near = _nearest(x, centres)
    counts = np.bincount(near, minlength=size)
    sums = np.stack([np.bincount(near, x[:, c], size) for c in range(channels)], 1)
    centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres).astype(np.float32)
  centres = np.rint(centres).astype(np.uint8)
  return centres[np.lexsort(centres.T[::-1])]
