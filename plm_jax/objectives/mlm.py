"""Masked language modelling (Devlin et al. 2019, section 3.1, task 1).

Sources: google-research/bert (eedf571) create_pretraining_data.py for what is chosen and how it is
replaced, run_pretraining.py for the loss; google-research/albert (b772393), the same file, for
n-grams; fairseq (3d262bb) data/mask_tokens_dataset.py.
Deviation: the loss is divided by the number of predictions, not by that number + 1e-5.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import numpy as np

from plm_jax.errors import UserError
from plm_jax.objectives import masking
from plm_jax.objectives.baselines import Baseline, unigram
from plm_jax.objectives.masking import MaskingRules, Unit
from plm_jax.objectives.objective import Terms, cross_entropy


class MaskedTokens:
  """The shared part of objectives that predict the tokens at a batch's `mlm_positions`."""

  name = "mlm"
  heads: ClassVar[dict[str, int]] = {"mlm": 0}

  def count(self, batch) -> jax.Array:
    return batch["mlm_weights"].sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    logits_BPV = model.token_logits_at(hidden, batch["mlm_positions"])
    return cross_entropy(logits_BPV, batch["mlm_targets"], batch["mlm_weights"])

  def baseline(self, counts, batches, scores) -> Baseline:
    return unigram(counts, batches, self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLM(MaskedTokens):
  """Mean of `-log p(x_t | corrupted row)` over the chosen positions t.

  Of a row's tokens, [CLS] and [SEP] counted, `rate` are chosen (never [CLS], [SEP] or padding); of
  the chosen, a share `mask` becomes [MASK], `same` stays, `random` becomes a token drawn uniformly
  from the whole vocabulary.

  unit: choose tokens; or whole words, with every piece drawn independently; or runs of up to
    `max_ngram` whole words, their number n drawn with p(n) proportional to 1 / n (ALBERT).
  masking: `dynamic` draws new masks every epoch (RoBERTa), `static` repeats after `copies` epochs
    (BERT's `dupe_factor`).
  max_predictions: None is the budget rule itself, round(rate * length): 19 at 128, 77 at 512.
  rules: `fairseq` is RoBERTa's code: <s> and </s> may be chosen too, int(rate * length + u) are, u
    uniform in [0, 1) and the row's own, and random tokens are never special.
  """

  rate: float = 0.15
  mask: float = 0.8
  same: float = 0.1
  random: float = 0.1
  unit: Unit = "token"
  max_ngram: int = 3
  masking: Literal["dynamic", "static"] = "dynamic"
  copies: int = 10
  max_predictions: int | None = None
  rules: MaskingRules = "bert"
  weight: float = 1.0

  def __post_init__(self):
    if not 0 < self.rate <= 1:
      raise UserError(f"mlm.rate={self.rate} must be above 0 and at most 1")
    shares = (self.mask, self.same, self.random)
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
      raise UserError(f"mlm.mask, mlm.same and mlm.random are {shares}; shares must sum to 1")
    if self.rules == "fairseq" and self.unit != "token":
      raise UserError(f'mlm.rules=fairseq chooses tokens; with mlm.unit={self.unit} take "bert"')
    if self.max_ngram < 1:
      raise UserError(f"mlm.max_ngram={self.max_ngram} must be at least 1")
    if self.max_ngram != 3 and self.unit != "ngram":
      raise UserError(f"mlm.max_ngram is read with mlm.unit=ngram only, not with {self.unit}")
    if self.copies < 1 or (self.max_predictions or 1) < 1:
      raise UserError("mlm.copies and mlm.max_predictions must be at least 1")

  def corrupt(self, batch, draws, vocab) -> dict:
    """Replaces `input_ids`; adds `mlm_positions`, `mlm_targets` int32 and `mlm_weights` float32,
    all `[B, P]` with a static P, so that the head runs on the chosen positions only."""
    if vocab.mask is None:
      raise UserError("masked language modelling needs a tokenizer with [MASK]; this has none")
    if self.masking == "static":
      draws = draws.repeat(self.copies)
    input_ids, positions, targets, weights = masking.corrupt_tokens(
      batch["input_ids"],
      batch["length"],
      self.candidates(batch, draws, vocab),
      draws,
      vocab,
      rate=self.rate,
      mask=self.mask,
      random=self.random,
      max_predictions=self.max_predictions,
      unit=self.unit,
      max_ngram=self.max_ngram,
      rules=self.rules,
    )
    return batch | {
      "input_ids": input_ids,
      "mlm_positions": positions,
      "mlm_targets": targets,
      "mlm_weights": weights * batch["row_weight"][:, None],
    }

  def candidates(self, batch, draws, vocab) -> np.ndarray:
    """bool `[B, T]`: the positions that may be chosen."""
    del draws
    ids = batch["input_ids"]
    if self.rules == "fairseq":
      return np.arange(ids.shape[1]) < batch["length"][:, None]  # all but padding
    return masking.candidates(ids, vocab)
