"""Fills the blanks of a text with a masked language model of this project.

  python -m plm_jax.fill_mask --model=runs/bert_tiny --text="the [MASK] of the function"

[MASK] stands for the tokenizer's mask token, whatever its name. Several blanks are filled
separately: each is predicted while the others stay masked.
"""

import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.data.corpora import default_cache
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.decode.fill_mask import Blank, fill
from plm_jax.decode.writer import source_of
from plm_jax.errors import UserError
from plm_jax.runs import Run, check_predicts_tokens
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("model", None, "The directory of a run, or of an imported model.")
  flags.DEFINE_multi_string("text", [], "A text with [MASK] in it. Repeatable.")
  flags.DEFINE_integer("best", 5, "Number of fillers shown for each blank.")


def main() -> None:
  if not FLAGS.model or not FLAGS.text:
    raise UserError("--model=DIR, the directory of a run, and --text with a [MASK] are needed.")
  if FLAGS.best < 1:
    raise UserError(f"--best={FLAGS.best} was given; at least one filler is needed.")
  keep_compilations(default_cache())
  run = Run.load(FLAGS.model)
  check_predicts_tokens(run)
  model = run.params.masked_lm()
  if model is None:
    raise UserError(
      f"{run.path} was not trained to predict a masked token; use a BERT or one of its "
      "successors, or python -m plm_jax.generate with this model (a T5 fills <extra_id_0>)"
    )
  blanks = [blanks_of(text, run.tokenizer, run.config.positions) for text in FLAGS.text]
  best = min(FLAGS.best, run.tokenizer.vocab.size)
  fillers = iter(fill(model, [b for each in blanks for b in each], run.compute, best))
  for text, each in zip(FLAGS.text, blanks):
    print(text)
    for _ in each:
      words = (
        f"{run.tokenizer.decode([filler.token]).strip()} {filler.probability:.3f}"
        for filler in next(fillers)
      )
      print("  " + ", ".join(words))


def blanks_of(text: str, tokenizer: Tokenizer, positions: int) -> list[Blank]:
  """The blanks of a text. Errors: `UserError` if there is none, or the text is too long."""
  vocab = tokenizer.vocab
  if vocab.mask is None:
    raise UserError("this model's tokenizer has no mask token")
  first, last = vocab.frame()
  ids = np.array([first, *source_of(text, tokenizer), last], np.int32)
  if len(ids) > positions:
    raise UserError(f"a text has {len(ids)} tokens and the model reads {positions}; shorten it")
  places = np.flatnonzero(ids == vocab.mask)
  if not places.size:
    raise UserError(f"there is no [MASK] in {text!r}; put one where a word is missing")
  return [Blank(ids, int(place), vocab.mask) for place in places]


if __name__ == "__main__":
  cli.run(main)
