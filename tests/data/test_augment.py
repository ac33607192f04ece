"""Augmentation of pictures against slow oracles, and the order of pictures in batches."""

import numpy as np
import pytest

from tfm_jax.data.images import augment
from tfm_jax.data.images.augment import AugmentConfig, augmented, centred
from tfm_jax.data.images.batches import ImageBatches
from tfm_jax.objectives.draws import Draws

ROWS = np.arange(200)
IMAGES = np.random.default_rng(0).integers(1, 256, (200, 12, 10, 3)).astype(np.uint8)
EVERY = AugmentConfig(crop="resized", flip=True, operations=3)


def of(config, rows=ROWS, size=(12, 10), seed=0, epoch=0):
  return augmented(IMAGES, rows, size, config, Draws.of(seed, epoch, rows))


@pytest.mark.parametrize("config", [EVERY, AugmentConfig(crop="shift", pad=3, flip=True)], ids=["resized", "shift"])
def test_a_row_depends_on_seed_epoch_and_itself_alone(config):
  whole = of(config)
  np.testing.assert_array_equal(of(config, ROWS[[5, 3, 77]]), whole[[5, 3, 77]])
  np.testing.assert_array_equal(of(config), whole)
  assert (of(config, epoch=1) != whole).any((1, 2, 3)).mean() > 0.9
  assert (of(config, seed=1) != whole).any((1, 2, 3)).mean() > 0.9
  assert whole.dtype == np.uint8 and whole.flags.c_contiguous


def test_threads_make_the_same_pictures(monkeypatch):
  whole = of(EVERY)
  monkeypatch.setattr(augment, "_PART", 9 * IMAGES[0].nbytes)  # 200 rows do not divide into nines
  np.testing.assert_array_equal(of(EVERY), whole)


def test_without_settings_pictures_stay_as_they_are_or_lose_their_border():
  np.testing.assert_array_equal(of(AugmentConfig()), IMAGES)
  np.testing.assert_array_equal(of(AugmentConfig(), size=(8, 8)), IMAGES[:, 2:10, 1:9])
  np.testing.assert_array_equal(centred(IMAGES, (8, 8)), IMAGES[:, 2:10, 1:9])


def test_shifted_and_mirrored_pictures_are_pieces_of_the_padded_one():
  out, seen = of(AugmentConfig(crop="shift", pad=2, flip=True)), set()
  for image, picture in zip(out, IMAGES, strict=True):
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)))
    places = {
      (y, x, flip): padded[y : y + 12, x : x + 10][:, :: -1 if flip else 1]
      for y in range(5)
      for x in range(5)
      for flip in (False, True)
    }
    (place,) = (place for place, piece in places.items() if np.array_equal(piece, image))
    seen.add(place)
  ys, xs, flips = map(set, zip(*seen, strict=True))
  assert ys == xs == set(range(5)) and flips == {False, True}


def test_regions_lie_inside_and_have_the_shares_and_proportions_of_inception():
  draws, stored = Draws.of(0, 0, np.arange(4000)), np.array([40, 40])
  begin, extent = augment._regions(stored, 0.08, draws)
  assert (begin >= 0).all() and (begin + extent <= stored + 1e-9).all()
  share, ratio = extent.prod(1) / 1600, extent[:, 1] / extent[:, 0]
  assert 0.079 < share.min() < 0.09 and 0.48 < share.mean() < 0.56 and share.max() <= 1
  assert ratio.min() > 0.74 and ratio.max() < 1.34 and abs(np.log(ratio).mean()) < 0.02


def test_a_resized_region_of_the_whole_picture_is_a_mean_of_neighbours():
  ramp = np.broadcast_to((np.arange(32) * 8)[None, None, :, None], (1, 32, 32, 1)).astype(np.uint8)
  out = augment._sampled(ramp, np.arange(32.0)[None], np.arange(31.0)[None] + 0.5)
  np.testing.assert_array_equal(out[0, :, :, 0], np.broadcast_to(np.arange(31) * 8 + 4, (32, 31)))


def test_operations_against_pillow():
  pytest.importorskip("PIL")
  from PIL import Image, ImageEnhance, ImageOps

  strength = 0.9
  expected = {
    "_brightness": lambda x: ImageEnhance.Brightness(x).enhance(1 + 0.9 * strength),
    "_colour": lambda x: ImageEnhance.Color(x).enhance(1 + 0.9 * strength),
    "_contrast": lambda x: ImageEnhance.Contrast(x).enhance(1 + 0.9 * strength),
    "_sharpness": lambda x: ImageEnhance.Sharpness(x).enhance(1 + 0.9 * strength),
    "_posterised": lambda x: ImageOps.posterize(x, 8 - round(4 * strength)),
    "_solarised": lambda x: ImageOps.solarize(x, 256 * (1 - strength)),
    "_autocontrast": ImageOps.autocontrast,
    "_equalised": ImageOps.equalize,
  }
  draw = np.random.default_rng(0)
  smooth, rough = np.cumsum(draw.normal(0, 9, (6, 16, 16, 3)), axis=2), draw.normal(0, 40, (6, 16, 16, 3))
  images = (128 + smooth + rough).clip(20, 220).astype(np.uint8)
  for name, oracle in expected.items():
    ours = getattr(augment, name)(images, np.full(6, strength)).astype(int)
    theirs = np.stack([np.asarray(oracle(Image.fromarray(x))) for x in images])
    # Pillow rounds greys and means to whole numbers first.
    assert np.abs(ours - theirs).max() <= (2 if name in ("_colour", "_contrast", "_sharpness") else 1), name
    assert (ours != images).any(), name


def test_warps_against_pillow():
  image = pytest.importorskip("PIL.Image")
  picture = np.random.default_rng(0).integers(1, 256, (1, 15, 15, 3)).astype(np.uint8)
  for degrees in (0.0, 30.0, -30.0):
    ours = augment._rotated(picture, np.array([degrees / 30]))[0]
    theirs = np.asarray(image.fromarray(picture[0]).rotate(degrees, image.Resampling.NEAREST))
    other = np.asarray(image.fromarray(picture[0]).rotate(-degrees, image.Resampling.NEAREST))
    assert max((ours == x).all(-1).mean() for x in (theirs, other)) > 0.95, degrees  # ties between pixels
  moved = augment._moved(picture, 1, np.array([0.2]))[0]  # by 0.09 * 15, about one pixel
  np.testing.assert_array_equal(moved[:, :-1], picture[0, :, 1:])
  assert (moved[:, -1] == 0).all()


# Batches.


def make(index, real, draws):
  return {"index": np.where(real, index, -1), "key": index * 0 if draws is None else draws.keys.astype(np.int64)}


def test_every_picture_comes_once_per_epoch_in_an_order_of_its_own():
  index = np.arange(100, 137)
  batches = ImageBatches(index, 8, 3, True, make)
  samples = np.concatenate([batches.batch(step)["index"] for step in range(37)])
  epochs = samples.reshape(8, 37)
  assert all(sorted(epoch) == list(index) for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 8
  rows = np.concatenate([batches.batch(step)["rows"] for step in range(37)])
  assert len(set(rows)) == len(rows)  # no two rows share their dropout


def test_a_process_makes_only_its_rows():
  for shuffle in (True, False):
    batches, rows = ImageBatches(np.arange(50), 8, 3, shuffle, make), np.array([1, 4, 5])
    for step in (0, 6, 9 if shuffle else 3):
      whole, part = batches.batch(step), batches.batch(step, rows)
      for name, array in whole.items():
        np.testing.assert_array_equal(part[name], array[rows])


def test_held_out_pictures_come_in_their_order_and_blank_rows_fill_the_last_batch():
  batches = ImageBatches(np.arange(5, 24), 8, 3, False, make)
  assert np.concatenate([batch["index"] for batch in batches.batches()]).tolist() == [*range(5, 24), *[-1] * 5]
  some = ImageBatches(np.arange(100), 8, 3, False, make, limit=2)
  assert some.num_batches == 2 and some.num_rows == 16 and (np.diff(some.index) > 0).all() and some.index[-1] > 50
