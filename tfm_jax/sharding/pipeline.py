"""Pipeline parallelism: the layers of a stack are cut over the mesh axis `stage`, and microbatches flow through them.

This is GPipe's schedule (Huang et al. 2019) in GSPMD's form (Xu et al. 2021). An array [stages, rows, ...] holds what
each stage works on. All stages compute at once (`jax.vmap` over an axis that is split over `stage`), and a rotation by
one place, which is a collective-permute, hands the results on, those of the last stage to the first one. With several
rounds the schedule is circular (Narayanan et al. 2021): each stage has as many parts of the stack, and a microbatch
passes through all stages once per round. So a layer does inside a stage what it does on any mesh.

Outside of the stack, `stage` is one more axis of the batch: embeddings, head and loss are not computed twice. A stage
begins with the rows of its own microbatches. All but one of them wait: each in its turn moves on from stage to stage
until it is at the first one, which works on it and lets what the last stage has finished wait in its place. A stage
without work hands on what it got. So after each round every row is where it was.

Mesh axes that split the batch and no parameter make groups: each has the whole pipeline and a copy of its layers, along
a further axis of `vmap`. So gradients are summed over them once, and not in each iteration. Parameters that are split
over the batch's axes (fsdp) are gathered in each iteration, and their gradients scattered.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from tfm_jax.errors import UserError
from tfm_jax.ops.experts import share_scope
from tfm_jax.sharding.placement import Placement
from tfm_jax.sharding.strategy import ShardingConfig

STAGE, GROUP = "stage", "group"  # axes of arrays: see `Placement.staged`
PER_STAGE = 4  # microbatches per stage if the config leaves their number open, as far as the rows divide


class Schedule(NamedTuple):
  """How many microbatches flow through how many stages, and how often."""

  stages: int
  microbatches: int
  rounds: int = 1

  @property
  def work(self) -> int:
    """How often each stage computes for a microbatch."""
    return self.rounds * self.microbatches

  @property
  def iterations(self) -> int:
    """How often each stage computes; without a microbatch to work on in `stages` - 1 of them."""
    return self.work + self.stages - 1

  @property
  def bubble(self) -> float:
    """The share of a stage's time in which it has no microbatch."""
    return (self.stages - 1) / self.iterations

  @property
  def elsewhere(self) -> float:
    """The share of the layers that another stage works on than the one that has them."""
    part = np.arange(self.stages * self.rounds)
    return float((part % self.stages != part // self.rounds).mean())

  @property
  def order(self) -> np.ndarray:
    """[stages, microbatches / stages]: when the microbatches that a stage begins with are worked on; 0 is the first.

    The last one of each stage is on its way to the first stage, the others wait.
    """
    p, k = self.stages, self.microbatches // self.stages
    stage, n = np.indices((p, k))
    return np.where(n == k - 1, self.microbatches - 1 - stage, (-stage % p) * (k - 1) + n)


def schedule(st: Placement, rows: int) -> Schedule | None:
  """The schedule for so many rows; None without stages, or if rows do not divide into the parts of the batch.

  Each stage begins with equally many microbatches, at most as many as `Placement.pipeline` says.
  """
  if st.stages == 1 or rows % st.batch_shards:
    return None
  own, most = rows // st.batch_shards, (st.pipeline // st.stages) or PER_STAGE
  return Schedule(st.stages, st.stages * max(n for n in range(1, most + 1) if own % n == 0), st.rounds)


def check_pipeline(config: ShardingConfig, st: Placement, batch_size: int, depths: Sequence[int]) -> None:
  """Raises UserError if a pipeline's keys are set and there are no stages, or not so many rows or layers.

  Args:
    config: the strategy with its keys.
    st: its placement.
    batch_size: rows per step.
    depths: number of layers of each stack.
  """
  count, rounds, stages = config.pipeline, config.rounds, st.stages
  if rounds < 1:
    raise UserError(f"sharding.rounds={rounds} is no number of rounds: set it to 1 or more")
  for key, value, off in (("pipeline", count, 0), ("rounds", rounds, 1)):
    if value != off and stages == 1:
      raise UserError(f"sharding.{key}={value} is for pipelines: {config.strategy} has one stage here, set it to {off}")
  for depth in depths:
    if depth % (stages * rounds):
      fitting = [n for n in range(1, depth // stages + 1) if depth % (stages * n) == 0]
      raise UserError(
        f"sharding.rounds={rounds} times {stages} stages do not divide the {depth} layers: choose one of "
        f"{', '.join(map(str, fitting))}"
      )
  if count % stages or count < 0:
    raise UserError(f"sharding.pipeline={count} is not a multiple of the {stages} stages: choose one, or set it to 0")
  rows = batch_size // st.batch_shards
  if count and rows % (count // stages):
    raise UserError(
      f"sharding.pipeline={count}: its microbatches do not divide the {rows * stages} rows of a pipeline evenly: "
      f"choose a number that does, or set it to 0"
    )


def pipelined(
  run: Callable[[Any, Array, Array, Any], tuple[Array, Any]],
  st: Placement,
  plan: Schedule,
  layers: Any,
  x: Array,
  rows: Any,
  keep: Any = None,
) -> tuple[Array, Any]:
  """A stack of N layers, of which each stage has N / (stages x rounds) in a row per round, applied to all rows.

  Args:
    run: (layers of a stage [n, ...], index of the first of them, x [b, ...], rows) -> (x after these layers, results
      [n, b, ...]). It sees one microbatch, and must constrain its arrays with `st.inside`.
    st: the placement of what surrounds the stack.
    plan: see `schedule`.
    layers: tree of [N, ...], cut over `stage`.
    x: [B, ...], its rows split like the batch.
    rows: tree of [B, ...]: what else a microbatch has, such as masks. Each stage holds all of it that belongs to its
      rows; it is not sent along.
    keep: with several rounds, the policy of `jax.checkpoint` for an iteration; None keeps nothing but its input. What
      it keeps must not be layers: an iteration chooses them, and there would be copies of all of them.

  Returns:
    x after all layers, and the results [N, B, ...]. Iterations of a stage without a microbatch do not reach them.
  """
  p, m, v = plan
  k, groups, order = m // p, st.groups, plan.order
  depth = len(jax.tree.leaves(layers)[0]) // (p * v)
  stages = st.staged(jnp.arange(p), (STAGE,))

  def split(x: Array, stage: str | None) -> Array:
    """[B, ...] as [groups, p, k, b, ...]: k microbatches of each stage's own rows. No row moves."""
    x = x.reshape(groups, st.batch_shards // (groups * p), p, k, -1, *x.shape[1:])
    x = jnp.moveaxis(x, 1, 3)
    return st.staged(x.reshape(groups, p, k, -1, *x.shape[5:]), (GROUP, stage, None, "batch"))

  def join(x: Array) -> Array:
    """The inverse of `split`."""
    x = x.reshape(groups, p, k, st.batch_shards // (groups * p), -1, *x.shape[4:])
    return jnp.moveaxis(x, 3, 1).reshape(-1, *x.shape[5:])

  def scheduled(x: Array) -> Array:
    """[B, ...] as [iterations, groups, p, b, ...]: what each stage reads in the iterations of a round, or of all."""
    count = m if v > 1 else plan.iterations
    place = np.argsort(order.ravel())[(np.arange(count)[:, None] - np.arange(p)[None]) % m]
    x = split(x, None)
    x = x.reshape(groups, m, *x.shape[3:]).at[:, place].get(mode="promise_in_bounds")
    return st.staged(jnp.moveaxis(x, 1, 0), (None, GROUP, STAGE, "batch"))

  def copies(w: Array) -> Array:
    """[N, ...] as [v, groups, p, n, ...]. A group has a copy, so its gradient is summed once, after all iterations."""
    w = st.staged(w.reshape(v, p, depth, *w.shape[1:]), (None, STAGE, None))
    return st.staged(jnp.broadcast_to(w[:, None], (v, groups, *w.shape[1:])), (None, GROUP, STAGE, None))

  def where(condition: Array, x: Array, y: Array) -> Array:
    """x in the stages of which the condition is true, else y."""
    return jnp.where(condition.reshape(1, p, *(1,) * (x.ndim - 2)), x, y)

  # [groups, p, ...]: what each stage gets from the one before it, and the first from the last.
  pairs, spec = [(stage, (stage + 1) % p) for stage in range(p)], PartitionSpec(None, STAGE)
  send = lambda x: jax.lax.ppermute(x, STAGE, pairs)
  rotated = jax.shard_map(send, mesh=st.mesh, in_specs=spec, out_specs=spec, axis_names={STAGE}, check_vma=False)

  # The mesh axes of an axis of `vmap` are added to all constraints inside.
  of_stages = jax.vmap(run, spmd_axis_name=STAGE)
  compute = jax.vmap(of_stages, in_axes=(0, None, 0, 0), spmd_axis_name=st.group_axes)

  def work(now: Any, before: Any, t: Array, x: Array, rows: Any) -> tuple[Array, Any]:
    """What all stages compute in iteration t, with the layers of its round, or of the one before."""
    number = jax.lax.div(jnp.clip(t - stages, 0, plan.work - 1), m)  # of the round that each stage is in
    own = now if before is None else jax.tree.map(partial(where, number == jax.lax.div(t, m)), now, before)
    with jax.named_scope(share_scope(plan.work, plan.iterations)):  # read by the count of FLOPs
      return compute(own, (number * p + stages) * depth, x, rows)

  def iteration(now: Any, before: Any, carry: tuple[Array, Array], at: tuple[Array, Any]) -> tuple[Any, Any]:
    done, waiting = carry  # [groups, p, b, ...]: what each stage did last; [groups, p, k - 1, b, ...]
    t, rows = at
    x = rotated(done)
    if k > 1:
      slot, first = jax.lax.rem(t, k - 1), (stages == 0) & (t < plan.work)
      turn = jax.lax.dynamic_index_in_dim(waiting, slot, axis=2, keepdims=False)
      moved = jnp.where(t < plan.work, rotated(where(first, x, turn)), turn)
      x = where(first, turn, x)
      waiting = jax.lax.dynamic_update_index_in_dim(waiting, moved, slot, axis=2)
    x = st.staged(x, (GROUP, STAGE, "batch"))
    chosen = work if before is None else jax.checkpoint(work, policy=keep, prevent_cse=False)
    y, results = chosen(now, before, t, x, rows)
    done = st.staged(where((t >= stages) & (t - stages < plan.work), y, x), (GROUP, STAGE, "batch"))
    return (done, st.staged(waiting, (GROUP, STAGE, None, "batch"))), results

  own, rows = jax.tree.map(copies, layers), jax.tree.map(scheduled, rows)
  start, times = split(x, STAGE), jnp.arange(plan.iterations, dtype=jnp.int32)
  carry, last = (start[:, :, k - 1], start[:, :, : k - 1]), jax.tree.map(lambda w: w[-1], own)
  if v == 1:
    carry, results = jax.lax.scan(partial(iteration, last, None), carry, (times, rows))
  else:
    before = jax.tree.map(lambda w: jnp.concatenate([w[:1], w[:-1]]), own)
    a_round = lambda carry, at: jax.lax.scan(partial(iteration, *at[:2]), carry, (at[2], rows))
    carry, results = jax.lax.scan(a_round, carry, (own, before, times[: v * m].reshape(v, m)))
    ends = times[v * m :], jax.tree.map(lambda x: x[: p - 1], rows)
    carry, of_ends = jax.lax.scan(partial(iteration, last, None), carry, ends)
    results = jax.tree.map(lambda x, y: jnp.concatenate([x.reshape(v * m, *x.shape[2:]), y]), results, of_ends)
  done, waiting = carry
  if k > 1:  # the slot in which a microbatch waits is that of its turn, which is later by all iterations now
    waiting = jnp.roll(waiting, -(plan.work % (k - 1)), axis=2)
  y = join(jnp.concatenate([waiting, rotated(done)[:, :, None]], axis=2))

  def of_microbatches(x: Array) -> Array:
    """[iterations, groups, p, n, b, ...] as [N, B, ...]: only what was computed of a microbatch."""
    when = order.reshape(m, 1, 1) + m * np.arange(v)[:, None] + np.arange(p)
    x = jnp.moveaxis(x, 1, 2).at[when, np.arange(p)].get(mode="promise_in_bounds")  # [m, v, p, groups, n, b, ...]
    x = jnp.moveaxis(x, (3, 0, 5), (0, 1, 2))  # [groups, m, b, v, p, n, ...]
    x = join(x.reshape(groups, p, k, *x.shape[2:]))
    return jnp.moveaxis(x.reshape(len(x), v * p * depth, *x.shape[4:]), 1, 0)

  return y, jax.tree.map(of_microbatches, results)
