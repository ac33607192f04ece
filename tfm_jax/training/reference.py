"""Reference curves: the held-out losses of a seeded run of a config, with which later runs of it are compared.

python -m tfm_jax.training.reference --workdir=RUN --out=configs/curves/NAME.json

--workdir=RUN    a finished run, whose held-out losses become the reference of its settings
--out=FILE       the curve; those in configs/curves are found by their settings when a run ends
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfm_jax.errors import UserError
from tfm_jax.runtime.command import Flags, run_command
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.training.config import Config, changed_keys, flat, from_stored, to_dict

log = logging.getLogger(__name__)

CURVES = Path(__file__).parents[2] / "configs" / "curves"
# A run with other values is compared all the same: another seed shows what chance does. Files are known by their
# content, of which the fingerprint of the data speaks.
_FREE = ("seed", "data.path", "data.target_path", "data.eval_path", "data.eval_target_path", "tokenizer.path")
# These may change when a run is resumed, and decide what is compared.
_FIXED = ("train.steps", "eval.batches")


def reference_lines(run: RunDirectory, config: Config) -> list[str]:
  """How far the held-out losses of a run are from the reference of its settings; [] if there is none.

  A file that is damaged is logged: it does not end a run that is finished.
  """
  lines = []
  for file in sorted(CURVES.glob("*.json")):
    try:
      reference = json.loads(file.read_text(encoding="utf-8"))
      other = from_stored(reference["config"])
      if _same(other, config):
        lines.append(f"reference curve ({file.name}, seed {other.seed}): {_compared(run, reference)}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError) as error:
      log.warning("%s is not a reference curve: %s", file, error)
  return lines


def _same(a: Config, b: Config) -> bool:
  """Whether two configurations should have the same curve, but for chance."""
  old, new = to_dict(a), to_dict(b)
  differing = set(changed_keys(old, new)) - set(_FREE)
  return not differing and all(flat(old)[key] == flat(new)[key] for key in _FIXED)


def _compared(run: RunDirectory, reference: Mapping[str, Any]) -> str:
  """The losses at the last step that both have, and the largest difference."""
  fingerprints = run.starts()[-1]["fingerprints"]
  differing = [name for name, value in reference["fingerprints"].items() if fingerprints.get(name) != value]
  if differing:
    return f"not compared, as the {' and the '.join(differing)} of this run differ"
  theirs = {int(step): loss for step, loss in reference["losses"].items()}
  ours = losses(run)
  common = [step for step in theirs if step in ours and step > 0]
  if not common:
    return "no evaluation at the same step"
  last, worst = max(common), max(common, key=lambda step: abs(ours[step] - theirs[step]))
  share = lambda step: f"{ours[step] / theirs[step] - 1:+.2%}"
  return (
    f"held-out loss {theirs[last]:.4f} at step {last:,}, here {ours[last]:.4f} ({share(last)}); "
    f"largest difference {share(worst)}, at step {worst:,}"
  )


def losses(run: RunDirectory) -> dict[int, float]:
  """Step -> loss of the first held-out data."""
  held_out = [record for record in run.read_metrics() if record["split"] != "train" and record.get("loss") is not None]
  return {record["step"]: record["loss"] for record in held_out if record["split"] == held_out[0]["split"]}


def write_reference(run: RunDirectory, out: Path) -> None:
  """Writes the curve of a finished run. Raises UserError."""
  config, curve = from_stored(run.read_config()), losses(run)
  if max(curve, default=0) < config.train.steps:
    raise UserError(f"{run.path} has no evaluation of its last step, {config.train.steps}: finish the run first")
  if config.init_from or config.branch_from:
    raise UserError(f"{run.path} started from another run: a reference starts from its seed alone")
  # Settings that are not named have their defaults, then as now: a curve shows what a changed default does.
  usual = flat(to_dict(from_stored({"family": config.family})))
  chosen = {
    key: value for key, value in flat(to_dict(config)).items() if value != usual[key] or key in ("family", "seed")
  }
  sections: dict[str, Any] = {}
  for key, value in chosen.items():
    section, _, name = key.rpartition(".")
    if key not in _FREE or key == "seed":
      (sections.setdefault(section, {}) if section else sections)[name] = value
  start = run.starts()[-1]
  content = {
    "config": sections,
    "losses": {str(step): round(loss, 6) for step, loss in sorted(curve.items())},
    "fingerprints": start["fingerprints"],
    "versions": {name: start["versions"][name] for name in ("tfm_jax", "jax")},
    "devices": start["devices"],
  }
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")  # a run that ends meanwhile reads all or nothing
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, out)
  except OSError as error:
    raise UserError(f"cannot write --out={out}: {error.strerror or error}") from error


def main(flags: Flags) -> None:
  """Writes the curve of the run that the flags name."""
  for key in flags.overrides:
    raise UserError(f"--config.{key} does not apply here: the configuration comes with the run")
  run, out = RunDirectory(flags.require("workdir")), Path(flags.require("out"))
  write_reference(run, out)
  print(f"written: {out}")


if __name__ == "__main__":
  sys.exit(run_command(main, __doc__, ("workdir", "out")))
