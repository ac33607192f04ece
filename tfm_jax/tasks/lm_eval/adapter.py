"""A run as a model of lm-eval: likelihoods and texts by our decoding, in this process and on its devices."""

import collections
import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from tfm_jax.decode.generate import continued
from tfm_jax.decode.likelihood import Row, likelihoods_of, read_row
from tfm_jax.decode.options import Options
from tfm_jax.decode.prompts import Prompt, check_generates, prompt_of
from tfm_jax.decode.start import prepared
from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.chat import Form
from tfm_jax.training.load import Run

_TOKENS = 256  # of a text, unless the task says otherwise: as in lm-eval
# What a task's generation_kwargs may say, by the names of transformers, and our option.
_OPTIONS = {
  **dict.fromkeys(("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"), "max_new_tokens"),
  **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "penalty_alpha", "seed")},
  **{name: name for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "min_new_tokens")},
  "no_repeat_ngram_size": "no_repeat_ngram",
}
_DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p")


class RunLM(LM):
  """A run's model for lm-eval.

  All processes hold the whole results, so lm-eval sees a single one.
  """

  def __init__(self, run: Run, batch_size: int = 16, chat: bool = False):
    """Makes the model ready.

    Args:
      run: a decoder or an encoder-decoder that predicts tokens.
      batch_size: most rows at once.
      chat: prompts come from `apply_chat_template`, and have their special tokens.

    Raises:
      UserError: a model that generates no text; no tokenizer, or with `chat` no template.
    """
    super().__init__()
    check_generates(run.model)
    self._run, self._batch_size, self._chat = run, batch_size, chat
    self._tokenizer = copy.copy(run.its_tokenizer())
    self._form = Form(self._tokenizer)
    if chat and not self._form.template:
      raise UserError("the run's tokenizer has no chat template: leave --apply_chat_template out")
    self._tokenizer.reads_names |= chat

  def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    """(log-probability in nats, whether greedy decoding gives it) of each continuation after its context."""
    rows = [self._pair(number, len(requests), *request.args) for number, request in enumerate(requests)]
    return [(one.logprob, one.likeliest) for one in self._likelihoods(rows, disable_tqdm)]

  def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
    """The log-likelihood of each text, in nats: every token once, in windows of the model's length."""
    if self._run.model.encoder_decoder:
      raise UserError("a task asks for the likelihood of whole texts, which an encoder-decoder does not have")
    texts = self._tokenizer.encode_batch([request.args[0] for request in requests])
    windows = [(number, row) for number, ids in enumerate(texts) for row in rolling(self._begun(ids), self._run.window)]
    totals = np.zeros(len(requests))
    found = self._likelihoods([row for _, row in windows], disable_tqdm)
    for (number, _), one in zip(windows, found, strict=True):
      totals[number] += one.logprob
    return totals.tolist()

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """The text that follows each context, by the task's options, cut before its stop strings."""
    groups: dict[str, list[int]] = collections.defaultdict(list)
    asked: collections.Counter[str] = collections.Counter()
    for number, request in enumerate(requests):
      context, settings = request.args
      drawn = options_of(settings).temperature > 0
      # A context that is asked for several times gets other draws each time.
      key = json.dumps([settings, asked[context] if drawn else 0], sort_keys=True)
      asked[context] += 1
      groups[key].append(number)
    params = prepared(self._run.model, self._run.params)
    texts = [""] * len(requests)
    with self._bar(len(requests), disable_tqdm) as bar:
      for key, numbers in groups.items():
        settings, repeat = json.loads(key)
        options = options_of(settings)
        options = dataclasses.replace(options, seed=options.seed + repeat, batch_size=self._batch_size)
        options.check(self._tokenizer.vocab_size)
        read = [self._prompt(place, requests[number].args[0], options) for place, number in enumerate(numbers)]
        found = continued(self._run.model, params, self._tokenizer, read, options, bar.update)
        for number, (one,) in zip(numbers, found, strict=True):
          texts[number] = one.text
    return texts

  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """The messages as text, by the chat template of the run's tokenizer."""
    return self._form.text(chat_history, answer=add_generation_prompt)

  def chat_template(self, chat_template: bool | str = False) -> str:
    """The template's source, for the report."""
    return self._form.template

  @property
  def tokenizer_name(self) -> str:
    """Names the tokenizer in lm-eval's caches of requests."""
    return self._tokenizer.fingerprint

  def get_model_info(self) -> dict[str, Any]:
    """What results.json says about the model."""
    return {"family": self._run.config.family, "step": self._run.step, "parameters": self._run.model.parameter_count()}

  def _likelihoods(self, rows: Sequence[Row], silent: bool) -> list[Any]:
    run = self._run
    with self._bar(len(rows), silent) as bar:
      return likelihoods_of(run.model, run.params, self._tokenizer, rows, self._batch_size, bar.update)

  def _pair(self, number: int, count: int, context: str, continuation: str) -> Row:
    """A context and its continuation, which takes the spaces at the context's end along, as in lm-eval."""
    bare = context.rstrip()
    context, continuation = bare, context[len(bare) :] + continuation
    run, symbols = self._run, self._run.symbols
    begin = -1 if self._chat else symbols.begin if context else self._prefix
    symbols = dataclasses.replace(symbols, begin=begin)
    return read_row(run.model, self._tokenizer, symbols, context, continuation, number, count)

  def _prompt(self, number: int, context: str, options: Options) -> Prompt:
    """The prompt of a context, whose beginning is cut where the window leaves no room for the text."""
    model, window = self._run.model, self._run.window
    room = window - 1 if model.encoder_decoder else window - 1 - min(options.max_new_tokens, window // 2)
    ids = self._tokenizer.encode(context)[-room:]
    begin = -1 if self._chat else self._run.begin_id if len(ids) else self._prefix
    symbols = dataclasses.replace(self._run.symbols, begin=begin)
    return prompt_of(model, self._tokenizer, symbols, ids, number, context, name=f"prompt {number + 1}")

  @property
  def _prefix(self) -> int:
    """The id before a text without context: the symbol that texts begin with, or else the end symbol; -1: none."""
    return self._run.begin_id if self._run.begin_id >= 0 else self._tokenizer.eos_id

  def _begun(self, ids: np.ndarray) -> np.ndarray:
    return np.concatenate([[self._prefix] if self._prefix >= 0 else [], ids]).astype(np.int32)

  def _bar(self, total: int, silent: bool) -> Any:
    # disable=None: no bar where stderr is not a terminal.
    return tqdm(total=total, desc="lm-eval", unit=" rows", delay=2, disable=silent or None)


def rolling(ids: np.ndarray, window: int) -> Iterator[Row]:
  """The windows that score each of the ids but the first once, as in lm-eval.

  They do not overlap, except that the last one reads as many tokens as fit.
  """
  count = len(ids) - 1
  for start in range(0, count, window):
    stop = min(start + window, count)
    first = max(stop - window, 0)
    yield Row(ids[first : stop + 1], start + 1 - first, ids[:0])


def options_of(settings: Mapping[str, Any]) -> Options:
  """The options of generation that a task's generation_kwargs name. Raises UserError for one that we do not have."""
  until = settings.get("until") or ()
  stop = (until,) if isinstance(until, str) else tuple(filter(None, until))
  options: dict[str, Any] = {"max_new_tokens": _TOKENS, "stop": stop}
  known = ("until", "do_sample")
  for name, value in settings.items():
    if name in _OPTIONS:
      kind = type(getattr(Options(), _OPTIONS[name]))
      options[_OPTIONS[name]] = kind(value)
    elif name not in known:
      raise UserError(f"a task's generation_kwargs have {name}, which is not one of {', '.join([*known, *_OPTIONS])}")
  if settings.get("do_sample") and "temperature" not in settings:
    options["temperature"] = 1.0
  if not settings.get("do_sample", options.get("temperature", 0) > 0):
    keep = ("top_k",) if options.get("penalty_alpha") else ()
    options = {name: value for name, value in options.items() if name not in _DRAWING or name in keep}
  return Options(**options)
