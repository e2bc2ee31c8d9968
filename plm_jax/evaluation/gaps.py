"""A gap of three tokens in a text: how probable are the right ones? All models that predict tokens
can be asked, each with what it can read.

    left to right     log p(gap | the text before it)
    masked            log p(token | the text around the gap), for each of its tokens, all masked
    encoder-decoders  log p(gap | the text around it), token by token
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from plm_jax.data.preparation import Prepared
from plm_jax.data.store import TokenStore
from plm_jax.evaluation.held_out import bits_per_byte
from plm_jax.evaluation.likelihood import in_batches, masked_log_p, next_log_p
from plm_jax.evaluation.scores import Scores, is_causal
from plm_jax.models.compute import Compute
from plm_jax.objectives.objective import token_log_p
from plm_jax.runs import Run

GAP = 3  # tokens
AROUND = 13  # tokens before the gap, and after it
TEXTS = 256


def gaps(run: Run, prepared: Prepared, scores: Scores) -> None:
  """Adds gap_loss and gap_bits_per_byte to `scores`, if the model predicts tokens."""
  texts = gap_texts(prepared.valid)
  if not len(texts):
    scores.notes.append(f"no held-out document has {2 * AROUND + GAP} tokens after a sentence ends")
    return
  if hasattr(run.config, "source_ids"):
    log_p = _encoder_decoder(run, texts)
  elif is_causal(run):
    log_p = _left_to_right(run, texts)
  elif run.params.masked_lm() is not None:
    log_p = _masked(run, texts)
  else:
    return
  scores.add("gap", {"loss": -log_p.mean()}, log_p.size, [{"texts": texts}])
  filled = np.zeros(texts.shape, bool)
  filled[:, AROUND : AROUND + GAP] = True
  scores.metrics["gap_bits_per_byte"] = bits_per_byte(run, -log_p.sum(), texts, filled)
  scores.counts["gap_bits_per_byte"] = log_p.size


def gap_texts(store: TokenStore) -> np.ndarray:
  """int32 [N, T]: texts that begin with a sentence and do not cross documents, at equal distances;
  at most `TEXTS`. The tokens of the gap are in the middle."""
  starts, length = np.asarray(store.sentence_starts), 2 * AROUND + GAP
  documents = np.asarray(store.document_starts)
  ends = starts[documents[np.searchsorted(documents, np.arange(len(starts) - 1), side="right")]]
  first = starts[:-1][starts[:-1] + length <= ends]
  first = first[np.linspace(0, len(first) - 1, min(TEXTS, len(first)), dtype=int)]
  return np.asarray(store.tokens)[first[:, None] + np.arange(length)].astype(np.int32)


def _left_to_right(run: Run, texts: np.ndarray) -> np.ndarray:
  begin = run.tokenizer.vocab.begin
  log_p = next_log_p(run, _rows(texts, begin, []))
  at = AROUND + len(begin) - 1
  return log_p[:, at : at + GAP]


def _masked(run: Run, texts: np.ndarray) -> np.ndarray:
  vocab = run.tokenizer.vocab
  first, last = vocab.frame(padding=False)
  assert vocab.mask is not None  # of a masked model
  masked = np.repeat(texts, GAP, axis=0)  # a row for each token of a gap, the others masked
  gap = masked[:, AROUND : AROUND + GAP].reshape(-1, GAP, GAP)
  gap[...] = np.where(np.eye(GAP, dtype=bool), gap, vocab.mask)
  rows, row = _rows(masked, [first], [last]), np.arange(len(masked))
  return masked_log_p(run, rows, row, row % GAP + AROUND + 1).reshape(-1, GAP)


def _encoder_decoder(run: Run, texts: np.ndarray) -> np.ndarray:
  """With sentinels (T5) the target is "<extra_id_0> gap"; without (BART) it is the whole text."""
  vocab = run.tokenizer.vocab
  config: Any = run.config
  before, gap, after = np.split(texts, [AROUND, AROUND + GAP], axis=1)
  is_t5 = config.frame == "t5"
  mark: Any = vocab.sentinels[:1] if is_t5 and vocab.sentinels is not None else vocab.mask
  blank = np.full((len(texts), 1), mark)
  source = np.concatenate([before, blank, after], axis=1)
  begin = config.source_ids([], vocab)[:-1]
  rows = _rows(source, begin, vocab.end)
  target = np.concatenate([blank, gap], axis=1)
  at = 1
  if not is_t5:
    target = np.concatenate([np.tile(begin, (len(texts), 1)), texts], axis=1)
    at = len(begin) + AROUND
  start = config.decoder_start(vocab)[0]
  decoder = np.concatenate([np.full((len(texts), 1), start), target[:, :-1]], axis=1)
  rows["decoder_input_ids"] = decoder.astype(np.int32)
  rows["decoder_length"] = np.full(len(texts), target.shape[1], np.int32)
  rows["targets"] = target.astype(np.int32)

  def log_p(numbers):
    return _target_log_p(run.params, {k: x[numbers] for k, x in rows.items()}, run.compute)

  return in_batches(log_p, *source.shape)[:, at : at + GAP]


def _rows(ids: np.ndarray, begin: list[int], end: list[int]) -> dict[str, np.ndarray]:
  ends = [np.tile(np.asarray(tokens, np.int32), (len(ids), 1)) for tokens in (begin, end)]
  ids = np.concatenate([ends[0], ids, ends[1]], axis=1).astype(np.int32)
  length = np.full(len(ids), ids.shape[1], np.int32)
  return {"input_ids": ids, "segment_ids": np.zeros_like(ids), "length": length}


@functools.partial(jax.jit, static_argnames="compute")
def _target_log_p(model, batch, compute: Compute):
  return token_log_p(model, model(batch, compute), batch["targets"])
