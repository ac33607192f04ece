"""PNG files of arrays, written without a package for pictures."""

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np

GREY, COLOUR, PALETTE = 0, 2, 3
"""Kinds of pixels: one value, three, or an index into a palette."""


def png(pixels: np.ndarray) -> bytes:
  """A PNG file of uint8 [H, W] or [H, W, 1] (grey) or [H, W, 3] (red, green, blue)."""
  height, width = pixels.shape[:2]
  kind = COLOUR if pixels.ndim == 3 and pixels.shape[2] == 3 else GREY
  return encoded((height, width), 8, kind, pixels.reshape(height, -1))


def data_uri(pixels: np.ndarray) -> str:
  """`png` as a URI that holds the whole picture."""
  return uri(png(pixels))


def uri(file: bytes) -> str:
  """A PNG file as a URI."""
  return "data:image/png;base64," + base64.b64encode(file).decode()


def encoded(
  size: tuple[int, int], depth: int, kind: int, lines: np.ndarray, more: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
  """A PNG file.

  Args:
    size: (height, width) in pixels.
    depth: bits per value.
    kind: GREY, COLOUR or PALETTE.
    lines: uint8 [height, bytes per line].
    more: further chunks, (kind, data), before the pixels.
  """
  filtered = np.concatenate([np.zeros((len(lines), 1), np.uint8), lines], axis=1)  # each line begins with its filter
  header = struct.pack(">IIBBBBB", size[1], size[0], depth, kind, 0, 0, 0)
  parts = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b"")]
  chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def grid(pixels_RCHWK: np.ndarray, gap: int = 2, scale: int = 1) -> np.ndarray:
  """Pictures of one size as one picture: uint8 [R rows, C columns, H, W, K] with white gaps between them.

  `scale`: how often a pixel is repeated along both sides.
  """
  pixels_RCHWK = pixels_RCHWK.repeat(scale, 2).repeat(scale, 3)
  rows, columns, height, width, channels = pixels_RCHWK.shape
  out = np.full((rows, height + gap, columns, width + gap, channels), 255, np.uint8)
  out[:, :height, :, :width] = pixels_RCHWK.transpose(0, 2, 1, 3, 4)
  whole = out.reshape(rows * (height + gap), columns * (width + gap), channels)
  return whole[: whole.shape[0] - gap, : whole.shape[1] - gap]
