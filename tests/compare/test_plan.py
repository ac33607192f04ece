"""The plan: what it enumerates, compiles next, ranks, keeps and refuses. Nothing is compiled here."""

import dataclasses
import json
import shlex
import sys

import pytest

from tests.support.launching import tiny
from tfm_jax.compare.plan import __main__ as door
from tfm_jax.compare.plan import plan as planning
from tfm_jax.compare.plan import search as searching
from tfm_jax.compare.plan.estimate import Estimate
from tfm_jax.compare.plan.goal import Goal, parse_count, parse_topologies, read_prices
from tfm_jax.compare.plan.page import plan_page, terminal_table
from tfm_jax.compare.plan.plan import plan, write_json
from tfm_jax.compare.plan.rows import make_rows, pareto
from tfm_jax.compare.plan.search import Corrections, nearest, next_candidate, search
from tfm_jax.compare.plan.space import SEARCHED, Candidate, meshes, sized_axes, variants
from tfm_jax.compare.plan.store import Store
from tfm_jax.compare.plan.torus import Wires, chip_of, wires
from tfm_jax.compare.results import COMPILER_CRASH, OK, OUT_OF_MEMORY, Memory, Seconds, StrategyResult
from tfm_jax.errors import UserError
from tfm_jax.runtime import command as commands
from tfm_jax.runtime import ledger
from tfm_jax.training.config import load
from tfm_jax.training.keys.help import config_keys

GIB = 2**30
LIMIT = chip_of("v5e:2x2").memory
ADMITS = {"embed": (32,), "act_embed": (32,), "mlp": (64,), "vocab": (384,)}
ADMITS |= dict.fromkeys(("heads", "kv_heads", "act_heads", "act_mlp", "act_vocab"), (4,))


def candidate(strategy="fsdp", data=4, remat="full", microbatches=1, topology="v5e:2x2", scan=True):
  return Candidate(topology, strategy, (1, data, 4 // data, 1, 1), remat, microbatches, scan)


def estimated(seconds, memory=0.5 * LIMIT):
  return Estimate(0.0, 0.0, 0.0, memory, seconds, 0.0, 0.0, 0.0, "compute")


def compiled(one, seconds=1.0, memory=0.5 * LIMIT, mfu=0.4):
  """The result of a candidate that needs so much memory."""
  limit = chip_of(one.topology).memory
  if memory > limit:
    over = round(memory - limit)
    return StrategyResult(
      one.name, one.sizes, OUT_OF_MEMORY, "too large", one.microbatches, memory_limit=limit, fits=False, over_bytes=over
    )
  return StrategyResult(
    one.name,
    one.sizes,
    OK,
    microbatches=one.microbatches,
    memory_bytes=Memory(0, 0, 0, 0, 0, round(memory)),
    memory_limit=limit,
    forecast_step_seconds=Seconds(seconds, seconds, 0.0, 0.0, 0.0),
    fits=True,
    over_bytes=0,
    mfu=mfu,
    bound_by="compute",
  )


# --- the space


def test_sizes_are_divisors_that_the_model_admits(experiment):
  config = tiny(experiment)
  split = lambda strategy: [mesh[1:3] for mesh in meshes(config, strategy, "v5e:2x4", ADMITS)[0]]
  assert split("fsdp") == [(8, 1)] and split("fsdp_tp") == [(4, 2), (2, 4)]  # 4 heads
  assert split("fsdp_tp:model=2") == [(4, 2)]
  assert [mesh[3] for mesh in meshes(config, "fsdp+cp", "v5e:2x4", ADMITS)[0]] == [2, 4, 8]  # 16 tokens
  assert [mesh[:2] for mesh in meshes(config, "hsdp", "v5e:2x4", ADMITS)[0]] == [(2, 4), (4, 2)]
  assert sized_axes("tp") == ("model",) and sized_axes("dp") == () and sized_axes("hsdp") == ("replica",)
  assert all(sized_axes(name) is not None for name in SEARCHED)


def test_a_batch_that_divides_nowhere_says_which_does(experiment):
  found, reason = meshes(tiny(experiment, train__batch_size=6), "fsdp", "v5e:2x4", ADMITS)
  assert not found and "train.batch_size=6" in reason and "multiple of 8" in reason


def test_variants_are_every_remat_and_every_divisor_of_the_rows(experiment):
  config = tiny(experiment, train__batch_size=24)
  found = list(variants(config, "v5e:2x2", "fsdp", (1, 4, 1, 1, 1)))
  assert len(found) == len(set(found)) == 3 * 4 * 2  # 6 rows: 1, 2, 3, 6; with and without a loop
  one = next(c for c in found if c.remat == "dots" and c.microbatches == 3 and not c.scan)
  ran = one.of(config)
  assert (ran.model.remat, ran.train.microbatches, ran.model.scan) == ("dots", 3, False)
  assert (ran.sharding.strategy, ran.sharding.data, ran.sharding.model) == ("fsdp", 4, 0)


def test_axes_of_the_mesh_take_whole_axes_of_the_torus():
  sizes = lambda **own: {"replica": 1, "data": 1, "model": 1, "context": 1, "stage": 1} | own
  assert wires("v5e:4x4", sizes(data=16)) == {"data": Wires(2.0, 6, 1)}  # two lines of four
  assert wires("v5e:16x16", sizes(data=256)) == {"data": Wires(4.0, 16, 1)}  # two rings of sixteen
  assert wires("v5p:4x4x4", sizes(data=16, model=4)) == {"model": Wires(2.0, 2, 1), "data": Wires(4.0, 4, 1)}
  assert wires("v5e:4x4", sizes(data=8, model=2))["model"] == Wires(1.0, 1, 1)  # half an axis is a line
  assert wires("2*v5e:4x4", sizes(replica=2, data=16))["replica"].slices == 2


# --- what is compiled next


def test_the_fastest_that_fits_is_compiled_first():
  slow, fast, large = candidate(remat="full"), candidate(remat="dots"), candidate(remat="none")
  estimates = {slow: estimated(3.0), fast: estimated(2.0), large: estimated(1.0, 2 * LIMIT)}
  assert next_candidate(estimates, {}) == fast
  assert next_candidate(estimates, {}, running=[fast]) == slow


def test_topologies_take_turns_and_each_has_a_few():
  one, other, far = candidate(), candidate(remat="dots"), candidate(topology="v5e:4x4")
  estimates = {one: estimated(1.0), other: estimated(1.01), far: estimated(9.0)}
  assert next_candidate(estimates, {one: compiled(one)}) == far
  done = {one: compiled(one), far: compiled(far)}
  assert next_candidate(estimates, done) == other and next_candidate(estimates, done, few=1) is None


def test_what_only_has_more_microbatches_than_one_that_fits_is_not_compiled():
  one, more = candidate(microbatches=1), candidate(microbatches=2)
  estimates = {one: estimated(1.0), more: estimated(1.05, 0.3 * LIMIT)}
  assert next_candidate(estimates, {one: compiled(one)}) is None
  assert next_candidate(estimates, {one: compiled(one, memory=1.5 * LIMIT)}) == more
  assert next_candidate(estimates, {more: compiled(more)}) == one  # fewer may fit too
  assert next_candidate(estimates, {more: compiled(more, memory=1.5 * LIMIT)}) is None


def test_blocks_are_unrolled_only_where_their_loop_was_compiled():
  loop, unrolled = candidate(), candidate(scan=False)
  estimates = {loop: estimated(1.0), unrolled: estimated(0.9)}
  assert next_candidate(estimates, {}) == loop
  assert next_candidate(estimates, {loop: compiled(loop)}) == unrolled


def test_ratios_that_were_seen_correct_the_estimates_of_the_same_strategy():
  """Without the correction the second row of fsdp would be next."""
  one, two, tp = candidate(), candidate(remat="dots"), candidate("fsdp_tp", data=2)
  estimates = {one: estimated(1.0), two: estimated(1.1), tp: estimated(1.2)}
  results = {one: compiled(one, seconds=1.5)}
  assert Corrections(estimates, results).seconds(two) == 1.5
  assert next_candidate(estimates, results, promising=2.0) == two
  results[tp] = compiled(tp, seconds=0.9)
  three = candidate("fsdp_tp", data=2, remat="dots")
  assert next_candidate(estimates | {three: estimated(1.3)}, results, promising=2.0) == three


def test_memory_is_corrected_too():
  one, two = candidate(microbatches=2), candidate(microbatches=1)
  estimates = {one: estimated(2.0, 0.9 * LIMIT), two: estimated(1.0, 1.7 * LIMIT)}
  assert next_candidate(estimates, {}) == one
  assert next_candidate(estimates, {one: compiled(one, 2.0, 0.5 * LIMIT)}) == two
  assert next_candidate(estimates, {one: compiled(one, 2.0, 0.9 * LIMIT)}) is None


def test_what_looks_much_slower_than_the_best_is_not_compiled():
  one, two = candidate(), candidate(remat="dots")
  assert next_candidate({one: estimated(1.0), two: estimated(1.2)}, {one: compiled(one)}) is None


# --- the search


@pytest.fixture
def store(experiment, tmp_path):
  return Store(tmp_path / "plan", tiny(experiment))


def test_results_are_kept_as_they_come_and_not_compiled_again(store, experiment, tmp_path):
  ones = [candidate(remat=remat) for remat in ("none", "dots", "full")]
  estimates = {one: estimated(1.0 + i / 100) for i, one in enumerate(ones)}
  crash = StrategyResult("fsdp", {}, COMPILER_CRASH, "killed by SIGSEGV")
  asked = []

  def compile(one, seconds):
    asked.append(one)
    if len(asked) == 3:
      raise KeyboardInterrupt
    return crash if one == ones[1] else compiled(one)

  with pytest.raises(KeyboardInterrupt):
    search(estimates, compile, store, minutes=1, jobs=1)
  assert asked == ones
  with (tmp_path / "plan" / "compiled.jsonl").open("a") as file:
    file.write('{"torn')
  again = []
  fresh = Store(tmp_path / "plan", tiny(experiment))
  results = search(estimates, lambda one, _: again.append(one) or compiled(one), fresh, minutes=1, jobs=1)
  assert again == [ones[2]] and set(results) == set(ones)
  assert results[ones[1]] == crash and results[ones[0]] == compiled(ones[0])


def test_results_of_another_configuration_or_code_do_not_count(store, experiment, tmp_path, monkeypatch):
  one = candidate()
  store.add(one, compiled(one))
  assert store.results() == {one: compiled(one)}
  assert Store(tmp_path / "plan", tiny(experiment, eval__every=7)).results()
  assert not Store(tmp_path / "plan", tiny(experiment, train__batch_size=16)).results()
  monkeypatch.setattr("tfm_jax.compare.plan.store._code", lambda: "changed")
  assert not store.results()


def test_nothing_is_started_after_the_time(store):
  ones = [candidate(remat=remat) for remat in ("none", "dots", "full")]
  now = iter(range(0, 10_000, 25))
  asked = []
  compile = lambda one, seconds: asked.append(seconds) or compiled(one)
  estimates = {one: estimated(1.0) for one in ones}
  results = search(estimates, compile, store, minutes=1, jobs=1, clock=lambda: next(now))
  assert 0 < len(results) < 3 and all(0 < seconds <= 60 for seconds in asked)
  assert not search({ones[2]: estimated(1.0)}, lambda *_: None, store, minutes=1, jobs=1)  # ended before it was ready


# --- rows


def rows_of(results, experiment, goal, **overrides):
  estimates = {one: estimated(1.0) for one in results}
  return make_rows(results, estimates, goal, tiny(experiment), "configs/tiny's.py", overrides)


def test_with_days_the_cheapest_in_time_comes_first_and_without_the_fastest(experiment):
  small, large, late = candidate(), candidate(topology="v5e:4x4"), candidate(remat="dots")
  failed = candidate(remat="none")
  results = {
    failed: compiled(failed, memory=2 * LIMIT),
    late: compiled(late, 3.0),
    small: compiled(small, 2.0),
    large: compiled(large, 1.0),
  }
  day = 86400
  order = lambda goal: [(row.topology, row.remat) for row in rows_of(results, experiment, goal)]
  first, second = ("v5e:2x2", "full"), ("v5e:4x4", "full")
  last = ("v5e:2x2", "none")
  assert order(Goal((), day)) == [second, first, ("v5e:2x2", "dots"), last]
  assert order(Goal((), day, days=2.5)) == [first, second, ("v5e:2x2", "dots"), last]  # 192 against 384 chip-hours
  assert order(Goal((), day, days=1.5))[0] == second
  assert order(Goal((), day, days=0.5)) == [second, first, ("v5e:2x2", "dots"), last]  # none is in time
  best, *_, out = rows_of(results, experiment, Goal((), day, days=2.5, prices={"v5e": 2.0}))
  assert (best.days, best.chip_hours, best.cost, best.in_time) == (2.0, 192.0, 384.0, True)
  assert best.memory_left == best.memory_limit - best.memory_bytes == LIMIT - LIMIT // 2
  assert (out.fits, out.cost, out.days, out.status) == (False, None, None, OUT_OF_MEMORY)
  assert out.memory_left == pytest.approx(-LIMIT)


def test_the_front_has_what_no_other_beats_in_days_and_price(experiment):
  ones = [candidate(topology=t, remat=r) for t in ("v5e:2x2", "v5e:4x4") for r in ("none", "full")]
  results = {one: compiled(one, seconds) for one, seconds in zip(ones, (4.0, 5.0, 1.5, 1.4), strict=True)}
  front = pareto(rows_of(results, experiment, Goal((), 86400)))
  assert [(row.topology, row.remat) for row in front] == [("v5e:4x4", "full"), ("v5e:2x2", "none")]


def test_the_command_is_the_run_that_was_compiled(experiment):
  """Its words, quoted for a shell, give the configuration of the candidate."""
  one = candidate("fsdp_tp", data=2, remat="dots", microbatches=2, scan=False)
  overrides = {"data.path": "my corpus/*.txt", "model.remat": "none"}
  config = tiny(experiment, **{key.replace(".", "__"): value for key, value in overrides.items()})
  row = make_rows({one: compiled(one)}, {one: estimated(1.0)}, Goal((), 99), config, str(experiment), overrides)[0]
  words = shlex.split(row.command)
  assert words[:2] == ["python", "train.py"] and row.mesh["model"] == 2
  flags = commands.parse(words[2:], ("config",))
  ran = load(flags.values["config"], flags.overrides)
  expected = one.of(config)
  assert (ran.model, ran.sharding, ran.data) == (expected.model, expected.sharding, expected.data)
  assert ran.train == dataclasses.replace(expected.train, steps=99)


def test_what_comes_nearest_says_by_how_much_it_misses():
  one, two = candidate(), candidate(remat="none")
  estimates = {one: estimated(1.0, 1.5 * LIMIT), two: estimated(1.0, 3 * LIMIT)}
  text = nearest(estimates, {})
  assert one.text in text and "50% too much" in text and "by estimate" in text and "2 times the chips" in text
  assert "compiled, 25% too much" in nearest(estimates, {one: compiled(one, memory=1.25 * LIMIT)})


# --- the whole


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
  monkeypatch.setattr(planning.importlib.util, "find_spec", lambda name: name)
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
