"""The rules of generation: greedy search, sampling or beam search, penalties and lengths."""

import dataclasses

import jax

from plm_jax.decode import logits
from plm_jax.errors import UserError

# Limits that keep scores finite in float32.
_MOST = 1e6  # of a factor of scores, and of its inverse
_STEEPEST = 5  # exponent of a length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """Greedy search by default.

  temperature: 0 takes the most probable token; above 0 a token is drawn.
  top_k, top_p: restrict the tokens to draw from; 0 and 1 allow all.
  beams: above 1, the beams of a search for the most probable text, which compares texts by (sum of
    log p) / length^length_penalty.
  repetition_penalty: see `logits.repetition_penalty`; for tokens of the prompt and the text.
  min_length, max_length: new tokens, without the token that ends a text.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  beams: int = 1
  length_penalty: float = 1.0
  repetition_penalty: float = 1.0
  min_length: int = 0
  max_length: int = 64

  def __post_init__(self):
    if self.temperature and not 1 / _MOST <= self.temperature <= _MOST:
      raise UserError(f"temperature={self.temperature} must be 0, or from {1 / _MOST} to {_MOST:g}")
    if self.top_k < 0 or not 0 < self.top_p <= 1:
      raise UserError(
        f"top_k={self.top_k} must be at least 0, and top_p={self.top_p} above 0 and at most 1"
      )
    if self.temperature == 0 and (self.top_k or self.top_p < 1):
      raise UserError("top_k and top_p are for drawn tokens only; give a temperature above 0")
    if self.beams < 1 or not abs(self.length_penalty) <= _STEEPEST:
      raise UserError(
        f"beams={self.beams} must be at least 1, and length_penalty={self.length_penalty} from "
        f"-{_STEEPEST} to {_STEEPEST}"
      )
    if self.beams > 1 and self.temperature:
      raise UserError(
        f"beams={self.beams} search for the most probable text and temperature={self.temperature} "
        "draws one; choose one of them"
      )
    if self.beams == 1 and self.length_penalty != 1:
      raise UserError("length_penalty compares the texts of a beam search; give beams above 1")
    if not 1 / _MOST <= self.repetition_penalty <= _MOST:
      raise UserError(
        f"repetition_penalty={self.repetition_penalty} must be from {1 / _MOST} to {_MOST:g}; 1 "
        "turns it off"
      )
    if not 0 <= self.min_length <= self.max_length or self.max_length < 1:
      raise UserError(
        f"min_length={self.min_length} must be at least 0 and at most max_length="
        f"{self.max_length}, which must be at least 1"
      )

  def applied(self, logits_BV: jax.Array, seen_BV, ends_E, step) -> jax.Array:
    """The scores after repetition penalty and minimum length, for every kind of search."""
    if self.repetition_penalty != 1:
      logits_BV = logits.repetition_penalty(logits_BV, seen_BV, self.repetition_penalty)
    if self.min_length:
      logits_BV = logits.not_yet(logits_BV, ends_E, step < self.min_length)
    return logits_BV

  def drawn_from(self, logits_BV: jax.Array) -> jax.Array:
    """The scores of the distribution that a token is drawn from."""
    logits_BV = logits.top_k(logits_BV / self.temperature, self.top_k)
    return logits.top_p(logits_BV, self.top_p)
