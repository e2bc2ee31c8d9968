"""Language modelling in both directions: the next token from the left, the previous one from the
right (Peters et al. 2018, section 3.1)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.objectives.baselines import Baseline, unigram
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.objective import Terms, token_terms
from plm_jax.objectives.sampled_softmax import refuse_negative, sampled, sampled_terms


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiLM:
  """Mean of `-log p(x_t | x_<t)` and `-log p(x_t | x_>t)` over all tokens with a token before and
  after them, so that its exponential is the average perplexity of both directions. In rows with
  `document_ids` no token is predicted from another document. sampled: as in CLM."""

  weight: float = 1.0
  sampled: int = 0
  name = "bilm"
  heads: ClassVar[dict[str, int]] = {"bilm": 0}

  def __post_init__(self):
    refuse_negative(self)

  def corrupt(self, batch, draws, vocab) -> dict:
    """Adds `bilm_targets` int32 and `bilm_weights` float32 `[B, 2 T]`: the next tokens, as in CLM,
    and the previous ones."""
    right = CLM().corrupt(batch, draws, vocab)
    ids = batch["input_ids"]
    previous = np.zeros_like(ids)
    previous[:, 1:] = ids[:, :-1]
    weights = np.arange(ids.shape[1])[None] < batch["length"][:, None]
    weights[:, 0] = False
    if "document_ids" in batch:
      weights[:, 1:] &= np.diff(batch["document_ids"], axis=1) == 0
    weights = (weights * batch["row_weight"][:, None]).astype(np.float32)
    targets = np.concatenate([right["clm_targets"], previous], axis=1)
    weights = np.concatenate([right["clm_weights"], weights], axis=1)
    batch = batch | {"bilm_targets": targets, "bilm_weights": weights}
    return batch | (sampled(targets, draws, vocab, self.sampled) if self.sampled else {})

  def count(self, batch) -> jax.Array:
    return batch["bilm_weights"].sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    targets = jnp.split(batch["bilm_targets"], 2, axis=1)
    weights = jnp.split(batch["bilm_weights"], 2, axis=1)
    states = (hidden.forward_BTP, hidden.backward_BTP)
    sides = zip(states, targets, weights, strict=True)
    if self.sampled and noise is not None:
      target_p = jnp.split(batch["target_p"], 2, axis=1)
      both = [
        sampled_terms(model, *side, batch, p) for side, p in zip(sides, target_p, strict=True)
      ]
    else:
      both = [token_terms(model, *side) for side in sides]
    return jax.tree.map(jnp.add, *both)

  def baseline(self, counts, batches, scores) -> Baseline:
    return unigram(counts, batches, self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardLM(CLM):
  """The next token from the left alone, which compares a BiLM with other language models."""

  heads: ClassVar[dict[str, int]] = {"bilm": 0}

  def loss(self, model, hidden, batch, noise) -> Terms:
    return super().loss(model, hidden.forward_BTP, batch, noise)
