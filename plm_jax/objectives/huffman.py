"""The Huffman code of a vocabulary, for hierarchical softmax (Morin and Bengio 2005; tmikolov/
word2vec 20c129a, word2vec.c `CreateBinaryTree`)."""

from typing import NamedTuple

import numpy as np


class Huffman(NamedTuple):
  """nodes int32 [V, L]: the inner nodes on the way from the root to each word. codes int8 [V, L]:
  the branch at each, 0 or 1; -1 after the last. Words that never occur have no code."""

  nodes: np.ndarray
  codes: np.ndarray


def huffman(counts: np.ndarray) -> Huffman:
  """The code of words with these counts, int [V]. The node of the last merge is the root."""
  words = np.flatnonzero(counts)
  order = words[np.argsort(-counts[words], kind="stable")]
  size = len(order)
  weights = [*counts[order].tolist(), *[0] * max(size - 1, 0)]
  parent, branch = [0] * (2 * size), [0] * (2 * size)
  leaf, inner = size - 1, size  # the smallest leaf and the smallest inner node that have no parent

  for node in range(size, 2 * size - 1):
    for side in (0, 1):
      if leaf >= 0 and (inner >= node or weights[leaf] < weights[inner]):
        child, leaf = leaf, leaf - 1
      else:
        child, inner = inner, inner + 1
      weights[node] += weights[child]
      parent[child], branch[child] = node, side
  paths = []
  for place in range(size):
    node, path = place, []
    while node < 2 * size - 2:
      path.append((parent[node] - size, branch[node]))
      node = parent[node]
    paths.append(path[::-1])
  nodes = np.zeros((len(counts), max(map(len, paths), default=0)), np.int32)
  codes = np.full(nodes.shape, -1, np.int8)
  for word, path in zip(order, paths, strict=True):
    nodes[word, : len(path)], codes[word, : len(path)] = zip(*path) if path else ((), ())
  return Huffman(nodes, codes)
