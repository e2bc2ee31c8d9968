"""The task `answer`: where in a text is the answer to a question?

Source: google-research/bert run_squad.py (Devlin et al. 2019, sections 4.2 and 4.3). A window
without the answer is trained to point at the null position; a start counts only in the window where
it has the most context; a question has no answer if the null score, the least over the windows, is
above the best span's by more than a threshold that is chosen on the dev split.

The null position is the row's first token, or its last one in a model that reads left to right.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.models.model import Model
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits
from plm_jax.tasks.file_task import FileTask
from plm_jax.tasks.predicting import outputs
from plm_jax.tasks.rows import EncodedRows
from plm_jax.tasks.spans import (
  MISPLACED,
  NBEST,
  Span,
  SpanLoss,
  answer_tokens,
  best_spans,
  best_threshold,
  null_positions,
  span_logits,
)
from plm_jax.tasks.squad import SUFFIXES, is_chinese, read_squad, scores
from plm_jax.tasks.table_files import object_of
from plm_jax.tasks.task import Trained
from plm_jax.tasks.windows import best_window, windowed_rows

_WORD = re.compile(r"[\u3400-\u9fff]|\w+")
_SENTENCE = re.compile(r"[^.!?。！？]+[.!?。！？]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer(FileTask):
  """The answer to a question, a span of a context.

  stride: tokens between the starts of two windows. longest_answer: tokens; None is 30, or what 99%
  of the training answers need. misplaced: the largest share of answers that may not be at their
  offset; training leaves them out. null: whether some questions have no answer; read from the data.
  threshold: of the null score less the best span's, above which there is no answer; chosen on dev.
  metric: `cmrc` for Chinese texts, else `squad`; read from the data.
  """

  name: ClassVar[str] = "answer"
  files: ClassVar[tuple[str, ...]] = SUFFIXES
  longer: ClassVar[str] = "are read in windows that overlap"
  longest: ClassVar[int] = 384
  metrics: ClassVar[tuple[str, ...]] = ("f1", "em")
  baselines: ClassVar[dict[str, str]] = {
    "words": "sentence with most words of the question",
    "majority": "first sentence, or no answer if most have none",
  }

  stride: int = 128
  longest_answer: int | None = None
  misplaced: float = 0.05
  null: bool = False
  threshold: float = 0.0
  metric: Literal["squad", "cmrc"] = "squad"

  def __post_init__(self):
    super().__post_init__()
    for field in ("stride", "longest_answer"):
      if (value := getattr(self, field)) is not None and value < 1:
        raise UserError(f"task.{field} is {value}; it must be at least 1.")
    if not 0 <= self.misplaced <= 1:
      raise UserError(f"task.misplaced={self.misplaced} was given; it is a share, from 0 to 1.")

  @property
  def question(self) -> str:
    return f"where is the answer{', if there is one' if self.null else ''}?"

  # --- reading

  def read_noted(self, path: str) -> tuple[list[Example], list[str]]:
    items = self.read_file(path, labelled=True)
    answers = [answer for item in items for answer in item.target]
    wrong = sum(answer.start < 0 for answer in answers)
    name, none = Path(path).name, sum(not item.target for item in items)
    if wrong > self.misplaced * len(answers):
      raise UserError(
        f"{wrong:,} of the {len(answers):,} answers of {name} are not at their offset "
        f"(answer_start), more than task.misplaced={self.misplaced:g}; correct the offsets: they "
        "count characters from 0."
      )
    notes = [f"{name}: {len(items):,} questions, {none:,} without an answer"]
    if wrong:
      notes.append(
        f"{name}: {wrong:,} of {len(answers):,} answers are not at their offset; they are not "
        "trained on"
      )
    return items, notes

  def read_file(self, path: str | Path, labelled: bool) -> list[Example]:
    return read_squad(path, labelled)

  @property
  def line(self) -> str:
    return "a question and a text with a tab between them"

  def parse(self, line: str, name: str) -> Example:
    """A question and a context with a tab between them; or an object of JSON with both."""
    texts: Any = line.split("\t", 1)
    if (row := object_of(line)) is not None:
      texts = [row.get("question"), row.get("context")]
    if len(texts) != 2 or not all(isinstance(t, str) and t.strip() for t in texts):
      raise UserError(
        f"{name} has no question and context: separate them by a tab, or give JSON with "
        '"question" and "context".'
      )
    return Example(tuple(texts), None, name, name)

  def fitted(self, items: list[Example]) -> Self:
    chinese = is_chinese([item.texts[1] for item in items[:1000]])
    null = any(not item.target for item in items)
    if all(not item.target for item in items):
      raise UserError(f"no question of {self.source!r} has an answer; nothing can be learnt.")
    return dataclasses.replace(self, null=null, metric="cmrc" if chinese else "squad")

  def read(self, context) -> tuple[Self, Splits]:
    task, splits = super().read(context)
    spans = splits.train.targets["span"]
    sizes = (spans[:, 1] - spans[:, 0])[spans[:, 0] >= 0]
    longest = self.longest_answer or max(30, int(np.percentile(sizes, 99))) if len(sizes) else 30
    return dataclasses.replace(task, longest_answer=longest), splits

  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    unique = list(dict.fromkeys(text for item in items for text in item.texts))
    ids, offsets = (dict(zip(unique, x)) for x in tokenizer.encode_offsets(unique))
    pieces, places = ([tuple(x[text] for text in item.texts) for item in items]
                      for x in (ids, offsets))  # fmt: skip
    targets: dict[str, Any] = {}
    if all(item.target is not None for item in items):
      spans = [answer_tokens(item.target, offset[1]) for item, offset in zip(items, places)]
      targets["span"] = np.array(spans, np.int32).reshape(-1, 2)
    return Examples(items, pieces, targets, places)

  # --- training

  def objective(self) -> SpanLoss:
    return SpanLoss()

  def rows(self, examples: Examples, config: Model, tokenizer: Tokenizer) -> EncodedRows:
    rows, windows = self._rows(examples, config, tokenizer)
    null = null_positions(rows, config)
    values = {"start": null.copy(), "end": null.copy()}
    values["span_weight"] = np.ones(len(rows), np.float32)
    if "span" not in examples.targets:
      return rows
    context = (rows.text == 1).argmax(axis=1)
    for row, window in enumerate(w for group in windows for w in group):
      first, end = examples.targets["span"][window.example].tolist()
      if first == MISPLACED:
        values["span_weight"][row] = 0
      elif window.start <= first and end <= window.end and first >= 0:
        values["start"][row] = context[row] + first - window.start
        values["end"][row] = context[row] + end - 1 - window.start
    return dataclasses.replace(rows, values=rows.values | values)

  def _rows(self, examples: Examples, config: Model, tokenizer: Tokenizer):
    return windowed_rows(examples.ids, config, tokenizer, self.length, self.stride)

  def tune(self, trained: Trained, dev: Examples) -> Self:
    """With the threshold that has the best F1 on the dev split."""
    if not self.null:
      return self
    predictions = dataclasses.replace(self, threshold=float("inf")).predict(trained, dev)
    gains, above = [], []
    for item, prediction in zip(dev.items, predictions, strict=True):
      with_answer = scores(self.metric, prediction["answer"], item.target)["f1"]
      gains.append(with_answer - (not item.target))
      above.append(prediction["null_above"])
    return dataclasses.replace(self, threshold=best_threshold(np.array(above), np.array(gains)))

  # --- predicting

  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """{"answer", "start", "end" (characters of the context), "score", "nbest"}. If questions may
    have no answer: "null_above", by how much the null score is above the best span's; without an
    answer, "answer" is "" and the characters are None."""
    rows, windows = self._rows(examples, trained.config, trained.tokenizer)
    starts_NT, ends_NT = outputs(trained, rows, span_logits)
    context, null = (rows.text == 1).argmax(axis=1), null_positions(rows, trained.config)
    every = np.arange(len(rows))
    null_N = starts_NT[every, null] + ends_NT[every, null]
    predictions, row, longest = [], 0, self.longest_answer or 30
    for item, offsets, group in zip(examples.items, examples.offsets, windows, strict=True):
      spans, best = [], best_window(group, len(offsets[1]))
      for number, window in enumerate(group):
        first, size = context[row + number], window.end - window.start
        inside = slice(first, first + size)
        start_S = np.where(best[window.start : window.end] == number,
                           starts_NT[row + number, inside], -np.inf)  # fmt: skip
        spans += best_spans(
          start_S, ends_NT[row + number, inside], offsets[1][window.start : window.end], longest
        )
      rows_here = slice(row, row + len(group))
      predictions.append(self._prediction(item.texts[1], spans, float(null_N[rows_here].min())))
      row += len(group)
    return predictions

  def _prediction(self, text: str, spans: list[Span], null: float) -> Prediction:
    best = {}  # of every text
    for span in sorted(spans, key=lambda span: -span.score):
      best.setdefault(text[span.start : span.end].strip(), span)
    best.pop("", None)
    kept = list(best.items())[:NBEST]
    exponents = np.array([span.score for _, span in kept] + ([null] if self.null else []) or [0.0])
    p = np.exp(exponents - exponents.max())
    p = p / p.sum()
    nbest = [
      {"text": answer, "start": span.start, "end": span.end, "score": round(float(x), 6)}
      for (answer, span), x in zip(kept, p)
    ]
    above = null - kept[0][1].score if kept else float("inf")
    if not kept or (self.null and round(above, 6) > self.threshold):  # as `tune` saw it
      made = {"answer": "", "start": None, "end": None, "score": round(float(p[-1]), 6)}
    else:
      made = {"answer": nbest[0]["text"], **{n: nbest[0][n] for n in ("start", "end", "score")}}
    if self.null:
      made["null_above"] = round(above, 6) if kept else 1e9
    return made | {"nbest": nbest}

  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    """Also those of questions with and without an answer, if there are both."""
    each = [scores(self.metric, p["answer"], item.target)
            for item, p in zip(examples.items, predictions, strict=True)]  # fmt: skip
    known = np.array([bool(item.target) for item in examples.items])
    made = {}
    for suffix, chosen in (("", known | True), ("_answer", known), ("_none", ~known)):
      if not suffix or (known.any() and not known.all()):
        for name in self.metrics:
          made[name + suffix] = float(np.mean([x[name] for x, c in zip(each, chosen) if c]))
    return made

  def report(self, examples: Examples, predictions: list[Prediction]) -> str:
    none = sum(not p["answer"] for p in predictions)
    line = f"{len(predictions):,} questions, {none:,} predicted to have no answer"
    if self.null:
      line += f" (null score above the best span's by more than {self.threshold:.3f})"
    kept = ((n, v) for n, v in self.score(examples, predictions).items() if n not in self.metrics)
    return "\n".join([line, *(f"{name:10} {value:.3f}" for name, value in kept)])

  def mistake(self, example: Example, prediction: Prediction) -> float:
    right = scores(self.metric, prediction["answer"], example.target)["f1"]
    return (1 - right) * prediction["score"]

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    none = np.mean([not item.target for item in splits.train.items]) > 0.5
    made = []
    for item in splits.test.items:
      question, context = item.texts
      sentences = [s.strip() for s in _SENTENCE.findall(context)] or [context]
      chosen = "" if none else sentences[0]
      if name == "words":
        asked = set(_WORD.findall(question.lower()))
        shared = [len(asked & set(_WORD.findall(s.lower()))) for s in sentences]
        chosen = sentences[int(np.argmax(shared))]
      made.append({"answer": chosen})
    return made
