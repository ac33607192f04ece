"""Converts a sentencepiece model to a tokenizer.json, so that the `tokenizers` library gives the same ids.

These differences remain:
- Names of special tokens in a text, such as "</s>": transformers reads the special token, as it does with every
  tokenizer. Models trained here read the name as text, until they have been exported and imported again.
- Ties in unigram models of others. sentencepiece adds scores in float32 from the beginning of a text, the library in
  float64. They may choose differently between segmentations of equal score, such as six spaces as 5 + 1 or 1 + 5, and
  after some hundred thousand characters also between two that differ in the third decimal. Models trained here have
  scores whose sums are exact in both, for up to some hundred thousand characters.
- Normalizers with a table (nmt_nfkc and similar): the library looks up whole graphemes, so a character of the table
  that is followed by combining marks, such as a superscript 2 with an accent, may lose them.
- U+2581, sentencepiece's own sign for a space: models with byte pieces that put no space before the text (such as those
  trained here) keep it; other models read it as a space. This is the same in both libraries.
"""

from typing import Any

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from tfm_jax.errors import UserError
from tfm_jax.text.tokenizers.subwords import SentencePieceTokenizer

SPACE = "\u2581"

_UNIGRAM, _BPE = 1, 2  # trainer_spec.model_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of pieces


def parse(model: bytes) -> Any:
  """The protocol buffer of a sentencepiece model. Raises ValueError."""
  proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # generated at import
  try:
    proto.ParseFromString(model)
  except DecodeError as error:
    raise ValueError(str(error)) from error
  return proto


def converted(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
  """The `tokenizers` tokenizer with the same ids, without a post-processor.

  Raises:
    UserError: a model that the library cannot express.
  """
  proto = parse(tokenizer.model)
  spec, byte_fallback = proto.trainer_spec, proto.trainer_spec.byte_fallback
  if spec.model_type not in (_UNIGRAM, _BPE):
    raise UserError("a sentencepiece model of words or characters cannot be written as a tokenizer.json: train another")
  if spec.treat_whitespace_as_suffix or not proto.normalizer_spec.escape_whitespaces:
    raise UserError(
      "a sentencepiece model with spaces after words cannot be written as a tokenizer.json: train another"
    )
  # Pieces spell a space as U+2581, as usual, unless the model distinguishes that character from a space.
  space = " " if tokenizer.space_bytes is not None else SPACE
  tokens = _tokens(tokenizer, proto, space)
  added = [
    AddedToken(token, normalized=False, special=True)
    for token, piece in zip(tokens, proto.pieces, strict=True)
    if piece.type in (UNKNOWN, CONTROL)
  ]
  if spec.model_type == _UNIGRAM:
    result = tokenizers.Tokenizer(models.Unigram(_scored(tokens, proto), tokenizer.unk_id, byte_fallback))
    if byte_fallback:  # a text that spells the name of a byte piece is text, not that byte
      result.pre_tokenizer = pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous")
  else:
    ids = {token: id for id, token in enumerate(tokens)}
    unknown = tokens[tokenizer.unk_id]
    result = tokenizers.Tokenizer(
      models.BPE(ids, _merges(tokens, proto), unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)
    )
    added += _unbroken(tokens, proto)
  sentinels = [f"<extra_id_{n}>" for n in range(len(tokenizer.sentinel_ids))]
  order = sorted(range(len(sentinels)), key=lambda n: int(tokenizer.sentinel_ids[n]))
  result.add_tokens(added + [AddedToken(sentinels[n], normalized=False, special=True) for n in order])
  result.normalizer = _normalizer(proto.normalizer_spec, space)
  result.decoder = _decoder(proto.normalizer_spec.add_dummy_prefix, space)
  return result


def _tokens(tokenizer: SentencePieceTokenizer, proto: Any, space: str) -> list[str]:
  """The library's name of each piece. Sentinels lose the space that T5 writes before them."""
  tokens = [p.piece.replace(SPACE, space) if p.type in (NORMAL, USER_DEFINED) else p.piece for p in proto.pieces]
  for n, id in enumerate(tokenizer.sentinel_ids.tolist()):
    if id < len(tokens):
      tokens[id] = f"<extra_id_{n}>"
  return tokens


def _scored(tokens: list[str], proto: Any) -> list[tuple[str, float]]:
  """Each piece with its score. The scores that let user-defined pieces win in sentencepiece were measured."""
  scores = [0.1 * (len(p.piece.encode()) - 1) if p.type == USER_DEFINED else p.score for p in proto.pieces]
  return list(zip(tokens, scores, strict=True))


def _merges(tokens: list[str], proto: Any) -> list[tuple[str, str]]:
  """Every pair of pieces whose concatenation is a piece, by its score: sentencepiece merges any such pair."""
  scores = {token: piece.score for token, piece in zip(tokens, proto.pieces, strict=True) if piece.type == NORMAL}
  ranked = sorted(scores, key=lambda token: -scores[token])
  halves = ((token[:cut], token[cut:]) for token in ranked for cut in range(1, len(token)))
  return [(left, right) for left, right in halves if left in scores and right in scores]


def _unbroken(tokens: list[str], proto: Any) -> list[AddedToken]:
  """The user-defined pieces of a BPE model, which are never merged. Raises UserError."""
  unbroken = [token for token, piece in zip(tokens, proto.pieces, strict=True) if piece.type == USER_DEFINED]
  spec = proto.normalizer_spec
  if unbroken and (spec.add_dummy_prefix or spec.remove_extra_whitespaces):
    # The library would treat the text after one of them as the beginning of a text.
    raise UserError(
      f"a sentencepiece model of BPE with user-defined pieces such as {unbroken[0]!r}, which also changes spaces, "
      "cannot be written as a tokenizer.json: train another"
    )
  return [AddedToken(token, normalized=False) for token in unbroken]


def _normalizer(spec: Any, space: str) -> normalizers.Normalizer | None:
  steps: list[normalizers.Normalizer] = []
  if spec.precompiled_charsmap:
    steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
  if spec.remove_extra_whitespaces:
    steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"\A | \z"), "")]
  if spec.add_dummy_prefix:
    steps.append(normalizers.Prepend(space))
  if space != " ":
    steps.append(normalizers.Replace(" ", space))
  return normalizers.Sequence(steps) if steps else None


def _decoder(dummy_prefix: bool, space: str) -> decoders.Decoder:
  steps: list[decoders.Decoder] = [decoders.ByteFallback(), decoders.Fuse()]
  if space != " ":
    steps.insert(0, decoders.Replace(space, " "))
  if dummy_prefix:
    steps.append(decoders.Strip(" ", 1, 0))
  return decoders.Sequence(steps)
