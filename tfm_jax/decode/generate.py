"""Generation of text: the prompts in one call, then one token per step with a key-value cache.

A program is compiled per shape (rows, columns of the prompt, columns of what follows: powers of two) and per set of
options in use, whose numbers are arguments. What a row becomes depends on its prompt, its seed and the number of its
sample, not on the rows beside it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tfm_jax.decode import beams, choosing, contrastive, prompts, speculative
from tfm_jax.decode.options import Numbers, Options, Plan, numbers, plan
from tfm_jax.decode.prompts import Batch, Prompt, Symbols
from tfm_jax.decode.speculative import Draft
from tfm_jax.decode.start import State, any_rows, extended, first, prepared, shown, start
from tfm_jax.errors import UserError
from tfm_jax.models.model import Model
from tfm_jax.text.tokenizers.table import Tokenizer

_CHUNK = 64  # steps between two looks at what came out, where nobody waits for each token
_STOP_CHUNK = 8  # where a stop string may end a text


@dataclasses.dataclass(frozen=True)
class Generated:
  """What a model generated for a prompt.

  Attributes:
    prompt: the prompt.
    text: what follows it (of an encoder-decoder: the decoder's text), with the forced prefix.
    ids: the new ids, with the end symbol if there is one.
    logprob: the sum of the log-probabilities of these ids under the model, in nats, whatever they were drawn by.
    logprobs: of each id.
    end: why it ended: "end" (the end symbol), "stop" (a stop string) or "length".
  """

  prompt: str
  text: str
  ids: tuple[int, ...]
  logprob: float
  logprobs: tuple[float, ...]
  end: str


def generate(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  symbols: Symbols,
  texts: Sequence[str],
  options: Options | None = None,
  advance: Callable[[int], object] = lambda rows: None,
  draft: Draft | None = None,
) -> list[list[Generated]]:
  """What a model generates for each prompt: `options.samples` texts, of beam search the best first.

  Args:
    model: a decoder or an encoder-decoder with the head of a language model.
    params: its parameters.
    tokenizer: its tokenizer.
    symbols: how its texts begin.
    texts: the prompts; for an encoder-decoder what the encoder reads.
    options: see `Options`.
    advance: is called with the number of texts that were finished.
    draft: a smaller model that drafts tokens, from `speculative.checked_draft`; None: none does.

  Raises:
    UserError: an impossible option, a model that generates no text, or a prompt that it cannot continue.
  """
  options = options or Options()
  options.check(tokenizer.vocab_size)
  read = prompts.read_prompts(model, tokenizer, symbols, texts, options)
  if draft is not None:
    _check_draft(draft, model, read, options)
  return continued(model, prepared(model, params), tokenizer, read, options, advance, draft)


def continued(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  read: Sequence[Prompt],
  options: Options,
  advance: Callable[[int], object] = lambda rows: None,
  draft: Draft | None = None,
) -> list[list[Generated]]:
  """`generate` of prompts that are already read, in their order, by parameters as they are."""
  model = any_rows(model, options.context)
  found: list[list[Generated]] = [[] for _ in read]
  rows = options.samples if options.beams == 1 else 1
  alike: dict[int, list[Prompt]] = {}  # prompts that equally many tokens may follow: a batch ends all its rows at once
  for prompt in read:
    alike.setdefault(new_tokens(model, prompt, options), []).append(prompt)
  batches = (prompts.batches(model, some, rows, options.batch_size) for some in alike.values())
  for batch in itertools.chain.from_iterable(batches):
    if options.beams > 1:
      results: Any = _search(model, params, tokenizer, batch, options)
    else:
      results = ([one] for one in _finished(model, params, tokenizer, batch, options, draft))
    for prompt, texts_of_row in zip(batch.prompts, results, strict=True):
      found[prompt.number] += texts_of_row
      advance(len(texts_of_row))
  return found


def _check_draft(draft: Draft, model: Model, read: Sequence[Prompt], options: Options) -> None:
  """Raises UserError if a draft cannot serve for these prompts."""
  if options.beams > 1 or options.penalty_alpha:
    raise UserError("a draft is for greedy decoding and sampling: set beams=1, and no penalty_alpha")
  if options.context:
    raise UserError(f"a draft reads the whole text: leave context={options.context} out, or use no draft")
  room = prompts.position_limit(draft.model)
  for prompt in read if room else ():
    needed = max(len(prompt.source), len(prompt.ids) + new_tokens(model, prompt, options))
    if needed > room:
      raise UserError(
        f"prompt {prompt.number + 1} and the text after it may take {needed:,} positions, and the draft has {room:,}: "
        f"lower max_new_tokens, or use no draft"
      )


def stream(
  model: Model, params: Any, tokenizer: Tokenizer, symbols: Symbols, text: str, options: Options | None = None
) -> Iterator[str]:
  """The text that follows a prompt, piece by piece as it is generated. Arguments and errors: see `generate`."""
  options = options or Options()
  check_streams(tokenizer, options)
  (prompt,) = prompts.read_prompts(model, tokenizer, symbols, [text], options)
  yield from streamed(model, prepared(model, params), tokenizer, prompt, options)


def check_streams(tokenizer: Tokenizer, options: Options) -> None:
  """Raises UserError for options by which no text can be streamed."""
  options.check(tokenizer.vocab_size)
  if options.beams > 1 or options.samples > 1:
    raise UserError("a text is streamed as its tokens are chosen: set beams=1 and samples=1")


def streamed(model: Model, params: Any, tokenizer: Tokenizer, prompt: Prompt, options: Options) -> Iterator[str]:
  """`stream` of a prompt that is already read, by parameters as they are."""
  model = any_rows(model, options.context)
  (batch,) = prompts.batches(model, [prompt], 1, 1)
  printed = ""
  for ids, _, ended in _steps(model, params, tokenizer, batch, options, chunk=1):
    whole, stopped = _text(tokenizer, prompt, ids[0], options.stop)
    last = bool(ended[0]) or stopped
    settled = whole if last else _settled(whole, options.stop)
    if len(settled) > len(printed):
      yield settled[len(printed) :]
      printed = settled
    if stopped:
      return
  if len(whole) > len(printed):
    yield whole[len(printed) :]


def _finished(
  model: Model, params: Any, tokenizer: Tokenizer, batch: Batch, options: Options, draft: Draft | None
) -> Iterator[Generated]:
  """One text per row of a batch."""
  rows = range(len(batch.prompts))
  stopped = np.zeros(len(rows), bool)
  chunk = _STOP_CHUNK if options.stop else _CHUNK
  for steps in _steps(model, params, tokenizer, batch, options, chunk, draft):
    ids, logprobs, ended = steps
    if options.stop:
      stopped = np.array([_text(tokenizer, batch.prompts[i], ids[i], options.stop)[1] for i in rows])
      if (stopped | ended[: len(rows)]).all():
        break
  ends = _ends(tokenizer, options.stop)
  for i in rows:
    prompt = batch.prompts[i]
    count = _length(ids[i], ends)
    reason = "end" if count and int(ids[i, count - 1]) in ends else "length"
    if stopped[i]:
      count, reason = _until_stop(tokenizer, prompt, ids[i, :count], options.stop), "stop"
    chosen = np.concatenate([prompt.ids[len(prompt.ids) - prompt.forced :], ids[i, :count]])
    text, _ = _text(tokenizer, prompt, ids[i, :count], options.stop)
    values = logprobs[i, :count]
    yield Generated(
      prompt.text, text, tuple(chosen.tolist()), float(values.sum(dtype=np.float64)), tuple(values.tolist()), reason
    )


def _steps(
  model: Model,
  params: Any,
  tokenizer: Tokenizer,
  batch: Batch,
  options: Options,
  chunk: int,
  draft: Draft | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """(ids [B, n], their log-probabilities, ended [B]) of all tokens so far, after each chunk of steps."""
  new = new_tokens(model, batch.prompts[0], options)
  of_plan = step_plan(tokenizer, options)
  values = numbers(options)
  width, columns = batch.ids_BT.shape[1], prompts.power_of_two(new)
  count = len(batch.ids_BT)
  keys = choosing.row_keys(
    options.seed,
    [*(np.concatenate([p.source, p.ids]) for p in batch.prompts), *[np.zeros(0, int)] * (count - len(batch.prompts))],
    [*batch.samples, *[0] * (count - len(batch.samples))],
  )
  if draft is not None:
    yield from speculative.steps(model, params, draft, batch, of_plan, options, keys, new)
    return
  state: Any
  if of_plan.candidates:
    state = contrastive.start(model, params, batch, width + columns, of_plan.candidates, options.cache_dtype)
    advance = lambda state, steps: contrastive.advance(model, of_plan, params, values, state, np.int32(steps), width)
    state = advance(state, 1)
  else:
    state, logits_BV = start(model, params, batch, width + columns, options.cache_dtype)
    advance = lambda state, steps: _advance(model, of_plan, params, values, keys, state, np.int32(steps), width)
    state = first(model, of_plan, values, keys, state, logits_BV, width)
  done = 1
  while True:
    ids, logprobs, ended = jax.device_get((state.ids_BS, state.logprobs_BS, state.ended_B))
    yield ids[:, width : width + done], logprobs[:, width : width + done], ended
    if done == new or ended[: len(batch.prompts)].all():
      return
    steps = min(chunk, new - done)
    state = advance(state, steps)
    done += steps


def new_tokens(model: Model, prompt: Prompt, options: Options) -> int:
  """How many tokens may follow a prompt: `max_new_tokens`, or what the model's positions leave."""
  room = prompts.position_limit(model)
  return min(options.max_new_tokens, room - len(prompt.ids)) if room else options.max_new_tokens


def step_plan(tokenizer: Tokenizer, options: Options) -> Plan:
  """What the options need of a compiled step."""
  words = []
  for word in options.bad_words:
    # Within a text a word has a space in front, which belongs to its piece.
    forms = {tuple(tokenizer.encode(form).tolist()) for form in (word, f" {word}", word.strip())}
    words += sorted(form for form in forms if form)
  pad = max(tokenizer.pad_id, 0)
  return plan(options, tokenizer.vocab_size, _ends(tokenizer, options.stop), pad, tuple(dict.fromkeys(words)))


def _ends(tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> tuple[int, ...]:
  """The ids that end a text: the end symbol, and special tokens that `stop` names, which no text shows."""
  end = (tokenizer.eos_id,) if tokenizer.eos_id >= 0 else ()
  return tuple(dict.fromkeys(end + _named(tokenizer, stop))) if stop else end


@functools.lru_cache(maxsize=16)
def _named(tokenizer: Tokenizer, words: tuple[str, ...]) -> tuple[int, ...]:
  """The special ids whose names are among the words."""
  return tuple(id for id in tokenizer.special_ids.tolist() if tokenizer.token(id) in words)


@functools.partial(jax.jit, static_argnums=(0, 1, 7), donate_argnums=5)
def _advance(
  model: Model,
  of_plan: Plan,
  params: Any,
  values: Numbers,
  keys_B: Array,
  state: State,
  steps: Array,
  prompt: int,
) -> State:
  """The state after `steps` more tokens, or once all rows have ended. `prompt`: columns of the prompt."""

  def step(carry: tuple[Array, State]) -> tuple[Array, State]:
    i, state = carry
    column = state.cache.length
    last = lambda x_BS: jax.lax.dynamic_slice_in_dim(x_BS, column, 1, axis=1)
    tokens = {
      "inputs": last(state.ids_BS),
      "positions": (column - state.padding_B)[:, None],
      "segment_ids": last(state.filled_BS).astype(jnp.int32),
    }
    outputs, cache = model.decode(params, tokens, state.cache)
    return i + 1, extended(of_plan, values, keys_B, state._replace(cache=cache), outputs["logits"][:, -1], prompt)

  more = lambda carry: (carry[0] < steps) & ~carry[1].ended_B.all()
  return shown(model, jax.lax.while_loop(more, step, (jnp.int32(0), state))[1])


def _search(
  model: Model, params: Any, tokenizer: Tokenizer, batch: Batch, options: Options
) -> Iterator[list[Generated]]:
  """The best beams of each row of a batch."""
  new = new_tokens(model, batch.prompts[0], options)
  found = beams.search(model, params, batch, new, options, step_plan(tokenizer, options))
  ends = _ends(tokenizer)
  for prompt, (ids_KS, scores_KS) in zip(batch.prompts, found, strict=False):
    best = []
    for ids, values in zip(ids_KS[: options.samples], scores_KS, strict=False):
      count = _length(ids, ends)
      chosen = np.concatenate([prompt.ids[len(prompt.ids) - prompt.forced :], ids[:count]])
      text, _ = _text(tokenizer, prompt, ids[:count], ())
      ended = count > 0 and int(ids[count - 1]) in ends
      logprobs = values[:count]
      best.append(
        Generated(
          prompt.text,
          text,
          tuple(chosen.tolist()),
          float(logprobs.sum(dtype=np.float64)),
          tuple(logprobs.tolist()),
          "end" if ended else "length",
        )
      )
    yield best


def _length(ids: np.ndarray, ends: tuple[int, ...]) -> int:
  """The number of ids up to the end symbol, with it."""
  found = np.flatnonzero(np.isin(ids, ends))
  return int(found[0]) + 1 if found.size else len(ids)


def _text(tokenizer: Tokenizer, prompt: Prompt, ids: np.ndarray, stop: Sequence[str]) -> tuple[str, bool]:
  """(the generated text, cut before a stop string; whether there is one)."""
  count = _length(ids, _ends(tokenizer, tuple(stop)))
  text = continuation(tokenizer, prompt, ids[:count])
  places = [at for word in stop if (at := text.find(word)) >= 0]
  return (text[: min(places)], True) if places else (text, False)


def continuation(tokenizer: Tokenizer, prompt: Prompt, ids: np.ndarray) -> str:
  """The text of new ids after those of the prompt, with the space that may stand between both."""
  kept = prompt.ids[: len(prompt.ids) - prompt.forced]
  new = np.concatenate([prompt.ids[len(kept) :], ids])
  before, whole = tokenizer.decode(kept), tokenizer.decode(np.concatenate([kept, new]))
  return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def _until_stop(tokenizer: Tokenizer, prompt: Prompt, ids: np.ndarray, stop: Sequence[str]) -> int:
  """The fewest ids whose text has a stop string."""
  return next(n for n in range(1, len(ids) + 1) if _text(tokenizer, prompt, ids[:n], stop)[1])


def _settled(text: str, stop: Sequence[str]) -> str:
  """The beginning of a text that more tokens cannot change: no half characters, no half stop string."""
  text = text.rstrip("\ufffd")
  for length in range(max(map(len, stop), default=1) - 1, 0, -1):
    if any(word.startswith(text[-length:]) for word in stop if len(word) > length) and len(text) >= length:
      return text[:-length]
  return text
