"""The search of a plan: what it enumerates, compiles next, keeps and ranks. Nothing is compiled here."""

import dataclasses
import shlex

import pytest

from tests.support.launching import tiny
from tests.support.plans import LIMIT, candidate, compiled, estimated
from tfm_jax.compare.plan.goal import Goal
from tfm_jax.compare.plan.rows import make_rows, pareto
from tfm_jax.compare.plan.search import Corrections, nearest, next_candidate, search
from tfm_jax.compare.plan.space import SEARCHED, meshes, sized_axes, variants
from tfm_jax.compare.plan.store import Store
from tfm_jax.compare.plan.torus import Wires, wires
from tfm_jax.compare.results import COMPILER_CRASH, OUT_OF_MEMORY, StrategyResult
from tfm_jax.runtime import command as commands
from tfm_jax.training.config import load

ADMITS = {"embed": (32,), "act_embed": (32,), "mlp": (64,), "vocab": (384,), "layers": (2,)}
ADMITS |= dict.fromkeys(("heads", "kv_heads", "act_heads", "act_mlp", "act_vocab"), (4,))


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
  found = list(variants(config, "v5e:2x2", "fsdp", (1, 4, 1, 1, 1), ADMITS))
  assert len(found) == len(set(found)) == 3 * 4 * 2  # 6 rows: 1, 2, 3, 6; with and without a loop
  one = next(c for c in found if c.remat == "dots" and c.microbatches == 3 and not c.scan)
  ran = one.of(config)
  assert (ran.model.remat, ran.train.microbatches, ran.model.scan) == ("dots", 3, False)
  assert (ran.sharding.strategy, ran.sharding.data, ran.sharding.model) == ("fsdp", 4, 0)


def test_a_pipeline_is_also_considered_in_several_rounds(experiment):
  config = tiny(experiment, train__batch_size=8, model__num_layers=8)
  found = list(variants(config, "v5e:2x2", "pp", (1, 2, 1, 1, 2), {"layers": (8,)}))
  assert {c.rounds for c in found} == {1, 2, 4} and {c.remat for c in found if c.rounds > 1} == {"dots", "full"}
  one = next(c for c in found if c.rounds == 4)
  assert one.name == "pp:data=2:stage=2:rounds=4" and one.of(config).sharding.rounds == 4
  assert one.overrides(config)["sharding.rounds"] == "4" and "sharding.rounds" not in found[0].overrides(config)
  assert {c.rounds for c in variants(config, "v5e:2x2", "pp", (1, 2, 1, 1, 2), {"layers": (8, 6)})} == {1}


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
