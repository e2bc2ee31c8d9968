"""The characters of a text that its tokens cover, and the tokens that cover some characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import numpy as np

Spans = list[tuple[int, int]]
"""(start, end) of ranges; the end is not in the range."""


def tokens_in(offsets: np.ndarray, start: int, end: int) -> tuple[int, int]:
  """(first, last + 1) of the tokens that cover any of the characters from start to end; two equal
  numbers if none does. offsets: [T, 2], as `Tokenizer.encode_offsets` gives them."""
  inside = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
  return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)


def trimmed(text: str, spans: Iterable[tuple[int, int]]) -> np.ndarray:
  """int64 [T, 2]: the ranges without the white space around their characters, and with the
  combining characters after them that no token covers. A range of white space alone stays."""
  offsets = np.array(list(spans), np.int64).reshape(-1, 2)
  following = [*offsets[1:, 0].tolist(), len(text)]
  for row, (start, end) in enumerate(offsets.tolist()):
    part = text[start:end]
    if not part or part.isspace():
      continue
    if part[0].isspace() or part[-1].isspace():
      start, end = end - len(part.lstrip()), start + len(part.rstrip())
    while end < following[row] and unicodedata.combining(text[end]):
      end += 1
    offsets[row] = start, end
  return offsets


def in_characters(text: str, spans: Spans) -> Spans:
  """Ranges of bytes of the text in UTF-8 as ranges of its characters."""
  if text.isascii():
    return list(spans)
  sizes = [len(character.encode()) for character in text]
  starts = np.concatenate([[0], np.cumsum(sizes)])
  pairs = np.searchsorted(starts, np.array(spans, np.int64).reshape(-1, 2)).tolist()
  return [(start, end) for start, end in pairs]


def span_in_original(places: Spans, span: tuple[int, int]) -> tuple[int, int]:
  """A range of a cleaned text in the original. places: of each cleaned character there."""
  start, end = span
  if start == end:
    place = places[start][0] if start < len(places) else (places[-1][1] if places else 0)
    return place, place
  return places[start][0], places[end - 1][1]
