"""Points that depend on earlier results: the tree-structured Parzen estimator of Optuna (Bergstra et al. 2011).

The results of a sweep are in its folder, so nothing else is stored: each proposal is a function of them and the seed.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.tasks.sweeps.space import Dimension, Values

_TRIES = 100


def check_installed() -> None:
  """Raises UserError without Optuna."""
  try:
    import optuna  # noqa: F401
  except ImportError as error:
    raise UserError("\"optuna\" in get_sweep() needs the package optuna: pip install -e '.[sweep]'") from error


def propose(
  dimensions: Mapping[str, Dimension],
  results: Sequence[tuple[Values, float | None]],
  larger_is_better: bool,
  seed: int,
) -> Values | None:
  """The next point to try.

  Args:
    dimensions: what each key may be.
    results: all points so far with their scores; None: not known yet, or failed.
    larger_is_better: whether scores are to become large.
    seed: of its draws.

  Returns:
    A point that is not among the results; None if none is found.
  """
  import optuna

  optuna.logging.set_verbosity(optuna.logging.WARNING)
  distributions = {key: _distribution(dimension) for key, dimension in dimensions.items()}
  trials = []
  for values, score in results:
    if set(values) != set(dimensions) or not all(_inside(dimensions[key], values[key]) for key in dimensions):
      continue  # of an earlier form of the sweep
    trials.append(
      optuna.trial.create_trial(
        params={key: _encoded(dimensions[key], value) for key, value in values.items()},
        distributions=distributions,
        value=score,
        state=optuna.trial.TrialState.RUNNING if score is None else optuna.trial.TrialState.COMPLETE,
      )
    )
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # constant_liar, which keeps off points that are running, is "experimental"
    sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + len(results)) % 2**32, constant_liar=True)
  study = optuna.create_study(direction="maximize" if larger_is_better else "minimize", sampler=sampler)
  study.add_trials(trials)
  for _ in range(_TRIES):
    drawn = study.ask(distributions).params
    values = {key: _decoded(dimension, drawn[key]) for key, dimension in dimensions.items()}
    if values not in [known for known, _ in results]:
      return values
  return None


def _distribution(dimension: Dimension) -> Any:
  """A dimension in Optuna's form; choices by their index, because they may be of any type."""
  import optuna.distributions as d

  if dimension.kind == "choice":
    return d.CategoricalDistribution(range(len(dimension.values)))
  low, high = dimension.values
  if dimension.kind == "int":
    return d.IntDistribution(low, high)
  return d.FloatDistribution(low, high, log=dimension.kind == "log")


def _encoded(dimension: Dimension, value: Any) -> Any:
  return dimension.values.index(value) if dimension.kind == "choice" else value


def _decoded(dimension: Dimension, value: Any) -> Any:
  if dimension.kind == "choice":
    return dimension.values[value]
  return value if dimension.kind == "int" else dimension.rounded(value)


def _inside(dimension: Dimension, value: Any) -> bool:
  """Whether a value is one that the dimension has."""
  if dimension.kind == "choice":
    return value in dimension.values
  return bool(dimension.values[0] <= value <= dimension.values[1])
