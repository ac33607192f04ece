"""Reading the models of runs: `load_run` for evaluation, export and notebooks, `initial_params` for other runs."""

import dataclasses
import hashlib
import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from tfm_jax.decode import filling, scoring
from tfm_jax.decode import generate as decoding
from tfm_jax.decode.likelihood import Likelihood, choose, likelihoods
from tfm_jax.decode.options import Options, changed
from tfm_jax.decode.prompts import Symbols, position_limit
from tfm_jax.decode.speculative import Draft
from tfm_jax.decode.surprisal import Surprisal, surprisal
from tfm_jax.errors import UserError
from tfm_jax.models.config import param_axes
from tfm_jax.models.families.table import find_family
from tfm_jax.models.heads.head import of_head
from tfm_jax.models.model import Model, Params
from tfm_jax.models.networks.encoder_decoder import encoder_params
from tfm_jax.objectives.table import OBJECTIVES
from tfm_jax.runtime.devices import all_devices, first_device, use_compilation_cache
from tfm_jax.runtime.run_directory import RunDirectory
from tfm_jax.runtime.trees import flat, nested
from tfm_jax.sharding.strategy import ShardingConfig
from tfm_jax.text.tokenizers.table import Tokenizer, load_tokenizer
from tfm_jax.training.best import best_step
from tfm_jax.training.checkpoint import MANIFEST, Checkpoints
from tfm_jax.training.compiled.model import build_model
from tfm_jax.training.config import Config, from_stored
from tfm_jax.training.optimization.lora import adapter_shapes, axes_of, merge

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained model, read by `load_run`: `run.model.logits(run.params, batch)`, `run.fill_mask(text)`.

  Attributes:
    config: the run's configuration.
    model: its pure functions, on the devices that the parameters lie on.
    params: nested dict of float32 arrays.
    tokenizer: None in runs that were imported without one.
    step: the step of the checkpoint.
    begin_id: the id of the symbol that the model has learned to begin its texts with; -1: none.
    start_id: of an encoder-decoder, the id of the symbol that its targets begin with.
    imported: whether the model descends from an import.
  """

  config: Config
  model: Model
  params: Params
  tokenizer: Tokenizer | None
  step: int
  begin_id: int = -1
  start_id: int = -1
  imported: bool = False

  def __repr__(self) -> str:
    """The run in one line."""
    size = self.tokenizer.vocab_size if self.tokenizer else None
    parameters = f"{self.model.parameter_count():,} parameters"
    return f"Run(family={self.config.family}, step={self.step}, {parameters}, vocabulary={size})"

  def fill_mask(self, text: str, top: int = 5) -> filling.Filled:
    """What fills the gaps of a text: each "[MASK]" of a masked language model, or T5's <extra_id_0>, <extra_id_1>, ...

    Returns:
      One list per gap of (piece, probability), the likeliest first; of T5 what it writes there. Its attribute `text` is
      the text with the likeliest in every gap.

    Raises:
      UserError: see `decode.filling.fill_mask`.
    """
    return filling.fill_mask(self.model, self.params, self.its_tokenizer(), self.symbols, text, top)

  def perplexity(self, text: str, window: int | None = None) -> float:
    """The perplexity of a text per token, of a masked model its pseudo-perplexity: see `decode.scoring.perplexity`.

    Args:
      text: the text; a causal model reads a long one in windows.
      window: tokens of a window; None: `data.seq_len`, which the run was trained on.

    Raises:
      UserError: an encoder-decoder or a model that predicts no tokens, or a text that is too short or too long.
    """
    window = window or self.config.data.seq_len
    return scoring.perplexity(self.model, self.params, self.its_tokenizer(), text, window, self.begin_id)

  def generate(
    self, prompts: Sequence[str] | str, options: Options | None = None, draft: Draft | None = None, **changes: Any
  ) -> Any:
    """What the model generates for each prompt: `run.generate(["Once"], max_new_tokens=20, temperature=0.8)[0].text`.

    Args:
      prompts: the prompts, of an encoder-decoder what its encoder reads; a single string is one prompt.
      options: see `decode.options.Options`.
      draft: a smaller model that drafts tokens: see `decode.speculative`.
      changes: options to change, by name.

    Returns:
      One `Generated` per prompt; with samples > 1 a list for each, of beam search the best first.

    Raises:
      UserError: an impossible option, a model that generates no text, or a prompt that it cannot continue.
    """
    options = changed(options, changes)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    tokenizer, symbols = self.its_tokenizer(), self.symbols
    found = decoding.generate(self.model, self.params, tokenizer, symbols, texts, options, draft=draft)
    return found if options.samples > 1 else [one for (one,) in found]

  def stream(self, prompt: str, options: Options | None = None, **changes: Any) -> Iterator[str]:
    """The text that follows a prompt, piece by piece as it is generated; arguments and errors as of `generate`."""
    options = changed(options, changes)
    return decoding.stream(self.model, self.params, self.its_tokenizer(), self.symbols, prompt, options)

  def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
    """How likely each text is after its prompt, for (prompt, text) pairs: see `decode.likelihood.likelihoods`."""
    return likelihoods(self.model, self.params, self.its_tokenizer(), self.symbols, pairs)

  def surprisal(self, text: str, prompt: str = "", top: int = 5) -> Surprisal:
    """How surprising each token of a text is, and what the model expected: a notebook shows it as a coloured text.

    Of decoders, encoder-decoders (whose encoder reads the prompt) and masked language models (one mask at a time): see
    `decode.surprisal.surprisal`.
    """
    found = surprisal(self.model, self.params, self.its_tokenizer(), self.symbols, text, prompt, top)
    facts = {"family": self.model.family, "step": f"{self.step:,}", "parameters": f"{self.model.parameter_count():,}"}
    return dataclasses.replace(found, facts=facts)

  def choose(self, prompt: str, choices: Sequence[str], normalised: bool = False) -> list[tuple[str, float]]:
    """The choices with their probabilities among themselves, the likeliest first: see `decode.likelihood.choose`."""
    return choose(self.model, self.params, self.its_tokenizer(), self.symbols, prompt, choices, normalised)

  @property
  def window(self) -> int:
    """The most tokens that the model has learned to read at once: `data.seq_len`, of an import all its positions."""
    c = self.model.config
    positions = c.max_positions - c.position_offset if c.positions in ("learned", "rotary") else 0
    length = self.config.data.seq_len
    return positions if self.imported and positions else min(length, position_limit(self.model) or length)

  @property
  def symbols(self) -> Symbols:
    """How the model's texts begin."""
    prefix = OBJECTIVES[self.config.objective.name].reads_prefixes and not self.imported
    return Symbols(self.begin_id, self.start_id, prefix)

  def its_tokenizer(self) -> Tokenizer:
    """The tokenizer. Raises UserError if there is none."""
    if self.tokenizer is None:
      raise UserError("the run has no tokenizer, so it cannot read text: import it from a folder with tokenizer files")
    return self.tokenizer


def load_run(
  workdir: epath.PathLike, step: int | None = None, strategy: str | None = None, dtype: str | None = None
) -> Run:
  """The model of a run directory at one of its checkpoints.

  Args:
    workdir: the run directory, local or gs://.
    step: the step of the checkpoint; None: that of the best evaluation if the run has `eval.metric`, or else the last.
    strategy: a strategy or a composition that shards the parameters over all devices; None: one device holds them.
    dtype: the compute dtype, "bfloat16" or "float32"; None: that of the run. Parameters are float32 always.

  Raises:
    UserError: there is no such run or checkpoint, or it is damaged.
  """
  use_compilation_cache()
  run = RunDirectory(workdir)
  config = from_stored(run.read_config())
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype or config.model.dtype))
  folder = run.stored_tokenizer()
  tokenizer = load_tokenizer(folder) if folder else None
  sharding = ShardingConfig(strategy=strategy or "dp")
  devices = all_devices() if strategy else [first_device()]
  config = dataclasses.replace(config, sharding=sharding)
  model = build_model(config, tokenizer.vocab_size if tokenizer else 0, devices)
  step, params = load_params(run, model, step)
  imported = bool(run.origin())
  symbols = symbols_of(config, tokenizer, imported)
  return Run(config, model, params, tokenizer, step, symbols.begin, symbols.start, imported)


def symbols_of(config: Config, tokenizer: Tokenizer | None, imported: bool) -> Symbols:
  """How the texts of a model begin.

  The objective says which symbols it adds. Models that descend from an import have learned others: decoders begin with
  bos, and the targets of encoder-decoders with pad, of BART with eos.
  """
  if tokenizer is None:
    return Symbols()
  objective = OBJECTIVES[config.objective.name]
  encodes = find_family(config.family).encoder_decoder
  begins = objective.adds_bos or objective.begins_with_bos or (imported and not encodes)
  start = {"pad": -1, "bos": -1 if imported else tokenizer.bos_id, "eos": tokenizer.eos_id}[objective.targets_begin]
  start = start if start >= 0 else max(tokenizer.pad_id, 0)
  return Symbols(tokenizer.bos_id if begins else -1, start, objective.reads_prefixes and not imported)


def load_params(run: RunDirectory, model: Model, step: int | None = None) -> tuple[int, Any]:
  """(step, parameters) of a checkpoint, see `chosen_step`, under the shardings of the model. Raises UserError."""
  config = from_stored(run.read_config())
  with Checkpoints(run.checkpoints) as checkpoints:
    step = chosen_step(run, checkpoints) if step is None else step
    expected = flat(model.abstract())
    average = checkpoints.shapes(step, "ema")
    if not config.adapter.rank and not average:
      return step, checkpoints.restore(step, {"params": nested(expected)})["params"]
    of_adapters = adapter_shapes(config.adapter, model.shapes())
    place = lambda path, leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=model.placement.sharding(axes_of(path).names)
    )
    expected |= {path: place(path, leaf) for path, leaf in of_adapters.items()}
    stored = checkpoints.shapes(step, "params") if config.adapter.rank else expected
    trees = {"params": {path: expected[path] for path in stored if path in expected}}
    trees["ema"] = {path: expected[path] for path in average if path in expected}
    restored = checkpoints.restore(step, {name: nested(tree) for name, tree in trees.items()})
  params = flat(restored["params"]) | flat(restored["ema"])
  if config.adapter.rank:
    source, base_step = base_of(run, config)
    params = flat(initial_params(source, model, config.seed, step=base_step, layers=config.init_layers)) | params
  merged = jax.jit(lambda params: merge(config.adapter, params, model.placement), out_shardings=model.shardings())
  return step, merged(nested(params))


def base_of(run: RunDirectory, config: Config) -> tuple[RunDirectory, int]:
  """The run that this one started from, and the step that it took of it. Raises UserError if it is not there."""
  starts = run.starts()
  stored = next((entry["base"] for entry in starts if entry.get("base")), None)
  source = RunDirectory(stored["path"] if stored else config.init_from)
  if not source.exists and config.init_from:
    source = RunDirectory(config.init_from)  # it was moved, together with this run
  if not source.exists and stored and config.adapter.rank:
    raise UserError(f"{run.path} has adapters of the model in {source.path}, which is not there: put it back")
  if not source.exists:
    raise UserError(f"init_from={config.init_from} is not a run directory: it has no config.json")
  if stored:
    return source, stored["step"]
  with Checkpoints(source.checkpoints) as checkpoints:
    return source, chosen_step(source, checkpoints)


def teacher_entry(run: RunDirectory, config: Config) -> dict[str, Any]:
  """What run.json says about `distill.teacher`: `path`, and `step` and `fingerprint` of its checkpoint.

  A run goes on with the step that it started with, however the teacher goes on, and a branch with that of its source.

  Raises:
    UserError: there is no such checkpoint, or it is not the one that the run started with.
  """
  teacher = RunDirectory(config.distill.teacher)
  source = run if run.starts() or not config.branch_from else RunDirectory(config.branch_from)
  stored: dict[str, Any] = next((entry["teacher"] for entry in source.starts() if entry.get("teacher")), {})
  if source is not run and stored.get("path") != str(teacher.path):
    stored = {}  # a branch may have another teacher
  with Checkpoints(teacher.checkpoints) as checkpoints:
    step = stored["step"] if stored else chosen_step(teacher, checkpoints)
  manifest = teacher.checkpoints / str(step) / MANIFEST
  fingerprint = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else ""
  if stored and fingerprint != stored["fingerprint"]:
    raise UserError(
      f"distill.teacher={config.distill.teacher} has another checkpoint {step} than when the run in {source.path} was "
      f"started, or none: put it back, or choose another {'distill.teacher' if source is not run else '--workdir'}"
    )
  return {"path": str(teacher.path), "step": step, "fingerprint": fingerprint}


def chosen_step(run: RunDirectory, checkpoints: Checkpoints) -> int:
  """The step that stands for a run: that of its best evaluation if it has `eval.metric`, or else the last.

  Raises:
    UserError: there is no checkpoint yet.
  """
  latest = checkpoints.latest()
  if latest is None:
    raise UserError(f"{run.path} has no checkpoint yet")
  best = best_step(run, checkpoints.steps())
  return latest if best is None else best


def initial_params(
  run: RunDirectory,
  model: Model,
  seed: int,
  frozen: Collection[str] = (),
  step: int | None = None,
  layers: str = "",
) -> Any:
  """Parameters for a new run, from a checkpoint of another run (see `chosen_step`), whose head may differ.

  A model of one stack takes the encoder of an encoder-decoder (`t5_encoder` from `t5`), without the decoder. A model
  without token types reads all tokens as those of a first text: the vector of that type is added to the positions.
  Parameters of the head that the checkpoint lacks, or has in another shape, are initialised; those of its head that the
  model lacks are not loaded. Both are logged.

  Args:
    run: the run to start from.
    model: the model of the new run.
    seed: of the parameters that are initialised.
    frozen: paths of the parameters that the new run does not train.
    step: the step of the checkpoint; None: that of `chosen_step`.
    layers: numbers of the layers that a shallower stack of blocks takes, with commas; empty: all.

  Raises:
    UserError: a difference outside the head, a frozen parameter that the checkpoint does not have, or layers that no
      stack can take.
  """
  config = from_stored(run.read_config())
  vocab_size = config.model.vocab_size or model.vocab_size
  source = dataclasses.replace(model, family=config.family, config=config.model, vocab_size=vocab_size)
  of_encoder = source.encoder_decoder and not model.encoder_decoder
  with Checkpoints(run.checkpoints) as checkpoints:
    step = chosen_step(run, checkpoints) if step is None else step
    log.info("starting from the %s of %s, step %d", "encoder" if of_encoder else "parameters", run.path, step)
    expected, stored = flat(model.abstract()), checkpoints.shapes(step, "params")
    ready: dict[str, Any] | None = None
    # What is stored is not what is taken, but the source's model or a part of it.
    untyped = config.model.token_types > 0 == model.config.token_types and "embed/position" in expected
    if of_encoder or untyped or layers or config.adapter.rank or checkpoints.shapes(step, "ema"):
      ready = flat(load_params(run, source, step)[1])
      ready = encoder_params(ready) if of_encoder else ready
      if untyped:
        ready["embed/position"] = ready["embed/position"] + ready.pop("embed/type")[:1]
      ready = _with_layers(ready, expected, layers) if layers else ready
      stored = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in ready.items()}
    fresh = {p for p in expected if of_head(p) and (p not in stored or stored[p].shape != expected[p].shape)}
    if fresh & set(frozen):
      raise UserError(
        f"optimizer.frozen or optimizer.trained leaves {', '.join(sorted(fresh & set(frozen)))} untrained, which "
        f"{run.path} does not have: train it too"
      )
    unused = {p for p in stored if of_head(p) and (p not in expected or p in fresh)}
    if ready is None:
      # A checkpoint is restored whole: what is not used is read too.
      targets = {p: leaf for p, leaf in expected.items() if p not in fresh} | {p: stored[p] for p in unused}
      ready = flat(checkpoints.restore(step, {"params": nested(targets)})["params"])
    else:
      wanted = {p: leaf for p, leaf in expected.items() if p not in fresh}
      checkpoints.check(step, "params", wanted, {p: leaf for p, leaf in stored.items() if p not in unused})
  if unused - fresh:
    log.info("left behind: %s", ", ".join(sorted(unused - fresh)))
  if fresh:
    log.info("starting afresh: %s", ", ".join(sorted(fresh)))
  return nested({p: ready[p] for p in expected if p not in fresh} | fresh_params(model, seed, fresh))


def _with_layers(params: dict[str, jax.Array], expected: dict[str, Any], layers: str) -> dict[str, jax.Array]:
  """The parameters, with these layers alone of each stack of blocks that is deeper than expected. Raises UserError."""
  name = f"init_layers={layers}"
  numbers = [int(part) if part.strip().isdecimal() else -1 for part in layers.split(",")]
  cut = {
    path: x
    for path, x in params.items()
    if path in expected and param_axes(path).layers and x.shape[0] != expected[path].shape[0]
  }
  if not cut:
    raise UserError(f"{name} chooses among the layers of init_from, and the model is as deep: leave it empty")
  for path, x in cut.items():
    if not all(0 <= number < x.shape[0] for number in numbers):
      raise UserError(f"{name}: expected numbers from 0 to {x.shape[0] - 1} with commas, the layers of init_from")
    if len(numbers) != expected[path].shape[0]:
      raise UserError(f"{name} has {len(numbers)} layers, and the model {expected[path].shape[0]}")
  shardings = {path: expected[path].sharding for path in cut}
  log.info("taking the layers %s", layers)
  return params | jax.jit(lambda all: {p: x[np.array(numbers)] for p, x in all.items()}, out_shardings=shardings)(cut)


def fresh_params(model: Model, seed: int, paths: Collection[str]) -> dict[str, jax.Array]:
  """Newly initialised parameters at the given paths alone, each created under its sharding."""
  shardings = flat(model.shardings())
  pick = lambda key: {path: leaf for path, leaf in flat(model.init(key)).items() if path in paths}
  return jax.jit(pick, out_shardings={path: shardings[path] for path in paths})(jax.random.key(seed)) if paths else {}
