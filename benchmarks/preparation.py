"""What a preparation of text costs, and the hours that it would take for Wikipedia and C4.

A text of the wanted size is made from a folder of real text (benchmarks/repeated_text.py) and
prepared with worker processes. MB/s are those of one core's processor time, also on a busy machine:

  workers   reading, splitting into sentences, tokenizing: divided among all cores
  parent    cutting the file, collecting and writing ids: one core, so its speed bounds all
  reading   reading and splitting alone

The hours are the longer of the parent's time and of all time divided by the cores; they assume that
the disk is not the slowest, and that the text is in many files, of which a few are enough for the
tokenizer. The table is that of one pass of BERT's pairs, in rows of 128. With --shards=N, copies of
the text stand for the files of a larger one, and only the reading of the tokenizer's sample is
measured, beside that of the whole text.

  python benchmarks/preparation.py --text=FOLDER --megabytes=100
  python benchmarks/preparation.py --text=FOLDER --lines       a sentence, not a paragraph, per line
  python benchmarks/preparation.py --text=FOLDER --megabytes=4 --shards=256
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from absl import flags

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
  if str(folder) not in sys.path:
    sys.path.insert(0, str(folder))  # so that it runs where plm_jax is not installed

from repeated_text import documents, paragraphs_of, write_text  # noqa: E402

from plm_jax import cli  # noqa: E402
from plm_jax.data import preparation, processes  # noqa: E402
from plm_jax.data.corpora import open_source  # noqa: E402
from plm_jax.data.segments import SegmentPair  # noqa: E402
from plm_jax.data.tokenizer_sample import Sample, Sampling, sample_of  # noqa: E402
from plm_jax.data.tokenizers import WordPiece  # noqa: E402
from plm_jax.errors import UserError  # noqa: E402

FLAGS = flags.FLAGS
CORPORA = {"English Wikipedia, 20 GB": 20e9, "C4 (en), 305 GB": 305e9}
CORES = (2, 16, 64)


def define_flags() -> None:
  flags.DEFINE_string("text", None, "A file of text, or a folder of .txt files.")
  flags.DEFINE_integer("megabytes", 100, "The size of the text that is prepared.", lower_bound=1)
  flags.DEFINE_integer("vocab", 8192, "The size of the WordPiece vocabulary.", lower_bound=300)
  flags.DEFINE_integer("shards", None, "Measure the sample of so many copies.", lower_bound=1)
  flags.DEFINE_bool("lines", False, "A sentence per line instead of a paragraph.")


def processor_seconds() -> tuple[float, float]:
  """Of this process, and of its processes that have ended."""
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  return time.process_time(), children.ru_utime + children.ru_stime


def report(folder: Path, source: Path, megabytes: int, vocab: int, lines: bool) -> None:
  text = folder / "text.txt"
  write_text(source, text, megabytes, lines)
  size = text.stat().st_size / 1e6
  made = documents(paragraphs_of(source, lines))
  sentences = [s for _ in range(2000) for s in next(made).split("\n")]
  WordPiece(vocab_size=vocab).train(iter(sentences)).save(folder / "tokenizer")

  start = time.process_time()
  count = sum(len(document.sentences) for document in open_source(str(text)).documents())
  reading = size / (time.process_time() - start)
  preparation.LARGE = 0  # worker processes for every size
  corpus = SimpleNamespace(
    source=str(text),
    tokenizer=WordPiece(path=str(folder / "tokenizer")),
    held_out=0.02,
    lines=False,
  )
  before, begun = processor_seconds(), time.perf_counter()
  made = preparation.prepare(corpus, folder / "cache", progress=False)
  seconds = time.perf_counter() - begun
  parent, workers = (b - a for a, b in zip(before, processor_seconds(), strict=True))
  peaks = [
    resource.getrusage(who).ru_maxrss / 2**10
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  ]
  start = time.process_time()
  rows = len(SegmentPair().table(made.train, 128, 0, 0))
  table = time.process_time() - start

  print(f"{size:.0f} MB, {count:,} sentences, {len(made.train.tokens):,} tokens, "
        f"{processes.cores()} workers, {seconds:.0f} s by the clock")  # fmt: skip
  print(f"workers {size / workers:7.1f} MB/s of a core, {peaks[1]:.0f} MB at most in each")
  print(f"parent  {size / parent:7.1f} MB/s of a core, {peaks[0]:.0f} MB at most")
  print(f"reading {reading:7.1f} MB/s of a core")
  print(f"table   {table / rows * 1e6:7.2f} microseconds a row, {table:.2f} s for {rows:,} rows")
  print()
  print("| text | " + " | ".join(f"{n} cores" for n in CORES) + " | one table |")
  print("|---|" + "---:|" * (len(CORES) + 1))
  for name, total in CORPORA.items():
    times = total / size / 1e6
    hours = [max(parent, (parent + workers) / n) * times / 3600 for n in CORES]
    minutes = table * times / 60
    print(f"| {name} | " + " | ".join(f"{h:.2f} h" for h in hours) + f" | {minutes:.1f} min |")


def report_sample(folder: Path, source: Path, megabytes: int, shards: int, lines: bool) -> None:
  """What is read for the tokenizer, of as many files, and of the whole text."""
  text, copies = folder / "text.txt", folder / "shards"
  write_text(source, text, megabytes, lines)
  copies.mkdir()
  for number in range(shards):
    shutil.copy(text, copies / f"{number:06}.txt")
  opened = open_source(str(copies))
  chosen = sample_of(opened)
  print(f"{shards} shards of {text.stat().st_size / 1e6:.1f} MB; "
        f"the sample needs {len(chosen.rates) or shards} of them")  # fmt: skip
  for name, sample in (("sample", chosen), ("whole", Sample(opened, (), {}, 0))):
    before, start, taken = bytes_read(), time.process_time(), 0
    for rated in sample.chunks(preparation.CHUNK):
      taken += sum(size for size, sentences in Sampling(0.05)(rated) if sentences)
    read, seconds = (bytes_read() - before) / 1e6, time.process_time() - start
    print(
      f"{name:7} {read:8.1f} MB read, {seconds:6.1f} s of a core, {taken / 1e6:.1f} M characters"
    )


def bytes_read() -> int:
  """By this process, from anywhere (Linux)."""
  words = Path("/proc/self/io").read_text().split()
  return int(words[words.index("rchar:") + 1])


def main() -> None:
  if not FLAGS.text:
    raise UserError("--text=FOLDER of .txt files is needed.")
  with tempfile.TemporaryDirectory() as folder:
    if FLAGS.shards:
      place = Path(FLAGS.text)
      report_sample(Path(folder), place, FLAGS.megabytes, FLAGS.shards, FLAGS.lines)
      return
    report(Path(folder), Path(FLAGS.text), FLAGS.megabytes, FLAGS.vocab, FLAGS.lines)


if __name__ == "__main__":
  cli.run(main)
