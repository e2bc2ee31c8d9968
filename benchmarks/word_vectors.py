"""Speed and quality of word2vec here and in gensim, on the same words, alternately.

  pip install 'plm_jax[bench]'
  python benchmarks/word_vectors.py --text=FOLDER --pairs=word-sim --epochs=5 --seeds=3

Both read the same prepared words. gensim has as many workers as there are cores. Words/s are words
of the text, before subsampling, per second of training; a core-second is one of processor time,
which other programs on the machine change less. Scores are Spearman's correlations on the files of
--pairs, and the share of right --analogies among the first 30,000 words.

  python benchmarks/word_vectors.py --count=100

counts GloVe's pairs in 100 MB of text, made by repeating the text's documents in random order.
"""

import dataclasses
import os
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from absl import flags

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))  # so that it runs where plm_jax is not installed

from experiments import word2vec  # noqa: E402
from plm_jax import cli  # noqa: E402
from plm_jax.commands.embeddings import pair_files  # noqa: E402
from plm_jax.data.cooccurrences import Cooccurrences  # noqa: E402
from plm_jax.data.pipeline import iterate  # noqa: E402
from plm_jax.data.preparation import prepare  # noqa: E402
from plm_jax.data.store import TokenStore  # noqa: E402
from plm_jax.data.vector_files import WordTable  # noqa: E402
from plm_jax.evaluation.word_vectors import (  # noqa: E402
  analogies,
  read_pairs,
  read_questions,
  similarity,
  totals,
  words_of_run,
)
from plm_jax.pretraining import batches_of, program_of  # noqa: E402
from plm_jax.runs import Run  # noqa: E402
from plm_jax.sharding import to_global  # noqa: E402
from plm_jax.train.loop import Data, fit  # noqa: E402
from plm_jax.train.process import keep_compilations  # noqa: E402
from plm_jax.train.workdir import Workdir  # noqa: E402

FLAGS = flags.FLAGS
LONGEST = 10_000  # words of a sentence that gensim reads


def define_flags() -> None:
  flags.DEFINE_string("text", "tfds:installed_text", "The text.")
  flags.DEFINE_enum("kind", "tiny", ["tiny", "cbow"], "The experiment of experiments/word2vec.py.")
  flags.DEFINE_integer("epochs", 5, "Passes over the text.")
  flags.DEFINE_integer("seeds", 3, "Runs of each.")
  flags.DEFINE_integer("updates", None, "Parts of a step (default: the experiment's).")
  flags.DEFINE_string("pairs", None, "A file of pairs of words, or a folder.")
  flags.DEFINE_string("analogies", None, "A file of analogies.")
  flags.DEFINE_list("contenders", ["plm_jax", "gensim"], "Which of both run.")
  flags.DEFINE_integer("count", 0, "Megabytes of text whose pairs are counted, alone.")
  flags.DEFINE_string("cache", None, "Where prepared text is kept.")


def main() -> None:
  experiment = getattr(word2vec, FLAGS.kind)("small")
  experiment = dataclasses.replace(
    experiment, data=dataclasses.replace(experiment.data, source=FLAGS.text, held_out=0.005)
  )
  if FLAGS.updates:
    optim = dataclasses.replace(experiment.optim, updates=FLAGS.updates)
    experiment = dataclasses.replace(experiment, optim=optim)
  prepared = prepare(experiment.data, FLAGS.cache)
  if FLAGS.count:
    count(prepared, FLAGS.count)
    return
  experiment = experiment.resolve(prepared.tokenizer.vocab.size)
  train, _ = batches_of(experiment, {"": prepared})
  steps = FLAGS.epochs * train.rows() // experiment.global_batch
  experiment = dataclasses.replace(experiment, steps=steps)
  words = len(prepared.train.tokens)
  print(f"{words:,} words, {len(prepared.tokenizer.pieces):,} different, {FLAGS.epochs} passes")
  run = {"plm_jax": ours, "gensim": gensims}
  print(f"{'':10}{'words/s':>12}{'per core-s':>12}  scores")
  for seed in range(FLAGS.seeds):
    for name in FLAGS.contenders:
      table, seconds, core = run[name](dataclasses.replace(experiment, seed=seed), prepared)
      read = words * FLAGS.epochs
      print(f"{name:10}{read / seconds:>12,.0f}{read / core:>12,.0f}  {scores(table)}", flush=True)


def count(prepared, megabytes: int) -> None:
  """Prints the speed and the memory of GloVe's first stage."""
  store = prepared.train
  starts = np.asarray(store.sentence_starts)[np.asarray(store.document_starts)]
  per_word = prepared.manifest["characters"] / sum(
    split["tokens"] for split in prepared.manifest["splits"].values()
  )
  wanted, rng, chosen = int(megabytes * 1e6 / per_word), np.random.default_rng(0), []
  while wanted > 0:
    for document in rng.permutation(store.documents):
      chosen.append(np.asarray(store.tokens[starts[document] : starts[document + 1]]))
      wanted -= len(chosen[-1])
      if wanted <= 0:
        break
  with tempfile.TemporaryDirectory() as folder:
    tokens, ends = np.concatenate(chosen), np.cumsum([0, *map(len, chosen)])
    tokens.tofile(Path(folder) / "train.tokens")
    ends.astype("<i8").tofile(Path(folder) / "train.sentences")
    np.arange(len(ends), dtype="<i8").tofile(Path(folder) / "train.documents")
    counts = np.bincount(tokens, minlength=store.vocab_size)
    counts.astype("<i8").tofile(Path(folder) / "train.counts")
    repeated = TokenStore(folder, "train", store.vocab_size)
    clock, core = time.perf_counter(), time.process_time()
    entries = Cooccurrences().table(repeated, 256, 0, 0).size * 256
    seconds, core = time.perf_counter() - clock, time.process_time() - core
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(
    f"{len(tokens):,} words of {megabytes} MB: {entries:,} entries, {megabytes / seconds:.2f} "
    f"MB/s, {megabytes / core:.2f} MB per core-second, at most {memory:.2f} GiB"
  )


def ours(experiment, prepared) -> tuple[WordTable, float, float]:
  """The vectors, and the seconds of training without compilation, of the clock and the cores."""
  keep_compilations(Path(prepared.directory).parents[1])
  program = program_of(experiment)
  train, valid = batches_of(experiment, {"": prepared})
  train.check()
  program.step(program.create(), to_global(train(0), program.mesh))  # loads the program
  data = Data(lambda start: iterate(train, start, experiment.steps), valid.evaluation(16))
  with tempfile.TemporaryDirectory() as folder, Workdir(Path(folder) / "run") as workdir:
    clock, core = time.perf_counter(), time.process_time()
    state, _ = fit(program, data, workdir, quiet=True)
    np.asarray(state.params.token.table)
    seconds = time.perf_counter() - clock, time.process_time() - core
  run = Run(experiment=experiment, tokenizer=prepared.tokenizer, params=state.params)
  return words_of_run(run), *seconds


def gensims(experiment, prepared) -> tuple[WordTable, float, float]:
  from gensim.models import Word2Vec

  store, names = prepared.train, np.array(prepared.tokenizer.pieces)
  starts = np.asarray(store.sentence_starts)[np.asarray(store.document_starts)]
  documents = [
    names[np.asarray(store.tokens[at : min(at + LONGEST, end)])].tolist()
    for first, end in pairwise(starts.tolist())
    for at in range(first, end, LONGEST)
  ]
  (objective,) = experiment.objectives
  model = Word2Vec(
    vector_size=experiment.model.width,
    window=objective.window,
    sg=int(objective.name == "skipgram"),
    negative=objective.negatives,
    sample=experiment.data.segments.sample,
    alpha=experiment.optim.peak,
    min_count=1,
    workers=os.cpu_count() or 1,
    seed=experiment.seed,
  )
  model.build_vocab(documents)
  clock, core = time.perf_counter(), time.process_time()
  model.train(documents, total_examples=len(documents), epochs=FLAGS.epochs)
  seconds = time.perf_counter() - clock, time.process_time() - core
  return WordTable(model.wv.index_to_key, model.wv.vectors), *seconds


def scores(table: WordTable) -> str:
  shown = []
  for path in pair_files([FLAGS.pairs] if FLAGS.pairs else []):
    score = similarity(table, read_pairs(path), path.stem.removeprefix("EN-"))
    if score.spearman is not None and score.asked >= 100:
      shown.append(f"{score.name} {score.spearman:.3f}")
  if FLAGS.analogies:
    all_ = totals(analogies(table, read_questions(FLAGS.analogies), 30_000))[-1]
    shown.append(f"analogies {all_.right / all_.asked:.3f}")
  return ", ".join(shown)


if __name__ == "__main__":
  cli.run(main)
