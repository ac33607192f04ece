"""What attention in tiles keeps of a step over the blocks: inputs and sums of rows, never the masks of many tiles."""

import jax
import pytest

from tests.support.tiny import make_batch, make_model, make_program, single_device
from tests.training.test_context import placed
from tfm_jax.ops import tiles
from tfm_jax.ops.masks import Mask

TILE, LENGTH, HEAD = 8, 64, 16


def arrays(jaxpr, inside=()):
  """(operations around it, shape) of each array that a program computes."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield inside, getattr(variable.aval, "shape", ())
    for value in equation.params.values():
      for part in value if isinstance(value, list | tuple) else (value,):
        if hasattr(inner := getattr(part, "jaxpr", part), "eqns"):
          yield from arrays(inner, (*inside, equation.primitive.name))


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize(("attention", "context"), [("ring", 4), ("tiles", 1)])
def test_no_mask_of_several_tiles_is_computed_for_all_blocks(attention, context, remat, monkeypatch):
  """A scan over blocks computes before it what is the same for all; of a scan inside of it, for all turns."""
  monkeypatch.setattr(tiles, "TILE", TILE)
  st = placed("cp", attention, context=context) if context > 1 else single_device()
  kernel = {} if context > 1 else {"attention": attention}
  model = make_model("llama", st, embed_dim=4 * HEAD, max_positions=LENGTH, remat=remat, **kernel)
  batch = make_batch("llama", rows=2, length=LENGTH)
  program = make_program(model, batch)
  step = jax.jit(program.train_step(1)).trace(program.state, program.batch_shapes)
  found = [(len(inside), shape) for inside, shape in arrays(step.jaxpr.jaxpr) if shape[-2:] == (TILE, TILE)]
  assert found  # tiles there are
  widest = max(len(shape) for _, shape in found)
  assert widest <= 5, [one for one in found if len(one[1]) == widest]  # rows, heads, heads that share keys, tile


def test_what_is_known_of_a_mask_stays_known_inside_of_remat():
  assert not jax.tree.leaves(Mask(causal=True, window=3))
  seen = []

  @jax.checkpoint
  def layer(x, mask):
    seen.append((mask.causal, mask.window, mask.query_offset))
    return x

  layer(1.0, Mask(causal=True, window=3))
  assert seen == [(True, 3, 0)]
