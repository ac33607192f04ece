"""Finds the tensor of a Hugging Face checkpoint for each of our parameters, and accounts for every tensor."""

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tfm_jax.errors import UserError
from tfm_jax.hf.config import config_from, table_of_architecture, tables_of_type
from tfm_jax.hf.table import Entry, Table
from tfm_jax.hf.tensors import TensorFiles
from tfm_jax.models.config import ModelConfig, replaced
from tfm_jax.models.model import Model
from tfm_jax.ops.positions import rotary_rates
from tfm_jax.runtime.trees import flat
from tfm_jax.sharding.placement import single_device

log = logging.getLogger(__name__)

_BLOCK = 2**24  # bytes of two tensors that are compared at once


class Source(NamedTuple):
  """Where a parameter is read from: an entry of the table, and each layer's tensor in the files ("" for none)."""

  entry: Entry
  tensors: tuple[str, ...]


class WeightMapping(NamedTuple):
  """Which tensor each parameter is read from.

  Attributes:
    architecture: its name in transformers.
    table: of the architecture.
    config: our configuration.
    sources: parameter path -> source.
    fresh: paths of the head's parameters that the files lack; they are initialised.
  """

  architecture: str
  table: Table
  config: ModelConfig
  sources: dict[str, Source]
  fresh: list[str]


class Names:
  """The tensors of the files under the names of a table.

  The files may leave out the prefix of the base model, or have it where the table has none; name the parts of norms as
  TensorFlow does; and store a tensor a second time under an alias.

  Attributes:
    in_file: the table's name of a tensor -> its name in the files.
    doubles: (the file's name, the table's name of the tensor that it repeats).
    unknown: names in the files that no table has.
  """

  def __init__(self, files: TensorFiles, table: Table, config: ModelConfig) -> None:
    self._table, self._aliases = table, table.aliases(config)
    heads = dict.fromkeys(table.architectures.values())
    variants = [replaced(config, {"head.name": head, "tied": tied}) for head in heads for tied in (config.tied, True)]
    entries = {entry.theirs: entry for variant in variants for entry in table.entries(variant)}
    self._entries = {theirs: entry for theirs, entry in entries.items() if "{}" not in theirs}
    self._layered = [(re.compile(re.escape(name).replace(r"\{\}", r"\d+")), entry) for name, entry in entries.items()]
    ignored = re.compile("|".join((*table.ignored, table.rotary_rates)))
    self.in_file: dict[str, str] = {}
    self.doubles: list[tuple[str, str]] = []
    self.unknown: list[str] = []
    for name in files.names:
      if not ignored.fullmatch(name):
        self._place(name)
    for name, standard in list(self.doubles):
      if standard not in self.in_file:  # it is stored under the alias only
        self.in_file[standard] = name
        self.doubles.remove((name, standard))
    if config.tied and table.embedding not in self.in_file and table.output in self.in_file:
      self.in_file[table.embedding] = self.in_file.pop(table.output)

  def _place(self, name: str) -> None:
    """Records what one tensor is."""
    new = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    prefix = self._table.prefix
    for standard in (new, prefix + new, new.removeprefix(prefix)):
      if standard in self._aliases:
        self.doubles.append((name, self._aliases[standard]))
        return
      if self.entry(standard) is not None:
        if standard in self.in_file:
          self.doubles.append((name, standard))
        else:
          self.in_file[standard] = name
        return
    self.unknown.append(name)

  def entry(self, standard: str) -> Entry | None:
    """The entry of the table with this name."""
    if standard in self._entries:
      return self._entries[standard]
    return next((entry for pattern, entry in self._layered if pattern.fullmatch(standard)), None)

  def of_head(self, standard: str) -> bool:
    """Whether a name of the table belongs to a prediction head."""
    entry = self.entry(standard)
    return entry is not None and entry.of_head


def map_checkpoint(files: TensorFiles, theirs: Mapping[str, Any], architecture: str | None = None) -> WeightMapping:
  """Finds the tensor of each parameter.

  Args:
    files: the tensors.
    theirs: config.json.
    architecture: what to read them as; None: what config.json says, or else what the tensors fit.

  Raises:
    UserError: a configuration that is impossible or not supported; tensors that are missing, unexpected or misshapen:
      all of them are listed.
  """
  listed = theirs.get("architectures") or []
  if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
    raise UserError("config.json: architectures is not a list of names")
  chosen = architecture or (listed[0] if listed else _fitting(files, theirs))
  table, config = table_of_architecture(theirs, chosen), config_from(theirs, chosen)
  _check_size(files, config)
  _check_rotary_rates(files, table, config)
  names = Names(files, table, config)
  output, embedding = (names.in_file.get(name) for name in (table.output, table.embedding))
  if config.tied and output and embedding and not _equal(files, output, embedding):
    log.warning("%s differs from the embedding table: it is kept as an output layer of its own", output)
    config = dataclasses.replace(config, tied=False)
    names = Names(files, table, config)
  return _match(files, names, WeightMapping(chosen, table, config, {}, []))


def _check_size(files: TensorFiles, config: ModelConfig) -> None:
  """Refuses a configuration with absurdly many layers, before each of them is looked for."""
  layers = max(config.num_layers, config.decoder_layers)
  if layers > len(files.names):
    raise UserError(f"config.json speaks of {layers} layers, but {files.directory} has {len(files.names)} tensors")


def _check_rotary_rates(files: TensorFiles, table: Table, config: ModelConfig) -> None:
  """Refuses stored rotary frequencies that our model would not use."""
  for name in files.names:
    if re.fullmatch(table.rotary_rates, name):
      stored, ours = files.read(name), rotary_rates(config.head_features, config.rotary.base)
      if stored.shape != ours.shape or not np.allclose(stored, ours, rtol=1e-5, atol=0):
        raise UserError(f"{name} differs from the frequencies of the base {config.rotary.base:g} in config.json")


def _fitting(files: TensorFiles, theirs: Mapping[str, Any]) -> str:
  """The first architecture of the model type of which no tensor is missing."""
  tables = tables_of_type(theirs)
  choices = {name: table for table in tables for name in table.architectures_of(theirs["model_type"])}
  for architecture, table in choices.items():
    config = config_from(theirs, architecture)
    _check_size(files, config)
    in_file = Names(files, table, config).in_file
    if all(tensor in in_file for _, _, tensor in _required(config, table, _shapes(config, table))):
      return architecture
  raise UserError(f"config.json names no architecture, and the tensors fit none of {', '.join(choices)}")


def _shapes(config: ModelConfig, table: Table) -> dict[str, tuple[int, ...]]:
  """Our parameters' shapes by path."""
  model = Model(table.family, config, single_device(), config.vocab_size)
  return {path: leaf.shape for path, leaf in flat(model.shapes()).items()}


def _required(
  config: ModelConfig, table: Table, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[Entry, int | None, str]]:
  """(entry, layer, name in the table) of every tensor of the model."""
  for entry in table.entries(config):
    if entry.ours[0] in shapes:
      for layer in entry.layers(shapes):
        if entry.exists(config, layer):
          yield entry, layer, entry.name(layer)


def _match(files: TensorFiles, names: Names, mapping: WeightMapping) -> WeightMapping:
  """The mapping with its sources and fresh parameters. Raises UserError with everything that does not fit."""
  config, table, in_file = mapping.config, mapping.table, names.in_file
  shapes = _shapes(config, table)
  required, patch = list(_required(config, table, shapes)), config.image.patch
  present = [(entry, name) for entry, _, name in required if name in in_file]
  absent = [(entry, name) for entry, _, name in required if name not in in_file]
  present_parts = {_part(entry) for entry, _ in present}
  fresh = sorted({path for e, _ in absent if e.of_head and _part(e) not in present_parts for path in e.ours})
  problems = {"missing": [name for entry, name in absent if entry.ours[0] not in fresh]}
  problems["misshapen"] = [
    f"{in_file[name]} {list(files.shape(in_file[name]))} instead of {list(shape)}"
    for entry, name in present
    if not _fits(entry, files.shape(in_file[name]), shape := entry.shape(shapes, config.vocab_size, patch))
  ]
  problems["misshapen"] += [
    f"{in_file[name]} of dtype {files.dtype(in_file[name])}"
    for _, name in present
    if files.dtype(in_file[name]).name not in ("float64", "float32", "float16", "bfloat16")
  ]
  unused, problems["unexpected"] = _leftovers(files, names, mapping, {name for _, _, name in required})
  if any(problems.values()):
    details = "; ".join(f"{kind}: {', '.join(sorted(which))}" for kind, which in problems.items() if which)
    raise UserError(f"{files.directory} does not hold a {mapping.architecture} as its config.json says. {details}")
  for entry, name in present:
    rows = files.shape(in_file[name])[0] if entry.of_vocabulary else config.vocab_size
    if rows != config.vocab_size:
      log.info("%s has %d rows, of which config.json uses the first %d", name, rows, config.vocab_size)
  if unused:
    log.info("left out, as %s has no use for it: %s", mapping.architecture, ", ".join(sorted(unused)))
  if fresh:
    log.warning("starting afresh, as the files lack it: %s", ", ".join(fresh))
  sources: dict[str, Source] = {}
  for entry in table.entries(config):
    if entry.ours[0] in shapes and entry.ours[0] not in fresh:
      tensors = [in_file[entry.name(n)] if entry.exists(config, n) else "" for n in entry.layers(shapes)]
      sources |= dict.fromkeys(entry.ours, Source(entry, tuple(tensors)))
  return mapping._replace(sources=sources, fresh=fresh)


def _part(entry: Entry) -> str:
  """The part of the model that an entry belongs to. Files hold all of a head's part or nothing of it."""
  return entry.ours[0].split("/")[0]


def _leftovers(files: TensorFiles, names: Names, mapping: WeightMapping, used: set[str]) -> tuple[list[str], list[str]]:
  """The tensors that are not used: (those of other heads and of omitted parts, those that are unexpected)."""
  config, table = mapping.config, mapping.table
  unexpected = [name for name in names.unknown if not name.startswith(table.omitted)]
  unused = [f"{part}*" for part in table.omitted if any(name.startswith(part) for name in names.unknown)]
  for standard, name in names.in_file.items():
    repeated = config.tied and standard == table.output  # it equals the embedding table
    if standard not in used and not repeated:
      (unused if names.of_head(standard) else unexpected).append(name)
  for name, standard in names.doubles:
    if not _equal(files, name, names.in_file[standard]):
      if names.of_head(standard) and not config.tied:  # of an output layer's two biases, one is not used
        unused.append(name)
      else:
        unexpected.append(f"{name} (not the same as {names.in_file[standard]})")
  return unused, unexpected


def _fits(entry: Entry, stored: tuple[int, ...], expected: tuple[int, ...]) -> bool:
  """Whether a tensor has the expected shape. The vocabulary of a stored table may be padded."""
  if entry.of_vocabulary and len(stored) == len(expected):
    return stored[1:] == expected[1:] and stored[0] >= expected[0]
  return stored == expected


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
