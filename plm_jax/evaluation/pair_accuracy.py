"""Accuracy of next-sentence and sentence-order heads on pairs of held-out segments."""

import functools

import jax
import numpy as np

from plm_jax.data.preparation import Prepared
from plm_jax.data.segments import SegmentPair
from plm_jax.data.tables import pass_table
from plm_jax.evaluation.held_out import row_limit, rows_per_batch
from plm_jax.evaluation.scores import Scores
from plm_jax.objectives.objective import cross_entropy
from plm_jax.runs import Run


def pair_accuracies(run: Run, prepared: Prepared, scores: Scores) -> None:
  """Adds nsp_accuracy and sop_accuracy to `scores`, each by the head that was trained for it, else
  by the other: both predict whether B follows A (label 0) or not (label 1)."""
  model = run.params.encoder()
  if not _has(model, "nsp") and not _has(model, "sop"):
    return
  for kind, choose in (("nsp", random_pairs), ("sop", swapped_pairs)):
    spans = choose(run, prepared)
    if spans is None:
      scores.notes.append(f"too little held-out text for {kind} pairs")
      continue
    head = kind if _has(model, kind) else ("sop" if kind == "nsp" else "nsp")
    batches = read_pairs(run, prepared, spans)
    sums = [_correct(model, batch, head, run.compute) for batch in batches]
    correct = float(np.sum(np.asarray(jax.device_get(sums), np.float64)))
    labels = np.concatenate([b["pair_label"][b["row_weight"] > 0] for b in batches])
    majority = float(max(labels.mean(), 1 - labels.mean()))
    values = {"accuracy": correct / len(labels), "majority": majority}
    scores.add(kind, values, len(labels), batches)
    scores.references[f"{kind}_accuracy"] = majority


def _has(model, head: str) -> bool:
  return getattr(model, head, None) is not None


@functools.partial(jax.jit, static_argnames=("head", "compute"))
def _correct(model, batch, head, compute):
  hidden_BTD = model(batch, compute)
  read = model.next_sentence_logits if head == "nsp" else model.sentence_order_logits
  logits_B2 = read(hidden_BTD, batch)
  return cross_entropy(logits_B2, batch["pair_label"], batch["row_weight"])["accuracy"][0]


def random_pairs(run: Run, prepared: Prepared) -> np.ndarray | None:
  """SPANS [N]: as many random as consecutive pairs, spread over the held-out text."""
  spans = _spans(run, prepared, SegmentPair(next="random", short=0.0))
  kinds = [np.flatnonzero(spans["label"] == label) for label in (0, 1)]
  count = min(row_limit(run) // 2, *map(len, kinds))
  if not count:
    return None
  chosen = [kind[np.linspace(0, len(kind) - 1, count, dtype=int)] for kind in kinds]
  return spans[np.sort(np.concatenate(chosen))]


def swapped_pairs(run: Run, prepared: Prepared) -> np.ndarray | None:
  """SPANS [N]: consecutive pairs, every other one swapped."""
  spans = _spans(run, prepared, SegmentPair(next="none", short=0.0))
  count = min(row_limit(run), len(spans)) // 2 * 2
  if not count:
    return None
  spans = spans[np.linspace(0, len(spans) - 1, count, dtype=int)].copy()
  swap = spans[1::2].copy()
  for part in ("start", "length"):
    spans[f"a_{part}"][1::2], spans[f"b_{part}"][1::2] = swap[f"b_{part}"], swap[f"a_{part}"]
  spans["label"] = np.arange(count) % 2
  return spans


def _spans(run: Run, prepared: Prepared, segments: SegmentPair) -> np.ndarray:
  table = pass_table(prepared.valid, segments, run.experiment.data.length, seed=0, pass_=0)
  return np.array(table[table["b_length"] > 0])


def read_pairs(run: Run, prepared: Prepared, spans: np.ndarray) -> list[dict[str, np.ndarray]]:
  """Batches of one shape; rows that fill up the last batch have row_weight 0."""
  batches = []
  for first in range(0, len(spans), rows_per_batch(run)):
    slot = np.arange(first, first + rows_per_batch(run))
    chosen = spans[np.minimum(slot, len(spans) - 1)]
    length, vocab = run.experiment.data.length, run.tokenizer.vocab
    batch = SegmentPair().read(prepared.valid, chosen, length, vocab)
    batches.append(batch | {"row_weight": (slot < len(spans)).astype(np.float32)})
  return batches
