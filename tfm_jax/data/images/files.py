"""Files of pictures: idx (MNIST's form), CIFAR's binary form, and JPEG or PNG by class, in folders or tar archives.

A picture is uint8 [height, width], or [height, width, 3]. PNG and JPEG are decoded by Pillow, which is an extra
(`pip install -e '.[images]'`); the other forms need nothing.
"""

import io
import math
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.text.corpora.files import expand
from tfm_jax.text.corpora.opening import READ_ERRORS, ending, open_file

PICTURES = (".png", ".jpg", ".jpeg")
_TARS = (".tar", ".tgz")
_CIFAR = 3 * 32 * 32  # bytes of a picture in CIFAR-10's binary form: its red, its green, its blue
_IDX_UINT8 = 8
_IMAGES, _LABELS = "images-idx3", "labels-idx1"


class Picture(NamedTuple):
  """One picture, not decoded yet.

  Attributes:
    name: where it is, for predictions and errors.
    label: the class: the folder that holds it, or a number as text; "" if it is not known.
    read: its pixels. Raises UserError if they cannot be decoded.
  """

  name: str
  label: str
  read: Callable[[bool], np.ndarray]


def find_pictures(path: str, key: str) -> list[Path]:
  """The files of pictures that a list of files, folders and globs names; other files of folders are left out.

  Raises:
    UserError: nothing is there, or none of it holds pictures.
  """
  files = [file for file in expand(path, key) if _form(file) is not None]
  if not files:
    raise UserError(
      f"{key}={path} has no pictures: expected {', '.join(PICTURES)} in a folder per class (or a .tar of such), "
      f"*-{_IMAGES}-ubyte(.gz), or CIFAR's *.bin"
    )
  return files


def with_labels(files: Sequence[Path]) -> list[Path]:
  """Files from `find_pictures`, and the files of labels that are read beside them."""
  return [*files, *(labels for file in files if _form(file) is _idx and (labels := _labels_of(file)).exists())]


def read_pictures(files: Sequence[Path]) -> Iterator[Picture]:
  """The pictures of files from `find_pictures`, in their order. Raises UserError for a damaged file."""
  for file in files:
    form = _form(file)
    assert form is not None
    try:
      yield from form(file)
    except (*READ_ERRORS, tarfile.TarError) as error:
      raise UserError(f"cannot read {file}: {error}") from error


def _form(file: Path) -> Callable[[Path], Iterator[Picture]] | None:
  """What reads the pictures of a file; None if it holds none."""
  if ending(file) in PICTURES:
    return _file
  if ending(file) in _TARS:
    return _tar
  if _IMAGES in file.name:
    return _idx
  return _cifar if file.suffix == ".bin" and file.stat().st_size % (_CIFAR + 1) == 0 else None


def _file(file: Path) -> Iterator[Picture]:
  yield Picture(f"{file.parent.name}/{file.name}", file.parent.name, lambda colour: _decoded(file, str(file), colour))


def _tar(file: Path) -> Iterator[Picture]:
  """The pictures of an archive, in its order."""
  mode: Any = "r|*" if file.suffix == ".tgz" else "r|"
  with open_file(file) as stream, tarfile.open(fileobj=stream, mode=mode) as archive:
    for member in archive:
      place = Path(member.name)
      if member.isfile() and place.suffix.lower() in PICTURES:
        data = archive.extractfile(member)
        assert data is not None
        yield _packed(data.read(), place, f"{file}: {member.name}")


def _packed(data: bytes, place: Path, where: str) -> Picture:
  return Picture(
    f"{place.parent.name}/{place.name}", place.parent.name, lambda colour: _decoded(io.BytesIO(data), where, colour)
  )


def _known(pixels: np.ndarray) -> Callable[[bool], np.ndarray]:
  return lambda colour: pixels


def _decoded(source: Any, where: str, colour: bool) -> np.ndarray:
  """The pixels of a PNG or JPEG file: in colour [H, W, 3], or grey [H, W]."""
  try:
    from PIL import Image, UnidentifiedImageError  # only who has such files needs it
  except ImportError:
    raise UserError(f"{where}: PNG and JPEG files are read by Pillow: pip install -e '.[images]'") from None
  try:
    with Image.open(source) as image:
      return np.asarray(image.convert("RGB" if colour else "L"))
  except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
    raise UserError(f"{where} is no readable picture ({error}): repair or remove it") from error


def _idx(file: Path) -> Iterator[Picture]:
  """The pictures of an idx file; the labels are in the file of the same name with labels-idx1, if there is one."""
  labels_file = _labels_of(file)
  pixels_NHW = _idx_array(file, 3)
  labels = _idx_array(labels_file, 1) if labels_file.exists() else None
  if labels is not None and len(labels) != len(pixels_NHW):
    raise UserError(f"{labels_file} has {len(labels):,} labels for the {len(pixels_NHW):,} pictures of {file.name}")
  for n, pixels in enumerate(pixels_NHW):
    yield Picture(f"{file.name}#{n}", "" if labels is None else str(labels[n]), _known(pixels))


def _labels_of(file: Path) -> Path:
  return file.with_name(file.name.replace(_IMAGES, _LABELS))


def _idx_array(file: Path, axes: int) -> np.ndarray:
  """The bytes of an idx file: two zeros, the type, the number of axes, their lengths (big-endian), then the values."""
  with open_file(file) as stream:
    head = stream.read(4)
    if head != bytes([0, 0, _IDX_UINT8, axes]):
      raise UserError(f"{file} is no idx file of bytes with {axes} axes: it begins with {head.hex(' ')}")
    shape = np.frombuffer(stream.read(4 * axes), ">u4").astype(int)
    values = np.frombuffer(stream.read(), np.uint8)
  if len(shape) != axes or len(values) != math.prod(shape):
    raise UserError(f"{file} is damaged: it has {len(values):,} bytes of values, and its head says {shape.tolist()}")
  return values.reshape(shape)


def _cifar(file: Path) -> Iterator[Picture]:
  """The pictures of CIFAR-10's binary form: a byte with the class, then the planes of red, green and blue."""
  records = np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, _CIFAR + 1)
  pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  for n, picture in enumerate(pixels):
    yield Picture(f"{file.name}#{n}", str(records[n, 0]), _known(picture))
