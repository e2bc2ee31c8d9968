"""Vectors of texts and of words from the last states of a frozen model, special tokens left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.offsets import tokens_in
from plm_jax.decode.neighbours import with_word_vectors
from plm_jax.models.compute import Compute
from plm_jax.runs import Run, row_limit
from plm_jax.tasks.predicting import outputs, trained
from plm_jax.tasks.rows import framed_rows

LONGEST = 32  # tokens of a row
BLOCK = 512  # texts whose states are in memory together


class LastStates(NamedTuple):
  """Reads the states of the last layer; `predicting.outputs` takes it. Of an encoder-decoder they
  are the encoder's, and of an ELMo those of both directions."""

  compute: Compute

  def __call__(self, model, hidden, batch: dict) -> jax.Array:
    """float32 `[B, T, D]`."""
    if hasattr(model, "encode"):
      hidden = model.encode(batch, self.compute)
    if hasattr(hidden, "layers_BTLD"):
      hidden = hidden.layers_BTLD[:, :, -1]
    return hidden.astype(jnp.float32)


def text_vectors(run: Run, texts: list[str]) -> np.ndarray:
  """float32 [N, D]: the mean state of every text's tokens; zeros without a token."""
  vectors = []
  for states, real, _ in states_of(run, texts):
    mean = (states * real[..., None]).sum(axis=1)
    vectors.append(mean / np.maximum(real.sum(axis=1), 1)[:, None])
  return np.concatenate(vectors)


def word_vectors(run: Run, texts: list[str], words: list) -> np.ndarray:
  """float32 [W, D]: the mean state of every word's pieces; zeros for a word without any. words: the
  first and the last character of every text's words."""
  vectors, number = [], 0
  for states, real, offsets in states_of(run, texts):
    for row, kept, at in zip(states, real, offsets, strict=True):
      own = row[kept]
      for start, end in words[number]:
        a, b = tokens_in(at[: len(own)], start, end)
        vectors.append(own[a:b].mean(axis=0) if b > a else np.zeros(row.shape[-1], np.float32))
      number += 1
  return np.stack(vectors)


def states_of(
  run: Run, texts: list[str]
) -> Iterator[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
  """For blocks of texts: states float32 [N, T, D], whether a state is of the text's own tokens
  bool [N, T], and the characters of every text's tokens. Long texts are cut."""
  loaded = trained(run)
  loaded = loaded._replace(params=with_word_vectors(loaded.params, run.tokenizer))
  read, longest = LastStates(run.compute), min(LONGEST, row_limit(run))
  for first in range(0, len(texts), BLOCK):
    ids, offsets = run.tokenizer.encode_offsets(texts[first : first + BLOCK])
    rows = framed_rows([(each,) for each in ids], run.config, run.tokenizer, longest)
    states = outputs(loaded, rows, read)
    yield states, rows.piece[:, : states.shape[1]] >= 0, offsets
