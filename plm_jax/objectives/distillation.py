"""Learning from a teacher's predictions (Hinton et al. 2015; Sanh et al. 2019, section 3).

Source: huggingface/transformers-research-projects (fccd0cd) distillation/distiller.py `step`. The
triple loss is `5 Distillation + 2 MLM + 1 Cosine`, the weights of the repository's README.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from plm_jax.errors import UserError
from plm_jax.objectives.baselines import Baseline
from plm_jax.objectives.objective import Terms, real_positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
  """`T^2` times the mean of KL(teacher || student), both softmaxes of logits / T, over positions.

  T^2 keeps the gradient's size when the temperature changes. positions: `all` without padding, or
  `masked`, only those chosen for masking (`restrict_ce_to_mask`). `agreement` is the share of
  positions at which both models predict the same token.
  """

  temperature: float = 2.0
  positions: Literal["all", "masked"] = "all"
  weight: float = 5.0
  name = "distillation"
  heads: ClassVar[dict[str, int]] = {"mlm": 0, "teacher": 0}

  def __post_init__(self):
    if self.temperature <= 0:
      raise UserError(f"distillation.temperature={self.temperature} must be above 0")

  def corrupt(self, batch, draws, vocab) -> dict:
    """The rows unchanged: teacher and student read the rows of the masking objective before."""
    if self.positions == "masked" and "mlm_positions" not in batch:
      raise UserError("distillation.positions=masked needs MLM before Distillation in objectives")
    return batch

  def count(self, batch) -> jax.Array:
    return self._weights(batch).sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    at_BP = None if self.positions == "all" else batch["mlm_positions"]
    student, teacher = model.both_logits(hidden, at_BP)
    divergence, agrees = divergence_of(self.temperature, student, teacher)
    weights = self._weights(batch)
    count = weights.sum()
    return {
      "loss": ((divergence * self.temperature**2 * weights).sum(), count),
      "agreement": ((agrees * weights).sum(), count),
    }

  def baseline(self, counts, batches, scores) -> Baseline:
    return Baseline("", {"agreement": None})

  def _weights(self, batch: dict) -> jax.Array:
    return real_positions(batch) if self.positions == "all" else batch["mlm_weights"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def divergence_of(t: float, student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
  """KL(teacher || student) of the softmaxes of logits / t, float32, and whether a token has the
  highest logit of both, `[...]`. logits: float32 `[..., V]`. The teacher gets no gradient.

  It has half the passes over the logits that JAX's own gradient makes (and no argmax, which is slow
  on a CPU).
  """
  return _divergence_forward(t, student, teacher)[0]


def _divergence_forward(t: float, student: jax.Array, teacher: jax.Array):
  highest = [logits.max(axis=-1, keepdims=True) for logits in (student, teacher)]
  log_q, log_p = (jax.nn.logsumexp(x / t, axis=-1, keepdims=True) for x in (student, teacher))
  p = jnp.exp(teacher / t - log_p)
  divergence = (p * (teacher - student)).sum(axis=-1) / t - (log_p - log_q)[..., 0]
  agrees = ((student >= highest[0]) & (teacher >= highest[1])).any(axis=-1)
  return (divergence, agrees), (student, teacher, log_q, log_p)


def _divergence_backward(t: float, kept, gradients):
  student, teacher, log_q, log_p = kept
  q, p = jnp.exp(student / t - log_q), jnp.exp(teacher / t - log_p)
  return (q - p) * (gradients[0] / t)[..., None], jnp.zeros_like(teacher)


divergence_of.defvjp(_divergence_forward, _divergence_backward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
  """Mean of `1 - cos(student state, teacher state)` of the last layer over real positions."""

  weight: float = 1.0
  name = "cosine"
  heads: ClassVar[dict[str, int]] = {"teacher": 0}

  def corrupt(self, batch, draws, vocab) -> dict:
    return batch

  def count(self, batch) -> jax.Array:
    return real_positions(batch).sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    widths = [states.shape[-1] for states in hidden]
    if widths[0] != widths[1]:
      raise UserError(
        f"the student's states have {widths[0]} dimensions and the teacher's {widths[1]}, so that "
        "they have no angle; give both one width, or leave Cosine out of objectives"
      )
    student, teacher = (states.astype(jnp.float32) for states in hidden)
    norms = jnp.linalg.norm(student, axis=-1) * jnp.linalg.norm(teacher, axis=-1)
    cosines_BT = (student * teacher).sum(axis=-1) / jnp.maximum(norms, 1e-8)
    weights_BT = real_positions(batch)
    return {"loss": (((1 - cosines_BT) * weights_BT).sum(), weights_BT.sum())}

  def baseline(self, counts, batches, scores) -> Baseline:
    return Baseline("", {}, unit="")
