"""Examples of a task, in three splits."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from plm_jax.data.draws import permute
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError

SPLITS = ("train", "dev", "test")
_SUBSET = 1  # salt for drawing the labelled subset

Prediction = dict[str, Any]
"""A task's answer for one example in the user's terms, ready for JSON: {"label": "pos", ...}."""


class Example(NamedTuple):
  """An example as its file has it.

  texts: one or two texts, or as many as the task has. target: in the user's terms (a label, a
  number, tags, answers); None without one. name: its id, by default its line. document: examples of
  one document are never in two splits. words: the characters (start, end) of each word of the text,
  for tasks that predict something for each.
  """

  texts: tuple[str, ...]
  target: Any = None
  name: str = ""
  document: str = ""
  words: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
  """One split.

  ids: for every example and each of its texts, int32 [pieces] without special tokens. targets:
  name -> a value of every example, an array [N, ...] or a list of N arrays; empty if the examples
  have no targets. offsets: for every example and each of its texts, int [pieces, 2], the characters
  of the original text that a piece covers; None unless the task needs them.
  """

  items: Sequence[Example]
  ids: Sequence[tuple[np.ndarray, ...]]
  targets: dict[str, Any] = dataclasses.field(default_factory=dict)
  offsets: Sequence[tuple[np.ndarray, ...]] | None = None

  def __len__(self) -> int:
    return len(self.items)

  def take(self, rows: Iterable[int]) -> Examples:
    """The examples numbered `rows`."""
    rows = [int(row) for row in rows]

    def chosen(values):
      return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]

    targets = {name: chosen(values) for name, values in self.targets.items()}
    offsets = None if self.offsets is None else chosen(self.offsets)
    return Examples(chosen(self.items), chosen(self.ids), targets, offsets)

  @classmethod
  def joined(cls, parts: Sequence[Examples]) -> Examples:
    """The examples of all parts, which have no targets, in their order."""
    items = [item for part in parts for item in part.items]
    ids = [texts for part in parts for texts in part.ids]
    offsets = None
    if parts[0].offsets is not None:
      offsets = [spans for part in parts for spans in part.offsets or ()]
    return cls(items, ids, offsets=offsets)

  @property
  def documents(self) -> set[str]:
    return {item.document for item in self.items}

  def fingerprint(self) -> str:
    """A hash of all targets and tokens."""
    digest = hashlib.sha256()
    for _, values in sorted(self.targets.items()):
      for value in [values] if isinstance(values, np.ndarray) else values:
        value = np.ascontiguousarray(value)
        digest.update(value.astype(value.dtype.newbyteorder("<")).tobytes())
    for texts in self.ids:
      for tokens in texts:
        digest.update(tokens.astype("<i4").tobytes() + b"\xff")
    return digest.hexdigest()


def encoded(items: Sequence[Example], tokenizer: Tokenizer) -> list[tuple[np.ndarray, ...]]:
  """The tokens of every text of every example, without special tokens."""
  ids = iter(tokenizer.encode_batch([text for item in items for text in item.texts]))
  return [tuple(next(ids) for _ in item.texts) for item in items]


class Splits(NamedTuple):
  """The examples to train on, to choose by and to test on. notes: lines for the user, such as the
  columns that were guessed. left_out: class -> why it was dropped."""

  train: Examples
  dev: Examples
  test: Examples
  notes: tuple[str, ...] = ()
  left_out: dict[str, str] = {}  # noqa: RUF012  read only

  def few(self, examples: int | None, seed: int) -> Splits:
    """With `examples` training examples, drawn by the seed, the same for every arm."""
    total = len(self.train)
    if examples is None:
      return self
    if examples > total:
      raise UserError(
        f"{examples} labelled examples were requested, but the training split has {total}; "
        f"give a smaller number in --labels, or more text."
      )
    rows = permute(np.arange(examples), total, seed, _SUBSET)
    return self._replace(train=self.train.take(rows))

  def record(self) -> dict[str, Any]:
    """The data's entry in config.json, which identifies it."""
    splits = {}
    for name in SPLITS:
      split = getattr(self, name)
      splits[name] = {
        "documents": len(split.documents),
        "examples": len(split),
        "sha256": split.fingerprint(),
      }
    return {"splits": splits, "left out": self.left_out}
