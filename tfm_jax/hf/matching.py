"""Which tensor of a Hugging Face checkpoint belongs to which parameter; each of both is accounted for."""

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.hf.families import FAMILIES, config_from, family_of, head_of
from tfm_jax.hf.table import Family, Row
from tfm_jax.hf.tensors import TensorFiles
from tfm_jax.models.config import ModelConfig, replaced
from tfm_jax.models.model import Model
from tfm_jax.sharding.placement import single_device
from tfm_jax.training.trees import flat

log = logging.getLogger(__name__)

_BLOCK = 2**24  # bytes of two tensors that are compared at once


class Source(NamedTuple):
  """Where a parameter comes from: a row of the table, and the file's name of each layer's tensor ("" for none)."""

  row: Row
  tensors: tuple[str, ...]


class Plan(NamedTuple):
  """What is read from where.

  Attributes:
    architecture: its name there.
    family: our name.
    model: our configuration.
    sources: parameter path -> source.
    fresh: paths of the head that the files do not have.
  """

  architecture: str
  family: str
  model: ModelConfig
  sources: dict[str, Source]
  fresh: list[str]


class Names:
  """The tensors of files under the names of a family's table.

  Names may lack the base model's prefix, or have it where it is not wanted; norms may have the names that TensorFlow
  gave to their parts; a tensor may stand twice, under an alias.

  Attributes:
    found: the table's name -> the file's.
    doubles: (the file's name, the table's name of what it repeats).
    unknown: the file's names that no table has.
  """

  def __init__(self, files: TensorFiles, family: Family, config: ModelConfig) -> None:
    self._family, self._aliases = family, family.aliases(config)
    heads = dict.fromkeys(family.architectures.values())
    variants = [replaced(config, {"head.name": head, "tied": tied}) for head in heads for tied in (config.tied, True)]
    rows = {row.theirs: row for variant in variants for row in family.rows(variant)}
    self._rows = {theirs: row for theirs, row in rows.items() if "{}" not in theirs}
    self._layered = [(re.compile(re.escape(name).replace(r"\{\}", r"\d+")), row) for name, row in rows.items()]
    ignored = re.compile("|".join(family.ignored) or r"(?!)")
    self.found: dict[str, str] = {}
    self.doubles: list[tuple[str, str]] = []
    self.unknown: list[str] = []
    for name in files.names:
      if not ignored.fullmatch(name):
        self._place(name)
    for name, standard in list(self.doubles):
      if standard not in self.found:  # the alias is all there is
        self.found[standard] = name
        self.doubles.remove((name, standard))
    if config.tied and family.table not in self.found and family.output in self.found:
      self.found[family.table] = self.found.pop(family.output)

  def _place(self, name: str) -> None:
    """Notes what one tensor is."""
    new = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    prefix = self._family.prefix
    for standard in (new, prefix + new, new.removeprefix(prefix)):
      if standard in self._aliases:
        self.doubles.append((name, self._aliases[standard]))
        return
      if self.row(standard) is not None:
        if standard in self.found:
          self.doubles.append((name, standard))
        else:
          self.found[standard] = name
        return
    self.unknown.append(name)

  def row(self, standard: str) -> Row | None:
    """The row of the table that has this name."""
    if standard in self._rows:
      return self._rows[standard]
    return next((row for pattern, row in self._layered if pattern.fullmatch(standard)), None)

  def of_head(self, standard: str) -> bool:
    """Whether a name of the table belongs to some head."""
    row = self.row(standard)
    return row is not None and row.of_head


def plan_import(files: TensorFiles, theirs: Mapping[str, Any], architecture: str | None = None) -> Plan:
  """Finds each parameter's tensor.

  Args:
    files: the tensors.
    theirs: config.json.
    architecture: what to read them as; None: what config.json says, or else what the tensors fit.

  Raises:
    UserError: a configuration that is impossible or not supported; tensors that are missing, unexpected or misshapen:
      all of them are listed.
  """
  name = family_of(theirs)
  listed = theirs.get("architectures") or []
  if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
    raise UserError("config.json: architectures is no list of names")
  chosen = architecture or (listed[0] if listed else _fitting(files, theirs, name))
  config = config_from(theirs, name, head_of(name, chosen))
  _check_size(files, config)
  names = Names(files, FAMILIES[name], config)
  output, table = (names.found.get(one) for one in (FAMILIES[name].output, FAMILIES[name].table))
  if config.tied and output and table and not _equal(files, output, table):
    log.warning("%s differs from the embedding table: it is kept as an output layer of its own", output)
    config = dataclasses.replace(config, tied=False)
    names = Names(files, FAMILIES[name], config)
  return _match(files, names, Plan(chosen, name, config, {}, []))


def _check_size(files: TensorFiles, config: ModelConfig) -> None:
  """A configuration that speaks of absurdly many layers is no reason to look for each of them."""
  layers = max(config.num_layers, config.decoder_layers)
  if layers > len(files.names):
    raise UserError(f"config.json speaks of {layers} layers, but {files.directory} has {len(files.names)} tensors")


def _fitting(files: TensorFiles, theirs: Mapping[str, Any], name: str) -> str:
  """The first architecture of a family of which no tensor is missing."""
  family = FAMILIES[name]
  choices = family.architectures_of(theirs["model_type"])
  for architecture in choices:
    config = config_from(theirs, name, family.architectures[architecture])
    _check_size(files, config)
    found = Names(files, family, config).found
    if all(tensor in found for _, _, tensor in _wanted(config, family, _shapes(config, name))):
      return architecture
  raise UserError(f"config.json names no architecture, and the tensors fit none of {', '.join(choices)}")


def _shapes(config: ModelConfig, name: str) -> dict[str, tuple[int, ...]]:
  """Our parameters' shapes by path."""
  model = Model(name, config, single_device(), config.vocab_size)
  return {path: leaf.shape for path, leaf in flat(model.shapes()).items()}


def _wanted(
  config: ModelConfig, family: Family, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[Row, int | None, str]]:
  """(row, layer, the table's name) of every tensor that the model consists of."""
  for row in family.rows(config):
    if row.ours[0] in shapes:
      for layer in row.layers(shapes):
        if row.exists(config, layer):
          yield row, layer, row.name(layer)


def _match(files: TensorFiles, names: Names, plan: Plan) -> Plan:
  """The plan with its sources and what starts afresh. Raises UserError with all that does not fit."""
  config, family = plan.model, FAMILIES[plan.family]
  shapes = _shapes(config, plan.family)
  wanted, patch = list(_wanted(config, family, shapes)), config.image.patch
  absent = [(row, name) for row, _, name in wanted if name not in names.found]
  there = {_part(row) for row, _, name in wanted if name in names.found}
  fresh = sorted({path for row, _ in absent if row.of_head and _part(row) not in there for path in row.ours})
  problems = {"missing": [name for row, name in absent if row.ours[0] not in fresh]}
  problems["misshapen"] = [
    f"{names.found[name]} {list(files.shape(names.found[name]))} instead of {list(shape)}"
    for row, _, name in wanted
    if name in names.found
    and not _fits(row, files.shape(names.found[name]), shape := row.shape(shapes, config.vocab_size, patch))
  ]
  problems["misshapen"] += [
    f"{names.found[name]} of dtype {files.dtype(names.found[name])}"
    for _, _, name in wanted
    if name in names.found and files.dtype(names.found[name]).name not in ("float64", "float32", "float16", "bfloat16")
  ]
  left, problems["unexpected"] = _leftovers(files, names, plan, {name for _, _, name in wanted})
  if any(problems.values()):
    said = "; ".join(f"{kind}: {', '.join(sorted(which))}" for kind, which in problems.items() if which)
    raise UserError(f"{files.directory} does not hold a {plan.architecture} as its config.json says. {said}")
  for row, _, name in wanted:
    rows = files.shape(names.found[name])[0] if name in names.found and row.of_vocabulary else config.vocab_size
    if rows != config.vocab_size:
      log.info("%s has %d rows, of which config.json uses the first %d", name, rows, config.vocab_size)
  if left:
    log.info("left out, as %s has no use for it: %s", plan.architecture, ", ".join(sorted(left)))
  if fresh:
    log.warning("starting afresh, as the files lack it: %s", ", ".join(fresh))
  sources: dict[str, Source] = {}
  for row in family.rows(config):
    if row.ours[0] in shapes and row.ours[0] not in fresh:
      tensors = [names.found[row.name(n)] if row.exists(config, n) else "" for n in row.layers(shapes)]
      sources |= dict.fromkeys(row.ours, Source(row, tuple(tensors)))
  return plan._replace(sources=sources, fresh=fresh)


def _part(row: Row) -> str:
  """The first name of the row's parameters: of a head, such a part is there wholly or not at all."""
  return row.ours[0].split("/")[0]


def _leftovers(files: TensorFiles, names: Names, plan: Plan, used: set[str]) -> tuple[list[str], list[str]]:
  """(what belongs to another head, what is not expected) of the tensors that are not used."""
  config, family = plan.model, FAMILIES[plan.family]
  left: list[str] = []
  unexpected = list(names.unknown)
  for standard, name in names.found.items():
    twice = config.tied and standard == family.output  # and found to be equal
    if standard not in used and not twice:
      (left if names.of_head(standard) else unexpected).append(name)
  for name, standard in names.doubles:
    if not _equal(files, name, names.found[standard]):
      if names.of_head(standard) and not config.tied:  # an output layer of its own has the bias it uses and one unused
        left.append(name)
      else:
        unexpected.append(f"{name} (not the same as {names.found[standard]})")
  return left, unexpected


def _fits(row: Row, stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
  """Whether a tensor has the shape that is wanted; a vocabulary's table may have more rows, which only pad."""
  if row.of_vocabulary and len(stored) == len(wanted):
    return stored[1:] == wanted[1:] and stored[0] >= wanted[0]
  return stored == wanted


def _equal(files: TensorFiles, a: str, b: str) -> bool:
  """Whether two tensors hold the same numbers, compared some rows at a time."""
  shape = files.shape(a)
  if shape != files.shape(b):
    return False
  if not shape or not files.nbytes(a):
    return bool(np.array_equal(files.read(a), files.read(b)))
  step = max(1, _BLOCK * shape[0] // files.nbytes(a))
  parts = [(slice(i, i + step),) for i in range(0, shape[0], step)]
  return all(np.array_equal(files.read(a, part), files.read(b, part)) for part in parts)
