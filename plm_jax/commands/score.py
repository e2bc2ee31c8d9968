"""Scores text with any model of this project: its perplexity, and BLiMP.

  python -m plm_jax.score --model=runs/gpt_tiny --file=book.txt
  python -m plm_jax.score --model=runs/bert_tiny --text="the cat sat on the mat"
  python -m plm_jax.score --model=DIR --blimp=FOLDER --blimp_pairs=100
  python -m plm_jax.score --model=runs/nnlm_base --mix=runs/ngram_kn3 --file=book.txt

A left-to-right model predicts every token from those before it, in windows that overlap by half: at
least half a window, except at the beginning of the text. Without a token that begins texts (GPT-1)
the first token is not scored. A masked model predicts every token from all others, masked one at a
time: its pseudo-perplexity (Salazar et al. 2020) is lower by nature, and comparable with other
pseudo-perplexities only. Bits per byte are comparable between tokenizers. --mix takes the weighted
mean of several models' probabilities, with the best weights for the held-out text of the first.
BLiMP (Warstadt et al. 2020): how often a grammatical sentence scores higher than its ungrammatical
twin.
"""

from pathlib import Path

from absl import flags

from plm_jax import cli
from plm_jax.data.corpora import default_cache
from plm_jax.data.preparation import prepare
from plm_jax.errors import UserError
from plm_jax.evaluation.minimal_pairs import blimp
from plm_jax.evaluation.mixture import check_mixed, weights_on
from plm_jax.evaluation.perplexity import NO_BEGIN, perplexity
from plm_jax.evaluation.scores import Scores, is_causal
from plm_jax.export.to_run import run_directory
from plm_jax.runs import Run, check_predicts_tokens
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("model", None, "The directory of a run, or of an imported model.")
  flags.DEFINE_string("text", None, "A text to score.")
  flags.DEFINE_string("file", None, "A file whose text is scored.")
  flags.DEFINE_multi_string("mix", [], "Another run, mixed with the model. Repeatable.")
  flags.DEFINE_string("blimp", None, "A folder of BLiMP's .jsonl files.")
  flags.DEFINE_integer("blimp_pairs", None, "At most this many pairs of each file (default: all).")


def main() -> None:
  if not FLAGS.model:
    raise UserError("--model=DIR, the directory of a run, is needed.")
  if not (FLAGS.text or FLAGS.file or FLAGS.blimp):
    raise UserError("give --text or --file for a perplexity, or --blimp=FOLDER for BLiMP.")
  if FLAGS.blimp_pairs is not None and (FLAGS.blimp_pairs < 1 or not FLAGS.blimp):
    raise UserError(
      f"--blimp_pairs={FLAGS.blimp_pairs} must be at least 1, and goes with --blimp=FOLDER."
    )
  if FLAGS.mix and not (FLAGS.text or FLAGS.file):
    raise UserError(f"--mix={FLAGS.mix[0]} goes with --text or --file.")
  if FLAGS.text and FLAGS.file:
    raise UserError("--text and --file were given; one text is scored at a time.")
  text = cli.read_text(FLAGS.file, "--file") if FLAGS.file else FLAGS.text
  keep_compilations(default_cache())
  run = Run.load(run_directory(FLAGS.model))
  check_predicts_tokens(run)
  skips_first = is_causal(run) and not run.tokenizer.vocab.begin
  if text is not None:
    others, weights = [Run.load(run_directory(path)) for path in FLAGS.mix], None
    if others:
      check_mixed([run, *others])
      cli.load_module("data.installed_text")  # makes tfds:installed_text known
      weights = weights_on([run, *others], prepare(run.experiment.data, default_cache()))
      for each, weight in zip([run, *others], weights, strict=True):
        print(f"{f'weight of {each.path}':40} {weight:.4f}")
    for name, value in perplexity(run, text, others, weights).items():
      print(f"{name:40} {value:,.4f}".rstrip("0").rstrip("."))
    if skips_first:
      print(f"the first token is not scored: {NO_BEGIN}")
  if FLAGS.blimp:
    scores = Scores.of(run)
    blimp(run, Path(FLAGS.blimp), FLAGS.blimp_pairs, scores)
    for name, value in scores.metrics.items():
      print(f"{name:60} {value:.4f}")
    if skips_first:
      scores.notes.append(f"no sentence's first token is scored: {NO_BEGIN}")
    print(*scores.notes, sep="\n", end="\n" if scores.notes else "")


if __name__ == "__main__":
  cli.run(main)
