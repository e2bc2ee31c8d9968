"""Continuous batching: texts that grow together, begin at any time and end at any time.

    batch = ContinuousBatch(params, config, tokenizer, compute, slots=8)
    batch.start(Text(prompt, rules, seed))     # reads the prompt; the first token is there
    batch.step()                               # one more token for every text; those that ended

Source: Yu et al. 2022 (Orca), iteration-level scheduling. A text has a slot: a row of one cache, in
which all rows write the same column. A prompt is read in a cache of one row and padded on the left,
so that it ends at that column, and is copied into a free slot. When the columns run out, all rows
move to the left by the least padding. The rules are arrays, one value for each row, so that no
request compiles. A text is that of `writer.write` for its prompt alone, up to rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.decode import logits
from plm_jax.decode.generator import Cache
from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import Prompt, TruncatedVocab, bucket, ends, padded, ready
from plm_jax.models.compute import Compute
from plm_jax.models.model import Model, Parameters

_COLUMNS = 256  # of the smallest cache; it is doubled when texts are longer


@dataclasses.dataclass(eq=False)
class Text:
  """A text that grows. ids: its new tokens, without the end. score: the sum of their log p, the end
  included. number: of its prompt and among the samples of the prompt, which key its draws."""

  prompt: Prompt
  rules: Rules
  seed: int = 0
  number: tuple[int, int] = (0, 0)
  ids: list[int] = dataclasses.field(default_factory=list)
  score: float = 0.0
  done: bool = False


class _RowRules(NamedTuple):
  """The fields of `Rules`, a value for each row."""

  temperature_B: Any
  top_k_B: Any
  top_p_B: Any
  repetition_penalty_B: Any
  min_length_B: Any


class _Rows(NamedTuple):
  """What the next token of each row depends on, besides the cache. token_B: the last one, not in
  the cache yet. step_B: the number of new tokens. key_BK: uint32, the keys of the draws. seen_BV:
  the tokens that a row contains. active_B: whether a slot has a text."""

  token_B: jax.Array
  step_B: jax.Array
  key_BK: jax.Array
  seen_BV: jax.Array
  active_B: jax.Array
  rules: _RowRules


class ContinuousBatch:
  """Up to `slots` texts that grow together.

  longest: most tokens of a source, or of a prompt and its new tokens; None is the model's
  positions. Encoder-decoders keep the keys and values of a source of that length in every slot.
  """

  def __init__(
    self,
    params: Parameters,
    config: Model,
    tokenizer: Tokenizer,
    compute: Compute,
    slots: int = 8,
    longest: int | None = None,
  ):
    self.positions = min(longest or config.positions, config.positions)
    self._reads_source = hasattr(config, "source_ids")
    self._begin = config.decoder_start(tokenizer.vocab) if self._reads_source else []
    self._ends_E = ends(tokenizer.vocab, causal=not self._reads_source)
    # Arrays that are tied to a device and those that are not need two programs: all are tied.
    self._placed = functools.partial(jax.device_put, device=jax.local_devices()[0])
    self._generator = self._placed(ready(params.encoder(), compute, tokenizer.vocab.size, 2))
    self._vocabulary = tokenizer.vocab.size
    self._texts: list[Text | None] = [None] * slots
    # A full cache moves by a quarter at least, so that it moves rarely.
    most = bucket(self.positions) + max(self.positions // 4, 8)
    self._sizes = [s for s in (_COLUMNS << i for i in range(20)) if s < most] + [most]
    self._reset(self._sizes[0])

  def _reset(self, columns: int) -> None:
    """An empty cache."""
    slots = len(self._texts)
    batch: dict[str, Any] = {"pad": np.zeros(slots, np.int32)}
    if self._reads_source:
      batch["input_ids"] = np.zeros((slots, bucket(self.positions)), np.int32)
      batch["length"] = np.ones(slots, np.int32)
    self._columns, self._at = columns, 1
    self._cache, self._rows = self._placed(
      _empty(self._generator, batch, columns, self._vocabulary)
    )

  @property
  def texts(self) -> list[Text]:
    """Those that grow."""
    return [text for text in self._texts if text is not None]

  @property
  def is_full(self) -> bool:
    return None not in self._texts

  def start(self, text: Text) -> None:
    """Reads a prompt and chooses its first token; the text takes a slot unless that ends it."""
    cache, row, token, log_p = self._read(text)
    self._grow(text, int(token), float(log_p))
    if text.done:
      return
    self._make_room(bucket(len(text.prompt.ids), self._least))
    slot = self._texts.index(None)
    self._texts[slot] = text
    self._cache, self._rows = _join(self._cache, self._rows, cache, row, np.int32(slot))

  def step(self) -> list[Text]:
    """One more token for every text. Returns those that grew; `done` tells which have ended."""
    if self._at == self._columns:
      self._make_room(0)
    self._cache, self._rows, *made = _step(self._generator, self._cache, self._rows, self._ends_E)
    self._at += 1
    grown = self.texts
    for text, token, log_p in zip(self._texts, *jax.device_get(made), strict=True):
      if text is not None:
        self._grow(text, int(token), float(log_p))
    self._free_ended()
    return grown

  def stop(self, text: Text) -> None:
    """Ends a text, whose slot is free then."""
    text.done = True
    self._free_ended()

  def clear(self) -> None:
    """Forgets all texts. After an error in a step, whose cache is lost."""
    self._texts = [None] * len(self._texts)
    self._reset(self._sizes[0])

  def _free_ended(self) -> None:
    self._texts = [None if text is None or text.done else text for text in self._texts]
    active_B = self._placed(np.array([text is not None for text in self._texts]))
    self._rows = self._rows._replace(active_B=active_B)

  def _grow(self, text: Text, token: int, log_p: float) -> None:
    ends_here = token in self._ends_E
    if not ends_here:
      text.ids.append(token)
    text.score += log_p
    most = min(text.rules.max_length, self.positions - len(text.prompt.ids))
    text.done = ends_here or len(text.ids) >= most

  # --- prompts

  @property
  def _least(self) -> int:
    """Columns of the shortest prompt. All targets begin with the same one or two tokens."""
    return 1 if self._reads_source else 8

  def _read(self, text: Text):
    """The cache and the row of a prompt, its first token and the log p of that."""
    ids, pad = padded([text.prompt.ids], left=True, least=self._least)
    batch = {"pad": pad}
    if text.prompt.source is not None:
      batch["input_ids"], rest = padded([text.prompt.source], left=False)
      batch["length"] = (batch["input_ids"].shape[1] - rest).astype(np.int32)
    draws = np.uint32(text.seed), np.array(text.number, np.uint32)
    rules = _RowRules(
      np.array([text.rules.temperature], np.float32),
      np.array([text.rules.top_k], np.int32),
      np.array([text.rules.top_p], np.float32),
      np.array([text.rules.repetition_penalty], np.float32),
      np.array([text.rules.min_length], np.int32),
    )
    return _read(self._generator, batch, ids, *draws, rules, self._ends_E)

  # --- columns

  def _make_room(self, width: int) -> None:
    """Makes the next column at least `width`, for a prompt of that width, and less than the number
    of columns. A text of `positions` tokens has ended, so there is always room."""
    if not hasattr(self._cache, "shifted"):  # a state without columns
      return
    starts = [self._at - len(t.prompt.ids) - len(t.ids) + 1 for t in self.texts]
    if not starts:
      self._restart(width)
      return
    if self._at < width:
      if width >= self._columns:
        self._widen(width)
      self._shift(width - self._at)
    elif self._at == self._columns:
      if self._columns == self._sizes[-1] or min(starts) >= self._columns // 4:
        self._shift(-min(starts))
      else:
        self._widen(self._at)

  def _restart(self, width: int) -> None:
    """Begins at column `width` in the smallest cache, which has no text."""
    columns = next(size for size in self._sizes if size > width)
    if columns != self._columns:
      self._reset(columns)
    self._at = max(width, 1)
    self._cache = dataclasses.replace(self._cache, at=self._placed(np.int32(self._at)))

  def _widen(self, columns: int) -> None:
    """More than `columns` columns."""
    self._columns = next(size for size in self._sizes if size > columns)
    self._cache = _widened(self._cache, self._columns)

  def _shift(self, columns: int) -> None:
    self._cache, self._at = _shifted(self._cache, np.int32(columns)), self._at + columns

  # --- compiling

  def programs(self) -> Iterator[Callable[[], None]]:
    """Calls that compile every program that a text may need, for each size of prompt and cache."""
    longest = bucket(self.positions)
    widths = [1 << i for i in range(3, 32) if 1 << i <= longest]
    has_columns = hasattr(self._cache, "shifted")
    for columns in self._sizes if has_columns else self._sizes[:1]:
      for width in widths:
        if self._reads_source or width < columns or not has_columns:
          yield functools.partial(self._try_prompt, columns, width)
      yield functools.partial(self._try_step, columns)

  def _try_prompt(self, columns: int, width: int) -> None:
    ids, source = [self._any] * min(width, self.positions - 1), None
    if self._reads_source:
      ids, source = self._begin, [self._any] * min(width, self.positions)
    self._reset(columns)
    self._at = columns - 1
    self._cache = dataclasses.replace(self._cache, at=self._placed(np.int32(self._at)))
    cache, row, *_ = self._read(Text(Prompt(ids, source), Rules()))
    _join(self._cache, self._rows, cache, row, np.int32(0))
    self._reset(self._sizes[0])

  def _try_step(self, columns: int) -> None:
    self._reset(columns)
    if hasattr(self._cache, "shifted"):
      for wider in (size for size in self._sizes if size > columns):
        _widened(self._cache, wider)
      self._shift(0)
    _step(self._generator, self._cache, self._rows, self._ends_E)
    self._reset(self._sizes[0])

  @property
  def _any(self) -> int:
    """A token that ends no text."""
    return next(i for i in range(self._vocabulary) if i not in self._ends_E)


@functools.partial(jax.jit, static_argnames=("columns", "vocabulary"))
def _empty(generator: TruncatedVocab, batch, columns: int, vocabulary: int) -> tuple[Cache, _Rows]:
  """A cache whose next column is 1, so that no row is at its first token; rows without a text."""
  slots = len(batch["pad"])
  cache: Any = generator.start(batch, columns)
  keys = jax.random.key_data(jax.random.split(jax.random.key(0), slots))
  ints, floats = jnp.zeros(slots, jnp.int32), jnp.ones(slots)
  rules = _RowRules(0 * floats, ints, floats, floats, ints)
  seen_BV = jnp.zeros((slots, vocabulary), bool)
  rows = _Rows(ints, ints, keys, seen_BV, jnp.zeros(slots, bool), rules)
  return dataclasses.replace(cache, at=jnp.int32(1)), rows


@jax.jit
def _read(generator: TruncatedVocab, batch, ids_BT, seed, number_2, rules: _RowRules, ends_E):
  fold = jax.random.fold_in
  key = fold(fold(jax.random.key(seed), number_2[0]), number_2[1])
  logits_BV, cache = generator.extend(ids_BT, generator.start(batch, ids_BT.shape[1]))
  real_BT = jnp.arange(ids_BT.shape[1]) >= batch["pad"][:, None]
  seen_BV = jnp.zeros(logits_BV.shape, bool).at[0, ids_BT].max(real_BT)
  step_B = jnp.zeros(1, jnp.int32)
  row = _Rows(step_B, step_B, jax.random.key_data(key)[None], seen_BV, jnp.ones(1, bool), rules)
  row, token_B, log_p_B = _with_next_token(row, logits_BV, ends_E)
  return cache, row, token_B[0], log_p_B[0]


@functools.partial(jax.jit, donate_argnames=("cache", "rows"))
def _join(cache: Any, rows: _Rows, row_cache: Any, row: _Rows, slot) -> tuple[Cache, _Rows]:
  """The cache and the rows with another row in place of `slot`."""
  put = lambda x, y: x.at[slot].set(y[0])  # noqa: E731
  if hasattr(cache, "joined"):
    cache = cache.joined(row_cache, slot)
  else:  # a state of every row, which has no columns; padding was before the prompt
    at = cache.at
    cache = jax.tree.map(lambda x, y: put(x, y) if x.ndim else x, cache, row_cache)
    cache = dataclasses.replace(cache, pad_B=cache.pad_B.at[slot].set(0), at=at)
  return cache, jax.tree.map(put, rows, row)


@functools.partial(jax.jit, donate_argnames=("cache", "rows"))
def _step(generator: TruncatedVocab, cache: Any, rows: _Rows, ends_E):
  # A row without a text reads one column, so that it stays finite and within the positions.
  cache = dataclasses.replace(cache, pad_B=jnp.where(rows.active_B, cache.pad_B, cache.at))
  logits_BV, cache = generator.extend(rows.token_B[:, None], cache)
  return cache, *_with_next_token(rows, logits_BV, ends_E)


def _with_next_token(
  rows: _Rows, logits_BV: jax.Array, ends_E: jax.Array
) -> tuple[_Rows, jax.Array, jax.Array]:
  """The rows after one more token, the tokens, and their log p."""
  rules = _RowRules(*(x[:, None] for x in rows.rules))
  scores_BV = logits.repetition_penalty(logits_BV, rows.seen_BV, rules.repetition_penalty_B)
  early_B1 = rows.step_B[:, None] < rules.min_length_B
  scores_BV = logits.not_yet(scores_BV, ends_E, early_B1)
  greedy_B = scores_BV.argmax(axis=-1)

  def restricted(x_BV):
    return logits.top_p(logits.top_k(x_BV, rules.top_k_B), rules.top_p_B)

  def drawn():
    warm_BV = scores_BV / jnp.where(rules.temperature_B > 0, rules.temperature_B, 1)
    restricts = (rules.top_k_B > 0) | (rules.top_p_B < 1)
    warm_BV = jax.lax.cond(restricts.any(), restricted, lambda x_BV: x_BV, warm_BV)
    keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(rows.key_BK), rows.step_B)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, warm_BV)
    return jnp.where(rules.temperature_B[:, 0] > 0, drawn_B, greedy_B)

  # Sorting a vocabulary takes longer than a step of a small model: only for rows that need it.
  token_B = jax.lax.cond((rules.temperature_B > 0).any(), drawn, lambda: greedy_B)
  token_B = token_B.astype(jnp.int32)
  row = jnp.arange(len(token_B))
  log_p_B = jax.nn.log_softmax(scores_BV)[row, token_B]
  seen_BV = rows.seen_BV.at[row, token_B].set(True)
  after = rows._replace(token_B=token_B, step_B=rows.step_B + 1, seen_BV=seen_BV)
  return after, token_B, log_p_B


_shifted = jax.jit(lambda cache, columns: cache.shifted(columns), donate_argnums=0)
_widened = jax.jit(lambda cache, columns: cache.take(capacity=columns), static_argnums=1)
