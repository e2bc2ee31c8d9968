"""Rows of texts that are longer than a row: windows that overlap.

Source: google-research/bert run_squad.py. A window starts `stride` tokens after the one before it.
A token that is in several is read in the one where it has the most context on both sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.models.model import Model
from plm_jax.tasks.rows import EncodedRows, frame_of, framed_rows


class Window(NamedTuple):
  """The tokens from start to end of an example's last text."""

  example: int
  start: int
  end: int


def windows_of(size: int, room: int, stride: int, example: int = 0) -> list[Window]:
  """Windows of at most `room` tokens that together cover all of `size`; one if there are none."""
  made, start = [], 0
  while not made or made[-1].end < size:
    made.append(Window(example, start, min(start + room, size)))
    start += min(stride, room)
  return made


def best_window(windows: Sequence[Window], size: int) -> np.ndarray:
  """int [size]: for each token the number of the window where it has the most context: the lesser
  of both sides, and 0.01 of the window's length to break ties; the first of equals."""
  start, end = (np.array([w[i] for w in windows])[:, None] for i in (1, 2))
  token = np.arange(size)
  context = np.minimum(token - start, end - 1 - token) + 0.01 * (end - start)
  return np.where((token >= start) & (token < end), context, -np.inf).argmax(axis=0)


def windowed_rows(
  ids: Sequence[tuple[np.ndarray, ...]],
  config: Model,
  tokenizer: Tokenizer,
  length: int,
  stride: int,
  longest_first: int = 64,
) -> tuple[EncodedRows, list[list[Window]]]:
  """Rows of all windows of the last text of each example, and its windows; the rows are in their
  order. `piece` counts from the begin of the text. longest_first: tokens that are kept of a text
  before the last."""
  before, between, after = frame_of(config, tokenizer)
  windows, parts = [], []
  for example, texts in enumerate(ids):
    first = [text[: min(longest_first, length // 2)] for text in texts[:-1]]
    frame = len(before) + len(after) + sum(len(text) + len(between) for text in first)
    windows.append(windows_of(len(texts[-1]), max(length - frame, 1), stride, example))
    parts += [(*first, texts[-1][w.start : w.end]) for w in windows[-1]]
  rows = framed_rows(parts, config, tokenizer, length)
  flat = [window for group in windows for window in group]
  start_N1 = np.array([window.start for window in flat], np.int32)[:, None]
  last = len(ids[0]) - 1 if ids else 0
  piece = np.where(rows.text == last, rows.piece + start_N1, rows.piece)
  example = np.array([window.example for window in flat], np.int32)
  return dataclasses.replace(rows, piece=piece, example=example), windows
