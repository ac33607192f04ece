"""The ledger of forecasts, and training that shows one beside what it measures; the device kind is made up."""

import dataclasses
import logging

import pytest

from tests.support.launching import SHORT_RUN, quick_fit, tiny
from tfm_jax.compare.forecast.ledger import entry
from tfm_jax.compare.program import build_program
from tfm_jax.compare.results import OK, Seconds, StrategyResult
from tfm_jax.runtime import ledger
from tfm_jax.runtime.reporting.meter import SETTLED, Meter, Work
from tfm_jax.training.config import resolve
from tfm_jax.training.forecasts import forecast_seconds, workload


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("TFM_CACHE_DIR", str(tmp_path / "cache"))
  return tmp_path / "cache"


def forecast(config, seconds, kind="cpu", **changes):
  """An entry for one device of this kind."""
  result = StrategyResult("dp", {"data": 1}, OK, microbatches=1, forecast_step_seconds=Seconds(seconds, 0, 0, 0, 0))
  made = entry(config, "tiny.py", "v5e:1x1", dataclasses.replace(result, **changes))
  return made | {"device_kinds": [kind]}


def test_entries_are_appended_in_both_places_and_damage_is_skipped(cache, tmp_path):
  ledger.append([{"a": 1}], tmp_path / "out")
  ledger.append([{"a": 2}, {"a": 3}], tmp_path / "other")
  assert ledger.read(tmp_path / "out") == [{"a": 1}] and ledger.read() == [{"a": 1}, {"a": 2}, {"a": 3}]
  with (cache / ledger.NAME).open("a") as file:
    file.write('{"torn\n[4]\n')
  assert ledger.read() == [{"a": 1}, {"a": 2}, {"a": 3}] and ledger.read(tmp_path / "nowhere") == []


def test_a_ledger_that_cannot_be_written_is_a_warning(cache, tmp_path, caplog):
  (tmp_path / "file").write_text("")
  ledger.append([{"a": 1}], tmp_path / "file")
  assert "cannot write the ledger" in caplog.text and ledger.read() == [{"a": 1}]


def test_the_latest_forecast_of_the_same_step_and_device_counts(cache, experiment, tmp_path):
  config = tiny(experiment)
  program = build_program(config, None)
  devices = program.placement.mesh.size
  assert forecast_seconds(program, 1) is None
  same = {"mesh": {"data": devices, "model": 1}}
  ledger.append([forecast(config, 1.0, **same), forecast(config, 2.0, **same)], tmp_path)
  others = [
    forecast(config, 3.0, "TPU v5e", **same),
    forecast(config, 3.0, mesh={"data": devices // 2, "model": 2}),
    forecast(config, 3.0, microbatches=2, **same),
    forecast(tiny(experiment, model__num_layers=3), 3.0, **same),
    forecast(config, 3.0, strategy="fsdp", **same),
    forecast(config, 3.0, forecast_step_seconds=None, **same),
  ]
  ledger.append(others, tmp_path)
  assert forecast_seconds(program, 1) == 2.0 and forecast_seconds(program, 4) is None


def test_keys_that_do_not_change_the_work_do_not_matter(experiment):
  of = lambda **changes: workload(resolve(tiny(experiment, **changes)))
  assert of() == of(seed=3, optimizer__learning_rate=1.0, eval__every=9, train__microbatches=2, data__path="x")
  changed = [of(model__remat="full"), of(train__batch_size=16), of(data__seq_len=32), of(optimizer__name="adafactor")]
  assert len({of(), *changed}) == 5


class Silent:
  """A tracker that takes nothing."""

  def log(self, *_):
    pass


def test_a_measured_step_is_logged_once_beside_the_forecast(monkeypatch, caplog):
  clock = iter(range(0, 1000, 2))  # steps of two seconds
  monkeypatch.setattr("tfm_jax.runtime.reporting.meter.time.perf_counter", lambda: next(clock))
  meter = Meter(Silent(), 1, None, forecast=1.8)
  with caplog.at_level(logging.INFO, "tfm_jax"):
    for step in range(1, SETTLED + 5):
      meter.add(step, {"skipped": 0}, 0.0, Work(1, 1.0))
  assert caplog.messages == [f"step {SETTLED} took 2 s; the forecast was 1.8 s (-10.0%)"]


@pytest.mark.slow
def test_training_shows_the_forecast(cache, experiment, tmp_path, caplog):
  config = tiny(experiment, **SHORT_RUN, train__steps=SETTLED + 1, sharding__strategy="dp")
  size = build_program(config, None).placement.mesh.size
  ledger.append([forecast(config, 1.5, mesh={"data": size})], tmp_path)
  with caplog.at_level(logging.INFO, "tfm_jax"):
    quick_fit(config, tmp_path / "run")
  told = [message for message in caplog.messages if "forecast" in message]
  assert len(told) == 2 and "1.5 s per step (v5e:1x1, dp)" in told[0] and "the forecast was 1.5 s" in told[1]
