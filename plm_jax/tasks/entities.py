"""Entities in sequences of tags: their schemes, and scores as conlleval computes them.

Source: conlleval of the CoNLL-2000 shared task, with E- and S- as in seqeval 1.2.2 (default mode).
The rules read IO, IOB1, IOB2 and IOBES alike, and are lenient: an entity also begins where the type
changes, or with I- after O.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_TAG = re.compile(r"([BIES])-(.+)")


class Entity(NamedTuple):
  """kind: of the entity. The words from first to last, both included."""

  kind: str
  first: int
  last: int


def entities(tags: Sequence[str]) -> list[Entity]:
  """The entities of a sentence."""
  made, first = [], 0
  before, kind_before = "O", ""
  for place, tag in enumerate([*tags, "O"]):
    match = _TAG.fullmatch(tag)
    mark, kind = match.groups() if match else ("O", "")
    other = kind != kind_before
    if before != "O" and (mark in "BOS" or before in "ES" or other):
      made.append(Entity(kind_before, first, place - 1))
    if mark != "O" and (mark in "BS" or before in "OES" or other):
      first = place
    before, kind_before = mark, kind
  return made


def scheme_of(sentences: Iterable[Sequence[str]]) -> str:
  """IO, IOB1, IOB2 or IOBES; "" for tags that mark no entities, such as parts of speech."""
  marks: Counter[str] = Counter()
  begins_with_i = 0
  for tags in sentences:
    for place, tag in enumerate(tags):
      match = _TAG.fullmatch(tag)
      if not match and tag != "O":
        return ""
      if match:
        marks[match[1]] += 1
        before = tags[place - 1] if place else "O"
        begins_with_i += match[1] == "I" and before[2:] != match[2]
  if not marks:
    return ""
  if marks["E"] or marks["S"]:
    return "IOBES"
  if not marks["B"]:
    return "IO"
  return "IOB1" if begins_with_i > marks["B"] / 2 else "IOB2"


_OTHER_NAMES = re.compile(r"O|[BILUMES]-.+")


def in_iobes(sentences: Sequence[Sequence[str]]) -> list[list[str]]:
  """Tags of BILOU (U alone, L last) and BMES (M inside) as those of IOBES; others as they are."""
  tags = {tag for sentence in sentences for tag in sentence}
  renamed = any(tag[:2] in ("U-", "L-", "M-") for tag in tags)
  if not renamed or not all(map(_OTHER_NAMES.fullmatch, tags)):
    return [list(sentence) for sentence in sentences]
  names = {"U-": "S-", "L-": "E-", "M-": "I-"}
  return [[names.get(tag[:2], tag[:2]) + tag[2:] for tag in sentence] for sentence in sentences]


def all_tags(tags: Iterable[str], scheme: str) -> tuple[str, ...]:
  """The tags in order, "O" first, and with a scheme every tag that its types could have: a rare
  I- of a type may be in no training sentence."""
  names = set(tags)
  if scheme:
    marks = {"IO": "I", "IOB1": "BI", "IOB2": "BI"}.get(scheme, "BIES")
    kinds = {tag[2:] for tag in names if tag != "O"}
    names |= {f"{mark}-{kind}" for kind in kinds for mark in marks} | {"O"}
  return tuple(sorted(names, key=lambda tag: (tag != "O", tag[2:] if scheme else "", tag)))


class Counts(NamedTuple):
  """Numbers of entities."""

  correct: int
  predicted: int
  true: int

  def scores(self) -> dict[str, float]:
    """Precision, recall and F1, 0 where they are not defined."""
    precision = self.correct / self.predicted if self.predicted else 0.0
    recall = self.correct / self.true if self.true else 0.0
    both = precision + recall
    f1 = 2 * precision * recall / both if both else 0.0
    return {"f1": f1, "precision": precision, "recall": recall}


def entity_counts(
  true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, Counts]:
  """The counts of every type, and of all as "": an entity is correct if its type, its first and its
  last word are."""
  correct: Counter[str] = Counter()
  of_predicted, of_true = Counter(correct), Counter(correct)
  for true_tags, tags in zip(true, predicted, strict=True):
    ours, theirs = set(entities(tags)), set(entities(true_tags))
    for counter, group in ((correct, ours & theirs), (of_predicted, ours), (of_true, theirs)):
      counter.update(entity.kind for entity in group)
  kinds = sorted(of_true | of_predicted)
  counts = {k: Counts(correct[k], of_predicted[k], of_true[k]) for k in kinds}
  total = Counts(correct.total(), of_predicted.total(), of_true.total())
  return {"": total, **counts}
