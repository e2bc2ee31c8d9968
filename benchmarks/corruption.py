"""Tokens/s that one process makes of prepared rows: gathering them and corrupting them.

    python benchmarks/corruption.py --length=128 --batch=256

Rows of `length` tokens, padding included, from random text of 4 million tokens; the best of
`rounds` rounds, by the clock and by the processor time of this process (what is left when others
take turns on the machine). Building the table of segments is measured by itself, in sentences/s.
"""

import argparse
import time
from types import SimpleNamespace

import numpy as np

from plm_jax.data.pipeline import Batches, Corpus
from plm_jax.data.segments import SegmentPair
from plm_jax.data.vocab import Vocab
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM

VOCABULARY = 30522
ARMS = {
  "gather": (),
  "gather + MLM": (MLM(),),
  "gather + MLM static": (MLM(masking="static"),),
  "gather + MLM whole words": (MLM(unit="whole_word"),),
  "gather + MLM n-grams": (MLM(unit="ngram"),),
  "gather + CLM": (CLM(),),
}


def random_store(tokens: int) -> SimpleNamespace:
  """Documents of 1 to 40 sentences of 3 to 40 tokens."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(3, 41, tokens // 21)
  counts = rng.integers(1, 41, lengths.size // 20)
  documents = np.append(np.cumsum(counts)[np.cumsum(counts) < lengths.size], lengths.size)
  return SimpleNamespace(
    tokens=rng.integers(5, VOCABULARY, lengths.sum()).astype(np.uint16),
    sentence_starts=np.append(0, np.cumsum(lengths)),
    document_starts=np.append(0, documents),
  )


def vocabulary() -> Vocab:
  rng = np.random.default_rng(0)
  special = np.arange(VOCABULARY) < 5
  return Vocab(
    size=VOCABULARY,
    pad=0,
    unk=1,
    cls=2,
    sep=3,
    mask=4,
    bos=None,
    eos=None,
    special=special,
    word_start=special | (rng.random(VOCABULARY) < 0.8),
  )


def best_seconds(batches: Batches, rounds: int, steps: int = 20) -> tuple[float, float]:
  """Seconds per batch, by the clock and by the processor."""
  batches(0)
  clock, processor = [], []
  for round_ in range(rounds):
    started = time.perf_counter(), time.process_time()
    for step in range(steps):
      batches(round_ * steps + step)
    clock.append((time.perf_counter() - started[0]) / steps)
    processor.append((time.process_time() - started[1]) / steps)
  return min(clock), min(processor)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--length", type=int, default=128)
  parser.add_argument("--batch", type=int, default=256)
  parser.add_argument("--rounds", type=int, default=30)
  options = parser.parse_args()
  store, vocab = random_store(4_000_000), vocabulary()

  started = time.process_time()
  table = SegmentPair().table(store, options.length, 0, 0)
  seconds = time.process_time() - started
  sentences = len(store.sentence_starts) - 1
  print(f"segment table: {sentences / seconds / 1e3:.0f} thousand sentences/s, {len(table)} rows")

  print(f"{options.batch} x {options.length}: million tokens/s   by clock   by processor")
  for name, objectives in ARMS.items():
    corpus = Corpus(length=options.length, passes=1)
    batches = Batches(store, corpus, objectives, vocab, 0, options.batch)
    million = options.batch * options.length / 1e6
    clock, processor = (million / s for s in best_seconds(batches, options.rounds))
    print(f"  {name:30s} {clock:12.1f} {processor:12.1f}")


if __name__ == "__main__":
  main()
