"""The speed and the memory of the n-gram estimator: counting, smoothing, and both.

A text of the wanted size is made from a folder of real text: its lines, repeated and shuffled, with
words between white space as tokens and lines as documents. The time does not include reading it;
MB/s are those of one core's time.

  python benchmarks/ngram_counting.py --text=FOLDER --megabytes=100
  python benchmarks/ngram_counting.py --text=FILE --order=3
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np
from absl import flags

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))  # so that it runs where plm_jax is not installed

from plm_jax import cli  # noqa: E402
from plm_jax.errors import UserError  # noqa: E402
from plm_jax.models.ngram_counts import count, documents_room  # noqa: E402
from plm_jax.models.ngram_smoothing import kneser_ney  # noqa: E402

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("text", None, "A file of text, or a folder of .txt files.")
  flags.DEFINE_integer("megabytes", 100, "The size of the text that is counted.", lower_bound=1)
  flags.DEFINE_integer("order", 5, "The order of the model.", lower_bound=1)


def text_of(place: Path, megabytes: int) -> tuple[np.ndarray, np.ndarray, int]:
  """The tokens uint32 [N], the number of every token's line, and the number of words."""
  files = sorted(place.rglob("*.txt")) if place.is_dir() else [place]
  lines = [line.split() for file in files for line in file.read_text("utf-8").splitlines()]
  lines = [line for line in lines if line]
  if not lines:
    raise UserError(f"--text={place} has no words.")
  size = sum(len(word.encode()) + 1 for line in lines for word in line)
  ids: dict[str, int] = {}
  rows = [np.array([ids.setdefault(w, len(ids)) for w in line], np.uint32) for line in lines]
  times = max(1, round(megabytes * 1e6 / size))
  order = np.random.default_rng(0).permutation(np.tile(np.arange(len(rows)), times))
  tokens = np.concatenate([rows[i] for i in order])
  lengths = np.array([len(row) for row in rows])[order]
  print(f"{times} times {size / 1e6:.1f} MB, {len(tokens):,} tokens, {len(ids):,} words")
  return tokens, np.repeat(np.arange(len(order), dtype=np.int32), lengths), len(ids)


def peak() -> float:
  """GB that this process has held."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def now() -> np.ndarray:
  """Seconds by the clock and of processor time."""
  return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
  if not FLAGS.text:
    raise UserError("--text=FOLDER of .txt files is needed.")
  tokens, document, words = text_of(Path(FLAGS.text), FLAGS.megabytes)
  print(f"{peak():.2f} GB before counting")
  times = [now()]
  grams = count(tokens, documents_room(document, FLAGS.order), FLAGS.order, words)
  times.append(now())
  kneser_ney(grams, np.ones(words, bool))
  times.append(now())
  print(f"n-grams of each order: {', '.join(f'{len(g.keys):,}' for g in grams)}")
  for name, first, last in (("counting", 0, 1), ("smoothing", 1, 2), ("both", 0, 2)):
    clock, processor = times[last] - times[first]
    speed = FLAGS.megabytes / processor
    print(f"{name:10} {clock:6.1f} s by the clock, {processor:6.1f} s of a core, {speed:6.1f} MB/s")
  print(f"{peak():.2f} GB at most")


if __name__ == "__main__":
  cli.run(main)
