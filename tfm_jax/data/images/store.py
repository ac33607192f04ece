"""Decoded pictures: one array of bytes in the cache, memory-mapped; files are decoded once.

A directory that contains

  manifest.json     shape, classes, checksum
  pixels            uint8 [N, height, width, channels]
  labels            int32 [N]; -1: not known
  hashes            uint32 [N] of the pixels, which decide what is held out
  names             one line per picture

It is written under a temporary name and renamed when it is complete.
"""

import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tfm_jax.cache import atomic_directory, cache_dir
from tfm_jax.data.images.files import Picture, find_pictures, read_pictures, with_labels
from tfm_jax.errors import UserError
from tfm_jax.text.corpora.files import counted

log = logging.getLogger(__name__)

FORMAT = 1  # part of the name in the cache: raise it when the bytes that are written change
_CHUNK = 512  # pictures that are decoded before they are written
_VERIFIED = 1 << 30  # bytes: smaller arrays are checked against their checksum each time
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class ImageSet:
  """Decoded pictures of one size.

  Attributes:
    pixels: uint8 [N, height, width, channels], memory-mapped.
    labels: int32 [N], numbers of classes; -1: not known.
    hashes: uint32 [N], of the pixels.
    names: of the pictures.
    classes: names of the classes, sorted; numbers come in their order.
    fingerprint: of pixels, labels and classes.
  """

  pixels: np.ndarray
  labels: np.ndarray
  hashes: np.ndarray
  names: list[str]
  classes: tuple[str, ...]
  fingerprint: str

  def __len__(self) -> int:
    return len(self.labels)

  def split(self, eval_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """The indices of training pictures and of held-out ones, chosen by their pixels: equal pictures stay together."""
    held_out = self.hashes < eval_fraction * 2**32
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def open_images(path: str, key: str, size: tuple[int, int], channels: int) -> ImageSet:
  """The pictures of files, folders or archives, decoded to one size: from the cache if they were decoded before.

  Args:
    path: as `files.find_pictures` reads it.
    key: the config key, for messages.
    size: (height, width). The middle of a picture of other proportions is kept, and resized.
    channels: 1 (grey) or 3 (colour).

  Raises:
    UserError: there are no pictures, or they cannot be read.
  """
  if channels not in (1, 3):
    raise UserError(f"image.channels={channels}: pictures are read as 1 (grey) or 3 (colour) values per pixel")
  files = find_pictures(path, key)
  stats = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in with_labels(files)]
  digest = hashlib.sha256(json.dumps([FORMAT, size, channels, stats]).encode()).hexdigest()[:16]
  directory = cache_dir() / "images" / digest
  if directory.exists():
    try:
      return _open(directory)
    except (OSError, ValueError, KeyError) as error:
      log.warning("%s: %s: the pictures are decoded again", directory, error)
      shutil.rmtree(directory)
  log.info("decoding %s of %s=%s", counted(files, "file"), key, path)
  with atomic_directory(directory) as temporary:
    if not _write(temporary, read_pictures(files), size, channels):
      raise UserError(f"{key}={path}: the files hold no pictures (archives within archives are not read)")
  return _open(directory)


def _write(directory: Path, pictures: Iterator[Picture], size: tuple[int, int], channels: int) -> int:
  """Decodes the pictures; returns their number."""
  digest, hashes, labels, names = hashlib.sha256(), [], [], []
  decode = lambda picture: fitted(picture.read(channels == 3), size, channels)
  with (
    (directory / "pixels").open("wb") as file,
    ThreadPoolExecutor() as threads,
    tqdm(desc="decoding", unit=" pictures", delay=5, disable=None) as bar,
  ):
    while chunk := list(islice(pictures, _CHUNK)):
      for pixels in threads.map(decode, chunk):
        file.write(pixels.data)
        digest.update(pixels.data)
        hashes.append(zlib.crc32(pixels.data))
      labels += [_printable(picture.label) for picture in chunk]
      names += [_printable(picture.name) for picture in chunk]
      bar.update(len(chunk))
  classes = _sorted(label for label in set(labels) if label)
  numbers = {name: n for n, name in enumerate(classes)}
  codes = np.array([numbers.get(label, -1) for label in labels], np.int32)
  digest.update(codes.data)
  digest.update(json.dumps(classes).encode())
  codes.tofile(directory / "labels")
  np.array(hashes, np.uint32).tofile(directory / "hashes")
  (directory / "names").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
  manifest = {"shape": [len(codes), *size, channels], "classes": classes, "sha256": digest.hexdigest()}
  (directory / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
  return len(codes)


def _printable(name: str) -> str:
  """A file's name as one line of UTF-8, which it need not be."""
  line = name.replace("\n", "\\n").replace("\r", "\\r")
  return line.encode("utf-8", "backslashreplace").decode()


def _open(directory: Path) -> ImageSet:
  """Memory-maps decoded pictures. Raises OSError, ValueError or KeyError if they are damaged."""
  manifest = json.loads((directory / "manifest.json").read_text())
  shape, classes = tuple(manifest["shape"]), tuple(manifest["classes"])
  pixels = np.memmap(directory / "pixels", np.uint8, mode="r", shape=shape)
  labels, hashes = (np.fromfile(directory / name, kind) for name, kind in (("labels", np.int32), ("hashes", np.uint32)))
  names = (directory / "names").read_text(encoding="utf-8").split("\n")[:-1]
  if {len(labels), len(hashes), len(names)} != {shape[0]} or (directory / "pixels").stat().st_size != pixels.nbytes:
    raise ValueError("files do not have the lengths of the manifest")
  if pixels.nbytes <= _VERIFIED:
    digest = hashlib.sha256(pixels.data)
    digest.update(labels.data)
    digest.update(json.dumps(list(classes)).encode())
    if digest.hexdigest() != manifest["sha256"]:
      raise ValueError("pixels or labels do not have the checksum of the manifest")
  return ImageSet(pixels.view(np.ndarray), labels, hashes, names, classes, manifest["sha256"][:16])


def _sorted(names: Iterable[str]) -> list[str]:
  """Sorted names; numbers as numbers."""
  return sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))


def fitted(pixels: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
  """A picture of any size as C-contiguous uint8 [height, width, channels].

  The largest region in the middle that has the proportions of `size` is resized, each new pixel a mean of the old ones
  under a triangle (what Pillow calls BILINEAR); it stays as it is if it has that size already.
  """
  x: np.ndarray = pixels[:, :, None] if pixels.ndim == 2 else pixels
  if x.shape[2] != channels:
    x = np.repeat(x, 3, axis=2) if channels == 3 else np.rint(x @ GREY)[:, :, None].astype(np.uint8)
  if x.shape[:2] == size:
    return np.ascontiguousarray(x)
  scale = min(x.shape[0] / size[0], x.shape[1] / size[1])  # old pixels per new one
  rows, columns = (_triangles(old, new, scale) for old, new in zip(x.shape[:2], size, strict=True))
  wide = np.tensordot(rows, x.astype(np.float32), axes=(1, 0))
  resized = np.tensordot(wide, columns, axes=(1, 1)).transpose(0, 2, 1)
  return np.ascontiguousarray(np.rint(resized).clip(0, 255).astype(np.uint8))


def _triangles(old: int, new: int, scale: float) -> np.ndarray:
  """float32 [new, old]: the weights of old pixels in each new one, for the region of new * scale in the middle."""
  centres = (old - new * scale) / 2 + (np.arange(new) + 0.5) * scale
  distances = np.abs(np.arange(old) + 0.5 - centres[:, None]) / max(scale, 1.0)
  weights = np.maximum(1 - distances, 0)
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def class_names(images: ImageSet, labels: Sequence[str]) -> tuple[str, ...]:
  """The names of the classes: those of the files, or `labels` (`head.labels`) by number where files have numbers.

  Labels that are numbers themselves are names like others: they need not begin at 0, nor be without gaps. UserError.
  """
  if not labels or not images.classes or not _numbers(images.classes) or _numbers(labels):
    return images.classes
  if len(labels) <= int(images.classes[-1]):
    culprit = images.names[int(np.argmax(images.labels))]
    raise UserError(f"head.labels has {len(labels)} names, and {culprit} the class {images.classes[-1]}")
  return tuple(labels[int(name)] for name in images.classes)


def _numbers(names: Sequence[str]) -> bool:
  return all(name.isdecimal() for name in names)
