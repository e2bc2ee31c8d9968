"""Replaced-token detection (Clark et al. 2020, section 2): which tokens did the generator replace?

Sources: google-research/electra (8a46635) pretrain/pretrain_helpers.py `mask`, run_pretraining.py
`_get_fake_data` and `_get_discriminator_output`, configure_pretraining.py for the losses' weights.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.errors import UserError
from plm_jax.objectives import masking
from plm_jax.objectives.baselines import Baseline
from plm_jax.objectives.mlm import MaskedTokens
from plm_jax.objectives.objective import Terms, real_positions

_PLACES, _FATES, _SAMPLES = 16, 17, 18  # streams of draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorMLM(MaskedTokens):
  """Masked language modelling of ELECTRA's generator: mean of `-log p(x_t | masked row)`.

  Of a row's n tokens round(rate * n) positions are drawn with replacement (twice counts twice) from
  those that are not special; a share `mask` of the draws becomes [MASK], the rest stays.
  """

  rate: float = 0.15
  mask: float = 0.85
  weight: float = 1.0

  def __post_init__(self):
    if not (0 < self.rate <= 1 and 0 <= self.mask <= 1):
      raise UserError(
        f"mlm.rate={self.rate} must be above 0 and at most 1, and mlm.mask={self.mask} between 0 "
        "and 1"
      )

  def corrupt(self, batch, draws, vocab) -> dict:
    """As `MLM.corrupt`: `input_ids`, `mlm_positions`, `mlm_targets`, `mlm_weights`."""
    if vocab.mask is None:
      raise UserError("ELECTRA's generator needs a tokenizer with a [MASK] token; this has none")
    ids, length = batch["input_ids"], batch["length"]
    slots = masking.predictions(ids.shape[1], self.rate)
    number = masking.budget(length, self.rate, slots)
    allowed = masking.candidates(ids, vocab) & (ids != vocab.mask)
    positions, valid = draw_with_replacement(allowed, number, slots, draws)
    masked = valid & (draws.uniform(_FATES, slots) < self.mask)
    input_ids = ids.copy()
    row, slot = np.nonzero(masked)
    input_ids[row, positions[row, slot]] = vocab.mask
    return batch | {
      "input_ids": input_ids,
      "mlm_positions": positions,
      "mlm_targets": np.take_along_axis(ids, positions, axis=1) * valid,
      "mlm_weights": valid * batch["row_weight"][:, None],
    }


def draw_with_replacement(allowed, number, slots: int, draws) -> tuple[np.ndarray, np.ndarray]:
  """Positions int32 [B, P], ascending, of which the first `number` [B] are valid bool [B, P].

  allowed bool [B, T]; rows with nothing allowed have no valid position.
  """
  count = allowed.sum(axis=1)
  first = np.cumsum(count) - count
  pick = (draws.uniform(_PLACES, slots) * count[:, None]).astype(np.int64)
  flat = np.append(np.flatnonzero(allowed), 0)  # one more: nothing may be allowed at all
  positions = flat[np.minimum(first[:, None] + pick, flat.size - 1)] % allowed.shape[1]
  valid = (np.arange(slots) < number[:, None]) & (count > 0)[:, None]
  ordered = np.sort(np.where(valid, positions, allowed.shape[1]), axis=1)
  return np.where(valid, ordered, 0).astype(np.int32), valid


@dataclasses.dataclass(frozen=True, kw_only=True)
class RTD:
  """Mean of the binary cross-entropy of "was this token replaced?" over real positions.

  A sample that happens to be the original token counts as original. The samples are a function of
  the row's own draws, so that an evaluation measures every model on the same noise.

  positions: `all`, or `masked`, those alone that were chosen for the generator ("ELECTRA 15%").
  weight: 50, as published; the binary loss is that much smaller than the generator's.

  Few tokens are replaced, so "always original" has a high accuracy. `auc` corrects for that: the
  probability that a replaced token scores higher than an original token of the same row. `found` is
  the recall of replaced tokens, `kept` the recall of original tokens.
  """

  positions: Literal["all", "masked"] = "all"
  weight: float = 50.0
  name = "rtd"
  heads: ClassVar[dict[str, int]] = {"rtd": 0}

  def corrupt(self, batch, draws, vocab) -> dict:
    return with_seeds(batch, draws)

  def count(self, batch) -> jax.Array:
    return _counted(batch, self.positions).sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    logits_BT = model.replaced_logits(hidden)
    replaced_BT = hidden.corrupted_BT != original_ids(batch)
    weights_BT = _counted(batch, self.positions)
    losses_BT = jax.nn.softplus(logits_BT) - logits_BT * replaced_BT
    is_right_BT = (logits_BT > 0) == replaced_BT
    return {
      "loss": _mean(losses_BT, weights_BT),
      "accuracy": _mean(is_right_BT, weights_BT),
      "replaced": _mean(replaced_BT, weights_BT),
      "found": _mean(is_right_BT, weights_BT * replaced_BT),
      "kept": _mean(is_right_BT, weights_BT * ~replaced_BT),
      "auc": _pairs(logits_BT, replaced_BT, weights_BT, batch),
    }

  def baseline(self, counts, batches, scores) -> Baseline:
    """A constant score: the true share of replaced tokens."""
    p = scores["rtd/replaced"]
    entropy = -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)
    values = {"loss": entropy, "auc": 0.5, "accuracy": max(p, 1 - p), "found": float(p > 0.5)}
    return Baseline("constant", values)


def with_seeds(batch: dict, draws) -> dict:
  """Adds `sample_seeds` uint32 `[B, P]`; a position that was drawn twice has one seed."""
  if "mlm_positions" not in batch:
    raise UserError(
      "nothing is masked for the generator to fill: objectives needs GeneratorMLM before RTD or "
      "ReplacedMLM"
    )
  at = batch["mlm_positions"].astype(np.uint32)
  return batch | {"sample_seeds": draws.bits_at(_SAMPLES, at)}


def original_ids(batch: dict) -> jax.Array:
  """int `[B, T]`: the rows before masking."""
  return _at_slots(batch["input_ids"], batch, batch["mlm_targets"])


def _counted(batch: dict, positions: str) -> jax.Array:
  weights_BT = real_positions(batch)
  if positions == "all":
    return weights_BT
  return weights_BT * _at_slots(jnp.zeros_like(weights_BT), batch, 1.0)


def _at_slots(values_BT, batch: dict, new) -> jax.Array:
  """The values with others at the batch's `mlm_positions`; slots of no weight write nothing."""
  rows, columns = values_BT.shape
  at_BP = jnp.where(batch["mlm_weights"] > 0, batch["mlm_positions"], columns)
  return jnp.asarray(values_BT).at[jnp.arange(rows)[:, None], at_BP].set(new, mode="drop")


def _mean(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
  return (values * weights).sum(), weights.sum()


def _pairs(logits_BT, replaced_BT, weights_BT, batch) -> tuple[jax.Array, jax.Array]:
  """(pairs in which the replaced token scores higher, pairs), over all pairs of a replaced and an
  original token within a row; equal scores are half."""
  at_BP = batch["mlm_positions"]
  is_first_BP = jnp.pad(at_BP[:, 1:] != at_BP[:, :-1], ((0, 0), (1, 0)), constant_values=True)
  gather = lambda x_BT: jnp.take_along_axis(x_BT, at_BP, axis=1)  # noqa: E731
  one_BP = gather(weights_BT * replaced_BT) * is_first_BP * (batch["mlm_weights"] > 0)
  other_BT = weights_BT * ~replaced_BT
  difference_BPT = gather(logits_BT)[..., None] - logits_BT[:, None]
  higher_BPT = 0.5 * (1.0 + jnp.sign(difference_BPT))
  higher = jnp.einsum("BPT,BP,BT->", higher_BPT, one_BP, other_BT)
  return higher, (one_BP.sum(axis=1) * other_BT.sum(axis=1)).sum()
