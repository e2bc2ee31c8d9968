"""Masking that favours rare words: DistilBERT's (Sanh et al. 2019), after XLM's.

Source: huggingface/transformers-research-projects (fccd0cd) distillation/train.py `token_probs` and
distiller.py `prepare_batch_mlm`.
Deviation: each row gets its share of predictions, where the original draws the share of the whole
batch at once, so that a row's masks would depend on its neighbours.
"""

import dataclasses

import numpy as np

from plm_jax.errors import UserError
from plm_jax.objectives import masking
from plm_jax.objectives.mlm import MLM

_KEYS = 32  # stream of draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class RareWordMLM(MLM):
  """`MLM` whose positions are drawn without replacement in proportion to
  `max(count of the token in the training text, 1) ** -smoothing`."""

  smoothing: float = 0.7

  def __post_init__(self):
    super().__post_init__()
    if self.unit != "token" or self.rules != "bert":
      raise UserError("mlm.smoothing weighs tokens: mlm.unit=token and mlm.rules=bert go with it")
    if self.smoothing < 0:
      raise UserError(f"mlm.smoothing={self.smoothing} must be at least 0, which is uniform")

  def candidates(self, batch, draws, vocab) -> np.ndarray:
    """bool `[B, T]`: exactly the positions that will be predicted. The n largest values of
    log(weight) + Gumbel noise are n draws without replacement (Efraimidis and Spirakis 2006)."""
    if vocab.counts is None:
      raise ValueError("vocab.counts is missing: how often each token is in the training text")
    ids, length = batch["input_ids"], batch["length"]
    slots = masking.predictions(ids.shape[1], self.rate, self.max_predictions)
    number = masking.budget(length, self.rate, slots)
    uniform = draws.uniform(_KEYS, ids.shape[1]) * (1 - 2**-23) + 2**-25  # neither 0 nor 1
    log_weights = -self.smoothing * np.log(np.maximum(vocab.counts, 1)).astype(np.float32)
    keys = log_weights[ids] - np.log(-np.log(uniform))
    allowed = masking.candidates(ids, vocab)
    order = np.argsort(np.where(allowed, -keys, np.inf), axis=1, kind="stable")
    chosen = np.zeros_like(allowed)
    np.put_along_axis(chosen, order, np.arange(ids.shape[1]) < number[:, None], axis=1)
    return chosen & allowed
