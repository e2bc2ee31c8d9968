"""The states of words in their sentences, at every layer of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.offsets import tokens_in
from plm_jax.data.vector_files import WordTable
from plm_jax.data.words import WORD
from plm_jax.decode.neighbours import with_word_vectors
from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.recording import all_states
from plm_jax.runs import Run, refuse_counted, row_limit
from plm_jax.tasks.predicting import outputs, trained
from plm_jax.tasks.rows import framed_rows, width_of

BLOCK = 256  # texts whose states are in memory together
MOST = 16  # occurrences of a word that are averaged


class AllStates(NamedTuple):
  """Reads all states of a row, `[B, T, L, D]`; `predicting.outputs` takes it."""

  compute: Compute

  def __call__(self, model, hidden: jax.Array, batch: dict) -> jax.Array:
    del hidden
    states, _ = all_states(model, batch, self.compute)
    return jnp.stack(states, axis=2).astype(jnp.float32)


def states_of(run: Run, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
  """(states, characters) of every text: float32 [T, L, D] of its own tokens, without special ones,
  and int64 [T, 2]. Layer 0 has the embeddings. Texts that are too long are cut."""
  refuse_counted(run)
  loaded = trained(run)
  loaded = loaded._replace(params=with_word_vectors(loaded.params, run.tokenizer))
  ids, offsets = run.tokenizer.encode_offsets(texts)
  frame = sum(map(len, run.config.text_frame(run.tokenizer.vocab)))
  longest = max([len(row) for row in ids], default=1) + frame
  rows = framed_rows([(row,) for row in ids], run.config, run.tokenizer,
                     min(width_of(longest, 1 << 15), row_limit(run)))  # fmt: skip
  states = outputs(loaded, rows, AllStates(run.compute))
  result: list = [(np.zeros((0, *states.shape[2:])), np.zeros((0, 2), int))] * len(texts)
  for number, example in enumerate(rows.example.tolist()):
    at = np.flatnonzero(rows.piece[number] >= 0)
    pieces = rows.piece[number, at]
    result[example] = states[number, at], offsets[example][pieces]
  return result


def occurrence_table(run: Run, texts: Iterable[str], layer: int = -1) -> WordTable:
  """Vectors without context: the mean state of the first `MOST` occurrences of every word, most
  frequent first. Errors: `UserError` for a layer that the model lacks, and for no words."""
  sums: dict[str, np.ndarray] = {}
  counts: dict[str, int] = defaultdict(int)
  texts = [text for text in texts if text.strip()]
  for first in range(0, len(texts), BLOCK):
    part = texts[first : first + BLOCK]
    for text, (states, offsets) in zip(part, states_of(run, part), strict=True):
      if not -states.shape[1] <= layer < states.shape[1]:
        raise UserError(f"--layer={layer} was given; the model has {states.shape[1]} layers.")
      for match in WORD.finditer(text):
        word = match.group().lower()
        a, b = tokens_in(offsets, *match.span())
        if b == a:
          continue
        counts[word] += 1
        if counts[word] <= MOST:
          sums[word] = sums.get(word, 0) + states[a:b, layer].mean(axis=0)
  if not sums:
    raise UserError("the text has no word that the model reads; give another text.")
  words = sorted(sums, key=lambda w: (-counts[w], w))
  vectors = np.stack([sums[w] / min(counts[w], MOST) for w in words]).astype(np.float32)
  return WordTable(words, vectors, np.array([counts[w] for w in words]))
