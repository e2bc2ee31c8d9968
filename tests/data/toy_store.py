"""A TokenStore of random tokens in memory (or on disk), and a vocabulary that goes with it."""

import numpy as np

from plm_jax.data.vocab import Vocab

PAD, UNK, CLS, SEP, MASK = range(5)


def toy_vocab(size=1000, pieces=0.3) -> Vocab:
  """Five special tokens; a share `pieces` of the others continue a word."""
  word_start = np.random.default_rng(0).random(size) >= pieces
  special = np.arange(size) < 5
  return Vocab(
    size=size,
    pad=PAD,
    unk=UNK,
    cls=CLS,
    sep=SEP,
    mask=MASK,
    bos=None,
    eos=None,
    special=special,
    word_start=word_start | special,
  )


class ToyStore:
  """`sentences[d]`: the lengths of the sentences of document d; tokens are never special."""

  def __init__(self, sentences, size=1000, directory=None, split="train"):
    lengths = np.concatenate([np.asarray(s, np.int64) for s in sentences])
    self.sentence_starts = np.concatenate([[0], np.cumsum(lengths)])
    self.document_starts = np.concatenate([[0], np.cumsum([len(s) for s in sentences])])
    rng = np.random.default_rng(1)
    self.tokens = rng.integers(5, size, self.sentence_starts[-1]).astype(np.uint16)
    self.directory, self.split = directory, split

  def document_of(self, offset):
    """The document that holds a token offset."""
    sentence = np.searchsorted(self.sentence_starts, offset, side="right") - 1
    return np.searchsorted(self.document_starts, sentence, side="right") - 1


def random_store(documents=50, seed=0, most=12, longest=30, **kw) -> ToyStore:
  rng = np.random.default_rng(seed)
  counts = rng.integers(1, most + 1, documents)
  return ToyStore([rng.integers(1, longest + 1, count) for count in counts], **kw)
