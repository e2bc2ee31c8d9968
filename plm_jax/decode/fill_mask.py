"""The most probable tokens of a masked language model for blanks in sentences."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.store import TokenStore
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.decode.writer import bucket, source_of
from plm_jax.errors import UserError
from plm_jax.models.compute import Compute


class Blank(NamedTuple):
  """A sentence with one token masked."""

  ids: np.ndarray  # int32 [T], [CLS] sentence [SEP] with [MASK] at `position`
  position: int
  answer: int


class Candidate(NamedTuple):
  token: int
  probability: float


def fill(
  model, blanks: list[Blank], compute: Compute, best: int = 5, size: int | None = None
) -> list[list[Candidate]]:
  """The `best` most probable tokens of every blank, highest first. All sentences in one batch of
  few shapes. size: of the tokenizer's vocabulary, beyond which no token is chosen; None is the
  model's."""
  rows = [*blanks, *[blanks[-1]] * (bucket(len(blanks), 1) - len(blanks))]
  longest = max(len(blank.ids) for blank in blanks)
  ids = np.zeros((len(rows), max(min(bucket(longest), model.config.positions), longest)), np.int32)
  for row, blank in enumerate(rows):
    ids[row, : len(blank.ids)] = blank.ids
  batch = {
    "input_ids": ids,
    "segment_ids": np.zeros_like(ids),
    "length": np.array([len(blank.ids) for blank in rows], np.int32),
  }
  positions_B = np.array([blank.position for blank in rows], np.int32)
  best_of_rows = jax.device_get(_top(model, batch, positions_B, compute, best, size))
  return [
    [Candidate(int(t), float(p)) for t, p in zip(*row)]
    for _, *row in zip(blanks, *reversed(best_of_rows))
  ]


@functools.partial(jax.jit, static_argnames=("compute", "best", "size"))
def _top(model, batch, positions_B, compute: Compute, best: int, size: int | None):
  """The probabilities and the ids of the best tokens, [B, best] each."""
  hidden_BTD = model(batch, compute)
  logits_BV = model.token_logits(hidden_BTD[jnp.arange(len(positions_B)), positions_B])
  p_BV = jax.nn.softmax(logits_BV)[:, :size]
  return jax.lax.top_k(p_BV, min(best, p_BV.shape[1]))


def blanks_of(text: str, tokenizer: Tokenizer, positions: int) -> list[Blank]:
  """The blanks of a text. Errors: `UserError` if there is none, or the text is too long."""
  vocab = tokenizer.vocab
  if vocab.mask is None:
    raise UserError("this model's tokenizer has no mask token")
  first, last = vocab.frame()
  ids = np.array([first, *source_of(text, tokenizer), last], np.int32)
  if len(ids) > positions:
    raise UserError(f"a text has {len(ids)} tokens and the model reads {positions}; shorten it")
  places = np.flatnonzero(ids == vocab.mask)
  if not places.size:
    raise UserError(f"there is no [MASK] in {text!r}; put one where a word is missing")
  return [Blank(ids, int(place), vocab.mask) for place in places]


def blanks_from(store: TokenStore, tokenizer: Tokenizer, count: int) -> list[Blank]:
  """`count` sentences of `store`, spread over its documents, each with one whole word masked.

  The word is one of at least four letters that is a single token: the first such word of the first
  sentence, the second of the next, and so on.
  """
  starts = np.asarray(store.sentence_starts)
  lengths = np.diff(starts)
  suitable = np.flatnonzero((lengths >= 8) & (lengths <= 20))
  chosen = []
  spread = np.linspace(0, len(suitable) - 1, 8 * count, dtype=int) if len(suitable) else []
  for sentence in np.unique(suitable[spread]):
    ids = np.asarray(store.tokens[starts[sentence] : starts[sentence + 1]], np.int32)
    if (blank := _blank(ids, tokenizer, len(chosen))) is not None:
      chosen.append(blank)
    if len(chosen) == count:
      break
  return chosen


def _blank(ids: np.ndarray, tokenizer: Tokenizer, number: int) -> Blank | None:
  vocab = tokenizer.vocab
  # "▁" and "Ġ" mark the start of a word in unigram and byte-pair vocabularies.
  words = [token.lstrip("▁Ġ") for token in tokenizer.tokens(ids)]
  whole = vocab.word_start[ids] & np.append(vocab.word_start[ids[1:]], True)
  suitable = [i for i, w in enumerate(words) if i and whole[i] and w.isalpha() and len(w) >= 4]
  if not suitable:  # the first word has no left context
    return None
  at = suitable[number % len(suitable)]
  first, last = vocab.frame()
  row = np.concatenate([[first], ids, [last]]).astype(np.int32)
  row[at + 1] = vocab.mask
  return Blank(row, at + 1, int(ids[at]))
