"""The task `choose`: multiple choice.

Sources: google-research/bert and Devlin et al. 2019, section 4.4 (SWAG: a row for each choice,
"[CLS] prompt [SEP] choice [SEP]", one score each, and a softmax over the choices); Radford et al.
2018, section 3.3 (decoders).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.models.model import Model
from plm_jax.objectives.baselines import Baseline, majority
from plm_jax.objectives.objective import Terms, cross_entropy
from plm_jax.tasks.choices import examples_in, layout_of
from plm_jax.tasks.classification import class_logits
from plm_jax.tasks.examples import SPLITS, Example, Examples, Prediction, Splits, encoded
from plm_jax.tasks.file_task import FileTask, fitting_length
from plm_jax.tasks.metrics import expected_calibration_error
from plm_jax.tasks.predicting import outputs
from plm_jax.tasks.rows import EncodedRows, framed_rows
from plm_jax.tasks.table_files import no_column, object_of, read_table, table_of
from plm_jax.tasks.task import Context, Trained
from plm_jax.tasks.task_objective import TaskObjective
from plm_jax.tasks.text_metrics import words_of

_NO_CHOICE = -1e9  # the score of a row that only fills up a group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(TaskObjective):
  """Mean of `-log softmax(scores of the choices)[right one]` over examples.

  together: the rows of an example, consecutive in a batch; `is_choice` is 0 at those that only fill
  up the group.
  """

  together: int
  name = "choice"
  heads = {"classes": 1}  # noqa: RUF012  read only

  def weights(self, batch) -> jax.Array:
    return self._groups(batch["row_weight"])[:, 0]

  def loss(self, model, hidden, batch, noise) -> Terms:
    scores_B = model.class_logits(hidden, batch, noise)[:, 0]
    logits_GK = self._groups(jnp.where(batch["is_choice"] > 0, scores_B, _NO_CHOICE))
    return cross_entropy(logits_GK, self._groups(batch["label"])[:, 0], self.weights(batch))

  def baseline(self, counts, batches, scores) -> Baseline:
    return majority(batches, "label")

  def _groups(self, values_B: jax.Array) -> jax.Array:
    return values_B.reshape(-1, self.together)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choose(FileTask):
  """A prompt and several choices; one is right.

  text, then, choices, label, id, document: the columns of the prompt, of a text between it and each
    choice, of a list of choices (or the first of numbered ones, such as ending0), of the right one,
    of the id and of the document; None finds them in the training file.
  first: the number of the first choice in the label's column, 0 or 1; None finds out.
  most: the most choices of an example; read from the data.
  """

  name: ClassVar[str] = "choose"
  metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
  one_answer: ClassVar[bool] = True
  baselines: ClassVar[dict[str, str]] = {
    "overlap": "choice with most words of the prompt",
    "majority": "most frequent place",
  }

  text: str | None = None
  then: str | None = None
  choices: str | None = None
  label: str | None = None
  id: str | None = None
  document: str | None = None
  first: int | None = None
  most: int = 0

  def __post_init__(self):
    super().__post_init__()
    if self.first not in (None, 0, 1):
      raise UserError(f"task.first is {self.first}; the first choice has the number 0 or 1.")

  @property
  def question(self) -> str:
    return f"which of {self.most} choices?"

  @property
  def together(self) -> int:
    return self.most

  # --- reading

  def read(self, context: Context) -> tuple[Self, Splits]:
    task, splits = super().read(context)
    length, said = fitting_length(self, _longest_rows(splits), context)
    notes = [note for note in splits.notes if not note.startswith("rows of ")]
    return dataclasses.replace(task, length=length), splits._replace(notes=(*notes, *said))

  def fitted(self, items: list[Example]) -> Self:
    return dataclasses.replace(self, most=max(len(item.texts) - 1 for item in items))

  def read_noted(self, path: str) -> tuple[list[Example], list[str]]:
    table = read_table(path)
    layout = layout_of(table, self)
    items, first = examples_in(table, layout, self.first, labelled=True)
    counted = (
      f"the first choice has the number {first}" if first is not None else "labels are texts"
    )
    return items, [f"{layout.note}; {counted} (--set=task.text=... changes it)"]

  def read_file(self, path: str | Path, labelled: bool) -> list[Example]:
    table = read_table(path)
    return examples_in(table, layout_of(table, self), self.first, labelled)[0]

  def with_columns(self) -> Self:
    table = read_table(self.source)
    for field in ("label", "id", "document"):
      if (column := getattr(self, field)) and column not in table.names:
        raise no_column(table, column, field)
    layout = layout_of(table, self)
    _, first = examples_in(table, layout, self.first, labelled=True)
    return dataclasses.replace(
      self, text=layout.prompt, then=layout.middle, choices=layout.choices[0],
      label=self.label or layout.label, id=self.id or layout.name,
      document=self.document or layout.document, first=first,
    )  # fmt: skip

  def has_targets(self, path: Path) -> bool:
    table = read_table(path)
    return self.label in table.names and any(table.values(self.label))

  @property
  def line(self) -> str:
    return "a prompt and its choices with tabs between them"

  def parse(self, line: str, name: str) -> Example:
    """An object of JSON, or the prompt and its choices with tabs between them."""
    if (row := object_of(line)) is not None:
      table = table_of(row, name)
      items, _ = examples_in(table, layout_of(table, self), self.first, labelled=False)
      return items[0]._replace(name=name)
    texts = tuple(text.strip() for text in line.split("\t"))
    if len(texts) < 3 or not all(texts):
      raise UserError(
        f"{name} has {len(texts)} texts: give a prompt and two choices at least, with a tab "
        "between them, or an object of JSON."
      )
    return Example(texts, None, name, name)

  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    for item in items:
      if self.most and len(item.texts) - 1 > self.most:
        raise UserError(
          f"{item.name} has {len(item.texts) - 1} choices, and training had at most {self.most}."
        )
    targets: dict[str, Any] = {}
    if all(item.target is not None for item in items):
      targets["label"] = np.array([item.target for item in items], np.int32)
    return Examples(items, encoded(items, tokenizer), targets)

  # --- training

  def objective(self) -> Choice:
    return Choice(together=self.most)

  def rows(self, examples: Examples, config: Model, tokenizer: Tokenizer) -> EncodedRows:
    """`most` rows for each example; those after its last choice repeat it and have no score."""
    pairs, is_choice = [], []
    for prompt, *choices in examples.ids:
      for place in range(self.most):
        pairs.append((prompt, choices[min(place, len(choices) - 1)]))
        is_choice.append(place < len(choices))
    rows = framed_rows(pairs, config, tokenizer, self.length)
    labels = {name: np.repeat(array, self.most) for name, array in examples.targets.items()}
    values = rows.values | labels | {"is_choice": np.array(is_choice, np.float32)}
    example = np.repeat(np.arange(len(examples), dtype=np.int32), self.most)
    return dataclasses.replace(rows, values=values, example=example, together=self.most)

  # --- predicting

  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """{"choice", "answer", "score", "scores"}: the number of the best choice from 0, its text, its
    probability, and that of each."""
    rows = self.rows(examples, trained.config, trained.tokenizer)
    scores_N = outputs(trained, rows, class_logits)[:, 0].astype(np.float64)
    scores_N = np.where(rows.values["is_choice"] > 0, scores_N, _NO_CHOICE)
    logits_GK = scores_N.reshape(-1, self.most)
    p_GK = np.exp(logits_GK - logits_GK.max(axis=1, keepdims=True))
    p_GK /= p_GK.sum(axis=1, keepdims=True)
    predictions = []
    for item, p_K in zip(examples.items, p_GK, strict=True):
      best = int(p_K.argmax())
      scores = [round(float(p), 6) for p in p_K[: len(item.texts) - 1]]
      prediction = {"choice": best, "answer": item.texts[1 + best]}
      predictions.append(prediction | {"score": scores[best], "scores": scores})
    return predictions

  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    """Also the calibration error of predictions with a score."""
    right = np.array([p["choice"] == i.target for p, i in zip(predictions, examples.items)])
    scores = {"accuracy": float(right.mean())}
    if all("score" in prediction for prediction in predictions):
      confidence = np.array([prediction["score"] for prediction in predictions])
      scores["ece"] = expected_calibration_error(right, confidence)
    return scores

  def mistake(self, example: Example, prediction: Prediction) -> float:
    return 0.0 if prediction["choice"] == example.target else prediction["score"]

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    if name == "overlap":
      return [{"choice": _most_words_in_common(item)} for item in splits.test.items]
    ((place, _),) = Counter(item.target for item in splits.train.items).most_common(1)
    return [{"choice": min(place, len(item.texts) - 2)} for item in splits.test.items]


def _most_words_in_common(item: Example) -> int:
  """The choice with the largest share of words that the prompt has, too; the first of equals."""
  prompt = set(words_of(item.texts[0]))
  words = [set(words_of(choice)) for choice in item.texts[1:]]
  return int(np.argmax([len(w & prompt) / max(len(w), 1) for w in words]))


def _longest_rows(splits: Splits) -> Splits:
  """Examples of the prompt and its longest choice."""

  def longest(examples: Examples) -> Examples:
    ids = [(prompt, max(choices, key=len)) for prompt, *choices in examples.ids]
    return Examples(examples.items, ids)

  return splits._replace(**{name: longest(getattr(splits, name)) for name in SPLITS})
