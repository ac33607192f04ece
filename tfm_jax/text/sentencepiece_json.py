"""A sentencepiece model as a tokenizer.json: the same ids by the `tokenizers` library.

What differs, and cannot be mended:
- The name of a special token that stands in a text, such as "</s>": transformers reads the special token, as it does
  with every tokenizer. Models trained here take it as text, until they have been exported and imported again.
- Ties in unigram models of others. sentencepiece adds up scores in float32 from the beginning of a text, the library
  in float64: two segmentations of equal score, such as six spaces as 5 + 1 or 1 + 5, may be decided differently, and
  after some hundred thousand characters also two that differ in the third decimal. Models trained here have scores
  whose sums are exact in both, for up to some hundred thousand characters.
- Normalizers with a table (nmt_nfkc and the like): the library looks up whole graphemes, so a character of the table
  with combining marks after it, such as a raised 2 with an accent, may lose them.
- U+2581, sentencepiece's own sign for a space: it is kept in models with byte pieces and without a space before the
  text (as those trained here are), and read as a space in others, by both.
"""

from typing import Any

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from tfm_jax.errors import UserError
from tfm_jax.text.subwords import SentencePieceTokenizer

SPACE = "\u2581"

_UNIGRAM, _BPE = 1, 2  # trainer_spec.model_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of pieces


def parse(model: bytes) -> Any:
  """The protocol buffer of a sentencepiece model. Raises ValueError."""
  proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at import
  try:
    proto.ParseFromString(model)
  except DecodeError as error:
    raise ValueError(str(error)) from error
  return proto


def converted(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
  """The library's tokenizer with the same ids, without a post-processor.

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
  # Where U+2581 is to be told from a space, spaces stay spaces in the pieces. Elsewhere pieces look as usual.
  space = " " if tokenizer.space_bytes is not None else SPACE
  tokens = _tokens(tokenizer, proto, space)
  added = [
    AddedToken(token, normalized=False, special=True)
    for token, piece in zip(tokens, proto.pieces, strict=True)
    if piece.type in (UNKNOWN, CONTROL)
  ]
  if spec.model_type == _UNIGRAM:
    made = tokenizers.Tokenizer(models.Unigram(_scored(tokens, proto), tokenizer.unk_id, byte_fallback))
    if byte_fallback:  # the spelling of a byte's name is text, not that byte
      made.pre_tokenizer = pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous")
  else:
    ids = {token: id for id, token in enumerate(tokens)}
    unknown = tokens[tokenizer.unk_id]
    made = tokenizers.Tokenizer(
      models.BPE(ids, _merges(tokens, proto), unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)
    )
    added += _unbroken(tokens, proto)
  sentinels = [f"<extra_id_{n}>" for n in range(len(tokenizer.sentinel_ids))]
  order = sorted(range(len(sentinels)), key=lambda n: int(tokenizer.sentinel_ids[n]))
  made.add_tokens(added + [AddedToken(sentinels[n], normalized=False, special=True) for n in order])
  made.normalizer = _normalizer(proto.normalizer_spec, space)
  made.decoder = _decoder(proto.normalizer_spec.add_dummy_prefix, space)
  return made


def _tokens(tokenizer: SentencePieceTokenizer, proto: Any, space: str) -> list[str]:
  """The library's name of each piece. Sentinels lose the space that T5 has before them."""
  tokens = [p.piece.replace(SPACE, space) if p.type in (NORMAL, USER_DEFINED) else p.piece for p in proto.pieces]
  for n, id in enumerate(tokenizer.sentinel_ids.tolist()):
    if id < len(tokens):
      tokens[id] = f"<extra_id_{n}>"
  return tokens


def _scored(tokens: list[str], proto: Any) -> list[tuple[str, float]]:
  """Each piece with its score. What sentencepiece gives a user-defined one, so that it wins, was measured."""
  scores = [0.1 * (len(p.piece.encode()) - 1) if p.type == USER_DEFINED else p.score for p in proto.pieces]
  return list(zip(tokens, scores, strict=True))


def _merges(tokens: list[str], proto: Any) -> list[tuple[str, str]]:
  """Every pair of pieces that makes a third, in the order of its score: sentencepiece merges whatever it can."""
  scores = {token: piece.score for token, piece in zip(tokens, proto.pieces, strict=True) if piece.type == NORMAL}
  ranked = sorted(scores, key=lambda token: -scores[token])
  halves = ((token[:cut], token[cut:]) for token in ranked for cut in range(1, len(token)))
  return [(left, right) for left, right in halves if left in scores and right in scores]


def _unbroken(tokens: list[str], proto: Any) -> list[AddedToken]:
  """The user-defined pieces of a BPE model, which never take part in a merge."""
  found = [token for token, piece in zip(tokens, proto.pieces, strict=True) if piece.type == USER_DEFINED]
  spec = proto.normalizer_spec
  if found and (spec.add_dummy_prefix or spec.remove_extra_whitespaces):
    # The library would treat what follows one of them as the beginning of a text.
    raise UserError(
      f"a sentencepiece model of BPE with user-defined pieces such as {found[0]!r}, which also changes spaces, cannot "
      "be written as a tokenizer.json: train another"
    )
  return [AddedToken(token, normalized=False) for token in found]


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
