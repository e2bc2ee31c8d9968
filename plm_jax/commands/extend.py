"""Adds words to a model's vocabulary, for a text of another domain; pretraining then goes on.

  python -m plm_jax.extend --model=DIR --text=FILE --out=NEW    the words that cost most tokens
  python -m plm_jax.extend --model=DIR --words=FILE --out=NEW   one word in each line
  python run_pretrain.py --from=NEW --set=data.source=FILE      trains on

DIR is a run or a downloaded model. The ids of all old tokens stay. A new token's row, in the table
and in the head, is the mean of the rows of its old pieces (Hewitt 2021, "Initializing new word
embeddings"; Yao et al. 2021, arXiv:2106.13474). plm_jax/data/extension.py says how each kind of
tokenizer takes a word.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from plm_jax import cli
from plm_jax.data.corpora import cache_folder, open_source
from plm_jax.data.extension import costly_words
from plm_jax.data.texts import named_texts
from plm_jax.errors import UserError
from plm_jax.export.extended_run import extend
from plm_jax.export.to_run import run_directory
from plm_jax.runs import Run

FLAGS = flags.FLAGS
SAMPLE = 20_000  # documents of a text that are read


def define_flags() -> None:
  flags.DEFINE_string("model", None, "The directory of a run or of a downloaded model.")
  flags.DEFINE_string("text", None, "A text, as data.source, whose costly words are added.")
  flags.DEFINE_string("words", None, "A file with one word in each line.")
  flags.DEFINE_integer("most", 500, "The most words that --text adds.", lower_bound=1)
  flags.DEFINE_string("out", None, "A new directory for the run with the larger vocabulary.")
  flags.DEFINE_string("cache", None, "Where prepared text is kept (default: ~/.cache/plm_jax).")


def main() -> None:
  if not (FLAGS.model and FLAGS.out) or bool(FLAGS.text) == bool(FLAGS.words):
    raise UserError("--model=DIR, --out=NEW and one of --text=FILE and --words=FILE are needed.")
  cache = cache_folder(FLAGS.cache)
  run = Run.load(run_directory(FLAGS.model, cache))
  if FLAGS.words:
    lines = cli.read_lines(FLAGS.words, "--words")
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
  else:
    cli.load_module("data.installed_text")  # makes tfds:installed_text known
    words = costly_words(run.tokenizer, sentences(FLAGS.text, cache), FLAGS.most)
  if not words:
    raise UserError(
      f"--words={FLAGS.words} has no words."
      if FLAGS.words
      else f"--text={FLAGS.text} has no word of 3 letters or more that occurs 5 times in pieces."
    )
  new = extend(run, words, Path(FLAGS.out))
  before, after = (r.tokenizer.vocab.size for r in (run, new))
  first = (new.tokenizer.decode([i]).strip() for i in range(before, min(after, before + 8)))
  print(f"{FLAGS.out} has {after:,} tokens, {after - before:,} of them new: {', '.join(first)}")
  if FLAGS.text:
    sample = list(itertools.islice(sentences(FLAGS.text, cache), SAMPLE))
    old, now = (sum(map(len, r.tokenizer.encode_batch(sample))) for r in (run, new))
    print(f"{FLAGS.text} has {1 - now / old:.1%} fewer tokens than before")
  print(f"next: python run_pretrain.py --from={FLAGS.out} --set=data.source={FLAGS.text or 'TEXT'}")


def sentences(source: str, cache: Path) -> Iterator[str]:
  for text in named_texts(source).values():
    for document in itertools.islice(open_source(text, cache).documents(), SAMPLE):
      yield from document.sentences


if __name__ == "__main__":
  cli.run(main)
