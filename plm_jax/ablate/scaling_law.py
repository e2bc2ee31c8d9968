"""The loss as a function of parameters and tokens, fitted to runs (Hoffmann et al. 2022, section
3.3, "Approach 3"), and a prediction with its interval.

    L(N, D) = E + A N^-alpha + B D^-beta

Minimised is the sum of Huber losses, delta 1e-3, of log L(N, D) - log L over the runs, with log A,
log B and log E as variables, by L-BFGS from a grid of starts. Two details are those of Besiroglu et
al. 2024, whose replication found that the published fit had stopped early: losses are summed and
not averaged, and in units of delta^2. Logarithms of N and D are taken from their means, so that
log A and alpha are nearly independent.

A compute of C = 6 N D operations is best spent on N = G (C/6)^a and D = (C/6)^b / G, where

    a = beta / (alpha + beta)    b = alpha / (alpha + beta)
    G = (alpha A / (beta B))^(1 / (alpha + beta))
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from plm_jax.errors import UserError

DELTA = 1e-3
FEWEST = 8  # runs; the law has five constants
RESAMPLES = 200
LEVEL = 0.9  # of all intervals
OPERATIONS = 6  # of a parameter and a token: two forward, four backward
_BOUNDS = ((-10.0, 5.0), (-10.0, 5.0), (-10.0, 5.0), (0.01, 3.0), (0.01, 3.0))


class Point(NamedTuple):
  """A run: N parameters, D tokens read, the loss in nats."""

  parameters: float
  tokens: float
  loss: float


class Law(NamedTuple):
  """The constants of L(N, D)."""

  E: float
  A: float
  B: float
  alpha: float
  beta: float

  def loss(self, parameters, tokens):
    return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta

  @property
  def a(self) -> float:
    """The exponent of C in the best number of parameters."""
    return self.beta / (self.alpha + self.beta)

  @property
  def b(self) -> float:
    """The exponent of C in the best number of tokens."""
    return self.alpha / (self.alpha + self.beta)

  def best_parameters(self, compute):
    """The number of parameters with the lowest loss of all with 6 N D = compute."""
    ratio = self.alpha * self.A / (self.beta * self.B)
    return ratio ** (1 / (self.alpha + self.beta)) * (compute / OPERATIONS) ** self.a

  def best_tokens(self, compute):
    return compute / OPERATIONS / self.best_parameters(compute)


class Interval(NamedTuple):
  low: float
  high: float

  def __contains__(self, value: object) -> bool:
    return isinstance(value, float) and self.low <= value <= self.high


class Fit(NamedTuple):
  """points: the fitted runs. law: of all of them. resampled: the laws of the bootstrap's resamples.
  residuals: of each run, log L - log L(N, D) with the law of all other runs."""

  points: tuple[Point, ...]
  law: Law
  resampled: tuple[Law, ...]
  residuals: tuple[float, ...]

  @property
  def spread(self) -> float:
    """The root mean square of the residuals: the relative error of a left-out run."""
    return math.sqrt(float(np.mean(np.square(self.residuals))))

  def interval(self, name: str) -> Interval:
    """Of a constant or an exponent, over the resamples."""
    return _interval([getattr(law, name) for law in self.resampled])

  def predicted(self, parameters: float, tokens: float) -> tuple[float, Interval]:
    """The loss of a run, and its interval: the quantiles of L_r(N, D) exp(residual) over all pairs
    of a resample r and a left-out run. It has the uncertainty of the constants and the scatter of
    runs about a law; it does not have an error of the law's form beyond the fitted runs."""
    losses = np.array([law.loss(parameters, tokens) for law in self.resampled])
    possible = np.outer(losses, np.exp(self.residuals))
    return float(self.law.loss(parameters, tokens)), _interval(possible.ravel())


def fit(points: Sequence[Point], resamples: int = RESAMPLES, seed: int = 0) -> Fit:
  """The law of the runs, with its uncertainty. resamples, seed: of the bootstrap, which draws as
  many runs as there are, with replacement. Errors: `UserError` for fewer than `FEWEST` runs, or
  runs of one size, or of one number of tokens."""
  if len(points) < FEWEST:
    raise UserError(
      f"{len(points)} runs are measured, and the law L = E + A N^-alpha + B D^-beta needs at least "
      f"{FEWEST}; run more arms"
    )
  for name in ("parameters", "tokens"):
    if len({getattr(point, name) for point in points}) < 3:
      raise UserError(f"a law of loss and {name} needs runs with at least three numbers of {name}")
  if not all(math.isfinite(point.loss) and point.loss > 0 for point in points):
    raise UserError("a law of the loss needs finite losses above 0; leave out runs that exploded")
  import scipy.optimize  # noqa: F401  loads the BLAS whose threads are limited

  # Its threads wait for each other longer than vectors of five numbers take.
  with threadpool_limits(1):
    return _fit(points, resamples, seed)


def _fit(points: Sequence[Point], resamples: int, seed: int) -> Fit:
  data = np.log(np.array(points, dtype=float))
  starts = _starts(data)
  found = _minimum(data, starts)
  near = [found, starts[len(starts) // 2]]
  draws = np.random.default_rng(seed).integers(len(data), size=(resamples, len(data)))
  resampled = [_minimum(data[rows], near, data) for rows in draws if _varies(data[rows])]
  kept = ~np.eye(len(data), dtype=bool)
  residuals = []
  for point, rows in zip(points, kept, strict=True):
    law = _law(_minimum(data[rows], near[:1], data), data)
    residuals.append(math.log(point.loss / law.loss(point.parameters, point.tokens)))
  laws = tuple(_law(theta, data) for theta in resampled)
  return Fit(tuple(points), _law(found, data), laws, tuple(residuals))


def _interval(values) -> Interval:
  low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  return Interval(float(low), float(high))


def _varies(data: np.ndarray) -> bool:
  """Whether a resample has three sizes and three numbers of tokens."""
  return all(len(np.unique(data[:, column])) >= 3 for column in (0, 1))


def _starts(data: np.ndarray) -> list[np.ndarray]:
  """The grid: shares of the smallest loss that cannot be learnt, and exponents. The rest of the
  mean loss is divided equally between the terms of N and of D."""
  smallest, mean = np.exp(data[:, 2].min()), np.exp(data[:, 2].mean())
  starts = []
  for share, alpha, beta in itertools.product((0.1, 0.5, 0.9), (0.1, 0.3, 0.7), (0.1, 0.3, 0.7)):
    half = np.log((mean - share * smallest) / 2)
    starts.append(np.array([np.log(share * smallest), half, half, alpha, beta]))
  return starts


def _minimum(data: np.ndarray, starts, whole: np.ndarray | None = None) -> np.ndarray:
  """(log E, log A', log B', alpha, beta), A' and B' at the mean logarithms of `whole`."""
  from scipy.optimize import minimize

  centre = (data if whole is None else whole)[:, :2].mean(0)
  centred = np.column_stack([data[:, :2] - centre, data[:, 2]])
  options = {"maxiter": 2_000, "ftol": 1e-10, "gtol": 1e-6}
  results = [
    minimize(_objective, start, (centred,), "L-BFGS-B", jac=True, bounds=_BOUNDS, options=options)
    for start in starts
  ]
  return min(results, key=lambda result: result.fun).x


def _objective(theta: np.ndarray, data: np.ndarray) -> tuple[float, np.ndarray]:
  """The sum of Huber losses in units of delta^2, and its gradient. data [runs, 3]: log N and log D
  from their centres, log L."""
  e, a, b, alpha, beta = theta
  n, d, observed = data.T
  terms = np.stack([np.full_like(n, e), a - alpha * n, b - beta * d])
  highest = terms.max(0)
  shares = np.exp(terms - highest)
  total = shares.sum(0)
  shares /= total
  error = (highest + np.log(total) - observed) / DELTA
  huber = np.where(np.abs(error) <= 1, error**2 / 2, np.abs(error) - 0.5)
  slope = np.clip(error, -1, 1) / DELTA
  of_e, of_a, of_b = slope * shares
  gradient = [of_e.sum(), of_a.sum(), of_b.sum(), -(of_a * n).sum(), -(of_b * d).sum()]
  return float(huber.sum()), np.array(gradient)


def _law(theta: np.ndarray, data: np.ndarray) -> Law:
  e, a, b, alpha, beta = map(float, theta)
  n, d = map(float, data[:, :2].mean(0))
  return Law(math.exp(e), math.exp(a + alpha * n), math.exp(b + beta * d), alpha, beta)
