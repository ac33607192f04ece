"""A whole plan: its files and page, the terminal, the command and its mistakes. Nothing is compiled here."""

import json
import sys

import pytest

from tests.support.launching import tiny
from tests.support.plans import LIMIT, candidate, compiled, estimated
from tfm_jax.compare.forecast import topology
from tfm_jax.compare.plan import __main__ as door
from tfm_jax.compare.plan import plan as planning
from tfm_jax.compare.plan import search as searching
from tfm_jax.compare.plan.goal import parse_count, parse_topologies, read_prices
from tfm_jax.compare.plan.page import plan_page, terminal_table
from tfm_jax.compare.plan.plan import plan, write_json
from tfm_jax.compare.plan.torus import chip_of
from tfm_jax.errors import UserError
from tfm_jax.runtime import command as commands
from tfm_jax.runtime import ledger
from tfm_jax.training.keys.help import config_keys


@pytest.fixture(scope="module")
def planned(experiment, tmp_path_factory):
  """(the plan of a tiny model on two topologies by a compiler that is made up, its folder)."""
  folder = tmp_path_factory.mktemp("plan") / "out"
  config = tiny(experiment, train__batch_size=16)
  seconds = lambda one: 0.01 / dict(zip("rdmcs", one.mesh, strict=True))["d"] + 0.001 * one.microbatches
  answer = plan(
    config,
    ["v5e:2x2", "v5e:2x4"],
    folder,
    tokens=1e9,
    days=30,
    prices={"v5e": 1.2},
    name="tiny.py",
    compile=lambda one, _: compiled(one, seconds(one)),
    command="python <plan>",
  )
  write_json(answer, folder)
  return answer, folder


def test_plan_json_has_the_rows_best_first(planned):
  answer, folder = planned
  rows = json.loads((folder / "plan.json").read_text())["rows"]
  keys = ["topology", "strategy", "mesh", "remat", "microbatches", "fits", "forecast_step_seconds", "mfu", "days"]
  keys += ["chip_hours", "cost", "command"]
  assert rows and all(set(keys) <= set(row) for row in rows)
  assert rows[0]["cost"] == min(row["cost"] for row in rows) and rows[0]["cost"] == 1.2 * rows[0]["chip_hours"]
  assert answer.goal.steps == -(-(10**9) // (16 * 16)) and {row["topology"] for row in rows} == {"v5e:2x2", "v5e:2x4"}
  assert (
    answer.searched > len(rows) and answer.waiting and {point.kind for point in answer.scaling} == {"strong", "weak"}
  )


def test_every_forecast_is_in_the_ledger(planned):
  answer, folder = planned
  entries = ledger.read(folder)
  assert len(entries) == len(answer.rows)
  assert {entry["strategy"].split(":")[0] for entry in entries} == {row.strategy for row in answer.rows}
  needed = {
    "workload",
    "versions",
    "chip",
    "topology",
    "mesh",
    "time",
    "config",
    "forecast_step_seconds",
    "program_hash",
  }
  assert all(needed <= set(entry) for entry in entries) and entries[0]["chip"]["peak"] == 197e12


def test_the_page_shows_the_rows_and_escapes_what_it_is_given(planned):
  text = plan_page(planned[0])
  assert "python &lt;plan&gt;" in text and "<plan>" not in text and "<script" not in text
  assert text.count('class="label"') == len(planned[0].rows)  # each circle has the number of its row
  assert "by estimate" in text and "communication" in text and all(row.topology in text for row in planned[0].rows)


def test_the_terminal_shows_the_answer_and_its_command(planned):
  text = terminal_table(planned[0])
  assert planned[0].best.command in text and "3,906,250 steps (1B tokens)" in text
  assert max(len(line) for line in text.splitlines()[:10]) <= 160


def test_a_plan_of_which_nothing_fits_is_refused(experiment, tmp_path):
  with pytest.raises(UserError, match=r"nothing fits: the nearest is .* GiB per device \(.*, \d+% too much"):
    too_large = lambda one, _: compiled(one, memory=1.5 * chip_of(one.topology).memory)
    plan(tiny(experiment), ["v5e:2x2"], tmp_path, compile=too_large, strategies=["fsdp"])


# --- mistakes


@pytest.mark.parametrize(
  ("text", "number"), [("20B", 20e9), ("1.5T", 1.5e12), ("3k", 3e3), ("500M", 5e8), ("7", 7.0), ("2e9", 2e9)]
)
def test_counts_have_suffixes(text, number):
  assert parse_count("tokens", text) == number


@pytest.mark.parametrize("text", ["", "B", "-1B", "0", "20 billion", "nan", "inf", "1Q"])
def test_other_counts_are_refused(text):
  with pytest.raises(UserError, match="--tokens="):
    parse_count("tokens", text)


@pytest.mark.parametrize("text", ['{"v5e": 1.2, "v5p": 4}', "chip,price\nv5e,1.2\nv5p, 4\n"])
def test_prices_are_json_or_csv(tmp_path, text):
  (tmp_path / "prices").write_text(text)
  assert read_prices(str(tmp_path / "prices"), ("v5e:4x4",)) == {"v5e": 1.2, "v5p": 4.0}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
  """Runs the command in this process: (exit status, stderr)."""
  monkeypatch.setattr(commands, "set_up_logging", lambda: None)
  monkeypatch.setattr("tfm_jax.compare.plan.plan.run_worker", lambda *_: pytest.fail("a worker was started"))
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  prices = {"few": '{"v6e": 1}', "bad": '{"v5e": "cheap"}', "torn": '{"v5e": 1', "wide": "v5e,1,2\n"}
  for name, text in prices.items():
    (tmp_path / name).write_text(text)
  monkeypatch.chdir(tmp_path)

  def with_arguments(*arguments):
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    status = commands.run_command(door.main, door.__doc__, door.FLAGS, keys=config_keys)
    return status, capsys.readouterr().err

  return with_arguments


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"topologies": None}, "--topologies"),
    ({"topologies": ","}, "--topologies= is empty"),
    ({"topologies": "v5e:4x4,v9:2x2"}, "--topologies=v9:2x2 is unknown"),
    ({"tokens": "many"}, "--tokens=many"),
    ({"days": "0"}, "--days=0"),
    ({"minutes": "-3"}, "--minutes=-3"),
    ({"jobs": "1.5"}, "--jobs=1.5"),
    ({"strategies": "fsdp,zero9"}, "'zero9'"),
    ({"strategies": "fsdp:rows=2"}, "--strategies"),
    ({"prices": "nowhere"}, "--prices=nowhere cannot be read"),
    ({"prices": "few"}, "no price for v5e, the chip of v5e:4x4"),
    ({"prices": "bad"}, "the price of v5e is 'cheap'"),
    ({"prices": "torn"}, "neither JSON nor CSV"),
    ({"prices": "wide"}, "neither JSON nor CSV"),
    ({"out": "few"}, "is a file, not a folder"),
    ({"config.train.batch_size": "6", "strategies": "fsdp"}, "train.batch_size=6"),
    ({"config.train.epochs": "2"}, "give --tokens"),
    ({"config.train.stepz": "2"}, "config.train.steps"),
  ],
)
def test_mistakes_are_one_line(experiment, run, changes, named, tmp_path):
  flags = {"config": f"{experiment}:gpt", "topologies": "v5e:4x4", "out": str(tmp_path / "out")} | changes
  status, message = run(*(f"--{name}={value}" for name, value in flags.items() if value is not None))
  assert status == 2 and message.startswith("error: ") and message.count("\n") == 1 and named in message, message
  assert not (tmp_path / "out").exists()


def test_the_command_writes_its_folder_and_a_second_one_compiles_nothing(experiment, run, monkeypatch, tmp_path):
  asked = []
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: name)
  monkeypatch.setattr(planning, "compiler", lambda *_: lambda one, _: asked.append(one) or compiled(one))
  monkeypatch.setattr("tfm_jax.runtime.reporting.picture.BROWSERS", ())
  arguments = [f"--config={experiment}:gpt", "--topologies=v5e:2x2", "--strategies=fsdp", f"--out={tmp_path / 'out'}"]
  assert run(*arguments) == (0, "")
  names = {path.name for path in (tmp_path / "out").iterdir()}
  assert names == {"plan.json", "plan.html", "compiled.jsonl", "forecasts.jsonl"}
  count = len(asked)
  assert run(*arguments) == (0, "") and len(asked) == count > 0


def test_an_interrupted_command_says_how_to_go_on(experiment, run, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(planning, "plan", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
  printed = []
  monkeypatch.setattr("builtins.print", lambda *texts, **_: printed.append(" ".join(map(str, texts))))
  status, _ = run(f"--config={experiment}:gpt", "--topologies=v5e:2x2", f"--out={tmp_path / 'out'}")
  assert status == 130 and "goes on from there" in printed[0] and "python -m tfm_jax.compare.plan" in printed[0]


def test_topologies_are_a_list_without_repetition():
  assert parse_topologies("v5e:4x4, v5p:2x2x1,v5e:4x4") == ("v5e:4x4", "v5p:2x2x1")


def test_progress_says_what_was_expected_and_what_came():
  one = candidate()
  line = searching.progress_line(one, estimated(0.5), compiled(one, 0.6), 12.0)
  assert line == "v5e:2x2 fsdp:data=4, remat full, 1 microbatch: estimate 0.5 s, forecast 0.6 s (12.0 minutes left)"
  assert "out of memory: too large" in searching.progress_line(
    one, estimated(0.5), compiled(one, memory=2 * LIMIT), 1.0
  )
