"""Scores text with any model of this project: its perplexity, and BLiMP.

  python -m plm_jax.score --model=runs/gpt_tiny --file=book.txt
  python -m plm_jax.score --model=runs/bert_tiny --text="the cat sat on the mat"
  python -m plm_jax.score --model=DIR --blimp=FOLDER --blimp_pairs=100

A left-to-right model predicts every token from those before it: the text is read in windows that
overlap by half, so that all but its beginning are predicted from half a window at least. Where no
token of the vocabulary begins texts (GPT-1's), nothing predicts the first, which is not scored. A
masked model predicts every token from all others, masked one at a time: its pseudo-perplexity
(Salazar et al. 2020) is lower by nature, and to be compared with its like only. Bits per byte can
be compared between tokenizers. BLiMP (Warstadt et al. 2020): how often a grammatical sentence
scores higher than its ungrammatical twin.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.ablate import evaluate
from plm_jax.commands.generate import text_of
from plm_jax.data.corpora import default_cache
from plm_jax.errors import UserError
from plm_jax.train.start import keep_compilations
from plm_jax.train.trained import load

FLAGS = flags.FLAGS
_UNBEGUN = "the vocabulary has no token that begins a text"


def define_flags() -> None:
  """Not on import: several commands have flags of the same name."""
  flags.DEFINE_string("model", None, "The directory of a run, or of an imported model.")
  flags.DEFINE_string("text", None, "A text to score.")
  flags.DEFINE_string("file", None, "A file whose text is scored.")
  flags.DEFINE_string("blimp", None, "A folder of BLiMP's .jsonl files.")
  flags.DEFINE_integer("blimp_pairs", None, "At most so many pairs of each file (default: all).")


def main() -> None:
  if not FLAGS.model:
    raise UserError("--model=DIR, the directory of a run, is needed.")
  if not (FLAGS.text or FLAGS.file or FLAGS.blimp):
    raise UserError("give --text or --file for a perplexity, or --blimp=FOLDER for BLiMP.")
  if FLAGS.blimp_pairs is not None and (FLAGS.blimp_pairs < 1 or not FLAGS.blimp):
    raise UserError(
      f"--blimp_pairs={FLAGS.blimp_pairs} must be at least 1, and goes with --blimp=FOLDER."
    )
  if FLAGS.text and FLAGS.file:
    raise UserError("--text and --file were given; one text is scored at a time.")
  text = text_of_flags()
  keep_compilations(default_cache())
  trained = evaluate.Trained(*load(FLAGS.model), None)
  if text is not None:
    for name, value in perplexity(trained, text).items():
      print(f"{name:40} {value:,.4f}".rstrip("0").rstrip("."))
    if trained.causal and not trained.vocab.begin:
      print(f"the first token is not scored: {_UNBEGUN}")
  if FLAGS.blimp:
    found = evaluate.Scores.of(trained)
    evaluate.blimp(trained, Path(FLAGS.blimp), FLAGS.blimp_pairs, found)
    for name, value in found.metrics.items():
      print(f"{name:60} {value:.4f}")
    if trained.causal and not trained.vocab.begin:
      found.notes.append(f"no sentence's first token is scored: {_UNBEGUN}")
    print(*found.notes, sep="\n", end="\n" if found.notes else "")


def text_of_flags() -> str | None:
  return text_of(FLAGS.file, "--file") if FLAGS.file else FLAGS.text


def perplexity(trained: evaluate.Trained, text: str) -> dict[str, float]:
  """The scores of a text. Errors: `UserError` for one without tokens, and for models that score
  none."""
  tokens = trained.source.tokenizer.encode(text)
  if not len(tokens):
    raise UserError("the text has no tokens; give one with words in it")
  size = len(text.encode())
  if trained.causal:
    if len(unscored := [] if trained.vocab.begin else tokens[:1]) == len(tokens):
      raise UserError(f"the text has one token, and {_UNBEGUN}; give a longer one")
    size = max(1, size - len(trained.source.tokenizer.decode(unscored).encode()))
    log_p, name = left_to_right(trained, tokens), "perplexity"
  elif (model := trained.params.masked_lm()) is not None:
    part, row, position = windows(trained, tokens, whole=False)
    log_p, name = evaluate.masked_log_p(model, part, row, position, trained), "pseudo-perplexity"
  else:
    kind = type(trained.source.experiment.model).__name__
    raise UserError(
      f"{trained.source.path} holds a {kind}, which scores no text: it predicts neither the next "
      "token nor a masked one"
    )
  return {
    "tokens": float(len(log_p)),
    name: math.exp(-log_p.mean()),
    "nats per token": -log_p.mean(),
    "bits per byte": -log_p.sum() / math.log(2) / size,
  }


def windows(
  trained: evaluate.Trained, tokens: np.ndarray, whole: bool
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
  """Rows of the model's length over a text, and where each of its tokens is predicted: the batch
  arrays, row int `[N]`, position int `[N]`.

  whole: rows are "<s> tokens", overlapping by half, and every token is predicted in the first row
  that has it, the text's first where there is an <s>; else "<s> tokens </s>", without overlap.
  """
  vocab = trained.vocab
  before, after = (vocab.begin, []) if whole else ([i] for i in vocab.frame(padding=False))
  room = trained.source.experiment.model.positions - len(before) - len(after)
  room = max(1, min(room, len(tokens)))
  step = max(1, room // 2) if whole else room
  count = max(0, -(-(len(tokens) - room) // step)) + 1
  starts = step * np.arange(count)
  at = starts[:, None] + np.arange(room)
  real = at < len(tokens)
  body = np.where(real, tokens[np.minimum(at, len(tokens) - 1)], vocab.filler)
  begin = len(before)
  ids = np.full((count, begin + room + len(after)), vocab.filler, np.int32)
  ids[:, :begin], ids[:, begin : begin + room] = before, body
  length = real.sum(axis=1) + begin
  if not whole:
    ids[np.arange(count), length] = after
    length = length + 1
  fresh = real & ((np.arange(room) >= room - step) | (np.arange(count) == 0)[:, None])
  fresh[0, 0] &= bool(before)
  row, column = np.nonzero(fresh if whole else real)
  part = {"input_ids": ids, "segment_ids": np.zeros_like(ids), "length": length.astype(np.int32)}
  return part, row, column + begin


def left_to_right(trained: evaluate.Trained, tokens: np.ndarray) -> np.ndarray:
  """log p of every token given those before it, float64 `[N]`; without an <s> `[N - 1]`."""
  part, row, position = windows(trained, tokens, whole=True)
  log_p = evaluate.next_log_p(trained.params.encoder(), part, trained)
  return log_p[row, position - 1]


if __name__ == "__main__":
  define_flags()
  cli.run(main)
