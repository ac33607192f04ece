"""Golden Hugging Face checkpoints, imported as they are or changed."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.hf_compare import GOLDEN, Config, Tensors, write
from tfm_jax.hf.importing import import_checkpoint
from tfm_jax.training.load import Run, load_run


@pytest.fixture
def imported(tmp_path) -> Callable[..., Run]:
  """(tensors, config, what else import_checkpoint takes) -> the imported run."""
  count = iter(range(100))

  def make(tensors: Tensors, config: Config, **more: Any) -> Run:
    folder = tmp_path / str(next(count))
    import_checkpoint(write(folder / "source", tensors, config), folder / "run", **more)
    return load_run(folder / "run")

  return make


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Callable[[str], Run]:
  """A golden case as it is, imported once."""
  runs: dict[str, Run] = {}

  def get(name: str) -> Run:
    if name not in runs:
      workdir = tmp_path_factory.mktemp(name) / "run"
      import_checkpoint(GOLDEN / name, workdir)
      runs[name] = load_run(workdir)
    return runs[name]

  return get
