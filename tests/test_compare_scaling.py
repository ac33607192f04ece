"""Weak scaling beyond what is compiled: labelled, never faster than the last compiled slice, from its own curve."""

import pytest

from tfm_jax.compare.curve import curve_page
from tfm_jax.compare.scaling import Point, _beyond, weak_scaling
from tfm_jax.errors import UserError
from tfm_jax.training.config import from_dict


def points(seconds):
  return [Point("fsdp", 16 * 2**k, s, 1000 / s, False) for k, s in enumerate(seconds)]


def test_doublings_follow_the_way_around_the_torus():
  compiled = [Point("fsdp", n, 1 + 0.1 * n ** (1 / 3), 100.0, False) for n in (8, 64, 512)]
  made = _beyond(compiled, 4096, 3)
  assert [p.chips for p in made] == [1024, 2048, 4096] and all(p.extrapolated for p in made)
  assert [p.seconds for p in made] == pytest.approx([1 + 0.1 * n ** (1 / 3) for n in (1024, 2048, 4096)])
  assert made[-1].tokens_per_second_per_chip == pytest.approx(100.0 * compiled[-1].seconds / made[-1].seconds)


def test_it_is_never_faster_than_what_is_compiled_and_needs_three_points():
  assert all(p.seconds == 1.0 for p in _beyond(points([1.2, 1.1, 1.0]), 1024, 2))
  assert _beyond(points([1.0, 1.1]), 1024, 2) == []


def test_slices_of_several_generations_are_refused():
  with pytest.raises(UserError, match="one generation"):
    weak_scaling(from_dict({}), ["fsdp"], ["v5e:4x4", "v5p:2x2x4"], 4, 64)


def test_the_page_draws_every_point_and_marks_those_beyond():
  compiled = points([1.0, 1.1, 1.2])
  page = curve_page("<title>", {"config": "a & b"}, compiled + _beyond(compiled, 256, 2))
  assert page.count("<circle") == 5 and page.count(' stroke-dasharray="6 5"') == 2
  assert page.count(">extrapolated<") == 2 and "&lt;title&gt;" in page and "a &amp; b" in page
