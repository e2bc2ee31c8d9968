"""The loss as a function of N parameters and D tokens, fitted to runs, and a prediction with its
interval. Two published forms:

    Hoffmann et al. 2022, section 3.3    L = E + A N^-alpha + B D^-beta
    Kaplan et al. 2020, equation 1.5     L = (A N^-alpha + B / D)^gamma

In the first, tokens are worth as much to a small model as to a large one; in the second less,
because L is a power of the sum. Kaplan et al. write alpha_D for gamma and alpha_N for alpha gamma.

Both are fitted as Hoffmann et al. do ("approach 3"): minimised is the sum of Huber losses, delta
1e-3, of log L(N, D) - log L over the runs, with the logarithms of E, A and B as variables, by
L-BFGS from a grid of starts. Besiroglu et al. 2024 found that the published fit had stopped early,
because of the scale of its objective: here losses are summed, in units of delta^2.
Logarithms of N and D are taken from their means, so that log A and alpha are nearly independent.

A compute of C = 6 N D operations is best spent on N = G (C/6)^a and D = (C/6)^b / G, where

    a = beta / (alpha + beta)    b = alpha / (alpha + beta)
    G = (alpha A / (beta B))^(1 / (alpha + beta))

and beta is 1 in the second form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from plm_jax.errors import UserError

DELTA = 1e-3
FEWEST = 8  # runs; the law has five constants
RESAMPLES = 200
LEVEL = 0.9  # of all intervals
OPERATIONS = 6  # of a parameter and a token: two forward, four backward
_NONE = -50.0  # the logarithm of an E that is 0

Form = Literal["Hoffmann", "Kaplan"]
FORMS: dict[Form, str] = {
  "Hoffmann": "E + A N^-alpha + B D^-beta",
  "Kaplan": "(A N^-alpha + B / D)^gamma",
}
# Of (log E, log A', log B', alpha, beta, gamma). A constant is one that lies between equal numbers.
_FREE = (-10.0, 50.0)
_BOUNDS = {
  "Hoffmann": ((-10.0, 5.0), _FREE, _FREE, (0.01, 3.0), (0.01, 3.0), (1.0, 1.0)),
  "Kaplan": ((_NONE, _NONE), _FREE, _FREE, (0.01, 10.0), (1.0, 1.0), (0.01, 1.0)),
}
_GRID = {  # share of the smallest loss in E, alpha, beta, gamma
  "Hoffmann": ((0.1, 0.5, 0.9), (0.1, 0.3, 0.7), (0.1, 0.3, 0.7), (1.0,)),
  "Kaplan": ((0.0,), (0.3, 0.6, 1.2), (1.0,), (0.05, 0.1, 0.3)),
}


class Point(NamedTuple):
  """A run: N parameters, D tokens read, the loss in nats."""

  parameters: float
  tokens: float
  loss: float


class Law(NamedTuple):
  """L(N, D) = E + (A N^-alpha + B D^-beta)^gamma, of which both forms are cases."""

  E: float
  A: float
  B: float
  alpha: float
  beta: float
  gamma: float = 1.0

  def loss(self, parameters, tokens):
    return self.E + (self.A * parameters**-self.alpha + self.B * tokens**-self.beta) ** self.gamma

  @property
  def of_parameters(self) -> float:
    """The exponent of N in the loss when D is large: alpha, or Kaplan et al.'s alpha_N."""
    return self.alpha * self.gamma

  @property
  def of_tokens(self) -> float:
    """The exponent of D in the loss when N is large: beta, or Kaplan et al.'s alpha_D."""
    return self.beta * self.gamma

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
  form: Form
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


def fit(
  points: Sequence[Point], form: Form = "Hoffmann", resamples: int = RESAMPLES, seed: int = 0
) -> Fit:
  """The law of the runs, with its uncertainty. resamples, seed: of the bootstrap, which draws as
  many runs as there are, with replacement. Errors: `UserError` for fewer than `FEWEST` runs, or
  runs of one size, or of one number of tokens."""
  if len(points) < FEWEST:
    raise UserError(
      f"{len(points)} runs are measured, and a law needs at least {FEWEST}; run more arms"
    )
  for name in ("parameters", "tokens"):
    if len({getattr(point, name) for point in points}) < 3:
      raise UserError(f"a law of loss and {name} needs runs with at least three numbers of {name}")
  if not all(math.isfinite(point.loss) and point.loss > 0 for point in points):
    raise UserError("a law of the loss needs finite losses above 0; leave out runs that exploded")
  import scipy.optimize  # noqa: F401  loads the BLAS whose threads are limited

  # Its threads wait for each other longer than vectors of five numbers take.
  with threadpool_limits(1):
    return _fit(points, form, resamples, seed)


def _fit(points: Sequence[Point], form: Form, resamples: int, seed: int) -> Fit:
  data = np.log(np.array(points, dtype=float))
  data[:, :2] -= (centre := data[:, :2].mean(0))
  starts = _starts(data, form)
  found = _minimum(data, starts, form)
  near = [found, starts[len(starts) // 2]]
  draws = np.random.default_rng(seed).integers(len(data), size=(resamples, len(data)))
  resampled = [_minimum(data[rows], near, form) for rows in draws if _varies(data[rows])]
  residuals = []
  for point, rows in zip(points, ~np.eye(len(data), dtype=bool), strict=True):
    law = _law(_minimum(data[rows], near[:1], form), centre)
    residuals.append(math.log(point.loss / law.loss(point.parameters, point.tokens)))
  laws = tuple(_law(theta, centre) for theta in resampled)
  return Fit(tuple(points), form, _law(found, centre), laws, tuple(residuals))


def _interval(values) -> Interval:
  low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  return Interval(float(low), float(high))


def _varies(data: np.ndarray) -> bool:
  """Whether a resample has three sizes and three numbers of tokens."""
  return all(len(np.unique(data[:, column])) >= 3 for column in (0, 1))


def _starts(data: np.ndarray, form: Form) -> list[np.ndarray]:
  """A grid. What E leaves of the mean loss is divided equally between the terms of N and of D."""
  smallest, mean = np.exp(data[:, 2].min()), np.exp(data[:, 2].mean())
  starts = []
  for share, alpha, beta, gamma in itertools.product(*_GRID[form]):
    E = share * smallest
    half = np.log(mean - E) / gamma - np.log(2)
    starts.append(np.array([np.log(E) if E else _NONE, half, half, alpha, beta, gamma]))
  return starts


def _minimum(data: np.ndarray, starts: Sequence[np.ndarray], form: Form) -> np.ndarray:
  """(log E, log A', log B', alpha, beta, gamma), A' and B' at the centre of the data."""
  from scipy.optimize import minimize

  options = {"maxiter": 2_000, "ftol": 1e-10, "gtol": 1e-6}
  results = [
    minimize(
      _objective, start, (data,), "L-BFGS-B", jac=True, bounds=_BOUNDS[form], options=options
    )
    for start in starts
  ]
  return min(results, key=lambda result: result.fun).x


def _objective(theta: np.ndarray, data: np.ndarray) -> tuple[float, np.ndarray]:
  """The sum of Huber losses in units of delta^2, and its gradient. data [runs, 3]: log N and log D
  from their centres, log L."""
  e, a, b, alpha, beta, gamma = theta
  n, d, observed = data.T
  of_n, of_d = a - alpha * n, b - beta * d
  inner = np.logaddexp(of_n, of_d)
  total = np.logaddexp(e, gamma * inner)
  error = (total - observed) / DELTA
  huber = np.where(np.abs(error) <= 1, error**2 / 2, np.abs(error) - 0.5)
  slope = np.clip(error, -1, 1) / DELTA
  by_inner = slope * np.exp(gamma * inner - total)
  by_n = gamma * by_inner * np.exp(of_n - inner)
  by_d = gamma * by_inner * np.exp(of_d - inner)
  by_e = slope * np.exp(e - total)
  columns = (by_e, by_n, by_d, -by_n * n, -by_d * d, by_inner * inner)
  return float(huber.sum()), np.array([column.sum() for column in columns])


def _law(theta: np.ndarray, centre: np.ndarray) -> Law:
  e, a, b, alpha, beta, gamma = map(float, theta)
  n, d = map(float, centre)
  E = 0.0 if e <= _NONE else math.exp(e)
  return Law(E, math.exp(a + alpha * n), math.exp(b + beta * d), alpha, beta, gamma)
