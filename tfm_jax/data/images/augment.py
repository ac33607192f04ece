"""Augmentation of training pictures: crops, flips and RandAugment, vectorised over the rows of a batch.

All draws are functions of (seed, epoch, row), so that a resumed run repeats them.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tfm_jax.data.images.store import GREY
from tfm_jax.errors import UserError
from tfm_jax.objectives.draws import Draws

CROPS = ("none", "shift", "resized")
_FLIP, _SHIFT, _AREA, _OPERATIONS, _SIGNS = range(200, 205)  # sites of the draws
_RATIOS = (3 / 4, 4 / 3)  # of width to height of resized crops
_MOST = 10.0  # the magnitude of RandAugment at which each operation is at its strongest
_PART = 1 << 20  # bytes of stored pictures that a thread changes at a time


@dataclass(frozen=True)
class AugmentConfig:
  """What training changes about pictures; held-out ones are cut in the middle."""

  stored: int = 0  # side of the square that pictures are decoded to, and cut from; 0: the size that the model reads
  # none; shift: moved by up to `pad` pixels, black around them (He et al. 2016); resized: a region of any place, size
  # and nearly any proportions, resized (Szegedy et al. 2015, as Dosovitskiy et al. 2021 use it)
  crop: str = "none"
  pad: int = 4  # shift: most pixels by which a picture is moved
  area: float = 0.08  # resized: the smallest share of a picture's area that a region has
  flip: bool = False  # every other picture is mirrored
  operations: int = 0  # RandAugment (Cubuk et al. 2020): operations per picture, such as a rotation; 0: none
  magnitude: float = 10.0  # RandAugment: their strength, from 0 to 10
  mixup: float = 0.0  # pictures and labels are means of two; the share is of Beta(mixup, mixup) (Zhang et al. 2018)

  def check(self) -> None:
    """Raises UserError for a value that cannot be."""
    if not 0 < self.area <= 1:
      raise UserError(f"augment.area={self.area:g} must lie above 0, and be at most 1")
    if self.magnitude > _MOST:
      raise UserError(f"augment.magnitude={self.magnitude:g} must lie between 0 and {_MOST:g}")


def augmented(
  images: np.ndarray, index: np.ndarray, size: tuple[int, int], config: AugmentConfig, draws: Draws
) -> np.ndarray:
  """Training pictures: uint8 [R, height, width, C] of the given size, from those at `index` of the stored ones.

  Rows do not depend on each other, and NumPy lets other threads run: large pictures are read and changed in parts.
  """
  rows = max(_PART // images[0].nbytes, 1)
  parts = [np.arange(n, min(n + rows, len(index))) for n in range(0, len(index), rows)]
  of = lambda part: _changed(images[index[part]], size, config, draws.part(part))
  if len(parts) < 2:
    return of(np.arange(len(index)))
  with ThreadPoolExecutor(os.cpu_count()) as threads:
    return np.concatenate(list(threads.map(of, parts)))


def _changed(images: np.ndarray, size: tuple[int, int], config: AugmentConfig, draws: Draws) -> np.ndarray:
  """`augmented`, of stored pictures [R, H, W, C]."""
  stored = np.array(images.shape[1:3])
  middle, count = (stored - size) // 2, len(images)
  begin, scale = np.broadcast_to(middle, (count, 2)), np.ones((count, 2))
  if config.crop == "shift":
    begin = begin + draws.integers(_SHIFT, 2, 2 * config.pad + 1) - config.pad
  elif config.crop == "resized":
    begin, extent = _regions(stored, config.area, draws)
    scale = extent / size
  at = [begin[:, [axis]] + (np.arange(size[axis]) + 0.5) * scale[:, [axis]] - 0.5 for axis in (0, 1)]
  if config.flip:
    flipped = draws.uniform(_FLIP, 1) < 0.5
    at[1] = np.where(flipped, at[1][:, ::-1], at[1])
  out = _sampled(images, *at)
  if config.operations:
    chosen = draws.integers(_OPERATIONS, config.operations, 1 + len(OPERATIONS))
    signs = np.where(draws.uniform(_SIGNS, config.operations) < 0.5, -1.0, 1.0)
    for n in range(config.operations):
      for number, operation in enumerate(OPERATIONS, 1):  # 0: the picture stays as it is
        rows = np.flatnonzero(chosen[:, n] == number)
        if len(rows):
          out[rows] = operation(out[rows], signs[rows, n] * config.magnitude / _MOST)
  return out


def centred(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The middles of stored pictures, [R, height, width, C]."""
  top, left = ((whole - part) // 2 for whole, part in zip(images.shape[1:3], size, strict=True))
  return images[:, top : top + size[0], left : left + size[1]]


def _regions(stored: np.ndarray, area: float, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
  """Begin and extent in pixels, float [R, 2] each, of regions inside the picture."""
  share, ratio, *place = draws.uniform(_AREA, 4).T
  low, high = np.log(_RATIOS)
  pixels = (area + (1 - area) * share) * stored.prod()
  root = np.exp((low + (high - low) * ratio) / 2)
  extent = np.minimum(np.stack([np.sqrt(pixels) / root, np.sqrt(pixels) * root], 1), stored)
  return np.stack(place, 1) * (stored - extent), extent


def _sampled(images: np.ndarray, y_RH: np.ndarray, x_RW: np.ndarray) -> np.ndarray:
  """The pictures at these rows and columns, which may lie between pixels (a mean of two) or outside (black)."""
  wide = _along(images, y_RH)
  return np.ascontiguousarray(_bytes(_along(wide.swapaxes(1, 2), x_RW).swapaxes(1, 2)))


def _along(x: np.ndarray, at_RN: np.ndarray) -> np.ndarray:
  """x [R, L, ...] at the places of axis 1, [R, N, ...]. Up to half a pixel beyond the outermost one it is that one."""
  last, rows = x.shape[1] - 1, np.arange(len(x))[:, None]
  low = np.floor(at_RN)
  share, outside = (at_RN - low).astype(np.float32)[..., None, None], (at_RN < -0.5) | (at_RN > last + 0.5)
  near = low.clip(0, last).astype(np.intp)
  taken = x[rows, near]
  if share.any():
    taken = taken * (1 - share) + x[rows, np.minimum(near + (low >= 0), last)] * share
  if outside.any():
    taken[outside] = 0
  return taken


def _bytes(x: np.ndarray) -> np.ndarray:
  return x if x.dtype == np.uint8 else np.rint(x).clip(0, 255).astype(np.uint8)


# RandAugment's operations: (uint8 [R, H, W, C], strength in -1 .. 1 [R]) -> uint8 [R, H, W, C].


def _warped(images: np.ndarray, matrix_R22: np.ndarray, shift_R2: np.ndarray) -> np.ndarray:
  """The pictures under an affine map about their middle: each pixel is the nearest one of where it comes from."""
  count, height, width, channels = images.shape
  middle = np.array([height - 1, width - 1]) / 2
  down, along = np.arange(height)[:, None] - middle[0], np.arange(width) - middle[1]
  y, x = (
    np.rint(matrix_R22[:, i, 0, None, None] * down + matrix_R22[:, i, 1, None, None] * along + shift[:, None, None])
    for i, shift in enumerate((shift_R2 + middle).T)
  )
  outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
  place = (y * width + x).astype(np.intp) + height * width * np.arange(count)[:, None, None]
  taken = images.reshape(-1, channels).take(place, axis=0, mode="clip")
  taken[outside] = 0
  return taken


def _linear(images: np.ndarray, entry: tuple[int, int], value: np.ndarray) -> np.ndarray:
  matrix = np.broadcast_to(np.eye(2), (len(images), 2, 2)).copy()
  matrix[:, entry[0], entry[1]] = value
  return _warped(images, matrix, np.zeros((len(images), 2)))


def _moved(images: np.ndarray, axis: int, strength: np.ndarray) -> np.ndarray:
  shift = np.zeros((len(images), 2))
  shift[:, axis] = 0.45 * strength * images.shape[1 + axis]
  return _warped(images, np.broadcast_to(np.eye(2), (len(images), 2, 2)), shift)


def _rotated(images: np.ndarray, strength: np.ndarray) -> np.ndarray:
  """By up to 30 degrees."""
  angle = strength * np.pi / 6
  rows = [np.stack([np.cos(angle), -np.sin(angle)], -1), np.stack([np.sin(angle), np.cos(angle)], -1)]
  return _warped(images, np.stack(rows, 1), np.zeros((len(images), 2)))


def _blended(images: np.ndarray, other: np.ndarray, strength: np.ndarray) -> np.ndarray:
  """Between `other` (0.1) and beyond the picture (1.9)."""
  factor = (1 + 0.9 * strength).astype(np.float32)[:, None, None, None]
  return _bytes(other + factor * (images - other))


def _grey(images: np.ndarray) -> np.ndarray:
  return (images @ GREY)[..., None] if images.shape[3] == 3 else images.astype(np.float32)


def _brightness(images: np.ndarray, strength: np.ndarray) -> np.ndarray:
  return _blended(images, np.zeros((1, 1, 1, 1), np.float32), strength)


def _colour(images: np.ndarray, strength: np.ndarray) -> np.ndarray:
  return _blended(images, _grey(images), strength)


def _contrast(images: np.ndarray, strength: np.ndarray) -> np.ndarray:
  return _blended(images, _grey(images).mean((1, 2, 3), keepdims=True), strength)


def _sharpness(images: np.ndarray, strength: np.ndarray) -> np.ndarray:
  """Against a smoothed picture, whose border stays as it is."""
  x = images.astype(np.float32)
  smooth = x.copy()
  height, width = x.shape[1:3]
  windows = [x[:, i : i + height - 2, j : j + width - 2] for i in range(3) for j in range(3)]
  smooth[:, 1:-1, 1:-1] = (sum(windows) + 4 * windows[4]) / 13
  return _blended(images, smooth, strength)


def _posterised(images: np.ndarray, strength: np.ndarray) -> np.ndarray:
  """The four to eight highest bits of each value."""
  dropped = np.rint(4 * np.abs(strength)).astype(np.uint8)[:, None, None, None]
  return images >> dropped << dropped


def _solarised(images: np.ndarray, strength: np.ndarray) -> np.ndarray:
  """Values above a threshold are inverted."""
  return np.where(images >= (256 * (1 - np.abs(strength)))[:, None, None, None], 255 - images, images)


def _autocontrast(images: np.ndarray, strength: np.ndarray) -> np.ndarray:
  """Each channel from black to full."""
  planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # NumPy is slow along any axis but the last
  low, high = (f(planes, axis=(2, 3)).astype(np.float32)[:, None, None] for f in (np.min, np.max))
  return np.where(high > low, _bytes((images - low) * (255 / np.maximum(high - low, 1))), images)


def _equalised(images: np.ndarray, strength: np.ndarray) -> np.ndarray:
  """Each channel with a nearly uniform histogram."""
  R, H, W, C = images.shape
  flat = images.transpose(0, 3, 1, 2).reshape(R * C, H * W).astype(np.intp)
  counts = np.bincount((flat + 256 * np.arange(R * C)[:, None]).ravel(), minlength=256 * R * C).reshape(R * C, 256)
  last = np.take_along_axis(counts, flat.max(1)[:, None], 1)
  step = (H * W - last) // 255
  table = np.minimum((np.cumsum(counts, 1) - counts + step // 2) // np.maximum(step, 1), 255)
  table = np.where(step > 0, table, np.arange(256))
  values = np.take_along_axis(table, flat, 1).astype(np.uint8)
  return values.reshape(R, C, H, W).transpose(0, 2, 3, 1)


OPERATIONS: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
  lambda x, s: _linear(x, (1, 0), 0.3 * s),  # sheared along x
  lambda x, s: _linear(x, (0, 1), 0.3 * s),  # along y
  lambda x, s: _moved(x, 1, s),
  lambda x, s: _moved(x, 0, s),
  _rotated,
  _brightness,
  _colour,
  _contrast,
  _sharpness,
  _posterised,
  _solarised,
  _autocontrast,
  _equalised,
)
