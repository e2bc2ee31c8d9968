"""The numbers of one run, with a hash of each set that they were measured on."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

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

  @classmethod
  def of_texts(cls, parts: Mapping[str, Self]) -> Self:
    """The scores of several texts: those of each as NAME/metric, and means over the predictions of
    all. Bits per byte have no mean: their denominator is another."""
    whole: Any = cls({}, {}, {}, {}, [])
    first = next(iter(parts.values()))
    for metric in first.metrics:
      if all(metric in part.metrics for part in parts.values()) and "per_byte" not in metric:
        weights = [part.counts[metric] for part in parts.values()]
        whole.metrics[metric] = _mean(metric, [p.metrics for p in parts.values()], weights)
        whole.counts[metric] = sum(weights)
        if all(metric in part.references for part in parts.values()):
          whole.references[metric] = _mean(metric, [p.references for p in parts.values()], weights)
    for kind in first.sets:
      digests = "".join(part.sets.get(kind, "") for part in parts.values())
      whole.sets[kind] = hashlib.sha256(digests.encode()).hexdigest()[:16]
    for name, part in parts.items():
      for kept, own in zip(whole[:4], part[:4], strict=True):
        kept |= {f"{name}/{key}": value for key, value in own.items()}
      whole.notes.extend(f"{name}: {note}" for note in part.notes)
    return whole

  def add(self, kind: str, values: dict[str, float], count: int, measured_on: list[dict]) -> None:
    """The metrics `kind_name` of one set."""
    self.sets[kind] = fingerprint(measured_on)
    for name, value in values.items():
      self.metrics[f"{kind}_{name}"] = float(value)
      self.counts[f"{kind}_{name}"] = count


def _mean(metric: str, values: list[dict[str, float]], weights: list[int]) -> float:
  """The weighted mean; of perplexities the geometric one."""
  numbers = np.array([each[metric] for each in values])
  if metric.endswith("perplexity"):
    return float(np.exp(np.average(np.log(numbers), weights=weights)))
  return float(np.average(numbers, weights=weights))


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
