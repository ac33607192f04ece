"""Subwords learned by sentencepiece: unigram (Kudo 2018) and byte pair encoding (Sennrich et al. 2016)."""

import collections
import dataclasses
import io
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import sentencepiece
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.tokenizer import SPECIALS, Tokenizer, TokenizerConfig, sentinel_number, sentinels_on_top

log = logging.getLogger(__name__)

ALGORITHMS = ("unigram", "bpe")

_SPACE = "\u2581"  # sentencepiece's own sign for a space

sentencepiece.SetMinLogLevel(2)


class SentencePieceTokenizer(Tokenizer):
  """A sentencepiece model with sentinels: its own pieces <extra_id_N> if it has any, otherwise ids on top of it.

  Models trained here preserve any text exactly: decode(encode(text)) == text. Line ends are byte pieces: no piece
  spans lines.

  Attributes:
    model: the sentencepiece model.
    appended: number of sentinels on top of the model's own pieces.
    space_bytes: the byte pieces that spell U+2581, sentencepiece's sign for a space, if a text contains it; None for
      models that cannot keep it.
  """

  kind = "sentencepiece"
  model_file = "spm.model"

  def __init__(self, model: bytes, sentinels: int = 0):
    self.model = model
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    spm = self._processor
    pieces = spm.get_piece_size()
    ids = range(pieces)
    own = {n: id for n, id in ((sentinel_number(spm.id_to_piece(id)), id) for id in ids) if n is not None}
    self.appended = 0 if own else sentinels
    self.vocab_size = pieces + self.appended
    if own:
      self.sentinel_ids = np.array([own[n] for n in sorted(own)], np.int32)
    else:
      self.sentinel_ids = sentinels_on_top(self.vocab_size, sentinels)
    self.pad_id, self.unk_id, self.bos_id, self.eos_id = (
      spm.pad_id(),
      spm.unk_id(),
      spm.bos_id(),
      spm.eos_id(),
    )
    self.mask_id = next((spm.piece_to_id(m) for m in ("<mask>", "[MASK]") if spm.piece_to_id(m) != self.unk_id), -1)
    special = {id for id in ids if spm.is_control(id) or spm.is_unknown(id)} | set(self.sentinel_ids.tolist())
    self.special_ids = np.array(sorted(special | ({self.mask_id} - {-1})), np.int32)
    self.space_bytes = self._bytes_of_the_space_sign()

  @classmethod
  def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> "SentencePieceTokenizer":
    return cls(_train(config, texts), config.sentinels)

  @classmethod
  def from_file(cls, path: epath.Path, sentinels: int = 0) -> "SentencePieceTokenizer":
    """The tokenizer of a model file; `sentinels` are added if it has none. Raises UserError."""
    try:
      return cls(path.read_bytes(), sentinels)
    except FileNotFoundError as error:
      raise UserError(f"tokenizer.path={path}: no such file or directory") from error
    except (RuntimeError, UnicodeDecodeError) as error:
      raise UserError(f"tokenizer.path={path}: not a sentencepiece model") from error

  @classmethod
  def restore(cls, content: Mapping[str, Any], model: bytes) -> Self:
    return cls(model, content["sentinels"])

  def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    if self.space_bytes is not None and any(_SPACE in text for text in texts):
      return [self._encode_with_space_signs(text) for text in texts]
    return self._processor.encode(list(texts), return_type="numpy", num_threads=1)

  def _encode_with_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [self._with_spans(text) for text in texts]

  def _with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    signs = self.space_bytes
    parts = text.split(_SPACE) if signs is not None else [text]  # as in `_encode_with_space_signs`
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    begin = 0
    for number, part in enumerate(parts):
      if number and signs is not None:
        ids += signs.tolist()
        spans += [(begin, begin + 1)] * len(signs)
        begin += 1
      encoded = self._processor.encode(part, return_type="offset_mapping")
      ids += encoded["ids"]
      spans += [(begin + start, begin + end) for start, end in encoded["offsets"]]
      begin += len(part)
    return np.array(ids, np.int32), np.array(spans, np.int32).reshape(-1, 2)

  def _encode_with_space_signs(self, text: str) -> np.ndarray:
    """Spells U+2581 in bytes, because sentencepiece would read it as a space."""
    parts = self._processor.encode(text.split(_SPACE), return_type="numpy", num_threads=1)
    return np.concatenate([parts[0], *(a for part in parts[1:] for a in (self.space_bytes, part))])

  def _bytes_of_the_space_sign(self) -> np.ndarray | None:
    """The byte pieces of U+2581; None for models without byte pieces, or that put a space before a text."""
    spm = self._processor
    ids = [spm.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
    if self.unk_id in ids or spm.encode("a", return_type=str)[0].startswith(_SPACE):
      return None
    return np.array(ids, np.int32)

  def _text(self, ids: np.ndarray) -> str:
    return self._processor.decode(ids.tolist())

  def _piece(self, id: int) -> str:
    return self._processor.id_to_piece(id)

  def _state(self) -> tuple[dict[str, Any], bytes]:
    return {"sentinels": self.appended}, self.model

  def __reduce__(self) -> tuple[Any, ...]:  # for worker processes
    return SentencePieceTokenizer, (self.model, self.appended), self._settings()


# Words from which pieces are learned: no piece spans two words. sentencepiece reserves U+2581 and U+2585; control
# characters and line ends are left to the byte pieces. STRICT separates ASCII letters from digits and punctuation, as
# GPT-2 does; LOOSE splits only at spaces. A word includes one space before it; the other spaces of a longer run form a
# word of their own.
_TEXT = r"\x80-\u2580\u2582-\u2584\u2586-\ud7ff\ue000-\U0010ffff"
_STRICT = re.compile(rf" ?[A-Za-z{_TEXT}]+| ?[!-@\[-`{{-~]+| +(?![!-~{_TEXT}])")
_LOOSE = re.compile(rf" ?[!-~{_TEXT}]+| +(?![!-~{_TEXT}])")

_SAMPLE = 64_000_000  # characters to learn from; more text changes little


def _train(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
  """A model of `vocab_size` - `sentinels` pieces, or as many as the texts have. Raises UserError."""
  smallest = len(SPECIALS) + 256 + 1 + config.sentinels
  if config.vocab_size < smallest:
    raise UserError(
      f"tokenizer.vocab_size={config.vocab_size}: sentencepiece needs at least {smallest}, "
      "for bytes, special ids and sentinels"
    )
  lines, words = _sample(texts), _STRICT
  while True:
    try:
      return _fit(config, lines, words)
    except RuntimeError as error:
      limit = _limit(error) + config.sentinels
      if not config.sentinels < limit < config.vocab_size:
        raise UserError(_one_line(config, error)) from error
      if config.algorithm == "unigram" and words is _STRICT:
        log.info("too few pieces for %d ids: pieces may now mix letters and punctuation", config.vocab_size)
        words = _LOOSE
      else:
        config = dataclasses.replace(config, vocab_size=limit)


def _fit(config: TokenizerConfig, lines: Sequence[str], words: re.Pattern[str]) -> bytes:
  """The model of one run of the trainer. Raises RuntimeError if the size is impossible."""
  counts: collections.Counter[str] = collections.Counter()
  for line in lines:
    counts.update(words.findall(line))
  if not counts:
    raise UserError("there is no text to train a tokenizer on")
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=_tsv_lines(counts),
    input_format="tsv",  # a word and its count
    model_writer=model,
    model_type=config.algorithm,
    vocab_size=config.vocab_size - config.sentinels,
    pad_id=0,
    unk_id=1,
    bos_id=2,
    eos_id=3,
    control_symbols=list(SPECIALS[4:]),
    byte_fallback=True,
    # These preserve the text exactly.
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=False,
    allow_whitespace_only_pieces=True,
    split_digits=True,
    split_by_unicode_script=words is _STRICT,
    num_sub_iterations=1,  # finds more pieces and shorter encodings than 2, and is faster
    max_sentence_length=1 << 30,
    num_threads=16,  # the same on every machine, because the sums of unigram training depend on it
    minloglevel=2,
  )
  return _rounded(model.getvalue())


def _rounded(model: bytes) -> bytes:
  """The model with scores rounded to multiples of 1/32, which does not measurably change it.

  sentencepiece adds scores in float32, the `tokenizers` library in float64. Sums of rounded scores are exact in both,
  up to some hundred thousand characters, so both choose alike between segmentations of equal score, such as six spaces
  as 5 + 1 or 1 + 5.
  """
  proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # generated at import
  proto.ParseFromString(model)
  for piece in proto.pieces:
    piece.score = round(piece.score * 32) / 32
  return proto.SerializeToString()


def _tsv_lines(counts: Mapping[str, int]) -> Iterator[str]:
  """Lines of word, tab, count. In one occurrence of each word a space follows it.

  The seeds of unigram training are the substrings that the text continues in at least two ways. A word that always
  ended its line would not be a seed, and only its fragments would be learned.
  """
  for word, count in counts.items():
    if count > 1:
      yield f"{word}\t{count - 1}"
    yield f"{word} \t1"


def _sample(texts: Iterable[str]) -> list[str]:
  """The lines to learn from, see `sample`."""
  return sample(line for text in texts for line in text.split("\n"))


def sample(pieces: Iterable[str]) -> list[str]:
  """All pieces of text, or evenly spaced ones if their total length exceeds `_SAMPLE` characters."""
  kept: list[str] = []
  stride, size = 1, 0
  for number, piece in enumerate(pieces):
    if number % stride == 0:
      kept.append(piece)
      size += len(piece)
      if size > _SAMPLE and len(kept) > 1:
        kept, stride = kept[::2], stride * 2
        size = sum(map(len, kept))
  return kept


def _limit(error: RuntimeError) -> int:
  """The largest vocabulary that the trainer reports as possible; 0 if the error is about something else."""
  match = re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", str(error))
  return int(match[1]) if match else 0


def _one_line(config: TokenizerConfig, error: RuntimeError) -> str:
  """The trainer's error in one line."""
  setting = f"tokenizer.vocab_size={config.vocab_size}"
  if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
    least = int(match[1]) + config.sentinels
    return f"{setting}: at least {least} are needed for characters, bytes and special ids"
  return f"{setting}: sentencepiece cannot train it: {str(error).splitlines()[0]}"
