"""Files of pictures: what is read, decoded once into the cache, and refused."""

import io
import os
import shutil
import sys
import tarfile

import numpy as np
import pytest

from tests.support.image_data import quarters, write_folders, write_idx, write_quarters
from tests.support.refusal import refusal
from tfm_jax.cache import cache_dir
from tfm_jax.data.images import store
from tfm_jax.data.images.palette import Palette
from tfm_jax.data.images.store import class_names, fitted, open_images
from tfm_jax.runtime.reporting.png import grid, png


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "cache"))


def opened(path, size=(8, 8), channels=1):
  return open_images(str(path), "data.path", size, channels)


def refused(path, size=(8, 8), channels=1):
  """The message; nothing is left behind in the cache."""
  message = refusal(open_images, str(path), "data.path", size, channels)
  assert not list((cache_dir() / "images").glob("*")) if (cache_dir() / "images").exists() else True
  return message


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_read_with_their_labels(tmp_path, ending):
  pixels, labels = quarters(50)
  write_idx(tmp_path / f"a-labels-idx1-ubyte{ending}", labels)
  images = opened(write_idx(tmp_path / f"a-images-idx3-ubyte{ending}", pixels))
  np.testing.assert_array_equal(images.pixels[..., 0], pixels)
  np.testing.assert_array_equal(images.labels, labels)
  assert images.classes == ("0", "1", "2", "3") and images.names[7] == f"a-images-idx3-ubyte{ending}#7"
  assert opened(tmp_path).fingerprint == images.fingerprint  # a folder with both files


def test_cifar_in_its_binary_form(tmp_path):
  draw = np.random.default_rng(0)
  pixels, labels = draw.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8), np.array([3, 0, 9, 3, 1, 0], np.uint8)
  records = np.concatenate([labels[:, None], pixels.transpose(0, 3, 1, 2).reshape(6, -1)], axis=1)
  (tmp_path / "data_batch_1.bin").write_bytes(records.tobytes())
  images = opened(tmp_path / "data_batch_1.bin", (32, 32), 3)
  np.testing.assert_array_equal(images.pixels, pixels)
  assert [images.classes[n] for n in images.labels] == ["3", "0", "9", "3", "1", "0"]


def test_folders_and_archives_of_pictures_by_class(tmp_path):
  pytest.importorskip("PIL")
  draw = np.random.default_rng(0)
  pixels = draw.integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
  classes = [("cat", "dog", "tree house")[n % 3] for n in range(12)]
  folder = write_folders(tmp_path / "pictures", pixels, classes)
  (folder / "cat" / "notes.txt").write_text("not a picture")
  images = opened(folder, channels=3)
  assert images.classes == ("cat", "dog", "tree house") and images.names[0] == "cat/000.png"
  order = [int(name.split("/")[1][:3]) for name in images.names]
  np.testing.assert_array_equal(images.pixels, pixels[order])
  assert [images.classes[n] for n in images.labels] == [classes[n] for n in order]
  with tarfile.open(tmp_path / "pictures.tar.gz", "w:gz") as archive:
    for file in sorted(folder.rglob("*")):
      archive.add(file, f"train/{file.relative_to(folder)}", recursive=False)
  packed = opened(tmp_path / "pictures.tar.gz", channels=3)
  assert packed.fingerprint == images.fingerprint and packed.names == images.names


def test_png_files_are_read_by_pillow_as_they_were_written():
  image = pytest.importorskip("PIL.Image")
  draw = np.random.default_rng(0)
  for shape in ((5, 7), (5, 7, 3), (1, 1, 1)):
    pixels = draw.integers(0, 256, shape).astype(np.uint8)
    read = np.asarray(image.open(io.BytesIO(png(pixels))))
    np.testing.assert_array_equal(read, pixels[..., 0] if shape[2:] == (1,) else pixels)
  assert grid(np.zeros((2, 3, 4, 5, 1), np.uint8)).shape == (10, 19, 1)


def test_pictures_are_decoded_once(tmp_path, monkeypatch):
  path = write_quarters(tmp_path, 20)
  first = opened(path)
  monkeypatch.setattr(store, "_write", lambda *_: pytest.fail("decoded again"))
  assert opened(path).fingerprint == first.fingerprint


@pytest.mark.parametrize("damage", ["a byte", "a file", "an end"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
  path = write_quarters(tmp_path, 20)
  before = opened(path)
  expected, (directory,) = before.pixels.copy(), (cache_dir() / "images").glob("*")
  del before
  data = bytearray((directory / "pixels").read_bytes())
  if damage == "a byte":
    data[100] ^= 1
  (directory / "pixels").write_bytes(data[: -64 if damage == "an end" else None])
  if damage == "a file":
    (directory / "labels").unlink()
  np.testing.assert_array_equal(opened(path).pixels, expected)


def test_changed_files_are_decoded_anew(tmp_path):
  path = write_quarters(tmp_path, 20)
  first = opened(path).fingerprint
  write_quarters(tmp_path, 21)
  second = opened(path)
  assert second.fingerprint != first
  write_idx(tmp_path / "train-labels-idx1-ubyte", 3 - quarters(21)[1])
  np.testing.assert_array_equal(opened(path).labels, 3 - second.labels)


def test_equal_pictures_are_on_the_same_side(tmp_path):
  pixels, labels = quarters(300)
  write_idx(tmp_path / "a-labels-idx1-ubyte", np.tile(labels, 2))
  images = opened(write_idx(tmp_path / "a-images-idx3-ubyte", np.tile(pixels, (2, 1, 1))))
  train, held_out = images.split(0.2)
  assert sorted([*train, *held_out]) == list(range(600)) and 60 < len(held_out) < 180
  assert {n % 300 for n in train}.isdisjoint(n % 300 for n in held_out)


def test_resizing_against_pillow():
  image = pytest.importorskip("PIL.Image")
  pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3)).astype(np.uint8)
  for side in (20, 33, 50, 100):
    theirs = np.asarray(image.fromarray(pixels).resize((side, side), image.Resampling.BILINEAR, box=(15, 0, 65, 50)))
    assert np.abs(fitted(pixels, (side, side), 3).astype(int) - theirs).max() <= 1, side


def test_sizes_and_channels_are_those_of_the_model():
  flat = np.full((7, 10), 99, np.uint8)
  for size in ((3, 5), (14, 20), (7, 10)):
    for channels in (1, 3):
      assert (fitted(flat, size, channels) == 99).all() and fitted(flat, size, channels).shape == (*size, channels)
  colour = np.zeros((2, 2, 3), np.uint8)
  colour[..., 1] = 200
  assert (fitted(colour, (2, 2), 1) == round(200 * 0.587)).all()
  halves = np.zeros((4, 8), np.uint8)
  halves[:, 4:] = 200
  assert fitted(halves, (4, 4), 1)[:, :2].max() == 0 and fitted(halves, (4, 4), 1)[:, 2:].min() == 200  # the middle


def test_classes_of_numbers_have_the_names_of_head_labels(tmp_path):
  images = opened(write_quarters(tmp_path, 20))
  assert class_names(images, ["a", "b", "c", "d"]) == ("a", "b", "c", "d")
  assert class_names(images, []) == images.classes == class_names(images, ["1", "2", "3", "4"])
  three = images.names[list(images.labels).index(3)]
  assert refusal(class_names, images, ["a", "b"]) == f"head.labels has 2 names, and {three} the class 3"


def test_what_is_refused(tmp_path, monkeypatch):
  (tmp_path / "a.txt").write_text("text")
  assert "has no pictures: expected .png" in refused(tmp_path / "a.txt")
  assert "no such file" in refused(tmp_path / "b.txt")
  assert "image.channels=4" in refused(tmp_path, channels=4)
  images = write_quarters(tmp_path, 20)
  write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(19, np.uint8))
  assert "has 19 labels for the 20 pictures" in refused(images)
  images.write_bytes(images.read_bytes()[:-5])
  assert "train-images-idx3-ubyte is damaged" in refused(images)
  images.write_bytes(b"\0\0\x0d\x03" + images.read_bytes()[4:])
  assert "is no idx file of bytes with 3 axes" in refused(images)
  shutil.rmtree(tmp_path / "cat", ignore_errors=True)
  (tmp_path / "cat").mkdir()
  (tmp_path / "cat" / "a.png").write_bytes(b"no picture")
  monkeypatch.setitem(sys.modules, "PIL", None)
  assert "read by Pillow: pip install -e '.[images]'" in refused(tmp_path / "cat")


def test_files_without_pictures_are_refused(tmp_path):
  (tmp_path / "a.txt").write_text("text")
  with tarfile.open(tmp_path / "texts.tar", "w") as archive:
    archive.add(tmp_path / "a.txt", "a.txt")
  with tarfile.open(tmp_path / "archives.tar", "w") as archive:
    archive.add(tmp_path / "texts.tar", "texts.tar")
  empty = write_idx(tmp_path / "b-images-idx3-ubyte", np.zeros((0, 8, 8), np.uint8))
  for path in (tmp_path / "texts.tar", tmp_path / "archives.tar", empty):
    assert f"{path}: the files hold no pictures" in refused(path)


def test_any_name_of_a_file_is_one_line(tmp_path):
  pytest.importorskip("PIL")
  pixels = quarters(2)[0]
  folder = tmp_path / os.fsdecode(b"caf\xe9\n")
  folder.mkdir()
  for name, picture in zip((b"\xff\r.png", "ü.png".encode()), pixels, strict=True):
    (folder / os.fsdecode(name)).write_bytes(png(picture))
  images = opened(tmp_path)
  assert set(images.names) == {r"caf\udce9\n/\udcff\r.png", r"caf\udce9\n/ü.png"}
  assert images.classes == (r"caf\udce9\n",)


def test_a_damaged_picture_is_named(tmp_path):
  pytest.importorskip("PIL")
  whole = png(np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8))
  (tmp_path / "cat").mkdir()
  for data in (b"no picture", whole[:-40]):
    (tmp_path / "cat" / "a.png").write_bytes(data)
    assert f"{tmp_path / 'cat' / 'a.png'} is no readable picture" in refused(tmp_path)


# Palettes.


def test_greys_are_evenly_spaced_and_256_of_them_are_the_pixels(tmp_path):
  images = opened(write_quarters(tmp_path, 20))
  index = np.arange(20)
  assert Palette.of(images, index, 4).colours[:, 0].tolist() == [0, 85, 170, 255]
  np.testing.assert_array_equal(Palette.of(images, index, 256).encode(images.pixels), images.pixels[..., 0])
  for size in (1, 257):
    assert f"model.vocab_size={size + 1}" in refusal(Palette.of, images, index, size)


def test_k_means_finds_the_colours_and_their_places(tmp_path):
  draw = np.random.default_rng(0)
  centres = np.array([[20, 30, 40], [200, 30, 40], [20, 220, 40], [120, 120, 240]])
  true = draw.integers(0, 4, (10, 32, 32))
  pixels = (centres[true] + draw.integers(-6, 7, (10, 32, 32, 3))).astype(np.uint8)
  records = np.concatenate([np.zeros((10, 1), np.uint8), pixels.transpose(0, 3, 1, 2).reshape(10, -1)], axis=1)
  (tmp_path / "a.bin").write_bytes(records.tobytes())
  images = opened(tmp_path / "a.bin", (32, 32), 3)
  palette = Palette.of(images, np.arange(10), 4)
  found = np.abs(palette.colours[None].astype(int) - centres[:, None]).max(-1)
  assert (found.min(1) <= 2).all() and sorted(found.argmin(1)) == [0, 1, 2, 3]
  ids = palette.encode(pixels)
  np.testing.assert_array_equal(found.argmin(1)[true], ids)
  np.testing.assert_array_equal(palette.encode(palette.decode(ids)), ids)
  again = Palette.read(palette.text, 3)
  np.testing.assert_array_equal(again.colours, palette.colours)
