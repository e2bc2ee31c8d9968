"""Do the words of a sentence stand in the order they were written in? A label that every text has.

Half of the sentences have their words shuffled. What stands between the words stays where it is,
and everything is in lower case, so that neither a full stop nor a capital tells: a bag of words
knows nothing. A relative of SentEval's "bigram shift", where two neighbours have changed places
(Conneau et al. 2018, arXiv:1805.01070), which is harder.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np

from plm_jax.data.documents import Document

CLASSES = ("in order", "shuffled")
FEWEST = 5  # words of a sentence whose order can be told
_WORD = re.compile(r"\w(?:\S*\w)?")  # "self.epsilon" is one; the quotes and stops around it are not


def by_word_order(document: Document) -> list[Document]:
  """What is left in order and what was shuffled, as two documents of the same name."""
  sentences = [made for text in document.sentences if (made := _example(text))]
  return [
    Document(document.name, tuple(text for text, label in sentences if label == name), name)
    for name in CLASSES
  ]


def _example(text: str) -> tuple[str, str] | None:
  """The sentence and its class, a function of the sentence alone; None where order cannot tell."""
  text = text.lower()
  words = _WORD.findall(text)
  if len(words) < FEWEST:
    return None
  draws = np.frombuffer(hashlib.shake_128(text.encode()).digest(4 + 4 * len(words)), "<u4")
  if draws[0] % 2:
    return text, CLASSES[0]
  order = iter(np.argsort(draws[1:], kind="stable"))
  shuffled = _WORD.sub(lambda _: words[next(order)], text)
  return (shuffled, CLASSES[1]) if shuffled != text else None
