"""Do the words of a sentence stand in the order they were written in? A label that every text has.

Half of the sentences have their words shuffled. Punctuation stays where it is, and so does what is
more than a word, such as `self.epsilon` or `f(x)`; everything is in lower case. A bag of words
knows nothing. A relative of SentEval's "bigram shift", where two neighbours have changed places
(Conneau et al. 2018, arXiv:1805.01070), which is harder.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np

from plm_jax.data.documents import Document

CLASSES = ("in order", "shuffled")
FEWEST = 5  # different words of a sentence whose order can be told
_WORD = re.compile(r"""(?<!\S)([(\["'`]*)(\w+)([.,;:!?)\]"'`]*)(?!\S)""")  # and what is around it


def by_word_order(document: Document) -> list[Document]:
  """What is left in order and what was shuffled, as documents of the same name, those that have any
  sentence."""
  sentences = [made for text in document.sentences if (made := _example(text))]
  parts = [(name, tuple(s for s, label in sentences if label == name)) for name in CLASSES]
  return [Document(document.name, part, name) for name, part in parts if part]


def _example(text: str) -> tuple[str, str] | None:
  """The sentence and its class, a function of the sentence alone; None where order cannot tell."""
  text = text.lower()
  words = [match[2] for match in _WORD.finditer(text)]
  if len(set(words)) < FEWEST:
    return None
  draws = np.frombuffer(hashlib.shake_128(text.encode()).digest(4 + 4 * len(words)), "<u4")
  if draws[0] % 2:
    return text, CLASSES[0]
  order = iter(np.argsort(draws[1:], kind="stable"))
  shuffled = _WORD.sub(lambda match: match[1] + words[next(order)] + match[3], text)
  return (shuffled, CLASSES[1]) if shuffled != text else None
