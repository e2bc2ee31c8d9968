"""Scores on held-out text: rows that do not depend on a run's objectives, format or masking.

Left-to-right models predict documents in rows that continue each other. A model that carries a
state carries it over these rows, as in training; it becomes zeros where a document begins.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.pipeline import Batches
from plm_jax.data.preparation import Prepared
from plm_jax.data.segments import SegmentPair
from plm_jax.evaluation.likelihood import TOKENS, masked_log_p
from plm_jax.evaluation.scores import Scores, is_causal
from plm_jax.models.model import carried
from plm_jax.objectives import baselines
from plm_jax.objectives.bilm import BiLM, ForwardLM
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.seq2seq import Seq2Seq
from plm_jax.runs import Run

ROWS = 4096  # the most rows of held-out text, and the most pairs of each kind
LANES = 8  # stretches of the held-out documents that are read side by side
POSITIONS = 4  # per row, on average, that are masked one at a time


def held_out(run: Run, prepared: Prepared, scores: Scores) -> None:
  """Adds mlm_* and pseudo_perplexity, or clm_*, or bilm_*, or seq2seq_*, to `scores`."""
  for objective in run.experiment.objectives:
    if isinstance(objective, Seq2Seq):
      # The run's own sources and targets.
      objective = dataclasses.replace(objective, label_smoothing=0.0, z_loss=0.0)
      batches = _batches(run, prepared, run.experiment.data, (objective,))
      return _add_losses("seq2seq", run, run.params, batches, objective, scores)
    if isinstance(objective, BiLM):
      batches = document_rows(run, prepared, BiLM())
      _add_losses("bilm", run, run.params, batches, BiLM(), scores)
      return _add_left_to_right(run, prepared, ForwardLM(), scores)
  if is_causal(run):
    return _add_left_to_right(run, prepared, CLM(), scores)
  model = run.params.masked_lm()
  if model is None:
    scores.notes.append("it has no head that predicts masked tokens")
    return
  batches = held_out_rows(run, prepared, (MLM(),))
  _add_losses("mlm", run, model, batches, MLM(), scores)
  unigram = baselines.unigram(prepared.train.counts, batches, "mlm").scores
  scores.references.update({f"mlm_{name}": x for name, x in unigram.items() if x is not None})
  plain = held_out_rows(run, prepared, ())
  log_p, bits = one_at_a_time(run, plain)
  values = {"perplexity": baselines.perplexity(-log_p.mean()), "bits_per_byte": bits}
  scores.add("pseudo", values, len(log_p), plain)


def _add_left_to_right(run: Run, prepared: Prepared, objective: CLM, scores: Scores) -> None:
  batches = document_rows(run, prepared, objective)
  _add_losses("clm", run, run.params.encoder(), batches, objective, scores)
  targets, weights = (
    np.concatenate([batch[f"clm_{name}"] for batch in batches]) for name in ("targets", "weights")
  )
  nats = scores.metrics["clm_loss"] * scores.counts["clm_loss"]
  bits = bits_per_byte(run, nats, targets, weights > 0)
  scores.metrics["clm_bits_per_byte"] = bits
  scores.counts["clm_bits_per_byte"] = scores.counts["clm_loss"]
  unigram = baselines.unigram(prepared.train.counts, batches, "clm").scores
  scores.references.update({f"clm_{name}": x for name, x in unigram.items() if x is not None})
  bits *= scores.references["clm_loss"] / scores.metrics["clm_loss"]
  scores.references["clm_bits_per_byte"] = bits


def bits_per_byte(run: Run, nats: float, ids: np.ndarray, predicted: np.ndarray) -> float:
  """nats: -log p of all predicted tokens of rows [N, T]. The bytes are those of their text; special
  tokens have none."""
  rows = [row[kept] for row, kept in zip(ids, predicted, strict=True)]
  size = sum(len(run.tokenizer.decode(row).encode()) for row in rows)
  return nats / math.log(2) / max(1, size)


def document_rows(run: Run, prepared: Prepared, objective: CLM | BiLM) -> list[dict]:
  """Held-out documents in rows that continue each other, `LANES` at a time. Every model predicts
  the same tokens: all but the first of a row or of a document. A causal encoder reads pairs of
  segments as in its training."""
  if getattr(run.config, "reads_pairs", False):
    return held_out_rows(run, prepared, (objective,))
  vocab = run.tokenizer.vocab
  segments = PackedDocuments(framed=bool(vocab.begin and vocab.end), ordered=True)
  corpus: Any = run.experiment.data
  one_text = next(iter(corpus.texts.values()))  # its name matters no more: the store is there
  corpus = corpus.alone(one_text, segments=segments, workers=0)
  batches = Batches(prepared.valid, corpus, (), vocab, seed=0, global_batch=LANES)
  rows = batches.evaluation(row_limit(run))
  return [
    objective.corrupt({name: x for name, x in row.items() if name != "next_ids"}, None, vocab)
    for row in rows
  ]


def held_out_rows(run: Run, prepared: Prepared, objectives: tuple) -> list[dict[str, np.ndarray]]:
  """Held-out rows in batches of one shape, with one draw of masks."""
  segments = SegmentPair(next="none", short=0.0)
  corpus = dataclasses.replace(run.experiment.data, segments=segments)
  return _batches(run, prepared, corpus, objectives)


def _batches(run: Run, prepared: Prepared, corpus, objectives: tuple) -> list[dict]:
  return Batches(
    prepared.valid,
    dataclasses.replace(corpus, workers=0),
    objectives,
    run.tokenizer.vocab,
    seed=0,
    global_batch=rows_per_batch(run),
  ).evaluation(row_limit(run))


def row_limit(run: Run) -> int:
  """The most rows of held-out text: twice those in training, so that short runs are quick."""
  return min(ROWS, 2 * run.experiment.schedule.evaluation_rows)


def rows_per_batch(run: Run) -> int:
  return max(8, TOKENS // run.experiment.data.length)


def _add_losses(kind: str, run: Run, model, batches, objective, scores: Scores) -> None:
  carries = "begins" in batches[0] and hasattr(model, "carry")
  carry, sums = model.carry(LANES) if carries else None, []
  for batch in batches:
    terms, carry = _terms(model, batch, carry, objective, run.compute)
    sums.append(terms)
  totals = jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64)), *jax.device_get(sums))
  means = {name: total / count for name, (total, count) in totals.items()}
  values = {"loss": means["loss"], "perplexity": baselines.perplexity(means["loss"])}
  values["accuracy"] = means["accuracy"]
  scores.add(kind, values, int(totals["loss"][1]), batches)


@functools.partial(jax.jit, static_argnames=("objective", "compute"))
def _terms(model, batch, carry, objective, compute):
  if carry is None:
    hidden = model(batch, compute)
  else:
    hidden, carry = model.continued(batch, compute, None, carried(model, batch, carry))
  return objective.loss(model, hidden, batch, None), carry


def one_at_a_time(run: Run, batches: list[dict]) -> tuple[np.ndarray, float]:
  """log p of real tokens, each masked alone, float64 [N]; and their bits per byte.

  The rows are evenly spaced, and as many as give about `POSITIONS * row_limit(run)` tokens.
  """
  joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
  real = np.flatnonzero(joined["row_weight"] > 0)
  tokens = joined["length"][real].mean()
  count = min(len(real), math.ceil(POSITIONS * row_limit(run) / tokens))
  chosen = real[np.linspace(0, len(real) - 1, count, dtype=int)]
  rows = {name: joined[name][chosen] for name in ("input_ids", "segment_ids", "length")}
  text = ~np.isin(rows["input_ids"], run.tokenizer.vocab.frame_ids)
  text &= np.arange(rows["input_ids"].shape[1]) < rows["length"][:, None]
  log_p = masked_log_p(run, rows, *np.nonzero(text))
  return log_p, bits_per_byte(run, -log_p.sum(), rows["input_ids"], text)
