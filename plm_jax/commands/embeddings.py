"""Word vectors of a run or of a file: scores, neighbours, analogies, other formats, a picture.

  python -m plm_jax.embeddings eval --model=runs/word2vec_tiny --analogies=questions-words.txt \
--similarity=word-sim
  python -m plm_jax.embeddings neighbours --model=glove.6B.100d.txt --words=king,queen
  python -m plm_jax.embeddings analogy --model=vectors.bin --words=man,king,woman
  python -m plm_jax.embeddings export --model=runs/word2vec_tiny --format=word2vec --out=vectors.txt
  python -m plm_jax.embeddings project --model=runs/word2vec_tiny --out=words.png

--model takes a run, a published model, and files of word2vec (text, binary), GloVe and fastText
(.vec, .bin). Of a model with context it takes the token table; with --occurrences=TEXT the mean
state of each word at --layer over its first 16 occurrences in that text.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.commands.senses import two_axes
from plm_jax.data.corpora import default_cache
from plm_jax.data.vector_files import FORMATS, WordTable, read_vectors, write_vectors
from plm_jax.decode.neighbours import Neighbour
from plm_jax.errors import UserError
from plm_jax.evaluation import word_vectors
from plm_jax.export.to_run import run_directory
from plm_jax.runs import Run
from plm_jax.tasks.word_states import occurrence_table
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS
RESTRICTED = 30_000  # words that take part in the published evaluation of analogies
DRAWN = 200  # words of the picture, without --words


def define_flags() -> None:
  flags.DEFINE_string("model", None, "A run, a published model, or a file of word vectors.")
  flags.DEFINE_list("words", [], "Words for neighbours, analogy (A,B,C) and project.")
  flags.DEFINE_string("analogies", None, "A file like questions-words.txt.")
  flags.DEFINE_multi_string("similarity", [], "A file of pairs, or a folder of them. Repeatable.")
  flags.DEFINE_integer("best", 8, "Neighbours of each word.", lower_bound=1)
  flags.DEFINE_string("occurrences", None, "A text whose occurrences of words are averaged.")
  flags.DEFINE_integer("layer", -1, "The layer of --occurrences; 0 is the embeddings.")
  flags.DEFINE_enum("format", "word2vec", FORMATS, "The format of export.")
  flags.DEFINE_string("out", None, "The file that export and project write.")


def main(action: str) -> None:
  actions = {
    "eval": evaluate,
    "neighbours": neighbours,
    "analogy": analogy,
    "export": export,
    "project": project,
  }
  if action not in actions:
    raise UserError(f"{action!r} was given; expected one of {', '.join(actions)}.")
  if not FLAGS.model:
    raise UserError("--model=PATH, a run or a file of word vectors, is needed.")
  if action in ("export", "project"):
    check_out(FLAGS.out)
  actions[action](load(FLAGS.model))


def load(model: str) -> WordTable:
  """The words and vectors of a run, a published model or a file."""
  if Path(model).is_file():
    if FLAGS.occurrences:
      raise UserError("--occurrences needs a model that reads a text, and this is a file.")
    return read_vectors(model)
  keep_compilations(default_cache())
  run = Run.load(run_directory(model))
  if not FLAGS.occurrences:
    return word_vectors.words_of_run(run)
  texts = cli.read_lines(FLAGS.occurrences, "--occurrences")
  return occurrence_table(run, texts, FLAGS.layer)


def evaluate(table: WordTable) -> None:
  if not (FLAGS.analogies or FLAGS.similarity):
    raise UserError("give --analogies=FILE, --similarity=FILE or both.")
  print(f"{len(table.words):,} words of {table.vectors.shape[1]} dimensions")
  if FLAGS.similarity:
    print(f"{'similarity':32}{'Spearman':>10}{'pairs known':>16}")
  for path in pair_files(FLAGS.similarity):
    score = word_vectors.similarity(table, word_vectors.read_pairs(path), path.stem)
    shown = "-" if score.spearman is None else f"{score.spearman:.3f}"
    print(f"{score.name:32}{shown:>10}{score.asked:>9} of {score.total}")
  if FLAGS.analogies:
    questions = word_vectors.read_questions(FLAGS.analogies)
    every = word_vectors.analogies(table, questions)
    few = word_vectors.analogies(table, questions, RESTRICTED)
    print(f"{'analogies':32}{'all words':>18}{f'first {RESTRICTED:,}':>18}{'known':>16}")
    both = zip([*every, *word_vectors.totals(every)], [*few, *word_vectors.totals(few)])
    for one, restricted in both:
      shown = "".join(f"{_share(s):>18}" for s in (one, restricted))
      print(f"{one.name:32}{shown}{one.asked:>8} of {one.total}")


def _share(section: word_vectors.Section) -> str:
  return f"{section.right / section.asked:.1%}" if section.asked else "-"


def pair_files(paths: list[str]) -> list[Path]:
  """The files of --similarity. Errors: `UserError` for a path that is not there."""
  found = []
  for path in map(Path, paths):
    if not path.exists():
      raise UserError(f"--similarity={path} does not exist.")
    found += sorted(p for p in path.iterdir() if p.suffix == ".txt") if path.is_dir() else [path]
  return found


def neighbours(table: WordTable) -> None:
  if not FLAGS.words:
    raise UserError("give --words=WORD,WORD for their neighbours.")
  unknown = [word for word in FLAGS.words if table.vector(word) is None]
  if len(unknown) == len(FLAGS.words):
    word_vectors.vectors_of(table, unknown)  # refuses the first
  for word in FLAGS.words:
    if word in unknown:
      print(f"{word:12} is not among the {len(table.words):,} words of the model", file=sys.stderr)
    else:
      print(f"{word:12} {_shown(word_vectors.neighbours(table, word, FLAGS.best))}")


def analogy(table: WordTable) -> None:
  if len(FLAGS.words) != 3:
    raise UserError("give --words=A,B,C for the word that is to C as B is to A: man,king,woman.")
  a, b, c = FLAGS.words
  print(f"{a} : {b}, {c} : {_shown(word_vectors.analogy(table, a, b, c, FLAGS.best))}")


def _shown(near: list[Neighbour]) -> str:
  return ", ".join(f"{n.token} {n.cosine:.2f}" for n in near)


def check_out(out: str | None) -> None:
  """Errors: `UserError` for an --out that is missing, exists or has no folder."""
  if not out:
    raise UserError("--out=FILE, the file to write, is needed.")
  if Path(out).exists():
    raise UserError(f"{out} already exists; name another file with --out.")
  if not Path(out).parent.is_dir():
    raise UserError(f"--out={out} was given, and there is no folder {Path(out).parent}.")


def export(table: WordTable) -> None:
  write_vectors(FLAGS.out, table, FLAGS.format)
  print(f"{FLAGS.out}: {len(table.words):,} words of {table.vectors.shape[1]} dimensions")


def project(table: WordTable) -> None:
  """Draws words on the two main axes of their vectors."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib.figure import Figure

  words = FLAGS.words or [w for w in table.words if len(w) > 2 and w.isalpha()][:DRAWN]
  plane = two_axes(word_vectors.unit(word_vectors.vectors_of(table, words)))
  figure = Figure(figsize=(11, 9), layout="constrained")
  axis = figure.subplots()
  axis.plot(*np.array(plane).T, ".", ms=2, color="gray")
  for word, (x, y) in zip(words, plane, strict=True):
    axis.annotate(word, (x, y), fontsize=7)
  axis.set_title(f"{len(words)} words on the two main axes of their vectors")
  figure.savefig(FLAGS.out, dpi=120, format="png")
  print(f"{FLAGS.out} shows {len(words)} words")


if __name__ == "__main__":
  cli.run(main, ("ACTION",))
