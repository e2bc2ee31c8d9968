"""The pieces of the words of a text, for tasks that predict something for each word."""

from __future__ import annotations

import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.tasks.examples import Example


def word_pieces(items: list[Example], tokenizer: Tokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
  """(ids, offsets) of each text, encoded word by word, so that no piece belongs to two words; a
  word that the tokenizer drops is an unknown token."""
  byte_pairs = tokenizer.kind == "byte_pairs"

  def key(text: str, start: int, end: int) -> tuple[str, str]:
    spaced = text[start - 1].isspace() if start else getattr(tokenizer.backend, "prefix_space", 0)
    if byte_pairs:  # white space that is no space keeps a prefix away, and is dropped again
      return (" " if spaced else "\n" if start else ""), text[start:end]
    return ("" if spaced or not start else "\n"), text[start:end]

  keys = [[key(item.texts[0], *span) for span in item.words] for item in items]
  unique = list({k: None for group in keys for k in group})
  lead = [before if byte_pairs else "" for before, _ in unique]
  ids, offsets = tokenizer.encode_offsets([b + word for b, (_, word) in zip(lead, unique)])
  unknown = tokenizer.vocab.filler if tokenizer.vocab.unk is None else tokenizer.vocab.unk
  pieces = {}
  for k, b, i, o in zip(unique, lead, ids, offsets, strict=True):
    o = np.maximum(o - len(b), 0)
    if k[0] == "\n" and len(o) > 1 and o[0, 1] == 0:  # the line, or the "▁" before a text
      i, o = i[1:], o[1:]
    if not (o[:, 1] > o[:, 0]).any():
      i, o = np.array([unknown], np.int32), np.array([[0, len(k[1])]])
    pieces[k] = i, o
  return [_joined(item, [pieces[k] for k in group]) for item, group in zip(items, keys)]


def _joined(item: Example, pieces: list) -> tuple[np.ndarray, np.ndarray]:
  starts = [start for start, _ in item.words]
  return (
    np.concatenate([ids for ids, _ in pieces]).astype(np.int32),
    np.concatenate([offsets + start for start, (_, offsets) in zip(starts, pieces)]),
  )


def first_pieces(words, offsets: np.ndarray) -> np.ndarray:
  """int [W]: for each word its first piece that covers any of its characters."""
  real = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
  return real[np.searchsorted(offsets[real, 0], [start for start, _ in words])]
