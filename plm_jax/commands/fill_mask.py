"""Fills the blanks of a text with a masked language model of this project.

  python -m plm_jax.fill_mask --model=runs/bert_tiny --text="the [MASK] of the function"

[MASK] stands for the tokenizer's mask token, whatever its name. Several blanks are filled
separately: each is predicted while the others stay masked.
"""

from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from plm_jax import cli
from plm_jax.data.corpora import default_cache
from plm_jax.decode.fill_mask import blanks_of, fill
from plm_jax.errors import UserError
from plm_jax.export.to_run import run_directory
from plm_jax.runs import Run, check_predicts_tokens
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS


class Filler(NamedTuple):
  token: str
  probability: float


def define_flags() -> None:
  flags.DEFINE_string("model", None, "The directory of a run, or of an imported model.")
  flags.DEFINE_multi_string("text", [], "A text with [MASK] in it. Repeatable.")
  flags.DEFINE_integer("best", 5, "Number of fillers shown for each blank.")


def main() -> None:
  if not FLAGS.model or not FLAGS.text:
    raise UserError("--model=DIR, the directory of a run, and --text with a [MASK] are needed.")
  keep_compilations(default_cache())
  run = Run.load(run_directory(FLAGS.model))
  for text, blanks in zip(FLAGS.text, fill_mask(run, FLAGS.text, FLAGS.best)):
    print(text)
    for fillers in blanks:
      print("  " + ", ".join(f"{token} {probability:.3f}" for token, probability in fillers))


def fill_mask(run: Run, texts: Sequence[str], best: int = 5) -> list[list[list[Filler]]]:
  """For every text and each of its blanks, the `best` most probable tokens, highest first. Errors:
  `UserError` if the run predicts no masked tokens, or a text has no blank or is too long."""
  if best < 1:
    raise UserError(f"best={best} was given; at least one filler is needed.")
  check_predicts_tokens(run)
  model = run.params.masked_lm()
  if model is None:
    raise UserError(
      f"{run.path} was not trained to predict a masked token; use a BERT or one of its "
      "successors, or python -m plm_jax.generate with this model (a T5 fills <extra_id_0>)"
    )
  blanks = [blanks_of(text, run.tokenizer, run.config.positions) for text in texts]
  flat = [blank for each in blanks for blank in each]
  candidates = iter(fill(model, flat, run.compute, best, run.tokenizer.vocab.size))

  def named(candidate):
    return Filler(run.tokenizer.decode([candidate.token]).strip(), candidate.probability)

  return [[[named(candidate) for candidate in next(candidates)] for _ in each] for each in blanks]


if __name__ == "__main__":
  cli.run(main)
