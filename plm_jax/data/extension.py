"""A tokenizer with further words, each of which becomes one token. All old ids stay.

WordPiece: the word is an entry of the vocabulary, whose longest entry is matched first. Byte pairs:
merges of the word's pieces, from left to right, come after all others; the parts that they make on
the way are tokens too. Unigram: a piece with the score of the best one.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterable, Iterator

from plm_jax.data.tokenizer_backends import Fast, Pieces
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError

_WORD = re.compile(r"[^\W\d_]{3,}")
_LONGEST = 100  # letters; WordPiece cuts no longer word


def extended(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[Tokenizer, list[list[int]]]:
  """The tokenizer with the words that it cuts into several pieces, and for each of its new ids the
  ids of the old pieces. Errors: `UserError` for a tokenizer that cannot be extended, and for words
  that cannot be one token, such as those with a hyphen."""
  backend, words = tokenizer.backend, list(words)
  if tokenizer.sentinels or tokenizer.added_languages:
    raise UserError(
      "the tokenizer has sentinels or languages after its vocabulary, as T5's and mBART's do, and "
      "new words would move their ids; it cannot be extended."
    )
  if isinstance(backend, Pieces):
    new, parts = _with_pieces(backend, words)
  elif isinstance(backend, Fast):
    new, parts = _with_entries(backend, words)
  else:
    raise UserError("a vocabulary of whole words is not extended; train another one.")
  if new.pieces[: len(backend.pieces)] != backend.pieces:
    raise UserError(
      "the tokenizer has tokens after its vocabulary, and new words would move their ids; it "
      "cannot be extended."
    )
  larger = Tokenizer(new, special=tokenizer.special)
  texts = [_in_text(backend, word) for word in words]
  tokens = [ids.tolist() for ids in larger.encode_batch(texts)]
  if wrong := [w for w, ids in zip(words, tokens) if len(ids) != 1 or ids == [new.roles["unk"]]]:
    raise UserError(
      f"{len(wrong)} of {len(words)} words cannot be one token, because the tokenizer splits them "
      f"at marks, drops them or has a limit: {', '.join(map(repr, wrong[:10]))}; leave them out."
    )
  return larger, parts


def _in_text(backend: Fast | Pieces, word: str) -> str:
  """The word as it stands in the midst of a text."""
  apart = isinstance(backend, Pieces) or backend.is_word_piece or backend.word_end
  return word if apart or backend.prefix_space else f" {word}"


def _with_entries(backend: Fast, words: list[str]) -> tuple[Fast, list[list[int]]]:
  rules = json.loads(backend.model.to_str())
  vocab, merges = rules["model"]["vocab"], rules["model"].get("merges", [])
  own, pieces = len(backend.pieces), [*backend.pieces]
  parts: list[list[int]] = []

  def add(piece: str, ids: list[int]) -> int:
    if piece not in vocab:
      vocab[piece] = len(pieces)
      pieces.append(piece)
      parts.append([old for i in ids for old in (parts[i - own] if i >= own else [i])])
    return vocab[piece]

  for word in words:
    ids = backend.model.encode(_in_text(backend, word), add_special_tokens=False).ids
    if not ids:
      continue
    if backend.is_word_piece:
      if len(ids) > 1 or ids[0] == backend.roles["unk"]:
        normalizer = backend.model.normalizer
        add(normalizer.normalize_str(word) if normalizer else word, ids)
      continue
    joined, *rest = ids
    for piece in rest:
      pair = [pieces[joined], pieces[piece]]
      made = "".join(pair)
      if made not in vocab:
        merges.append(pair if not merges or isinstance(merges[0], list) else " ".join(pair))
      joined = add(made, [joined, piece])
  return Fast(json.dumps(rules, ensure_ascii=False)), parts


def _with_pieces(backend: Pieces, words: list[str]) -> tuple[Pieces, list[list[int]]]:
  model = type(backend.model_proto).FromString(backend.proto)
  best = max(piece.score for piece in model.pieces)
  parts, known = [], {*backend.pieces}
  for word in words:
    ids, _ = backend.encode_flat([word])
    piece = f"▁{backend.model.decode(ids.tolist())}"
    if len(ids) > 1 and piece not in known:
      known.add(piece)
      model.pieces.add(piece=piece, score=best)
      parts.append(ids.tolist())
  return Pieces(model.SerializeToString(), backend.lowercase, backend.clean), parts


def costly_words(tokenizer: Tokenizer, sentences: Iterable[str], most: int) -> list[str]:
  """The words of a text that cost the most tokens: by occurrences times pieces beyond the first, of
  at least 3 letters and 5 occurrences. Words that differ in capitals alone count together if the
  tokenizer makes them equal."""
  lower = tokenizer.backend.lowercase
  counts = collections.Counter(_words(sentences, lower))
  counts = {word: count for word, count in counts.items() if count >= 5}
  lengths = [len(ids) for ids in tokenizer.encode_batch([f" {word}" for word in counts])]
  saved = {word: n * (length - 1) for (word, n), length in zip(counts.items(), lengths)}
  order = sorted((word for word in saved if saved[word] > 0), key=lambda word: -saved[word])
  return order[:most]


def _words(sentences: Iterable[str], lower: bool) -> Iterator[str]:
  for sentence in sentences:
    words = _WORD.findall(sentence.lower() if lower else sentence)
    yield from (word for word in words if len(word) <= _LONGEST)
