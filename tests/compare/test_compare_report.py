"""The report of a comparison: the table in the terminal, and the files."""

import csv
import dataclasses
import html
import json
import math

import pytest

import tfm_jax.compare.report.write
from tests.support.comparisons import COMPARISONS, MIB, forecast, measured, with_first
from tfm_jax.compare.compare import _overlap_notes
from tfm_jax.compare.forecast import calibration
from tfm_jax.compare.report.columns import digits, findings, minimum_over, seconds_text, summary_columns
from tfm_jax.compare.report.page import html_page
from tfm_jax.compare.report.write import terminal_table, write_report
from tfm_jax.compare.results import Collective, Memory, Seconds, result_from_json, to_json
from tfm_jax.errors import UserError


def summary_lines(text):
  """The lines of the summary table below its rule."""
  lines = text.split("\n\n")[1].splitlines()
  rule = next(i for i, line in enumerate(lines) if set(line) == {"-"})
  return lines[rule + 1 :]


@COMPARISONS
def test_the_table_fits_a_terminal_and_has_every_strategy(comparison):
  text = terminal_table(comparison)
  rows = summary_lines(text)
  assert [row.split()[0] for row in rows if not row.startswith(" ")] == [
    result.strategy for result in comparison.strategies
  ]
  assert max(map(len, rows)) <= 140
  for result in comparison.strategies:
    if result.reason:
      assert f"\n{result.strategy}: {result.status.replace('_', ' ')}: {result.reason}\n" in text
  for note in comparison.notes:
    assert note in " ".join(text.split())


def test_the_measured_table():
  text = terminal_table(measured())
  assert text.splitlines()[0] == (
    "configs/bert_base.py on 8 x cpu (emulated): measured, batch 32 rows (4.1k tokens), 109M parameters, remat none"
  )
  dp, fsdp = summary_lines(text)[:2]
  assert " ".join(dp.split()) == "dp data=8 1530 1423-1851 335 9.43 1.85 GiB 1.23 GiB 735 MiB 1 3.1e-07 2.2e-06"
  assert fsdp.split()[-4:] == ["GiB", "39", "3.1e-07", "2.2e-06"]
  collectives = text.split("\n\n")[-1].splitlines()
  assert collectives[2].split() == ["dp", "data", "all-reduce", "1", "735", "MiB"]
  assert collectives[4].split() == ["reduce-scatter", "13", "367", "MiB"]
  assert collectives[-1].split() == ["?", "all-to-all", "2", "3", "MiB"]  # groups that match no axis come last


def test_the_forecast_table():
  text = terminal_table(forecast())
  dp, fsdp, fsdp_tp, more = summary_lines(text)[:4]
  assert "+39.9 GiB" in dp
  assert "55.9 GiB" in dp
  assert " ".join(fsdp.split()) == "fsdp data=512 yes 5.98 GiB 590 410 / 60.0 / 120 58.8% 6.94k 40 GiB 1.04 compute"
  assert fsdp_tp.endswith("communication over")
  assert more.split() == ["model"]
  assert "512 x TPU v5 lite (v5e:16x32)" in text


@COMPARISONS
def test_the_bubble_is_a_column_where_there_is_a_pipeline(comparison):
  assert "bubble" not in [column.title for column in summary_columns(comparison)]
  piped = with_first(comparison, bubble=3 / 19)
  (column,) = (column for column in summary_columns(piped) if column.title == "bubble")
  assert [column.text(result) for result in piped.strategies[:2]] == ["15.8%", "-"]
  assert "Bubble: the share" in terminal_table(piped)


def test_the_accuracy_of_forecasts_is_printed_once():
  """It is a note, though every strategy carries it in comparison.json."""
  comparison = dataclasses.replace(forecast(), notes=(calibration.sentence("v5e:4x4"),))
  comparison = with_first(comparison, calibration_error=calibration.sentence("v5e:4x4"))
  text = " ".join(terminal_table(comparison).split())
  assert text.count("published runs") == text.count("at most (tfm_jax/compare/forecast/calibration.csv)") == 1
  assert html_page(comparison).count("published runs") == 1


def test_a_minimum_without_a_collective_is_shown():
  comparison = with_first(forecast(), collectives=(), status="ok", minimum_bytes={"data": 5.0 * MIB, "model": 0.0})
  row = terminal_table(comparison).split("\n\n")[-1].splitlines()[2]
  assert " ".join(row.split()) == "dp data none 0 0 B 5 MiB"


def test_sums_over_several_sets_of_axes_have_one_minimum():
  """A sum may run over replica and data at once, or over one after the other: separate ratios would mean nothing."""
  sent = {"replica": 42, "data": 300, "replica,data": 1418, "model": 30, "data,model": 1}
  least = {"replica": 100.0, "data": 299.0, "replica,data": 1.0, "model": 15.0}
  mesh = {"replica": 2, "data": 4, "model": 2}
  collectives = tuple(Collective("all-reduce", axes, 1, size * MIB) for axes, size in sent.items())
  minimum = {axes: size * MIB for axes, size in least.items()}
  comparison = with_first(forecast(), collectives=collectives, status="ok", minimum_bytes=minimum, mesh=mesh)
  batch = ("replica", "replica,data", "data")
  expected = {"replica": (batch, 400 * MIB), "model": (("model",), 15 * MIB)}
  assert minimum_over(comparison.strategies[0]) == expected
  page = html_page(comparison)
  assert "4.40 x minimum with those over replica,data and data" in page and "2.00 x minimum" in page
  assert "1418 x" not in page and "0.42 x" not in page
  table = terminal_table(comparison).split("\n\n")[-1]
  assert "400 MiB, together" in table and table.count("together") == 1


def test_the_report_has_the_command_that_repeats_it(tmp_path):
  command = "python -m tfm_jax.compare --config=a.py --config.data.seq_len=64 '--strategies=dp,tp'"
  comparison = dataclasses.replace(forecast(), overrides={"data.seq_len": "64"}, command=command)
  write_report(comparison, tmp_path)
  record = json.loads((tmp_path / "comparison.json").read_text())
  assert record["overrides"] == {"data.seq_len": "64"} and record["command"] == command
  page = (tmp_path / "report.html").read_text()
  assert "data.seq_len=64" in page and html.escape(command) in page


def test_a_program_that_fills_the_memory_and_hides_nothing_has_a_note():
  """As the 64B decoder on 64 v5p chips, whose schedule waits for each permutation right after its start."""
  full = {"memory_bytes": Memory(5, 6, 4, 72, 4, 91), "memory_limit": 96}
  waits, hides = Seconds(8.43, 6.52, 0.01, 1.9, 0.003), Seconds(7.38, 6.52, 0.01, 0.85, 0.86)
  notes = lambda **changes: _overlap_notes(with_first(forecast(), **changes).strategies[:1])
  assert "dp: the compiler hides none of its 1.90 s" in notes(forecast_step_seconds=waits, **full)[0]
  assert "LIBTPU_INIT_ARGS=--xla_tpu" in notes(forecast_step_seconds=waits, **full)[0]
  assert notes(forecast_step_seconds=hides, **full) == []
  assert notes(forecast_step_seconds=waits, **full | {"memory_limit": 960}) == []


def test_findings():
  best = {one.title: (one.names, one.amount, one.contrast) for one in findings(forecast())}
  assert best["Fastest"] == ("fsdp", "590 ms per step", "slowest: fsdp_tp, 840 ms per step")
  assert best["Least memory"][0] == "fsdp_tp"  # dp does not fit: it is neither the least nor the most
  assert best["Least memory"][2] == "most: pp, 7.08 GiB per device"
  too_large = with_first(forecast(), status="ok", fits=False)  # it compiles, and does not fit
  assert findings(too_large) == findings(forecast())
  titles = [one.title for one in findings(measured())]
  assert titles == ["Least memory", "Sends least"]  # emulated devices: nothing on time
  real = dataclasses.replace(measured(), devices="8 x NVIDIA H100")
  assert findings(real)[0].names == "dp"
  assert findings(measured())[0].names == "fsdp and fsdp_tp"
  assert findings(dataclasses.replace(real, strategies=real.strategies[:1])) == ()  # no choice


@pytest.mark.parametrize(
  ("value", "text"),
  [(1234.4, "1234"), (99.96, "100.0"), (41.23, "41.2"), (1.234, "1.23"), (0, "0.00"), (0.0123, "0.012")],
)
def test_digits(value, text):
  assert digits(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(1.234, "1.23 s"), (0.0412, "41.2 ms"), (0.00085, "850 µs")])
def test_seconds(seconds, text):
  assert seconds_text(seconds) == text


# The files.


@COMPARISONS
def test_json_is_the_record(comparison, tmp_path):
  write_report(comparison, tmp_path / "new" / "folder")
  text = (tmp_path / "new" / "folder" / "comparison.json").read_text()
  values = json.loads(text)
  assert tuple(map(result_from_json, values["strategies"])) == comparison.strategies
  assert values == json.loads(json.dumps(to_json(comparison)))
  assert max(map(len, text.splitlines())) <= 180
  assert len(text.splitlines()) < 300 + sum(len(one.shard_map.pieces) for one in comparison.strategies if one.shard_map)


def test_json_has_no_nan(tmp_path):
  comparison = with_first(measured(), loss_difference=math.nan, grad_norm_difference=math.inf)
  write_report(comparison, tmp_path)

  def refuse(name):
    raise AssertionError(name)

  row = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=refuse)["strategies"][0]
  assert row["loss_difference"] is None
  assert "nan" in summary_lines(terminal_table(comparison))[0]  # the table shows it


@COMPARISONS
def test_csv_agrees(comparison, tmp_path):
  write_report(comparison, tmp_path)
  with open(tmp_path / "comparison.csv", newline="", encoding="utf-8") as file:
    lines = list(csv.DictReader(file))
  assert [line["strategy"] for line in lines] == [result.strategy for result in comparison.strategies]
  for line, result in zip(lines, comparison.strategies, strict=True):
    assert None not in line  # no cell without a title
    assert line["status"] == result.status
    assert line["reason"] == (result.reason or "")
    assert line["mesh_data"] == str(result.mesh["data"])
    assert line["peak_bytes"] == (str(result.memory_bytes.peak) if result.memory_bytes else "")
    assert line["step_seconds"] == ("" if result.step_seconds is None else repr(result.step_seconds))
    parts = result.forecast_step_seconds
    assert line["forecast_hbm_seconds"] == ("" if parts is None else repr(parts.hbm))
    if result.collectives:
      kinds = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "collective_permute")
      assert sum(float(line[f"{kind}_bytes"]) for kind in kinds) == float(line["collective_bytes"])
      assert float(line["collective_bytes"]) == sum(one.bytes for one in result.collectives)
    else:
      assert line["collective_bytes"] == ""  # unknown, not none


def test_an_error_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
  write_report(measured(), tmp_path)
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  assert set(before) == {"comparison.json", "comparison.csv", "report.html"}

  def fail(*_, **__):
    raise ValueError("an error in the page")

  with monkeypatch.context() as patch:
    patch.setattr(tfm_jax.compare.report.write, "html_page", fail)
    with pytest.raises(ValueError, match="an error in the page"):
      write_report(forecast(), tmp_path)
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

  write = type(tmp_path).write_text

  def full(path, text, **options):
    if "report.html" in path.name:
      write(path, text[:100], **options)
      raise OSError(28, "No space left on device")
    return write(path, text, **options)

  monkeypatch.setattr(type(tmp_path), "write_text", full)
  with pytest.raises(UserError, match=r"cannot write the report to .*: No space left on device"):
    write_report(forecast(), tmp_path)
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file(tmp_path):
  (tmp_path / "out").write_text("")
  with pytest.raises(UserError, match="cannot write the report to"):
    write_report(measured(), tmp_path / "out")
