"""Controlled languages: generated text with one dial, in which a mechanism can be seen alone.

`controlled:NAME/DIAL[/DOCUMENTS]` names such a text, as `controlled:topics/0.3`. DIAL is a number,
and DOCUMENTS are 4,000 if it is left out. A text is a function of its name: the same words on every
machine. A document has `sentences` sentences of `length` words, written `w0`, `w1`, ...

| name | a text in which | the dial |
|---|---|---|
| topics | the documents differ in topic, and no order says anything | share of words of the topic |
| places | each sentence of a document has its words, beside a topic | share of words of the place |
| markov | a word depends on the one before it | share of the first of its 12 followers |
| echoes | the second half of a sentence repeats the first | share of words that are repeated |
| motifs | a document repeats a sentence of pairs | share of pairs with a fixed second word |
| classes | words belong to 16 classes, and classes follow each other | number of words |
| facts | a word depends on the two before it, by a table without rule | number of words |

`best(metric)` is the best expected score of any model, where it follows in closed form or by
sampling from the source; None elsewhere. Losses are in nats per word.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np

from plm_jax.data.documents import Document
from plm_jax.errors import UserError

PREFIX = "controlled:"
DOCUMENTS = 4_000
_MOST = 10_000_000  # documents
_FORMAT = 1  # increase it when a text changes


@dataclasses.dataclass(frozen=True)
class Language:
  """A source of documents. low, high: the range of the dial."""

  dial: float
  sentences: ClassVar[int] = 8
  length: ClassVar[int] = 8
  low: ClassVar[float] = 0.0
  high: ClassVar[float] = 1.0
  step: ClassVar[int] = 0  # a dial of a whole number is a multiple of it

  @property
  def words(self) -> int:
    """The size of the vocabulary."""
    raise NotImplementedError

  def document(self, draws: np.random.Generator) -> np.ndarray:
    """The words of a document, int [sentences, length]."""
    raise NotImplementedError

  def best(self, metric: str) -> float | None:
    del metric
    return None

  @property
  def shape(self) -> tuple[int, int]:
    return self.sentences, self.length


def pick(draws: np.random.Generator, size: int, shape: tuple[int, ...]) -> np.ndarray:
  """Numbers below `size`, uniform. Of a generator, numpy promises only the stream of `random`."""
  return (draws.random(shape) * size).astype(int)


class Topics(Language):
  """16 topics with 12 words each. A word is of the document's topic with probability `dial`, else
  any word. Given its topic, the words of a document are independent: their order says nothing."""

  topics, each = 16, 12

  @property
  def words(self) -> int:
    return self.topics * self.each

  def document(self, draws: np.random.Generator) -> np.ndarray:
    topic = pick(draws, self.topics, ())
    own = topic * self.each + pick(draws, self.each, self.shape)
    return np.where(draws.random(self.shape) < self.dial, own, pick(draws, self.words, self.shape))

  def best(self, metric: str) -> float | None:
    """Next-sentence prediction by topic alone, by Bayes' rule, from 20,000 sampled pairs of half a
    row each. The lengths of real pairs tell a little more."""
    if metric == "sop_accuracy":
      return 0.5
    return self._next_sentence if metric == "nsp_accuracy" else None

  @functools.cached_property
  def _next_sentence(self) -> float:
    pairs, half = 20_000, 2 * self.length
    draws = np.random.Generator(np.random.PCG64(0))
    topic = pick(draws, self.topics, (pairs, 2))
    follows = np.arange(pairs) % 2 == 0
    topic[follows, 1] = topic[follows, 0]
    shape = (pairs, 2, half)
    words = topic[..., None] * self.each + pick(draws, self.each, shape)
    words = np.where(draws.random(shape) < self.dial, words, pick(draws, self.words, shape))
    counts = (words[..., None] // self.each == np.arange(self.topics)).sum(axis=2)
    other = (1 - self.dial) / self.words
    ratio = (self.dial / self.each + other) / max(other, 1e-12)
    weight = np.exp((counts - counts.max(axis=-1, keepdims=True)) * np.log(ratio))
    weight /= weight.sum(axis=-1, keepdims=True)  # p(topic | segment)
    odds = (weight[:, 0] * weight[:, 1]).sum(axis=-1) * self.topics
    right = np.where(odds == 1, 0.5, (odds > 1) == follows)
    return float(right.mean())


class Places(Topics):
  """As `Topics` with all words of the topic; but with probability `dial` a word is one of the 12
  that its sentence has in every document."""

  @property
  def words(self) -> int:
    return (self.topics + self.sentences) * self.each

  def document(self, draws: np.random.Generator) -> np.ndarray:
    topic = pick(draws, self.topics, ())
    word = pick(draws, self.each, self.shape)
    place = self.topics + np.arange(self.sentences)[:, None]
    return np.where(draws.random(self.shape) < self.dial, place, topic) * self.each + word

  def best(self, metric: str) -> float | None:
    """A pair of four sentences is in order or not: any word of a place tells, and without one the
    two are as probable."""
    if metric == "sop_accuracy":
      return 1 - 0.5 * (1 - self.dial) ** (4 * self.length)
    return None


class Markov(Language):
  """48 words, each followed by 12 of them: by the first with probability `dial`, by the others with
  equal ones."""

  followers: ClassVar[int] = 12

  @property
  def words(self) -> int:
    return 48

  @functools.cached_property
  def _next(self) -> np.ndarray:
    """int [states, followers], of which no row has a word twice."""
    draws = np.random.Generator(np.random.PCG64(0))
    return np.argsort(draws.random((self.states, self.states)), axis=1)[:, : self.followers]

  @property
  def states(self) -> int:
    return self.words

  @property
  def _shares(self) -> np.ndarray:
    rest = (1 - self.dial) / (self.followers - 1)
    return np.array([self.dial, *[rest] * (self.followers - 1)])

  def chain(self, draws: np.random.Generator) -> np.ndarray:
    """The states of a document."""
    chosen = np.searchsorted(np.cumsum(self._shares)[:-1], draws.random(self.shape), side="right")
    state, table, states = int(pick(draws, self.states, ())), self._next, []
    for follower in chosen.ravel():
      state = int(table[state, follower])
      states.append(state)
    return np.array(states).reshape(self.shape)

  def document(self, draws: np.random.Generator) -> np.ndarray:
    return self.chain(draws)

  def best(self, metric: str) -> float | None:
    """Left to right, and for one masked word between its neighbours. A model has less to read at
    the ends of a row, and other masks in it."""
    return {"clm_loss": self._forward, "mlm_loss": self._both}.get(metric, lambda: None)()

  def _joint(self) -> np.ndarray:
    """p(state, next state)."""
    table = np.zeros((self.states, self.states))
    np.put_along_axis(table, self._next, np.tile(self._shares, (self.states, 1)), axis=1)
    equations = np.vstack([table.T - np.eye(self.states), np.ones(self.states)])
    stationary = np.linalg.lstsq(equations, np.eye(self.states + 1)[-1], rcond=None)[0]
    return stationary[:, None] * table

  def _forward(self) -> float:
    joint = self._joint()
    return _entropy(joint) - _entropy(joint.sum(axis=1))

  def _both(self) -> float:
    """H(x1 x2 x3) - H(x1 x3)."""
    joint = self._joint()
    triple = joint[:, :, None] * (joint / joint.sum(axis=1, keepdims=True))[None]
    return _entropy(triple) - _entropy(triple.sum(axis=1))


class Classes(Markov):
  """16 classes of equally many words; a class is followed by 4 classes, by the first of them with
  probability .7. A word is any of its class. dial: the number of words."""

  followers = 4
  low, high, step = 16, 4096, 16

  @property
  def words(self) -> int:
    return int(self.dial)

  @property
  def states(self) -> int:
    return 16

  @property
  def _shares(self) -> np.ndarray:
    return np.array([0.7, 0.1, 0.1, 0.1])

  def document(self, draws: np.random.Generator) -> np.ndarray:
    each = self.words // self.states
    return self.chain(draws) * each + pick(draws, each, self.shape)

  def best(self, metric: str) -> float | None:
    best = super().best(metric)
    return None if best is None else best + float(np.log(self.words // self.states))


class Facts(Language):
  """The next word is one of a table that the two words before it choose, with probability .9, else
  any word: as many facts as pairs of words. dial: the number of words."""

  low, high, step = 4, 256, 1
  noise: ClassVar[float] = 0.1

  @property
  def words(self) -> int:
    return int(self.dial)

  @functools.cached_property
  def _table(self) -> np.ndarray:
    return pick(np.random.Generator(np.random.PCG64(0)), self.words, (self.words, self.words))

  def document(self, draws: np.random.Generator) -> np.ndarray:
    words = pick(draws, self.words, (self.sentences * self.length,))
    known = draws.random(words.shape) >= self.noise
    for t in range(2, len(words)):
      if known[t]:
        words[t] = self._table[words[t - 2], words[t - 1]]
    return words.reshape(self.shape)

  def best(self, metric: str) -> float | None:
    return _of_known(1 - self.noise, self.words) if metric == "clm_loss" else None


class Echoes(Language):
  """Sentences of 12 words of 32. The first 6 are any words; each of the others repeats the word 6
  before it with probability `dial`, else it is any word."""

  length = 12

  @property
  def words(self) -> int:
    return 32

  def document(self, draws: np.random.Generator) -> np.ndarray:
    words = pick(draws, self.words, self.shape)
    first, second = np.split(words, 2, axis=1)
    repeated = draws.random(second.shape) < self.dial
    return np.concatenate([first, np.where(repeated, first, second)], axis=1)

  def best(self, metric: str) -> float | None:
    """Gaps of plm_jax/evaluation/gaps.py lie in the first half of a sentence: their words are told
    by the right side alone."""
    return _of_known(self.dial, self.words) if metric == "gap_loss" else None


class Motifs(Language):
  """A document repeats a sentence of 4 pairs of words; each word is replaced by any word with
  probability .1. The second word of a pair follows from the first with probability `dial`."""

  noise: ClassVar[float] = 0.1

  @property
  def words(self) -> int:
    return 64

  def document(self, draws: np.random.Generator) -> np.ndarray:
    first = pick(draws, self.words, (self.length // 2,))
    other = pick(draws, self.words, first.shape)
    second = np.where(draws.random(first.shape) < self.dial, (first + 1) % self.words, other)
    motif = np.stack([first, second], axis=1).ravel()
    noisy = draws.random(self.shape) < self.noise
    return np.where(noisy, pick(draws, self.words, self.shape), motif)


def _entropy(probabilities: np.ndarray) -> float:
  positive = probabilities[probabilities > 0]
  return float(-(positive * np.log(positive)).sum())


def _of_known(share: float, words: int) -> float:
  """The entropy of a word that is a known one with probability `share`, else any."""
  rest = (1 - share) / words
  return _entropy(np.array([share + rest, *[rest] * (words - 1)]))


LANGUAGES: dict[str, type[Language]] = {
  "topics": Topics,
  "places": Places,
  "markov": Markov,
  "echoes": Echoes,
  "motifs": Motifs,
  "classes": Classes,
  "facts": Facts,
}


class ControlledText(NamedTuple):
  """The documents of a language: a `corpora.Source`."""

  name: str
  language: Language
  count: int

  @property
  def size(self) -> int:
    each = self.language.sentences * self.language.length
    return self.count * each * 4  # "w12 " has about 4 bytes

  def documents(self) -> Iterator[Document]:
    names = np.array([f"w{word}" for word in range(self.language.words)], dtype=object)
    for number in range(self.count):
      # A generator for each document, so that a longer text begins with a shorter one.
      draws = np.random.Generator(np.random.PCG64([0, number]))
      lines = names[self.language.document(draws)]
      yield Document(f"{self.name}:{number}", tuple(" ".join(line) for line in lines))

  def fingerprint(self) -> str:
    key = f"{_FORMAT} {self.name} {self.language!r} {self.count}"
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()

  def record(self) -> dict:
    return {"documents of a controlled language": self.count}


def open_controlled(source: str) -> ControlledText:
  """The text that `controlled:NAME/DIAL[/DOCUMENTS]` names. Errors: `UserError` for another."""
  name, *numbers = source.removeprefix(PREFIX).split("/")
  if name not in LANGUAGES or not 1 <= len(numbers) <= 2:
    raise UserError(
      f"the text {source!r} is no controlled language; expected {PREFIX}NAME/DIAL[/DOCUMENTS], "
      f"NAME one of {', '.join(LANGUAGES)}"
    )
  kind = LANGUAGES[name]
  try:
    dial, count = float(numbers[0]), int(numbers[1]) if numbers[1:] else DOCUMENTS
  except ValueError:
    raise UserError(f"the text {source!r} needs numbers after {name}/") from None
  if not kind.low <= dial <= kind.high:
    raise UserError(
      f"the dial of {source!r} is {dial:g}; that of {name} is from {kind.low:g} to {kind.high:g}"
    )
  if kind.step and dial % kind.step:
    raise UserError(f"the dial of {source!r} is {dial:g}; expected a multiple of {kind.step}")
  if not 1 <= count <= _MOST:
    raise UserError(f"{source!r} has {count:,} documents; expected 1 to {_MOST:,}")
  return ControlledText(name, kind(dial), count)
