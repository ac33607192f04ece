"""Small files of pictures for tests."""

import gzip
import struct
from pathlib import Path

import numpy as np

from tfm_jax.runtime.reporting.png import png


def write_idx(path: Path, values: np.ndarray) -> Path:
  """An idx file of bytes, compressed if its name ends in .gz."""
  data = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return path


def quarters(count: int, size: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """(grey pictures [count, size, size], which quarter of each is bright)."""
  draw = np.random.default_rng(seed)
  labels = draw.integers(0, 4, count).astype(np.uint8)
  pixels = draw.integers(0, 80, (count, 2, size // 2, 2, size // 2)).astype(np.uint8)
  pixels[np.arange(count), labels // 2, :, labels % 2, :] += 150
  return pixels.reshape(count, size, size), labels


def write_quarters(folder: Path, count: int, name: str = "train", seed: int = 0, size: int = 8) -> Path:
  """`quarters` as idx files; the path of the pictures."""
  pixels, labels = quarters(count, size, seed)
  write_idx(folder / f"{name}-labels-idx1-ubyte", labels)
  return write_idx(folder / f"{name}-images-idx3-ubyte", pixels)


def write_folders(folder: Path, pixels: np.ndarray, classes: list[str]) -> Path:
  """PNG files in a folder per class."""
  for n, (picture, name) in enumerate(zip(pixels, classes, strict=True)):
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / f"{n:03}.png").write_bytes(png(picture))
  return folder
