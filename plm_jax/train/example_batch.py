"""A batch of the right shapes, to compile a step before any text is read."""

import numpy as np

from plm_jax.data.draws import Draws
from plm_jax.data.vocab import Vocab
from plm_jax.experiment import Experiment

_SIZE = 16  # of the vocabulary: five special tokens first; the last is a sentinel or a language


def example_batch(experiment: Experiment) -> dict[str, np.ndarray]:
  """A global batch with the names, shapes and dtypes of an experiment on text."""
  rows, length = experiment.global_batch, experiment.data.length
  vocab = _vocab(experiment.data.tokenizer)
  batch = {
    "input_ids": np.full((rows, length), 5, np.int32),
    "segment_ids": np.zeros((rows, length), np.int32),
    "length": np.full(rows, length, np.int32),
    "pair_label": np.zeros(rows, np.int32),
    "row_weight": np.ones(rows, np.float32),
  }
  segments = getattr(experiment.data, "segments", None)
  if getattr(segments, "separate", False):
    batch["document_ids"] = np.zeros((rows, length), np.int32)
  if getattr(segments, "ordered", False):
    batch |= {"begins": np.ones(rows, bool), "next_ids": np.zeros(rows, np.int32)}
  if hasattr(segments, "example"):
    batch |= segments.example(rows, length)
  draws = Draws(0, 0, np.arange(rows))
  for objective in experiment.objectives:
    batch = objective.corrupt(batch, draws, vocab)
  return batch


def _vocab(tokenizer) -> Vocab:
  has_ngrams = getattr(tokenizer, "buckets", 0) > 0
  return Vocab(
    size=_SIZE,
    **dict(zip(("pad", "unk", "cls", "sep", "mask"), range(5)), bos=None, eos=None),
    special=np.arange(_SIZE) < 5,
    word_start=np.ones(_SIZE, bool),
    counts=np.ones(_SIZE, int),
    sentinels=np.full(tokenizer.sentinels, _SIZE - 1, np.int32) if tokenizer.sentinels else None,
    languages=dict.fromkeys(tokenizer.languages, _SIZE - 1),
    full_stop=np.ones(_SIZE, bool),
    ngrams=(np.zeros(_SIZE, np.int32), np.arange(_SIZE + 1)) if has_ngrams else None,
  )
