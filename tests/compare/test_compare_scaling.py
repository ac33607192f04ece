"""Weak scaling beyond what is compiled: labelled, never faster than the last compiled slice, from its own curve."""

from types import SimpleNamespace

import pytest

from tfm_jax.compare import weak_scaling as scaling
from tfm_jax.compare.report.curve import curve_page
from tfm_jax.compare.results import StrategyResult
from tfm_jax.compare.weak_scaling import Point, _extrapolated, weak_scaling
from tfm_jax.errors import UserError
from tfm_jax.training.config import from_dict


def points(seconds):
  return [Point("fsdp", 16 * 2**k, s, 1000 / s, False) for k, s in enumerate(seconds)]


def test_doublings_follow_the_way_around_the_torus():
  compiled = [Point("fsdp", n, 1 + 0.1 * n ** (1 / 3), 100.0, False) for n in (8, 64, 512)]
  beyond = _extrapolated(compiled, 4096, 3)
  assert [p.chips for p in beyond] == [1024, 2048, 4096] and all(p.extrapolated for p in beyond)
  assert [p.seconds for p in beyond] == pytest.approx([1 + 0.1 * n ** (1 / 3) for n in (1024, 2048, 4096)])
  assert beyond[-1].tokens_per_second_per_chip == pytest.approx(100.0 * compiled[-1].seconds / beyond[-1].seconds)


def test_it_is_never_faster_than_what_is_compiled_and_needs_three_points():
  assert all(p.seconds == 1.0 for p in _extrapolated(points([1.2, 1.1, 1.0]), 1024, 2))
  assert _extrapolated(points([1.0, 1.1]), 1024, 2) == []


def test_slices_of_several_generations_are_refused():
  with pytest.raises(UserError, match="one generation"):
    weak_scaling(from_dict({}), ["fsdp"], ["v5e:4x4", "v5p:2x2x4"], 4, 64)


@pytest.mark.parametrize(("topology", "devices"), [("v5p:2x2x1", 4), ("tpu7x:2x2x1", 8)])
def test_tokens_are_those_of_a_chip_which_may_be_several_devices(topology, devices, monkeypatch):
  result = StrategyResult("fsdp", {}, "ok", tokens_per_second_per_device=800.0 / devices)
  monkeypatch.setattr(scaling, "compare", lambda *_, **__: SimpleNamespace(strategies=[result]))
  (point,) = weak_scaling(from_dict({}), ["fsdp"], [topology], 4, 4)
  assert point.chips == 4 and point.tokens_per_second_per_chip == 200.0


def test_the_page_draws_every_point_and_marks_those_beyond():
  compiled = points([1.0, 1.1, 1.2])
  page = curve_page("<title>", {"config": "a & b"}, compiled + _extrapolated(compiled, 256, 2))
  hollow = page.count('fill="var(--card)"')
  assert page.count("<circle") - hollow == 3 and hollow == 2 + 1  # the dashed line starts at the last compiled point
  assert page.count('class="dashed"') == 1 and "Hollow and dashed: extrapolated" in page
  assert page.count(">extrapolated<") == 2 and "&lt;title&gt;" in page and "a &amp; b" in page


def test_a_page_without_extrapolation_does_not_speak_of_it():
  page = curve_page("Weak scaling", {}, [*points([1.0, 1.1]), Point("tp", 16, None, None, False, "too large")])
  assert "xtrapolated" not in page and ">too large<" in page


def test_ticks_are_round_values_and_numbers_of_chips():
  page = curve_page("Weak scaling", {}, [Point("fsdp", n, 1.0, 45_500.0 + n, False) for n in (16, 4096, 16384)])
  for tick in (">0<", ">10k<", ">50k<", ">4,096<", ">16,384<"):
    assert tick in page
