"""The page of a comparison: its pictures agree with the figures, also in a browser if one is installed."""

import dataclasses
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.support.browser import headless
from tests.support.comparisons import COMPARISONS, GIB, MIB, NASTY, forecast, measured, mesh, shard_map
from tfm_jax.compare.report.page import html_page
from tfm_jax.compare.report.shard_map import SIDE, compress
from tfm_jax.compare.report.write import terminal_table, write_report
from tfm_jax.compare.results import REFUSED, Collective, StrategyResult


class Page(HTMLParser):
  """Checks that tags are balanced; collects tags, attributes and text."""

  VOID = ("meta",)

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.attributes, self.text = [], [], [], ""
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != "style":
      self.text += data


def section(comparison, title):
  """A section of the page as XML, which also checks that `main` is well-formed."""
  page = html_page(comparison)
  main = ElementTree.fromstring(page[page.index("<main>") : page.index("</main>") + len("</main>")])
  return next(one for one in main.iter("section") if (one.findtext("h2") or "").startswith(title))


def bars(part):
  """The bars of a section's chart: (label, detail, rectangles, lines, text); a reason has no rectangles and lines."""
  cells = list(part.find("div[@class='chart']"))
  charted, index = [], 0
  while index < len(cells):
    if cells[index].get("class") != "label":  # above or below the bars
      index += 3
      continue
    label, body = cells[index], cells[index + 1]
    if body.get("class") == "reason":
      charted.append((label.findtext("b") or None, label.findtext("small"), None, None, body.text))
      index += 2
      continue
    rects = [
      (one.get("class"), *(float(one.get(name).rstrip("%")) for name in ("x", "width")))
      for one in body.iter("rect")
      if one.get("class") != "beyond"
    ]
    lines = [(one.get("class"), float(one.get("x1").rstrip("%"))) for one in body.iter("line")]
    text = "".join(cells[index + 2].itertext())
    charted.append((label.findtext("b") or None, label.findtext("small"), rects, lines, text))
    index += 3
  return charted


@COMPARISONS
def test_the_page_is_self_contained(comparison):
  html = html_page(comparison)
  page = Page(html)
  assert "script" not in page.tags
  assert not {"link", "img", "iframe", "object", "embed", "use", "image"} & set(page.tags)
  assert not {"src", "href", "srcset", "xlink:href", "data"} & {name for name, _ in page.attributes}
  assert "@import" not in html
  assert re.findall(r"url\((?!#)", html) == []
  assert "http:" not in html and "https:" not in html and "//" not in html.replace("</", "")
  for text in (comparison.config, comparison.devices, *comparison.notes, "jax 0.12.0.1"):
    assert text in page.text


@COMPARISONS
def test_text_is_escaped(comparison):
  html = html_page(comparison)
  assert NASTY not in html
  assert NASTY in Page(html).text
  nasty = []
  for result in comparison.strategies:
    where = result.shard_map and dataclasses.replace(
      result.shard_map, parameter=NASTY, axes=(NASTY,) * 4, spec=(NASTY,) * 4
    )
    sent = result.collectives and (Collective(NASTY, NASTY, 1, 1),)
    changes = {"strategy": NASTY, "bound_by": NASTY, "mesh": {NASTY: 2}, "shard_map": where, "collectives": sent}
    nasty.append(dataclasses.replace(result, **changes))
  everywhere = dataclasses.replace(
    comparison,
    strategies=tuple(nasty),
    config=NASTY,
    devices=NASTY,
    topology=NASTY,
    remat=NASTY,
    notes=(NASTY,),
    versions={NASTY: NASTY},
  )
  page = Page(html_page(everywhere))
  assert "script" not in page.tags


def test_memory_bars_are_proportional_to_bytes():
  comparison = measured()
  drawn = bars(section(comparison, "Memory"))
  assert [name for name, *_ in drawn] == [result.strategy for result in comparison.strategies]
  scales = []
  for result, (_, _, rects, _, text) in zip(comparison.strategies, drawn, strict=True):
    if result.memory_bytes is None:
      assert rects is None
      assert text.endswith(result.reason)
      continue
    values = dataclasses.asdict(result.memory_bytes)
    peak, end = values.pop("peak"), 0.0
    assert [name for name, *_ in rects] == list(values)
    for name, x, width in rects:
      assert x == pytest.approx(end, abs=1e-3)  # end to end
      end += width
      scales.append(values[name] / width)
    assert sum(width for *_, width in rects) <= 100.001
    assert sum(values.values()) == peak
  np.testing.assert_allclose(scales, scales[0], rtol=1e-4)


def test_the_memory_limit_is_where_the_scale_says():
  drawn = bars(section(forecast(), "Memory"))
  _, _, rects, lines, text = drawn[0]  # dp does not fit
  limit = next(x for name, x in lines if name == "limit")
  first = forecast().strategies[0]
  assert limit / sum(width for *_, width in rects) == pytest.approx(16 * GIB / first.memory_bytes.peak, rel=1e-4)
  assert text == "55.9 GiBover by 39.9 GiB, 4 microbatches"
  fsdp = drawn[1]
  assert sum(width for *_, width in fsdp[2]) < limit
  # A limit far beyond all bars is not drawn: it would shrink them to nothing.
  far = dataclasses.replace(
    measured(),
    strategies=tuple(dataclasses.replace(result, memory_limit=80 * GIB) for result in measured().strategies),
  )
  assert not any(name == "limit" for bar in bars(section(far, "Memory")) for name, _ in bar[3] or ())
  assert "A device has 80 GiB." in "".join(section(far, "Memory").itertext())


def test_step_time_bars():
  drawn = bars(section(measured(), "Step time"))
  for result, (_, _, rects, lines, _) in zip(measured().strategies, drawn, strict=True):
    if result.step_seconds is None:
      continue
    ((_, x, width),) = rects
    low, high = sorted({x for name, x in lines if name == "whisker"})
    assert x == 0
    assert (low / width, high / width) == pytest.approx((0.93, 1.21), rel=1e-4)
  for result, (_, _, rects, _, _) in zip(forecast().strategies, bars(section(forecast(), "Step time")), strict=True):
    if result.forecast_step_seconds is None:
      assert rects is None
      continue
    parts = result.forecast_step_seconds
    values = {name: getattr(parts, name) for name in ("compute", "hbm", "communication", "hidden")}
    widths = {name: width for name, _, width in rects}
    assert list(widths) == [name for name, value in values.items() if value]
    for name, width in widths.items():
      assert width / widths["compute"] == pytest.approx(values[name] / parts.compute, rel=1e-4)


def test_communication_bars():
  drawn = bars(section(forecast(), "Communication"))
  assert [(name, over) for name, over, *_ in drawn] == [
    ("dp", "over data"),
    ("fsdp", "over data"),
    ("fsdp_tp", "over data"),
    (None, "over model"),
    ("pp", "over replica,data"),
    (None, "over stage"),
    ("tp", "data=8 model=64"),
    ("cp", "data=64 context=8"),
  ]
  full = sum(width for *_, width in drawn[0][2]) / (26 * GIB)
  assert [(name, pytest.approx(width / full, rel=1e-4)) for name, _, width in drawn[3][2]] == [
    ("all-reduce", 24 * GIB),
    ("collective-permute", 300 * MIB),
  ]
  assert next(x for name, x in drawn[3][3] if name == "tick") / full == pytest.approx(12 * GIB, rel=1e-4)
  assert drawn[3][4].endswith("140 collectives, 2.02 x minimum")


def pieces(card):
  """The rectangles of the parameter and of the mesh in a card: (colour, place, title, whether it is pale)."""
  return [
    [
      (
        one.get("style"),
        tuple(float(one.get(name)) for name in ("x", "y", "width", "height")),
        one.findtext("title"),
        "gone" in one.get("class"),
      )
      for one in picture.iter("rect")
    ]
    for picture in card.iter("svg")
  ]


def assert_tiles(rects, width=None):
  """They fill a rectangle without gaps or overlaps: the areas add up, and no two start at the same place."""
  places = [place for _, place, *_ in rects]
  right, bottom = (max(place[i] + place[i + 2] for place in places) for i in (0, 1))
  left, top = (min(place[i] for place in places) for i in (0, 1))
  assert sum(w * h for *_, w, h in places) == pytest.approx((right - left) * (bottom - top), rel=2e-2)
  assert len({place[:2] for place in places}) == len(places)
  if width:
    assert right - left == pytest.approx(width, abs=0.1)


def test_the_picture_of_a_parameter():
  cards = list(section(measured(), "Where blocks/attn/wq (12 x 768 x 12 x 64) lies").iter("figure"))
  dp, fsdp, tp, fsdp_tp = cards
  (whole,), devices = pieces(dp)
  assert whole[2] == "embed 0-767, heads 0-11: device 0-7"
  assert {colour for colour, *_ in devices} == {whole[0]}
  parameter, devices = pieces(fsdp_tp)
  assert len({colour for colour, *_ in parameter}) == 8  # all differ
  assert_tiles(parameter, SIDE)
  assert_tiles(devices)
  np.testing.assert_allclose([w * h for _, (*_, w, h), *_ in parameter], whole[1][2] * whole[1][3] / 8, rtol=1e-2)
  colour = {title.split(": device ")[1]: style for style, _, title, _ in parameter}
  for style, _, title, _ in devices:
    device = re.match(r"device (\d+): data (\d), model (\d)", title)
    assert colour[device[1]] == style
    assert int(device[1]) == 2 * int(device[2]) + int(device[3])
  places = {int(re.match(r"device (\d+)", title)[1]): place[:2] for _, place, title, _ in devices}
  assert places[0][1] == places[2][1] < places[1][1] == places[3][1]  # data goes across, model down
  assert places[0][0] == places[1][0] < places[2][0] == places[3][0]
  parameter, _ = pieces(tp)
  assert [title for _, _, title, _ in parameter][:2] == [
    "embed 0-767, heads 0-2: device 0, 4",
    "embed 0-767, heads 3-5: device 1, 5",
  ]
  assert "4 pieces, each on 2 devices. One piece is 12 x 768 x 3 x 64, 25% of the parameter." in "".join(tp.itertext())
  assert "0, 4" in [one.text for one in tp.iter("text")]
  assert len(pieces(fsdp)[0]) == 8


def test_the_picture_of_a_parameter_on_512_devices():
  where = section(forecast(), "Where")
  dp, fsdp, fsdp_tp, pp = where.iter("figure")
  assert len(pieces(dp)[0]) == 1
  assert [len(one) for one in pieces(fsdp)] == [512, 512]
  assert [len(one) for one in pieces(fsdp_tp)] == [512, 512]
  for parameter, devices in map(pieces, (fsdp, fsdp_tp, pp)):
    assert_tiles(parameter, SIDE)
    assert len({place[:2] for _, place, *_ in devices}) == 512
    assert max(x + w for _, (x, _, w, _), *_ in devices) < SIDE + 30  # inside the picture
    assert max(y + h for _, (_, y, _, h), *_ in devices) < 250
  parameter, devices = pieces(pp)  # three axes are split: a slice of the first is drawn
  assert len(parameter) == 64
  assert sum(gone for *_, gone in devices) == 512 * 3 // 4
  assert "Also split along layer 32 over stage" in "".join(pp.itertext())
  text = "".join(where.itertext())
  for result in forecast().strategies[-2:]:
    assert result.reason in text


@pytest.mark.parametrize(
  ("devices", "text"),
  [
    ([3], "3"),
    ([0, 1], "0, 1"),
    ([0, 1, 2, 3, 8, 9, 10, 11], "0-3, 8-11"),
    (range(512), "0-511"),
    (range(0, 32, 4), "0, 4, ..., 28"),
    ([5, 1, 3], "1, 3, 5"),
  ],
)
def test_devices_as_ranges(devices, text):
  assert compress(devices) == text


@pytest.mark.parametrize("shape", [(), (768,), (4, 4, 4)])
def test_parameters_of_any_rank(shape):
  where = shard_map(mesh(data=2), ("",) * len(shape), shape, ("embed",) * len(shape))
  (card,) = section(
    dataclasses.replace(measured(), strategies=(StrategyResult("dp", mesh(data=2), "ok", shard_map=where),)), "Where"
  ).iter("figure")
  assert len(pieces(card)[0]) == 1


def test_a_comparison_of_nothing(tmp_path):
  for strategies in ((), (StrategyResult("dp", {}, REFUSED),)):
    write_report(dataclasses.replace(measured(), strategies=strategies, notes=()), tmp_path)
    Page((tmp_path / "report.html").read_text())
  assert "no reason is known" in (tmp_path / "report.html").read_text()
  assert "dp" in terminal_table(dataclasses.replace(measured(), strategies=(StrategyResult("dp", {}, REFUSED),)))


# A browser.

MEASURE = """<script>addEventListener("load", () => {
  const e = document.documentElement, table = document.querySelector(".scroll");
  const chart = [...document.querySelectorAll(".plot, .value, .label, .reason")].map(x => x.getBoundingClientRect());
  let overlaps = 0;
  chart.forEach((a, i) => chart.slice(i + 1).forEach(b => {
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1) overlaps++; }));
  document.title = JSON.stringify({page: e.scrollWidth - e.clientWidth, width: innerWidth, overlaps,
    table: table.scrollWidth - table.clientWidth}); });</script></body>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  return headless(tmp_path_factory.mktemp("profile"))


def png(path):
  """Width, height and filtered scan lines of a PNG file."""
  data = path.read_bytes()
  assert data[:8] == b"\x89PNG\r\n\x1a\n"
  width, height, depth, colours = struct.unpack(">IIBB", data[16:26])
  assert depth == 8
  packed, index = b"", 8
  while index < len(data):
    size, kind = struct.unpack(">I4s", data[index : index + 8])
    packed += data[index + 8 : index + 8 + size] if kind == b"IDAT" else b""
    index += size + 12
  lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * {2: 3, 6: 4}[colours])
  return width, height, lines


@COMPARISONS
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (800, True)])
def test_a_browser_shows_it(browser, comparison, width, dark, tmp_path):
  write_report(comparison, tmp_path)
  scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
  browser(tmp_path / "report.html", width, scheme, f"--screenshot={tmp_path / 'page.png'}")
  shown_width, height, lines = png(tmp_path / "page.png")
  assert (shown_width, height) == (width, 2400)
  # PNG filters store differences between neighbouring lines: on an empty page all lines but the first are equal.
  assert len(np.unique(lines, axis=0)) > 400

  copy = tmp_path / "copy.html"
  copy.write_text((tmp_path / "report.html").read_text(encoding="utf-8").replace("</body>", MEASURE), encoding="utf-8")
  dom = browser(copy, width, "--dump-dom")
  sizes = json.loads(re.search(r"<title>(\{.*?\})</title>", dom)[1])
  assert sizes == {"page": 0, "width": width, "overlaps": 0, "table": 0}
  assert dom.count('class="card"') == sum(result.shard_map is not None for result in comparison.strategies)
