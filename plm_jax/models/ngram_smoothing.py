"""Probabilities of n-grams from their counts, in float64: the methods that Chen and Goodman (1999)
compare.

    modified Kneser-Ney   p(w | h) = (c(h w) - D(c)) / c(h) + g(h) p(w | h')
                          lower orders count the different tokens before an n-gram; discounts
                          Y = n1 / (n1 + 2 n2), D_i = i - (i + 1) Y n_{i+1} / n_i, D3 for more
    Jelinek-Mercer        p(w | h) = l c(h w) / c(h) + (1 - l) p(w | h'), l for a range of c(h)
    add-k                 p(w | h) = (c(h w) + k) / (c(h) + k V), without shorter contexts

h' is h without its first token. The order below 1 is uniform over the tokens that are predicted.
Deviation from lmplz: where n1, n2 or n3 is zero, or a discount is out of range, the discounts are
0.5, 1 and 1.5 without asking (`--discount_fallback`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plm_jax.models.ngram_counts import Grams, suffixes

FALLBACK = (0.5, 1.0, 1.5)
_SAMPLE = 1 << 20  # n-grams that the weights of Jelinek-Mercer are fitted to
_ROUNDS = 20
_BUCKETS = 32  # of counts of contexts, by their power of two


class Order(NamedTuple):
  """One order. p float64 [N]: of every n-gram's last token after the others. backoff float64 [N]:
  the factor of the order below after this context; 1 where nothing follows it."""

  p: np.ndarray
  backoff: np.ndarray


def kneser_ney(grams: list[Grams], predicted: np.ndarray) -> tuple[list[Order], np.ndarray]:
  """All orders, and the discounts float64 [order, 3]. predicted bool [V]: the tokens that may be
  predicted; others have probability 0."""
  links = suffixes(grams)
  counts = []
  for k, these in enumerate(grams):
    if k == len(grams) - 1:
      counts.append(these.counts)
      continue
    before = np.bincount(links[k], minlength=len(these.keys))
    # Where a text begins, nothing is before an n-gram.
    counts.append(np.where(before > 0, before, these.counts))
  counts[0] = np.where(predicted, counts[0], 0)
  discounts = np.array([_discounts(c) for c in counts])

  def parts(k, context, size):
    count, cut = counts[k], np.append(0.0, discounts[k])[np.minimum(counts[k], 3)]
    total = np.bincount(context, count, size)
    left = np.bincount(context, cut, size)
    safe = np.maximum(total, 1)
    return (count - cut) / safe[context], np.where(total > 0, left / safe, 1.0)

  return _interpolated(grams, links, predicted, parts), discounts


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
  n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
  if not n[:3].all():
    return FALLBACK
  y = n[0] / (n[0] + 2 * n[1])
  cut = tuple(i - (i + 1) * y * n[i] / n[i - 1] for i in (1, 2, 3))
  return cut if all(0 <= c <= i for i, c in enumerate(cut, 1)) else FALLBACK


def jelinek_mercer(grams: list[Grams], predicted: np.ndarray) -> list[Order]:
  """All orders. The weights are those that predict every token best from the counts of all others
  (leaving one out; Ney et al. 1994), by expectation maximisation."""
  links = suffixes(grams)
  counts = [np.where(predicted, grams[0].counts, 0), *(these.counts for these in grams[1:])]
  totals = []
  for k in range(len(grams)):
    size = len(grams[k - 1].keys) if k else 1
    totals.append(np.bincount(_contexts(grams, k), counts[k], size))
  weights = _fitted(grams, links, counts, totals, predicted)

  def parts(k, context, size):
    total = totals[k]
    weight = np.where(total > 0, weights[k][_bucket(total)], 0.0)
    return counts[k] * (weight / np.maximum(total, 1))[context], 1 - weight

  return _interpolated(grams, links, predicted, parts)


def _fitted(grams, links, counts, totals, predicted) -> np.ndarray:
  """float64 [order, _BUCKETS]: the weight of each order by the count of the context."""
  order = len(grams)
  at = np.arange(len(grams[-1].keys))
  at = at[:: max(1, len(at) // _SAMPLE)]
  shares, buckets, often = [], [], counts[-1][at].astype(float)
  for k in reversed(range(order)):
    count, total = counts[k][at], totals[k][_contexts(grams, k)[at]]
    shares.append(np.maximum(count - 1, 0) / np.maximum(total - 1, 1))
    buckets.append(_bucket(total))
    at = links[k - 1][at] if k else at
  shares, buckets = shares[::-1], buckets[::-1]
  weights = np.full((order, _BUCKETS), 0.5)
  for _ in range(_ROUNDS):
    p = [np.full(len(often), 1 / max(1, predicted.sum()))]
    for k in range(order):
      weight = weights[k][buckets[k]]
      p.append(weight * shares[k] + (1 - weight) * p[-1])
    reach = often
    for k in reversed(range(order)):
      used = reach * weights[k][buckets[k]] * shares[k] / np.maximum(p[k + 1], 1e-300)
      reached = np.bincount(buckets[k], reach, _BUCKETS)
      weights[k] = np.bincount(buckets[k], used, _BUCKETS) / np.maximum(reached, 1e-300)
      reach = reach - used
  return weights


def _bucket(total: np.ndarray) -> np.ndarray:
  return np.minimum(np.log2(np.maximum(total, 1)).astype(int), _BUCKETS - 1)


def _contexts(grams: list[Grams], k: int) -> np.ndarray:
  return grams[k].contexts if k else np.zeros(len(grams[0].keys), np.int64)


def _interpolated(grams, links, predicted, parts) -> list[Order]:
  """The orders from `parts(k, contexts, number of contexts)`: every n-gram's share of the count of
  its context, and every context's factor of the order below."""
  below = np.where(predicted, 1 / max(1, predicted.sum()), 0.0)
  made: list[Order] = []
  for k in range(len(grams)):
    context = _contexts(grams, k)
    share, factor = parts(k, context, len(grams[k - 1].keys) if k else 1)
    if k:
      made[-1] = made[-1]._replace(backoff=factor)
    p = share + factor[context] * (below[links[k - 1]] if k else below)
    made.append(Order(np.where(predicted, p, 0.0) if k == 0 else p, np.ones(len(p))))
    below = p
  return made


def add_k(grams: list[Grams], predicted: np.ndarray, k: float) -> list[Order]:
  """All orders; `backoff` is the factor of the uniform distribution."""
  made, tokens = [], int(predicted.sum())
  for order, these in enumerate(grams):
    counts = np.where(predicted, these.counts, 0) if order == 0 else these.counts
    context = _contexts(grams, order)
    total = np.bincount(context, counts, len(grams[order - 1].keys) if order else 1)
    if order:
      made[-1] = made[-1]._replace(backoff=k * tokens / (total + k * tokens))
    p = (counts + k) / (total + k * tokens)[context]
    made.append(Order(np.where(predicted, p, 0.0) if order == 0 else p, np.ones(len(p))))
  return made
