"""What devices exchange beside sums and gathers: nothing, or what a strategy plans."""

from collections import Counter

import pytest

from tests.support.tiny import make_batch, make_model, make_program
from tests.training.test_context import FOUR, placed
from tfm_jax.compare.compiled import hlo


def collectives(strategy, attention="auto", **sizes):
  """Kind -> how often a train step of a Llama of two layers runs it."""
  model = make_model("llama", placed(strategy, attention, **sizes))
  module = hlo.parse(make_program(model, make_batch("llama")).compile(1).as_text())
  times = Counter()
  for i, _, executions in module.executed():
    times[i.kind] += executions
  assert times["all-reduce"]
  return times


def test_a_stream_that_is_cut_is_gathered_and_never_exchanged():
  assert collectives("tp_sp", data=2, model=4)["all-to-all"] == 0


@pytest.mark.slow
def test_ulysses_exchanges_queries_keys_values_and_output_once_in_each_pass():
  times = collectives("cp", "ulysses", **dict(FOUR))
  assert times["all-to-all"] == 2 * 4 * 2  # layers, arrays, passes
  assert times["all-gather"] == 0
