"""The command `python -m tfm_jax.decode`: a prompt or a conversation in the terminal, or prompts to JSON lines."""

import dataclasses
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from tfm_jax.decode.chat import MAX_NEW_TOKENS, chat
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import read_prompts
from tfm_jax.decode.speculative import Draft, checked_draft
from tfm_jax.decode.surprisal_page import surprisal_page
from tfm_jax.errors import UserError
from tfm_jax.runtime.agreement import process_count, process_index

log = logging.getLogger(__name__)

Values = Mapping[str, str]
_BAR = re.compile(r"(?<!<)\|(?!>)")  # between strings; not those of <|im_end|>
_WINDOW = 16  # batches of prompts that are generated together, the longest first, and written in order


def decode(values: Values, load_run: Callable[..., Any]) -> None:
  """Runs the command with these flags; `load_run` is `training.load.load_run`. Raises UserError."""
  if "chat" in values:
    _chat(values, load_run)
    return
  if "system" in values:
    raise UserError(f"--system={values['system']} is said before a conversation: add --chat")
  options = options_of(values)
  texts = [values["prompt"]] if "prompt" in values else read_lines(values["file"])
  if "out" in values:
    _check_out(values["out"])
  kinds = [name for name in ("fill", "score", "choices") if name in values]
  if len(kinds) > 1:
    raise UserError(f"--{kinds[0]} and --{kinds[1]} do not go together")
  run = _load(values, load_run, "workdir", _whole(values, "step"))
  setting = {"run": os.path.abspath(values["workdir"]), "step": run.step, "dtype": run.model.config.dtype}
  if not kinds:
    _hint(run, texts, options)
  draft = None
  if "draft" in values:
    theirs = _load(values, load_run, "draft")
    draft = Draft(theirs.model, theirs.params, _whole(values, "draft_tokens") or Draft._field_defaults["tokens"])
    setting |= {"draft": os.path.abspath(values["draft"]), "draft_step": theirs.step, "draft_tokens": draft.tokens}
    draft = checked_draft(run.model, draft, run.its_tokenizer(), theirs.tokenizer)
  if "score" in kinds and values.get("out", "").endswith(".html"):
    top = _whole(values, "top") or 5
    views = _each(_pairs(run, texts), lambda pair: run.surprisal(pair[1], pair[0], top))
    _write(values["out"], surprisal_page(list(views)))
    return
  if kinds:
    rows: Any = _answers(run, kinds[0], values, texts)
  elif "prompt" in values and "out" not in values and options.beams == options.samples == 1 and draft is None:
    _stream(run, texts[0], options)
    return
  else:
    rows = None
  if "out" not in values:
    for row in rows if rows is not None else _generated(run, texts, options, draft):
      print(row.get("text") if "prompt" in values and not kinds else json.dumps(row, ensure_ascii=False))
    return
  if rows is not None:
    write_lines(values["out"], rows)
    return
  read_prompts(run.model, run.its_tokenizer(), run.symbols, texts, options)  # a mistake in any of them, before all work
  setting = json.loads(json.dumps(setting | dataclasses.asdict(options)))
  resumable(values["out"], texts, setting, lambda rest: _generated(run, rest, options, draft), options.samples)


def _load(values: Values, load_run: Callable[..., Any], name: str, *step: int | None) -> Any:
  """The run that a flag names."""
  return load_run(values[name], *step, strategy=values.get("strategy") or None, dtype=values.get("dtype") or None)


def _chat(values: Values, load_run: Callable[..., Any]) -> None:
  """A conversation with the run."""
  for name in ("out", "fill", "score", "choices", "draft", "draft_tokens"):
    if name in values:
      raise UserError(f"--chat and --{name} do not go together")
  if process_count() > 1:
    raise UserError("--chat reads lines in one process: start it without others")
  options = options_of({"max_new_tokens": str(MAX_NEW_TOKENS), **values})
  run = _load(values, load_run, "workdir", _whole(values, "step"))
  chat(run, options, values.get("system", "").replace("\\n", "\n"))


def options_of(values: Values) -> Options:
  """The options that flags name. Raises UserError for a value of the wrong type."""
  found: dict[str, Any] = {}
  for field in dataclasses.fields(Options):
    if field.name in values:
      text, kind = values[field.name], cast(Any, type(field.default))
      try:
        found[field.name] = tuple(filter(None, _BAR.split(text))) if kind is tuple else kind(text)
      except ValueError as error:
        expected = "a whole number" if kind is int else "a number"
        raise UserError(f"--{field.name}={text}: {expected} is expected") from error
  return Options(**found)


def _hint(run: Any, texts: Sequence[str], options: Options) -> None:
  """Says what to do if texts may become longer than the rows that the run has learned."""
  far = run.model.config.positions in ("rotary", "relative", "none") and not run.model.encoder_decoder
  if options.context or not far or run.imported or run.model.config.window.size or run.tokenizer is None:
    return
  longest = len(run.tokenizer.encode(max(texts, key=len))) + options.max_new_tokens
  if longest > run.window:
    log.info(
      "texts may have %d tokens, and the run has learned rows of %d (data.seq_len): if they lose their way, "
      "--context=%d lets each token read the last ones alone",
      longest,
      run.window,
      run.window,
    )


def read_lines(path: str) -> list[str]:
  """The lines of a file of prompts, in which \\n stands for a new line. Raises UserError."""
  try:
    text = Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"--file={path}: {getattr(error, 'strerror', None) or 'is not UTF-8 text'}") from error
  lines = text.removesuffix("\n").split("\n")
  if lines == [""]:
    raise UserError(f"--file={path} is empty: write one prompt per line")
  return [line.removesuffix("\r").replace("\\n", "\n") for line in lines]


def _stream(run: Any, prompt: str, options: Options) -> None:
  """Prints the prompt (of a decoder) and what follows it, as it is generated."""
  pieces = run.stream(prompt, options)
  first = next(pieces, "")  # what cannot be continued is refused before anything is printed
  print("" if run.model.encoder_decoder else prompt, first, sep="", end="", flush=True)
  for piece in pieces:
    print(piece, end="", flush=True)
  print()


def _generated(run: Any, texts: Sequence[str], options: Options, draft: Draft | None) -> Iterator[dict[str, Any]]:
  """One object per text that is generated, in order."""
  part = _WINDOW * options.batch_size
  with tqdm(total=len(texts), unit=" prompts", delay=2, disable=None) as bar:  # disable=None: no bar without a terminal
    for first in range(0, len(texts), part):
      found = run.generate(list(texts[first : first + part]), options, draft=draft)
      for several in found if options.samples > 1 else ([one] for one in found):
        for number, one in enumerate(several):
          row = {name: getattr(one, name) for name in ("prompt", "text", "ids", "logprob", "end")}
          yield row | ({"sample": number} if options.samples > 1 else {})
        bar.update()


def _answers(run: Any, kind: str, values: Values, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
  """One object per prompt: filled gaps, likelihoods, or choices."""
  if kind == "choices":
    choices = [part for part in values["choices"].split("|") if part]
    for text, ranked in zip(texts, _each(texts, lambda text: run.choose(text, choices)), strict=True):
      yield {"prompt": text, "text": ranked[0][0], "probabilities": dict(ranked)}
  elif kind == "fill":
    top = _whole(values, "top") or 5
    for text, filled in zip(texts, _each(texts, lambda text: run.fill_mask(text, top)), strict=True):
      yield {"prompt": text, "text": filled.text, "guesses": filled}
  else:
    pairs = _pairs(run, texts)
    for (prompt, text), one in zip(pairs, run.score(pairs), strict=True):
      yield {"prompt": prompt, "text": text, "logprob": one.logprob, "tokens": len(one.ids), "likeliest": one.likeliest}


def _each(texts: Sequence[Any], answer: Callable[[Any], Any]) -> Iterator[Any]:
  """The answer to each text. The error of one of several says which one it is."""
  for number, text in enumerate(texts):
    try:
      yield answer(text)
    except UserError as error:
      raise error if len(texts) == 1 else UserError(f"prompt {number + 1}: {error}") from error


def _pairs(run: Any, texts: Sequence[str]) -> list[tuple[str, str]]:
  """(prompt, text) of each line "prompt<TAB>text", or text alone. Raises UserError."""
  pairs = [(prompt, text) if tab else ("", prompt) for prompt, tab, text in (line.partition("\t") for line in texts)]
  if run.model.encoder_decoder and (alone := next((text for prompt, text in pairs if not prompt), "")):
    raise UserError(f'an encoder-decoder scores a text given its source: write "source<TAB>text", not only {alone!r}')
  return pairs


def _check_out(path: str) -> None:
  out = Path(path)
  if out.is_dir() or not out.absolute().parent.is_dir():
    reason = "is a folder" if out.is_dir() else f"{out.parent} is no folder"
    raise UserError(f"--out={path}: {reason}; name a file")


def write_lines(path: str, rows: Iterator[Mapping[str, Any]]) -> None:
  """Writes JSON lines, all of them or none; process 0 does."""
  lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
  _write(path, "".join(lines))


def _write(path: str, text: str) -> None:
  """Writes a file, all of it or nothing; process 0 does."""
  if process_index() == 0:
    temporary = Path(f"{path}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    log.info("written: %s (%d lines)", path, text.count("\n"))


def resumable(path: str, texts: Sequence[str], setting: Mapping[str, Any], generated: Any, samples: int) -> None:
  """Writes one JSON line per generated text to `path`, going on where an earlier call with this setting was stopped.

  Lines are collected in PATH.partial, whose first line is the setting; PATH appears once it is whole. Process 0 writes.
  """
  partial = Path(f"{path}.partial")
  done = _lines_so_far(partial, setting, texts, samples)
  if done:
    log.info("%s: going on after %d of %d prompts", partial, len(done) // samples, len(texts))
  rows = generated(texts[len(done) // samples :])
  first = [] if done else list(itertools.islice(rows, 1))  # what cannot be generated leaves no file
  if process_index():
    for _ in rows:
      pass
    return
  whole = Path(f"{path}.{os.getpid()}")
  whole.write_text(json.dumps(setting) + "\n" + "".join(done), encoding="utf-8")  # without a torn line
  os.replace(whole, partial)
  with partial.open("a", encoding="utf-8") as file:
    for row in itertools.chain(first, rows):
      file.write(json.dumps(row, ensure_ascii=False) + "\n")
      file.flush()
  lines = partial.read_text(encoding="utf-8").split("\n")[1:]
  whole.write_text("\n".join(lines), encoding="utf-8")
  os.replace(whole, path)
  partial.unlink()
  log.info("written: %s (%d lines)", path, len(lines) - 1)


def _lines_so_far(partial: Path, setting: Mapping[str, Any], texts: Sequence[str], samples: int) -> list[str]:
  """The whole lines of an earlier call, of prompts that are done. Raises UserError if it had another setting."""
  try:
    first, *lines = partial.read_text(encoding="utf-8").split("\n")
  except FileNotFoundError:
    return []
  try:
    theirs = json.loads(first)
    rows = [json.loads(line) for line in lines[:-1]]  # the last one is empty or torn
  except ValueError:
    theirs, rows = None, []
  lines = lines[: len(rows) // samples * samples]
  prompts = [row["prompt"] for row in rows[: len(lines) : samples]]
  if theirs != dict(setting) or prompts != list(texts[: len(prompts)]):
    raise UserError(f"{partial} is of other prompts or options: delete it to begin anew, or choose another --out")
  return [line + "\n" for line in lines]


def _whole(values: Values, name: str) -> int | None:
  text = values.get(name)
  if text is not None and not text.isdigit():
    raise UserError(f"--{name}={text}: a whole number is expected")
  return None if text is None else int(text)
