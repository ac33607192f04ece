"""Small PNG images of matrices: 16 shades of one colour, from transparent to opaque, for light and dark pages."""

import numpy as np

from tfm_jax.runtime.reporting.png import PALETTE, encoded, uri

SHADES = 16
_COLOUR = (47, 134, 208)


def shades(x: np.ndarray) -> np.ndarray:
  """Non-negative numbers as shades, uint8 0 to 15: in proportion to the root of x / max(x), so that small ones show."""
  top = float(x.max()) if x.size else 0.0
  share = np.sqrt(np.clip(x / top, 0, 1)) if top > 0 else np.zeros_like(x)
  return np.round(share * (SHADES - 1)).astype(np.uint8)


def png(shades_HW: np.ndarray) -> bytes:
  """A PNG file, one pixel per entry.

  Args:
    shades_HW: integers from 0 (transparent) to 15 (opaque).
  """
  height, width = shades_HW.shape
  even = np.zeros((height, width + width % 2), np.uint8)
  even[:, :width] = shades_HW
  packed = even[:, ::2] << 4 | even[:, 1::2]  # two pixels per byte
  alphas = bytes(round(255 * i / (SHADES - 1)) for i in range(SHADES))
  return encoded((height, width), 4, PALETTE, packed, [(b"PLTE", bytes(_COLOUR) * SHADES), (b"tRNS", alphas)])


def data_uri(shades_HW: np.ndarray) -> str:
  """`png` as a URI that holds the whole image."""
  return uri(png(shades_HW))
