"""Predicting the original tokens of a row that ELECTRA's generator has filled: the two ablations
between BERT and ELECTRA (Clark et al. 2020, efficiency analysis)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from plm_jax.errors import UserError
from plm_jax.objectives.baselines import Baseline, unigram
from plm_jax.objectives.objective import Terms, cross_entropy, real_positions
from plm_jax.objectives.rtd import original_ids, with_seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedMLM:
  """Mean of `-log p(x_t | row filled by the generator)`, by the discriminator's own token head.

  positions: `masked` predicts the chosen positions, as BERT does, but never sees [MASK] ("Replace
    MLM"); `all` predicts every token of the row ("All-Tokens MLM").
  copy: with `all`, the distribution is `D` on the token that stands there plus `1 - D` times the
    softmax, D a sigmoid of the state (the paper's copy mechanism).
  """

  positions: Literal["masked", "all"] = "masked"
  copy: bool = False
  weight: float = 1.0
  name = "replaced"

  def __post_init__(self):
    if self.copy and self.positions != "all":
      raise UserError("replaced.copy copies unmasked tokens: set replaced.positions=all")

  @property
  def heads(self) -> dict[str, int]:
    return {"tokens": 0, **({"copy": 0} if self.copy else {})}

  def corrupt(self, batch, draws, vocab) -> dict:
    return with_seeds(batch, draws)

  def count(self, batch) -> jax.Array:
    if self.positions == "masked":
      return batch["mlm_weights"].sum()
    return real_positions(batch).sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    encoder = model.encoder()
    if self.positions == "masked":
      logits_BPV = encoder.token_logits_at(hidden.hidden_BTD, batch["mlm_positions"])
      return cross_entropy(logits_BPV, batch["mlm_targets"], batch["mlm_weights"])
    logits_BTV = encoder.token_logits(hidden.hidden_BTD)
    targets_BT, weights_BT = original_ids(batch), real_positions(batch)
    if not self.copy:
      return cross_entropy(logits_BTV, targets_BT, weights_BT)
    return copying_cross_entropy(
      logits_BTV, model.copy_logits(hidden), hidden.corrupted_BT, targets_BT, weights_BT
    )

  def baseline(self, counts, batches, scores) -> Baseline:
    if self.positions == "masked":
      return unigram(counts, batches, "mlm")
    return Baseline("", {"perplexity": None, "accuracy": None})  # copying is most of it


def copying_cross_entropy(logits_BTV, copy_BT, inputs_BT, targets_BT, weights_BT) -> Terms:
  """Cross-entropy and accuracy of `D [x = input] + (1 - D) softmax(logits)`, D = sigmoid(copy)."""
  pick = lambda x, ids: jnp.take_along_axis(x, ids[..., None], axis=-1)[..., 0]  # noqa: E731
  log_p_BTV = jax.nn.log_softmax(logits_BTV)
  rest_BT = jax.nn.log_sigmoid(-copy_BT)
  by_softmax_BT = rest_BT + pick(log_p_BTV, targets_BT)
  is_there_BT = inputs_BT == targets_BT
  both_BT = jnp.logaddexp(by_softmax_BT, jax.nn.log_sigmoid(copy_BT))
  losses_BT = -jnp.where(is_there_BT, both_BT, by_softmax_BT)
  highest_BT = rest_BT + log_p_BTV.max(axis=-1)
  input_BT = jnp.logaddexp(rest_BT + pick(log_p_BTV, inputs_BT), jax.nn.log_sigmoid(copy_BT))
  is_right_BT = jnp.where(
    is_there_BT, input_BT >= highest_BT, (by_softmax_BT >= highest_BT) & (highest_BT > input_BT)
  )
  count = weights_BT.sum()
  return {
    "loss": ((losses_BT * weights_BT).sum(), count),
    "accuracy": ((is_right_BT * weights_BT).sum(), count),
  }
