"""Word-order task: were the words of a sentence shuffled? It needs no labelled text.

Half of the sentences are shuffled. Punctuation keeps its place, and so do tokens that are more than
a word, such as `self.epsilon` or `f(x)`; everything is in lower case. A bag of words scores at
chance. SentEval's "bigram shift", where two neighbours change places (Conneau et al. 2018,
arXiv:1805.01070), is a similar, harder task.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np

from plm_jax.data.documents import Document

CLASSES = ("in order", "shuffled")
FEWEST = 5  # different words of a sentence; the order of fewer tells too little
_WORD = re.compile(r"""(?<!\S)([(\["'`]*)(\w+)([.,;:!?)\]"'`]*)(?!\S)""")  # and its punctuation


def by_word_order(document: Document) -> list[Document]:
  """The intact sentences and the shuffled ones, as documents of the same name, without empty
  ones."""
  sentences = [example for text in document.sentences if (example := _example(text))]
  parts = [(name, tuple(s for s, label in sentences if label == name)) for name in CLASSES]
  return [Document(document.name, part, name) for name, part in parts if part]


def _example(text: str) -> tuple[str, str] | None:
  """The sentence and its class, a function of the sentence alone; None if it is unsuitable."""
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
