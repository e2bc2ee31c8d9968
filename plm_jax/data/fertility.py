"""Fertility: the mean number of pieces of a word (Rust et al. 2021, arXiv:2012.15613, section 3.2).

A tokenizer that was made for another domain or language cuts words into more pieces: rows hold
fewer words, and a model reads pieces that mean little. Punctuation that stands apart is a word.
"""

from collections.abc import Mapping

import numpy as np

from plm_jax.data.preparation import Prepared
from plm_jax.data.vocab import Vocab

MUCH_MORE = 1.2  # times the fertility on the text that the tokenizer was trained on
# Where that text is unknown. BERT's English vocabulary: 1.07 on Wikipedia, 1.11 on a novel, 1.54 on
# French, 2.06 on Swahili. GPT-2's: 1.19, 1.58, 1.76, 2.36; on Shakespeare's plays 1.77.
HIGH = 1.8
UNKNOWN = 0.01  # share of unknown tokens


def fertility(counts: np.ndarray, vocab: Vocab) -> float | None:
  """Pieces per word. counts: int [V], frequencies. None where no token marks a word's beginning."""
  words = 0 if vocab.word_start is None else int(counts[vocab.word_start].sum())
  return float(counts.sum()) / words if words else None


def fertilities(texts: Mapping[str, Prepared]) -> dict[str, float]:
  """Name -> fertility of the training documents of every text."""
  numbers = {n: fertility(t.train.counts, t.tokenizer.vocab) for n, t in texts.items()}
  return {name: number for name, number in numbers.items() if number is not None}


def fertility_notes(texts: Mapping[str, Prepared], known: Mapping[str, float]) -> list[str]:
  """A sentence for every text that the tokenizer cuts into many pieces, or does not know. known:
  the fertilities of the texts of the run that the tokenizer comes from, if it recorded them."""
  notes, usual = [], max(known.values(), default=None)
  limit = HIGH if usual is None else MUCH_MORE * usual
  than = "more than 1.8 is much" if usual is None else f"it was {usual:.2f} in the run before"
  numbers = fertilities(texts)
  for name, text in texts.items():
    place, counts, unk = (
      text.manifest["source"]["given"],
      text.train.counts,
      text.tokenizer.vocab.unk,
    )
    if numbers.get(name, 0) > limit:
      notes.append(
        f"note: the tokenizer cuts a word of {place} into {numbers[name]:.2f} pieces on average; "
        f"{than}; python -m plm_jax.extend adds words to it"
      )
    share = 0.0 if unk is None else float(counts[unk] / counts.sum())
    if share > UNKNOWN:
      notes.append(f"note: the tokenizer does not know {share:.1%} of the words of {place}")
  return notes
