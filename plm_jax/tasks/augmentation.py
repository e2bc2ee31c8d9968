"""Word-level augmentation of training texts: dropout, swaps and synonyms of words.

Source: Wei & Zou 2019 (EDA), with synonyms from the user's file instead of WordNet. Dev and test
texts are never changed. A text is changed anew in every epoch, by draws of (seed, epoch, example).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from pathlib import Path

import numpy as np

from plm_jax.data.draws import Draws
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.models.model import Model
from plm_jax.tasks.examples import Examples, encoded
from plm_jax.tasks.rows import LabelledBatches, width_of
from plm_jax.tasks.task import Task

_DROP, _SWAP, _REPLACE, _CHOICE = 96, 97, 98, 99  # streams of draws; one more for each text
_TEXTS = 4  # streams of one text
# A word is a run of other characters than white space, or a single character of a script without
# spaces (Chinese, kana).
_SINGLE = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"([{_SINGLE}]|[^\s{_SINGLE}]+)(\s*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
  """Changes of the words of training texts, all off.

  drop: the probability that a word is left out; one word always stays. swap: that a word changes
  places with the next one. replace: that a word is replaced by one of its synonyms.
  synonyms: a file with a word and its synonyms in each line, with tabs or commas between them.
  """

  drop: float = 0.0
  swap: float = 0.0
  replace: float = 0.0
  synonyms: str | None = None

  def __post_init__(self):
    for name in ("drop", "swap", "replace"):
      if not 0 <= getattr(self, name) < 1:
        raise UserError(f"augment.{name}={getattr(self, name)} must be at least 0 and below 1.")
    if bool(self.replace) != bool(self.synonyms):
      raise UserError("augment.replace, a probability, and augment.synonyms, a file, go together.")

  @property
  def is_on(self) -> bool:
    return bool(self.drop or self.swap or self.replace)

  def changed(self, text: str, draws: Draws, stream: int) -> str:
    """The text of one row of draws. stream: the number of the text in its example."""
    parts = _WORD.findall(text)
    if len(parts) < 1:
      return text
    words, gaps = [word for word, _ in parts], [gap for _, gap in parts]

    def drawn(kind: int, rate: float) -> np.ndarray:
      return draws.uniform(kind + _TEXTS * stream, len(words))[0] < rate

    if self.replace:
      known, picks = (
        synonyms(self.synonyms),
        draws.uniform(_CHOICE + _TEXTS * stream, len(words))[0],
      )
      for i in np.flatnonzero(drawn(_REPLACE, self.replace)):
        choices = known.get(words[i].lower())
        words[i] = choices[int(picks[i] * len(choices))] if choices else words[i]
    if self.swap:
      for i in np.flatnonzero(drawn(_SWAP, self.swap)[:-1]):
        words[i], words[i + 1] = words[i + 1], words[i]
    if self.drop:
      kept = ~drawn(_DROP, self.drop)
      kept[draws.bits(_CHOICE + _TEXTS * stream, 1)[0, 0] % len(words)] |= not kept.any()
      words = [word for word, is_kept in zip(words, kept) if is_kept]
      gaps = [gap for gap, is_kept in zip(gaps, kept) if is_kept]
    return "".join(word + gap for word, gap in zip(words, gaps)).rstrip()


@functools.cache
def synonyms(path: str) -> dict[str, tuple[str, ...]]:
  """Lower-case word -> its synonyms. Errors: `UserError` for a file that has none."""
  try:
    lines = Path(os.path.expanduser(path)).read_text(encoding="utf-8").splitlines()
  except (OSError, ValueError) as error:
    raise UserError(f"augment.synonyms={path} cannot be read as text: {error}.") from None
  known = {}
  for line in lines:
    word, *others = [part.strip() for part in re.split(r"[\t,]", line) if part.strip()] or [""]
    if others:
      known[word.lower()] = tuple(others)
  if not known:
    raise UserError(
      f"augment.synonyms={path} has no synonyms; expected lines such as big, large, huge."
    )
  return known


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentedBatches(LabelledBatches):
  """Training batches whose texts are changed, cut into pieces and framed for each batch."""

  examples: Examples
  task: Task
  model: Model
  tokenizer: Tokenizer

  def _batch(self, epochs: np.ndarray, rows: np.ndarray, width: int | None) -> dict:
    items = []
    epochs, rows = (numbers[:: self.task.together] for numbers in (epochs, rows))
    for epoch, row in zip(epochs, rows):
      item = self.examples.items[self.rows.example[row]]
      draws = Draws(self.seed, int(epoch), np.array([row]))
      texts = (self.task.augment.changed(text, draws, n) for n, text in enumerate(item.texts))
      items.append(item._replace(texts=tuple(texts)))
    numbers = self.rows.example[rows]
    targets = {name: values[numbers] for name, values in self.examples.targets.items()}
    examples = Examples(items, encoded(items, self.tokenizer), targets)
    made = self.task.rows(examples, self.model, self.tokenizer)
    if width is not None:  # other processes do not know these rows
      width = None if self.process_count > 1 else width_of(made.longest.max(), made.width)
    return made.batch(np.arange(len(made)), np.ones(len(made), np.float32), width)
