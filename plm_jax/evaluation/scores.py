"""The numbers of one run, with a hash of each set that they were measured on."""

import hashlib
from typing import NamedTuple, Self

import numpy as np

from plm_jax.runs import Run


class Scores(NamedTuple):
  """metrics: name -> value. counts: metric -> number of predictions. sets: prefix of a metric's
  name -> hash of its set. references: metric -> score of a trivial baseline."""

  metrics: dict[str, float]
  counts: dict[str, int]
  sets: dict[str, str]
  references: dict[str, float]
  notes: list[str]

  @classmethod
  def of(cls, run: Run) -> Self:
    """Empty scores, with a note if the run has no masked metrics."""
    note = "left-to-right: it predicts from the left alone, so it has no mlm_ metrics"
    return cls({}, {}, {}, {}, [note] if is_causal(run) else [])

  def add(self, kind: str, values: dict[str, float], count: int, measured_on: list[dict]) -> None:
    """The metrics `kind_name` of one set."""
    self.sets[kind] = fingerprint(measured_on)
    for name, value in values.items():
      self.metrics[f"{kind}_{name}"] = float(value)
      self.counts[f"{kind}_{name}"] = count


def is_causal(run: Run) -> bool:
  """Whether the model predicts the next token: it generates without a source, CLM or BiLM trained
  it, or it has token scores and neither objectives nor a masked-LM head."""
  if hasattr(run.config, "source_ids"):
    return False
  model = run.params.encoder()
  if hasattr(model, "generator") or {"lm", "bilm"} & run.experiment.heads.keys():
    return True
  untrained = not run.experiment.objectives and run.params.masked_lm() is None
  return untrained and hasattr(model, "token_logits")


def fingerprint(batches: list[dict]) -> str:
  """A hash of all arrays of a set."""
  digest = hashlib.sha256()
  for batch in batches:
    for name in sorted(batch):
      digest.update(f"{name} {batch[name].shape} {batch[name].dtype}".encode())
      digest.update(np.ascontiguousarray(batch[name]).tobytes())
  return digest.hexdigest()[:16]
