"""A vocabulary of whole words, for word vectors and word-level language models.

The vocabulary has the words that occur at least `min_count` times, most frequent first, after four
special tokens. Phrases are pairs of words that occur together more often than by chance, written
"new_york" (Mikolov et al. 2013b, section 4; tmikolov/word2vec 20c129a, word2phrase.c):

    score(a, b) = (count(ab) - min_count) / count(a) / count(b) * words of the text  > threshold

In a text they are joined from left to right, and no word is in two phrases.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from plm_jax.data.offsets import Spans
from plm_jax.data.subwords import Subwords, ragged_ngrams
from plm_jax.errors import UserError
from plm_jax.files import write_file

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
FILE = "words.json"
Split = Literal["words", "marks", "space"]

_CHINESE = "㐀-䶿一-鿿豈-﫿"
_WORD = rf"[{_CHINESE}]|[^\W{_CHINESE}]+(?:['’][^\W{_CHINESE}]+)*"
WORD = re.compile(_WORD)
_PATTERNS: dict[Split, re.Pattern] = {
  "words": WORD,
  "marks": re.compile(rf"{_WORD}|[^\w\s]"),
  "space": re.compile(r"\S+"),
}


class WordList:
  """The backend of `Words` (plm_jax/data/tokenizer_backends.py has the others).

  words: most frequent first, phrases with "_" among them. counts: their numbers in the text that
  they were counted on.
  """

  kind = "words"
  joint = " "
  prefix_space = False
  clean = None
  languages: ClassVar[dict[str, int]] = {}
  special_ids: ClassVar[list[int]] = list(range(len(SPECIALS)))

  def __init__(
    self,
    words: list[str],
    counts: list[int],
    lowercase: bool,
    split: Split,
    phrases: list[tuple[str, str]],
    subwords: Subwords | None = None,
    drop_unknown: bool = False,
  ):
    self.drop_unknown = drop_unknown
    self.words, self.counts, self.phrases = words, counts, phrases
    self.lowercase, self.split, self.subwords = lowercase, split, subwords
    self._ids = {word: i for i, word in enumerate(self.pieces)}
    # Words that are only parts of phrases have numbers above the vocabulary until they are joined.
    parts = [word for pair in phrases for word in pair if word not in self._ids]
    self._ids |= {word: len(self.pieces) + i for i, word in enumerate(dict.fromkeys(parts))}

  def __reduce__(self):
    more = (self.lowercase, self.split, self.phrases, self.subwords, self.drop_unknown)
    return WordList, (self.words, self.counts, *more)

  @cached_property
  def pieces(self) -> list[str]:
    return [*SPECIALS, *self.words]

  @cached_property
  def roles(self) -> dict[str, int | None]:
    return {"pad": 0, "unk": 1, "bos": 2, "eos": 3, "cls": None, "sep": None, "mask": None}

  def word_starts(self) -> np.ndarray:
    return np.ones(len(self.pieces), bool)

  def encode_flat(self, texts: list[str], continued: bool = False) -> tuple[np.ndarray, np.ndarray]:
    del continued  # no word depends on the one before it
    rows = [words_of(text, self.split, self.lowercase) for text in texts]
    get = self._ids.get
    ids, lengths = flat([[get(word, 1) for word in row] for row in rows])
    if self.phrases:
      ids, lengths = join_phrases(ids, lengths, *self._keys)
      ids = np.where(ids >= len(self.pieces), np.int32(1), ids)
    if self.drop_unknown:
      known = ids != 1
      ends = np.append(0, np.cumsum(known))[np.append(0, np.cumsum(lengths))]
      ids, lengths = ids[known], np.diff(ends)
    return ids, lengths

  @cached_property
  def _keys(self) -> tuple[np.ndarray, np.ndarray]:
    """The phrases as sorted pairs of ids int64, and the id of each int32."""
    rows = [(*map(self._ids.get, pair), self._ids["_".join(pair)]) for pair in self.phrases]
    first, second, joined = np.array(sorted(rows), np.int64).T
    return pair_keys(first, second), joined.astype(np.int32)

  def encode_offsets(self, texts: list[str]) -> list[tuple[list[int], Spans]]:
    if self.phrases:
      raise UserError("a vocabulary with phrases has no places of its tokens in a text.")
    get, pattern = self._ids.get, _PATTERNS[self.split]
    rows = []
    for text in texts:
      found = [(get(self._word(m.group()), 1), m.span()) for m in pattern.finditer(text)]
      found = [pair for pair in found if pair[0] != 1 or not self.drop_unknown]
      rows.append(([i for i, _ in found], [span for _, span in found]))
    return rows

  def _word(self, text: str) -> str:
    return text.lower() if self.lowercase else text

  def decode(self, ids: list[int]) -> str:
    return " ".join(self.pieces[i] for i in ids)

  @cached_property
  def ngrams(self) -> tuple[np.ndarray, np.ndarray] | None:
    """The buckets of the n-grams of every token, flat int32 [N], and their bounds int64 [V + 1];
    None without subwords. Special tokens have none."""
    if self.subwords is None:
      return None
    return ragged_ngrams(["" if i in self.special_ids else w for i, w in enumerate(self.pieces)],
                         self.subwords)  # fmt: skip

  def _content(self) -> dict:
    n = self.subwords
    return {
      "lowercase": self.lowercase,
      "split": self.split,
      "phrases": [list(pair) for pair in self.phrases],
      "drop_unknown": self.drop_unknown,
      "subwords": None if n is None else [n.shortest, n.longest, n.buckets],
      "words": self.words,
      "counts": self.counts,
    }

  def description(self) -> bytes:
    return json.dumps(self._content()).encode()

  def write(self, folder: Path) -> None:
    text = json.dumps(self._content(), ensure_ascii=False)
    write_file(folder / FILE, text + "\n")


def read_words(content: dict) -> WordList:
  """The vocabulary of a `words.json`."""
  subwords = content["subwords"]
  return WordList(
    content["words"],
    content["counts"],
    content["lowercase"],
    content["split"],
    [tuple(pair) for pair in content["phrases"]],
    None if subwords is None else Subwords(*subwords),
    content["drop_unknown"],
  )


def words_of(text: str, split: Split, lowercase: bool) -> list[str]:
  """The words of a text."""
  text = text.lower() if lowercase else text
  return text.split() if split == "space" else _PATTERNS[split].findall(text)


def count_words(
  sentences: Iterable[str],
  *,
  vocab_size: int,
  min_count: int,
  lowercase: bool,
  split: Split,
  threshold: float = 0.0,
  subwords: Subwords | None = None,
  drop_unknown: bool = False,
) -> WordList:
  """The vocabulary of a text. threshold: of a phrase's score; 0 joins none. Errors: `UserError` if
  no word is frequent enough."""
  numbers: dict[str, int] = {}
  rows = [[numbers.setdefault(word, len(numbers)) for word in words_of(text, split, lowercase)]
          for text in sentences]  # fmt: skip
  ids, lengths = flat(rows)
  names, phrases = list(numbers), []
  if threshold:
    keys = find_phrases(ids, lengths, len(names), min_count, threshold)
    ids, _ = join_phrases(ids, lengths, keys, np.arange(len(names), len(names) + len(keys)))
    phrases = [(names[key >> 32], names[key & 0xFFFFFFFF]) for key in keys.tolist()]
    names = names + ["_".join(pair) for pair in phrases]
  counts = Counter(dict(zip(names, np.bincount(ids, minlength=len(names)).tolist())))
  kept = [w for w, n in counts.items() if n >= min_count and w not in SPECIALS]
  kept = sorted(kept, key=lambda w: (-counts[w], w))[: vocab_size - len(SPECIALS)]
  if not kept:
    raise UserError(
      f"no word of the text occurs {min_count} times; give more text, or lower "
      "data.tokenizer.min_count."
    )
  vocabulary = set(kept)
  phrases = [pair for pair in phrases if "_".join(pair) in vocabulary]
  numbers_of = [counts[word] for word in kept]
  return WordList(kept, numbers_of, lowercase, split, phrases, subwords, drop_unknown)


def find_phrases(
  ids: np.ndarray, lengths: np.ndarray, words: int, min_count: int, threshold: float
) -> np.ndarray:
  """int64 [P], sorted: the keys of the pairs whose score is above the threshold."""
  counts = np.bincount(ids, minlength=words)
  keys, together = np.unique(pair_keys(ids[:-1], ids[1:])[_inside(lengths)], return_counts=True)
  first, second = counts[keys >> 32], counts[keys & 0xFFFFFFFF]
  score = (together - min_count) / first / second * len(ids)
  return keys[(score > threshold) & (np.minimum(first, second) >= min_count)]


def join_phrases(
  ids: np.ndarray, lengths: np.ndarray, keys: np.ndarray, joined: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The ids of texts with every phrase as one id, and the new lengths. keys: sorted int64 [P];
  joined: the id of each phrase."""
  if not len(keys) or len(ids) < 2:
    return ids, lengths
  pairs = pair_keys(ids[:-1], ids[1:])
  place = np.minimum(np.searchsorted(keys, pairs), len(keys) - 1)
  fits = (keys[place] == pairs) & _inside(lengths)
  # In a run of overlapping phrases, those at an even distance from its first are joined.
  at = np.arange(len(fits))
  begins = np.maximum.accumulate(np.where(fits & ~np.append(False, fits[:-1]), at, 0))
  first = np.flatnonzero(fits & ((at - begins) % 2 == 0))
  ids, keep = ids.copy(), np.ones(len(ids), bool)
  ids[first], keep[first + 1] = joined[place[first]], False
  ends = np.append(0, np.cumsum(keep))[np.append(0, np.cumsum(lengths))]
  return ids[keep], np.diff(ends)


def pair_keys(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """A pair of ids as one int64."""
  return first.astype(np.int64) << 32 | second.astype(np.int64)


def _inside(lengths: np.ndarray) -> np.ndarray:
  """bool [N - 1]: the token after each token is of the same text."""
  inside = np.ones(max(int(lengths.sum()) - 1, 0), bool)
  ends = np.cumsum(lengths)[:-1]
  inside[ends[(ends > 0) & (ends <= len(inside))] - 1] = False
  return inside


def flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Concatenates lists of ids to int32 [N]; also returns their lengths int64 [S]."""
  lengths = np.fromiter(map(len, rows), np.int64, len(rows))
  return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths
