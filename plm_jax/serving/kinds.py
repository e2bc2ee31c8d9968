"""The uses of a model that are computed in batches: predictions, vectors, blanks, attention.

Each prepares a client's input in the event loop, where its errors are its own, and computes many
prepared inputs at once with the functions of the commands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from plm_jax.decode.fill_mask import Blank, Candidate, blanks_of, fill
from plm_jax.decode.neighbours import bare
from plm_jax.decode.writer import bucket
from plm_jax.errors import UserError
from plm_jax.models.layer_loop import with_separate_layers
from plm_jax.runs import Run, row_limit
from plm_jax.serving.limits import Limits, Refused
from plm_jax.tasks import predicting
from plm_jax.tasks.examples import Examples, Prediction
from plm_jax.tasks.predicting import ExampleText
from plm_jax.tasks.rows import frame_of, width_of
from plm_jax.tasks.task import Task, Trained
from plm_jax.tasks.vectors import TextEncoder, attentions

MOST_BLANKS = 16  # of one text
MOST_FILLERS = 20  # of one blank; all are computed, so that no request compiles
MOST_TOKENS = 64  # of a text whose attention is shown
_WORD = "the"

Programs = Iterator[Callable[[], Any]]


def sizes(most: int) -> list[int]:
  """The sizes of batches: powers of two."""
  return [1 << i for i in range(most.bit_length())]


def ready(trained: Trained, limits: Limits) -> Trained:
  """The model for the batches of a server, of few rows."""
  return trained._replace(batch=limits.batch, fits=True)


def check_characters(example: Mapping[str, Any]) -> None:
  """Errors: `Refused` for half a character, which the JSON of a line would hide."""
  for name, value in example.items():
    try:
      f"{name}{value}".encode()
    except UnicodeEncodeError:
      raise Refused(422, f"the column {name!a} has half a character; send whole ones") from None


class Predict:
  """Predictions of a fine-tuned model."""

  name = "predict"

  def __init__(self, run: Run, limits: Limits):
    self.task: Task = predicting.task_of(run)
    self._limits, self._length = limits, self.task.length or limits.tokens
    self._trained = ready(predicting.trained(run), limits)
    example = self._example(1)
    self.texts = len(example[0].items[0].texts) if example else 1  # of an example

  def prepare(self, example: ExampleText) -> tuple[Examples, int]:
    """Errors: `UserError` for an example that is not one of the task."""
    line = predicting.line_of(example)
    self._limits.check_text(line)
    tokenizer = self._trained.tokenizer
    if isinstance(example, dict):
      check_characters(example)
    item = self.task.parse(line, "the input")
    if isinstance(example, list) and len(example) != len(item.texts):
      texts = f"{len(item.texts)} text{'s' * (len(item.texts) != 1)}"
      raise Refused(422, f"the input has {len(example)} texts and the model reads {texts}")
    examples = self.task.encode([item], tokenizer)
    tokens = sum(map(len, examples.ids[0]))
    self._limits.check_tokens(tokens)
    return examples, width_of(min(tokens + self._frame, self._length), self._length)

  @property
  def _frame(self) -> int:
    before, between, after = frame_of(self._trained.config, self._trained.tokenizer)
    return len(before) + len(between) + len(after)

  def run(self, items: list[Examples]) -> list[Prediction]:
    if self.task.is_independent:
      return self.task.predict(self._trained, Examples.joined(items))
    return [self.task.predict(self._trained, item)[0] for item in items]

  def programs(self) -> Programs:
    examples = list(self._of_every_width().values())
    for size in sizes(self._limits.batch):
      for several in examples:
        for one in several:
          yield partial(self.run, [one] * size)

  def _of_every_width(self) -> dict[int, list[Examples]]:
    """Examples by the shape that they are computed in, two for each: rows of special tokens may be
    a token longer or shorter."""
    widths: dict[int, list[Examples]] = {}
    for words in range(1, self._length + 1):
      example = self._example(words)
      if example is None:
        continue
      item, width = example
      widths.setdefault(width, []).append(item)
    return {width: [items[len(items) // 2], items[-1]] for width, items in widths.items()}

  def _example(self, words: int) -> tuple[Examples, int] | None:
    """An example with this many words in its last text; None if the task reads no such line."""
    for texts in (1, 2, 3):
      try:
        return self.prepare("\t".join([_WORD] * (texts - 1) + [" ".join([_WORD] * words)]))
      except (UserError, Refused):
        continue
    return None


class Encode:
  """Vectors of texts."""

  name = "encode"

  def __init__(self, run: Run, limits: Limits):
    frame_of(run.config, run.tokenizer)
    encoder = TextEncoder.of_run(run)
    self._encoder = dataclasses.replace(encoder, trained=ready(encoder.trained, limits))
    self._limits, self._longest = limits, min(encoder.longest, limits.tokens + 2)

  def prepare(self, text: str) -> tuple[tuple[str, int], int]:
    self._limits.check_text(text)
    tokens = len(self._encoder.trained.tokenizer.encode(text))
    self._limits.check_tokens(tokens)
    return (text, tokens), width_of(min(tokens + 2, self._longest), self._longest)

  def run(self, items: list[tuple[str, int]]) -> list[tuple[np.ndarray, int]]:
    """The vector and the number of tokens of each text. Errors: `Refused` for a diverged model."""
    vectors_ND, _ = self._encoder([text for text, _ in items])
    if not np.isfinite(vectors_ND).all():
      raise Refused(500, "the model's vectors are not finite numbers; its training diverged")
    return [(vector, tokens) for vector, (_, tokens) in zip(vectors_ND, items, strict=True)]

  def programs(self) -> Programs:
    widths: dict[int, str] = {}
    for words in range(1, self._longest + 1):
      text = " ".join([_WORD] * words)
      try:
        widths[self.prepare(text)[1]] = text
      except Refused:
        break
    for size in sizes(self._limits.batch):
      for text in widths.values():
        yield partial(self.run, [(text, 0)] * size)


class FillMask:
  """The tokens for the blanks of texts."""

  name = "fill_mask"

  def __init__(self, run: Run, limits: Limits):
    self._run, self._limits = run, limits
    self._model = with_separate_layers(run.params.masked_lm(), run.compute)
    self._longest = min(run.config.positions, limits.tokens)

  def prepare(self, text: str) -> tuple[list[Blank], int]:
    self._limits.check_text(text)
    blanks = blanks_of(text, self._run.tokenizer, self._longest)
    if len(blanks) > MOST_BLANKS:
      raise Refused(422, f"a text has {len(blanks)} blanks; expected {MOST_BLANKS} at most")
    return blanks, bucket(len(blanks[0].ids))

  def run(self, items: list[list[Blank]]) -> list[list[list[tuple[str, float]]]]:
    flat = [blank for blanks in items for blank in blanks]
    tokenizer, made = self._run.tokenizer, []
    for first in range(0, len(flat), self._limits.batch):
      chosen = flat[first : first + self._limits.batch]
      made += fill(self._model, chosen, self._run.compute, MOST_FILLERS, tokenizer.vocab.size)
    candidates = iter(made)
    return [[self._named(next(candidates)) for _ in blanks] for blanks in items]

  def _named(self, candidates: list[Candidate]) -> list[tuple[str, float]]:
    decode = self._run.tokenizer.decode
    return [(decode([c.token]).strip(), c.probability) for c in candidates]

  def programs(self) -> Programs:
    vocab = self._run.tokenizer.vocab
    mask, (first, last) = vocab.mask, vocab.frame()
    assert mask is not None  # else the model has not this use
    for width in (1 << i for i in range(3, 32)):
      ids = np.array([first, *[mask] * (min(width, self._longest) - 2), last], np.int32)
      for size in sizes(self._limits.batch):
        yield partial(self.run, [[Blank(ids, 1, mask)]] * size)
      if width >= self._longest:
        return


class Attend:
  """Attention weights of texts, one at a time."""

  name = "attention"

  def __init__(self, run: Run, limits: Limits):
    self._trained = predicting.trained(run)
    self._limits, self._longest = limits, min(MOST_TOKENS, row_limit(run))
    before, _, after = frame_of(run.config, run.tokenizer)
    self._frame = len(before) + len(after)

  def prepare(self, text: str) -> tuple[str, int]:
    self._limits.check_text(text)
    return text, 0

  def run(self, items: Sequence[str]) -> list[tuple[list[str], np.ndarray]]:
    """The tokens and float32 [layers, heads, T, T] of each text."""
    made = []
    for text in items:
      ids, weights = attentions(self._trained, text, self._longest)
      made.append(([bare(piece) for piece in self._trained.tokenizer.tokens(ids)], weights))
    return made

  def programs(self) -> Programs:
    for words in range(1, self._longest, 4):
      text = " ".join([_WORD] * words)
      if len(self._trained.tokenizer.encode(text)) + self._frame > self._longest:
        return
      yield partial(self.run, [text])
