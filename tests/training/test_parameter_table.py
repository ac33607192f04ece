"""The table of parameters at the start of a run: every parameter, or sums of groups where it would not fit a screen."""

import jax

from tfm_jax.runtime.reporting.parameter_table import MOST_LINES, ParameterRow, parameter_table


def test_one_line_per_parameter():
  text = parameter_table(
    [
      ParameterRow("blocks/attn/wq", (12, 768, 12, 64), ("layer", "embed", "heads", None), (12, 192, 12, 64), 7077888),
      ParameterRow("scale", (), (), (), 4),
    ]
  )
  header, _, first, second, _, total = text.splitlines()
  assert header.split() == ["parameter", "elements", "shape", "axes", "shard", "bytes"]
  cells = ["blocks/attn/wq", "7.08M", "12 x 768 x 12 x 64", "layer, embed, heads, -", "12 x 192 x 12 x 64", "6.75 MiB"]
  assert [cell.strip() for cell in first.split("  ") if cell] == cells
  assert second.split() == ["scale", "1", "scalar", "scalar", "4", "B"]
  assert total.split() == ["total", "7.08M", "6.75", "MiB"]
  column = header.index("shard")
  assert first[column:].startswith("12 x 192")
  assert second[column:].startswith("scalar")


def test_many_parameters_are_grouped_by_the_beginning_of_their_paths():
  rows = [
    ParameterRow(f"{tower}/blocks/{part}/{name}", (1000,), ("embed",), (500,), 2048)
    for tower in ("encoder", "decoder")
    for part in ("attn", "mlp", "norm")
    for name in "abcdef"
  ]
  lines = parameter_table([*rows, ParameterRow("embed", (24_000,), ("embed",), (12_000,), 48_000)]).splitlines()
  assert len(lines) == 2 + 7 + 2
  assert lines[2].split() == ["encoder/blocks/attn/*", "(6)", "6k", "12", "KiB"]
  assert lines[8].split() == ["embed", "24k", "24000", "embed", "12000", "46.9", "KiB"]
  assert lines[-1].split() == ["total", "60k", "119", "KiB"]


def test_the_table_fits_a_screen_for_every_family():
  from tests.support.tiny import VARIANTS, make_model
  from tfm_jax.training.start import parameter_lines

  for variant in VARIANTS:
    model = make_model(variant)
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    text = parameter_lines(model, jax.tree.map(place, model.shapes(), model.shardings()))
    assert len(text.splitlines()) <= MOST_LINES + 5
    assert f"{model.parameter_count():,} parameters" in text
