"""Pipeline parallelism: the layers of a stack are cut over the mesh axis `stage`, and microbatches flow through them.

This is GPipe's schedule (Huang et al. 2019) in GSPMD's form (Xu et al. 2021). An array [stages, rows, ...] holds what
each stage works on. All stages compute at once (`jax.vmap` over an axis that is split over `stage`), and a shift by one
place, which is a collective-permute, hands the results on. So a layer does inside a stage what it does on any mesh.

Outside of the stack, `stage` is one more axis of the batch: embeddings, head and loss are not computed twice. A stage
begins with the rows of its own microbatches. When the first stage needs them, they move towards it, and the outputs of
the last stage take their places; at the end each row is where it was.

Mesh axes that split the batch and no parameter make groups: each has the whole pipeline and a copy of its layers, along
a further axis of `vmap`. So gradients are summed over them once, and not in each iteration. Parameters that are split
over the batch's axes (fsdp) are gathered in each iteration, and their gradients scattered.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.errors import UserError
from tfm_jax.ops.experts import share_scope
from tfm_jax.sharding.placement import Placement
from tfm_jax.sharding.strategy import ShardingConfig

STAGE, GROUP = "stage", "group"  # axes of arrays: see `Placement.staged`
PER_STAGE = 4  # microbatches per stage if the config leaves their number open, as far as the rows divide


class Schedule(NamedTuple):
  """How many microbatches flow through how many stages."""

  stages: int
  microbatches: int

  @property
  def iterations(self) -> int:
    """How often each stage computes; without a microbatch to work on in `stages` - 1 of them."""
    return self.microbatches + self.stages - 1

  @property
  def bubble(self) -> float:
    """The share of a stage's time in which it has no microbatch."""
    return (self.stages - 1) / self.iterations


def schedule(st: Placement, rows: int) -> Schedule | None:
  """The schedule for so many rows; None without stages, or if rows do not divide into the parts of the batch.

  Each stage begins with equally many microbatches, at most as many as `Placement.pipeline` says.
  """
  if st.stages == 1 or rows % st.batch_shards:
    return None
  own, most = rows // st.batch_shards, (st.pipeline // st.stages) or PER_STAGE
  return Schedule(st.stages, st.stages * max(n for n in range(1, most + 1) if own % n == 0))


def check_pipeline(config: ShardingConfig, st: Placement, batch_size: int) -> None:
  """Raises UserError if `sharding.pipeline` is set and there are no stages for it, or not so many rows."""
  count, stages = config.pipeline, st.stages
  if count and stages == 1:
    raise UserError(f"sharding.pipeline={count} is for pipelines: {config.strategy} has one stage here, set it to 0")
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
) -> tuple[Array, Any]:
  """A stack of N layers, of which each stage has N / stages in a row, applied to all rows.

  Args:
    run: (the layers of a stage [n, ...], index of its first layer, x [b, ...], rows) -> (x after these layers, results
      [n, b, ...]). It sees one microbatch, and must constrain its arrays with `st.inside`.
    st: the placement of what surrounds the stack.
    plan: see `schedule`.
    layers: tree of [N, ...], cut over `stage`.
    x: [B, ...], its rows split like the batch.
    rows: tree of [B, ...]: what else a microbatch has, such as masks. Each stage holds all of it that belongs to its
      rows; it is not sent along.

  Returns:
    x after all layers, and the results [N, B, ...]. Iterations of a stage without a microbatch do not reach them.
  """
  p, m = plan.stages, plan.microbatches
  k, groups = m // p, st.groups
  at = np.arange(plan.iterations)[:, None] - np.arange(p)[None]  # the microbatch of each iteration and stage
  stages = st.staged(jnp.arange(p), (STAGE,))
  first, last = (stages == n for n in (0, p - 1))

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
    """[B, ...] as [iterations, groups, p, b, ...]: what a stage reads; without a microbatch, what another has."""
    x = split(x, None)
    x = x.reshape(groups, m, *x.shape[3:]).at[:, np.clip(at, 0, m - 1)].get(mode="promise_in_bounds")
    return st.staged(jnp.moveaxis(x, 1, 0), (None, GROUP, STAGE, "batch"))

  def copies(w: Array) -> Array:
    """[N, ...] as [groups, p, n, ...]. A group has a copy, so its gradient is summed once, after all iterations."""
    w = st.staged(w.reshape(p, -1, *w.shape[1:]), (STAGE, None))
    return st.staged(jnp.broadcast_to(w[None], (groups, *w.shape)), (GROUP, STAGE, None))

  def where(condition: Array, x: Array, y: Array) -> Array:
    """x in the stages of which the condition is true, else y."""
    return jnp.where(condition.reshape(1, p, *(1,) * (x.ndim - 2)), x, y)

  def shifted(x: Array, places: int) -> Array:
    """What each stage gets from the stage so many places before it; zeros from none."""
    widths = [(0, 0, 0), (places, -places, 0), *[(0, 0, 0)] * (x.ndim - 2)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)

  own = jax.tree.map(copies, layers)
  depth = jax.tree.leaves(own)[0].shape[2]
  # The mesh axes of an axis of `vmap` are added to all constraints inside.
  of_stages = jax.vmap(run, spmd_axis_name=STAGE)
  compute = jax.vmap(of_stages, in_axes=(0, None, 0, 0), spmd_axis_name=st.group_axes)

  def iteration(carry: tuple[Array, Array], now: tuple[Array, Any]) -> tuple[tuple[Array, Array], Any]:
    done, stream = carry  # [groups, p, b, ...]: the last results; [groups, p, k, b, ...]: inputs, later outputs
    t, rows = now
    slot = jax.lax.rem(t, k)
    front = jax.lax.dynamic_index_in_dim(stream, slot, axis=2, keepdims=False)
    new = jnp.where(t < m, front, jnp.zeros((), front.dtype))  # of which only the first stage's is used
    x = st.staged(where(first, new, shifted(done, 1)), (GROUP, STAGE, "batch"))
    with jax.named_scope(share_scope(m, plan.iterations)):  # read by the count of FLOPs
      done, results = compute(own, stages * depth, x, rows)
    done = st.staged(done, (GROUP, STAGE, "batch"))
    behind = where(last, done, shifted(front, -1))
    stream = jax.lax.dynamic_update_index_in_dim(stream, behind, slot, axis=2)
    return (done, st.staged(stream, (GROUP, STAGE, None, "batch"))), results

  stream = split(x, STAGE)
  carry = jnp.zeros_like(stream[:, :, 0]), stream
  times = jnp.arange(plan.iterations, dtype=jnp.int32), jax.tree.map(scheduled, rows)
  (_, stream), results = jax.lax.scan(iteration, carry, times)
  # The last stage finishes a microbatch p - 1 iterations after it began, and so writes it as many slots further.
  y = join(jnp.roll(stream, -(p - 1), axis=2))

  def of_microbatches(x: Array) -> Array:
    """[iterations, groups, p, n, b, ...] as [N, B, ...]: only what was computed of a microbatch."""
    when = np.arange(m)[:, None] + np.arange(p)[None]
    x = jnp.moveaxis(x, 1, 2).at[when, np.arange(p)[None]].get(mode="promise_in_bounds")  # [m, p, groups, n, b, ...]
    x = jnp.moveaxis(x, (2, 0, 4), (0, 1, 2))  # [groups, m, b, p, n, ...]
    x = join(x.reshape(groups, p, k, *x.shape[2:]))
    return jnp.moveaxis(x.reshape(len(x), p * depth, *x.shape[3:]), 1, 0)

  return y, jax.tree.map(of_microbatches, results)
