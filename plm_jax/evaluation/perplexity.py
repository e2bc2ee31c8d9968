"""The perplexity of a text, or its pseudo-perplexity under a masked model (Salazar et al. 2020)."""

import math
from collections.abc import Sequence

import numpy as np

from plm_jax.data.segments import Rows
from plm_jax.errors import UserError
from plm_jax.evaluation.likelihood import masked_log_p, next_log_p
from plm_jax.evaluation.mixture import log_mean
from plm_jax.evaluation.scores import is_causal
from plm_jax.runs import Run

NO_BEGIN = "the vocabulary has no token that begins a text"


def perplexity(
  run: Run, text: str, mixed: Sequence[Run] = (), weights: np.ndarray | None = None
) -> dict[str, float]:
  """The scores of a text; with `mixed`, those of the mixture of `run` and these, by `weights`
  (mixture.py). Errors: `UserError` if it has no tokens, or the model cannot score it."""
  tokens = run.tokenizer.encode(text)
  if not len(tokens):
    raise UserError("the text has no tokens; give one with words in it")
  size = len(text.encode())
  if is_causal(run):
    if len(unscored := [] if run.tokenizer.vocab.begin else tokens[:1]) == len(tokens):
      raise UserError(f"the text has one token, and {NO_BEGIN}; give a longer one")
    size = max(1, size - len(run.tokenizer.decode(unscored).encode()))
    log_p, name = left_log_p(run, tokens), "perplexity"
    if mixed:
      log_p = log_mean(np.stack([log_p, *(left_log_p(each, tokens) for each in mixed)]), weights)
  elif run.params.masked_lm() is not None:
    log_p, name = masked_log_p(run, *windows(run, tokens, overlap=False)), "pseudo-perplexity"
  else:
    raise UserError(
      f"{run.path} holds a {type(run.experiment.model).__name__}, which cannot score text: it "
      "predicts neither the next token nor a masked one"
    )
  return {
    "tokens": float(len(log_p)),
    name: math.exp(-log_p.mean()),
    "nats per token": -log_p.mean(),
    "bits per byte": -log_p.sum() / math.log(2) / size,
  }


def left_log_p(run: Run, tokens: np.ndarray) -> np.ndarray:
  """float64 [N]: log p of every token from those before it; not of the first without an <s>."""
  rows, row, position = windows(run, tokens, overlap=True)
  return next_log_p(run, rows)[row, position - 1]


def windows(run: Run, tokens: np.ndarray, overlap: bool) -> tuple[Rows, np.ndarray, np.ndarray]:
  """Rows of the model's length over a text, and the place where each of its tokens is predicted:
  the batch arrays, row int `[N]`, position int `[N]`.

  overlap: rows are "<s> tokens" and overlap by half; every token is predicted in the first row that
  has it, the text's first only if there is an <s>. Otherwise "<s> tokens </s>", without overlap.
  """
  vocab = run.tokenizer.vocab
  before, after = (vocab.begin, []) if overlap else ([i] for i in vocab.frame(padding=False))
  room = run.experiment.model.positions - len(before) - len(after)
  room = max(1, min(room, len(tokens)))
  step = max(1, room // 2) if overlap else room
  count = max(0, -(-(len(tokens) - room) // step)) + 1
  starts = step * np.arange(count)
  at = starts[:, None] + np.arange(room)
  real = at < len(tokens)
  body = np.where(real, tokens[np.minimum(at, len(tokens) - 1)], vocab.filler)
  begin = len(before)
  ids = np.full((count, begin + room + len(after)), vocab.filler, np.int32)
  ids[:, :begin], ids[:, begin : begin + room] = before, body
  length = real.sum(axis=1) + begin
  if not overlap:
    ids[np.arange(count), length] = after
    length = length + 1
  fresh = real & ((np.arange(room) >= room - step) | (np.arange(count) == 0)[:, None])
  fresh[0, 0] &= bool(before)
  row, column = np.nonzero(fresh if overlap else real)
  rows = {"input_ids": ids, "segment_ids": np.zeros_like(ids), "length": length.astype(np.int32)}
  return rows, row, column + begin
