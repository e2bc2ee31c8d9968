"""A language whose best achievable loss is known: a Markov source over a small vocabulary.

A word depends on the `order` words before it. The best loss follows in closed form from the table
of transitions (Cover & Thomas, Elements of Information Theory, section 4.2), or, for given masked
rows, from the forward-backward recursion (Rabiner 1989, section III) with BERT's 80/10/10
corruption (Devlin et al. 2019, section 3.1) as the observation noise. No model has a lower expected
loss, and a model near it has learnt the language.

Losses are in nats per word. Words are numbers below V; other tokens ([MASK], [CLS], padding) are
HIDDEN. Legend: B rows, T positions, V words, S = V**order states (the last `order` words; the
newest is the least significant digit).
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from plm_jax.objectives.seq2seq import Seq2Seq, sides

HIDDEN = -1


@dataclass(frozen=True, eq=False)
class ToyLanguage:
  """A stationary Markov source; `table` [V] * order + [V] is p(next word | last words)."""

  table: np.ndarray

  @property
  def order(self) -> int:
    return self.table.ndim - 1

  @property
  def vocabulary(self) -> int:
    return self.table.shape[-1]

  @cached_property
  def transition_SS(self) -> np.ndarray:
    """p(next state | state), float64: the oldest word leaves, the next one enters."""
    words, states = self.vocabulary, self.vocabulary**self.order
    transition_SS = np.zeros((states, states))
    following_SV = (np.arange(states)[:, None] * words + np.arange(words)) % states
    np.put_along_axis(transition_SS, following_SV, self.table.reshape(states, words), axis=1)
    return transition_SS

  @cached_property
  def stationary_S(self) -> np.ndarray:
    """pi with pi = pi P and sum 1; unique because every word may follow every other."""
    states = len(self.transition_SS)
    equations = np.vstack([self.transition_SS.T - np.eye(states), np.ones(states)])
    return np.linalg.lstsq(equations, np.eye(states + 1)[-1], rcond=None)[0]

  @cached_property
  def word_of_state_S(self) -> np.ndarray:
    return np.arange(self.vocabulary**self.order) % self.vocabulary

  def sample(self, rows: int, length: int, seed: int) -> np.ndarray:
    """Stretches of the stationary source, int32 [rows, length]; the same for the same arguments."""
    rng = np.random.Generator(np.random.PCG64(seed))
    uniform_TB = rng.random((length, rows))
    states, words = self.vocabulary**self.order, self.vocabulary
    cumulative_SV = np.cumsum(self.table.reshape(states, words), axis=1)
    state_B = np.searchsorted(np.cumsum(self.stationary_S), uniform_TB[0]).clip(max=states - 1)
    word_BT = np.empty((rows, length), np.int32)
    word_BT[:, 0] = state_B % words
    for t in range(1, length):
      next_B = (cumulative_SV[state_B] < uniform_TB[t][:, None]).sum(axis=1).clip(max=words - 1)
      word_BT[:, t] = next_B
      state_B = (state_B * words + next_B) % states
    return word_BT


def random_language(
  vocabulary: int = 32, order: int = 1, sharpness: float = 1.5, seed: int = 0
) -> ToyLanguage:
  """A fixed random language: p(word | context) is the softmax of `sharpness` * Gumbel noise.

  `sharpness` 0 is uniform (the best loss is log V); 1 is a flat Dirichlet; above 1, few words
  follow each context.
  """
  rng = np.random.Generator(np.random.PCG64(seed))
  # Only .random(): numpy guarantees its stream; other distributions may change.
  exponential = -np.log1p(-rng.random((vocabulary,) * (order + 1)))
  weights = np.maximum(exponential, 1e-12) ** -sharpness
  return ToyLanguage(weights / weights.sum(axis=-1, keepdims=True))


# --- best losses in theory -----------------------------------------------------------------------


def entropy(probabilities: np.ndarray) -> float:
  """H(p) = -sum p log p in nats, over all axes."""
  positive = probabilities[probabilities > 0]
  return float(-(positive * np.log(positive)).sum())


def unigram_entropy(language: ToyLanguage) -> float:
  """H(x_t): the loss of a model that knows only the word frequencies."""
  return entropy(_window(language, 1))


def entropy_rate(language: ToyLanguage) -> float:
  """H(x_t | x_<t), the best loss of a causal language model after `order` words."""
  return entropy(_window(language, language.order + 1)) - entropy(_window(language, language.order))


def masked_entropy(language: ToyLanguage) -> float:
  """H(x_t | all other words), the best loss at a single [MASK] away from the ends of a row.

  By the Markov property only `order` neighbours on each side matter, so it is the difference
  H(x_1 .. x_2k+1) - H(the same without x_k+1).
  """
  window = _window(language, 2 * language.order + 1)
  return entropy(window) - entropy(window.sum(axis=language.order))


def _window(language: ToyLanguage, length: int) -> np.ndarray:
  """The joint distribution of `length` neighbouring words, shape [V] * length."""
  words, order = language.vocabulary, language.order
  joint = language.stationary_S.reshape((words,) * order)
  if length < order:
    return joint.sum(axis=tuple(range(order - length)))
  for _ in range(length - order):
    joint = joint[..., None] * language.table
  return joint


# --- best losses for given masked rows -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Corruption:
  """The corruption of a selected position: [MASK], itself, or a random one of `drawn_from` tokens.

  drawn_from: number of tokens that the random one is drawn from, if more than the words of the
    language (a tokenizer's special tokens may be drawn too and are HIDDEN).
  rate: None if the predictor knows the selected positions, a lower bound for every model; else the
    probability with which each position was selected independently, for a predictor that sees only
    the shown row, as a model does.
  """

  mask: float = 0.8
  same: float = 0.1
  random: float = 0.1
  drawn_from: int | None = None
  rate: float | None = None


def bayes_posterior(
  language: ToyLanguage,
  shown_BT: np.ndarray,
  selected_BT: np.ndarray,
  corruption: Corruption | None = None,
) -> np.ndarray:
  """p(word at t | the shown row, t was selected), float64 [B, T, V]: a perfect model's prediction.

  Every row is a stretch of the stationary source. HIDDEN carries no information, so padding at the
  end and [CLS] in front change nothing. Exact, in O(B T S^2).

  shown_BT: words as shown after corruption, HIDDEN for other tokens.
  selected_BT: bool, the positions that were selected; read only where `corruption.rate` is None.
  """
  corruption = corruption or Corruption()
  noisy_BTV, context_BTV = _likelihoods(language.vocabulary, shown_BT, selected_BT, corruption)
  rows, length = shown_BT.shape
  states = len(language.stationary_S)
  word_S = language.word_of_state_S

  before_TBS = np.empty((length, rows, states))  # proportional to p(state_t, shown before t)
  message_BS = np.broadcast_to(language.stationary_S, (rows, states))
  for t in range(length):
    before_TBS[t] = message_BS
    message_BS = _normalised(message_BS * context_BTV[:, t, word_S]) @ language.transition_SS

  posterior_BTV = np.empty((rows, length, language.vocabulary))
  message_BS = np.ones((rows, states))  # proportional to p(shown after t | state_t)
  for t in reversed(range(length)):
    joint_BS = before_TBS[t] * message_BS
    # A state is (older words, word): summing over the older ones leaves the word.
    joint_BV = joint_BS.reshape(rows, -1, language.vocabulary).sum(axis=1)
    posterior_BTV[:, t] = _normalised(joint_BV * noisy_BTV[:, t])
    message_BS = _normalised(message_BS * context_BTV[:, t, word_S]) @ language.transition_SS.T
  return posterior_BTV


def bayes_mlm_loss(
  language: ToyLanguage,
  words_BT: np.ndarray,
  shown_BT: np.ndarray,
  selected_BT: np.ndarray,
  corruption: Corruption | None = None,
) -> tuple[float, int]:
  """(sum, count) of -log p(true word | shown row) over the selected positions, in nats.

  words_BT: the words before corruption, read only at selected positions.
  """
  posterior_BTV = bayes_posterior(language, shown_BT, selected_BT, corruption)
  true_BT = np.where(selected_BT, words_BT, 0)
  probability_BT = np.take_along_axis(posterior_BTV, true_BT[..., None], axis=2)[..., 0]
  return float(-np.log(probability_BT[selected_BT]).sum()), int(selected_BT.sum())


def _likelihoods(
  vocabulary: int, shown_BT: np.ndarray, selected_BT: np.ndarray, corruption: Corruption
) -> tuple[np.ndarray, np.ndarray]:
  """p(shown | word) up to a factor, [B, T, V] twice: if selected, and given the known selection."""
  is_word_BT1 = (shown_BT >= 0)[..., None]
  equal_BTV = (shown_BT[..., None] == np.arange(vocabulary)).astype(np.float64)
  by_chance = corruption.random / (corruption.drawn_from or vocabulary)
  noisy_BTV = np.where(is_word_BT1, corruption.same * equal_BTV + by_chance, 1.0)
  if corruption.rate is None:
    intact_BTV = np.where(is_word_BT1, equal_BTV, 1.0)
    return noisy_BTV, np.where(selected_BT[..., None], noisy_BTV, intact_BTV)
  mixed_BTV = (1 - corruption.rate) * equal_BTV + corruption.rate * noisy_BTV
  return noisy_BTV, np.where(is_word_BT1, mixed_BTV, 1.0)


def _normalised(weights: np.ndarray) -> np.ndarray:
  """Rows scaled to sum to 1, so that long rows do not underflow."""
  return weights / weights.sum(axis=-1, keepdims=True)


# --- as a corpus ---------------------------------------------------------------------------------


def write_corpus(
  path: str | Path,
  language: ToyLanguage,
  documents: int = 200,
  sentences: int = 16,
  words: int = 12,
  seed: int = 0,
) -> np.ndarray:
  """Writes text in the project's format: a sentence a line, a blank line between documents.

  A document is one unbroken stretch of the source, in `sentences` lines of `words` words. Words are
  written as `w17`. Returns their numbers, int32 [documents, sentences, words].
  """
  written = language.sample(documents, sentences * words, seed)
  written = written.reshape(documents, sentences, words)
  names = np.array([f"w{word}" for word in range(language.vocabulary)], dtype=object)
  texts = ("\n".join(" ".join(names[line]) for line in document) for document in written)
  Path(path).write_text("\n\n".join(texts) + "\n", encoding="utf-8")
  return written


# --- as a task -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy(Seq2Seq):
  """Predict the source itself, or the source reversed: a toy task to test new models.

  Rows are "[CLS] text [SEP]". The source is such a row, the target "text [SEP]".
  """

  reverse: bool = False

  def corrupt(self, batch, draws, vocab) -> dict:
    del draws
    ids, length = batch["input_ids"], batch["length"]
    column = np.arange(ids.shape[1] - 1)
    last = length[:, None] - 1
    taken = np.where(column < last - 1, last - 1 - column, column + 1) if self.reverse else None
    target = ids[:, 1:] if taken is None else np.take_along_axis(ids, taken, axis=1)
    return sides(batch, ids, length, target, length - 1, ids[:, 0])
