"""The task `similar`: sentence vectors that can be compared (Sentence-BERT).

Reimers and Gurevych 2019, section 3: every text of an example is read alone, its states are pooled
into a vector, and a loss compares the vectors. The data decide which loss: `vector_losses.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.models.model import Model
from plm_jax.tasks import metrics
from plm_jax.tasks.bag_of_words import best_bag_of_words, tfidf_vectors
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits, encoded
from plm_jax.tasks.file_task import TableTask
from plm_jax.tasks.predicting import outputs
from plm_jax.tasks.rows import EncodedRows, framed_rows
from plm_jax.tasks.table_files import FIELDS, LABEL, Columns, Table, columns, no_column, number
from plm_jax.tasks.task import Context, Trained
from plm_jax.tasks.vector_losses import Cosine, PairClasses, Ranking, Triplet, VectorLoss
from plm_jax.tasks.vectors import POOLINGS, Pooled, PoolingMode

LOSSES = ("cosine", "softmax", "ranking", "triplet")
NEGATIVES = ("negative", "hard_negative", "neg", "text3")  # columns of a third text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Similar(TableTask):
  """Texts whose vectors are compared.

  loss: `cosine` of two texts and a number, `softmax` of two texts and a class, `ranking` of two
    texts that belong together and the other texts of a batch, `triplet` of a text, one that belongs
    to it and one that does not. None is decided by the columns.
  pooling: how the states of a text become its vector; None is as the checkpoint has it, else mean.
  negative: the column of a third text that does not belong to the first; of `ranking`, too.
  scale: of the cosines in `ranking`. margin: between the distances in `triplet`.
  low, high: of the training numbers, which are cosines of 0 and 1; read from the data.
  labels: of `softmax`; read from the data.
  """

  name: ClassVar[str] = "similar"
  probe: ClassVar[str] = "same vectors, not trained"
  row: ClassVar[str] = "texts"
  command: ClassVar[str] = "encode"

  loss: str | None = None
  pooling: PoolingMode | None = None
  negative: str | None = None
  scale: float = 20.0
  margin: float = 1.0
  low: float = 0.0
  high: float = 1.0
  labels: tuple[str, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    for field, known in (("loss", (None, *LOSSES)), ("pooling", (None, *POOLINGS))):
      if (value := getattr(self, field)) not in known:
        raise UserError(
          f"task.{field} is {value!r}; it is one of {', '.join(name for name in known if name)}."
        )
    if self.scale <= 0 or self.margin < 0:
      raise UserError(
        f"task.scale is {self.scale} and task.margin {self.margin}; the scale must be above 0 and "
        "the margin at least 0."
      )

  @property
  def metrics(self) -> tuple[str, ...]:  # pyrefly: ignore[bad-override]  the data decide
    if self.loss == "softmax":
      return ("accuracy",)
    return ("spearman", "pearson") if self.loss == "cosine" else ("mrr", "recall1", "recall10")

  @property
  def baselines(self) -> dict[str, str]:  # pyrefly: ignore[bad-override]
    if self.loss == "softmax":
      return {"words": "bag of words, linear", "majority": "majority class"}
    return {"words": "bag of words, cosine", "majority": "all equal"}

  @property
  def question(self) -> str:
    if self.loss == "softmax":
      return f"which of {len(self.labels)} classes do two texts have, by their vectors?"
    return (
      "how similar are two texts?" if self.loss == "cosine" else "which text belongs to a text?"
    )

  @property
  def is_independent(self) -> bool:
    return self.loss not in ("ranking", "triplet")  # the rank is among all examples

  @property
  def texts(self) -> int:
    return 2

  @property
  def together(self) -> int:
    return 2 if self.negative is None else 3

  # --- reading

  def read(self, context: Context) -> tuple[Self, Splits]:
    if self.pooling is not None:
      return super().read(context)
    modes = (context.source.pooling or {}).get("modes") or ["mean"]
    mode = modes[0] if len(modes) == 1 and modes[0] in POOLINGS else "mean"
    return dataclasses.replace(self, pooling=mode).read(context)

  def read_files(self) -> tuple[Self, dict[str, list[Example]], list[str]]:
    task, items, notes = super().read_files()
    for name, split in items.items():
      if task.loss in ("ranking", "triplet") and len({item.texts[1] for item in split}) < 2:
        raise UserError(
          f"the {name} split of {task.source!r} has one second text; there must be several to rank."
        )
    return task, items, notes

  def with_columns(self) -> Self:
    table = self.table(self.source)
    task = dataclasses.replace(self, negative=self.negative or self._third(table))
    task = super(Similar, task).with_columns()
    if task.negative and task.negative not in table.names:
      raise no_column(table, task.negative, "negative")
    if task.negative in (task.text, task.text2):
      raise UserError(f"task.negative={task.negative} is a column of another text of the example.")
    if task.loss is None:
      kind = "ranking"
      if task.label and not task.negative:
        is_number = all(number(value) is not None for value in table.values(task.label))
        kind = "cosine" if is_number else "softmax"
      task = dataclasses.replace(task, loss=kind)
    if task.negative and task.loss in ("cosine", "softmax"):
      raise UserError(
        f"task.negative={task.negative} was given, and task.loss={task.loss} reads two texts; "
        "leave one of them out."
      )
    if task.loss == "triplet" and not task.negative:
      raise UserError(
        f"task.loss=triplet needs a third text, and {task.source!r} has no column "
        f"{' or '.join(NEGATIVES)}; name it with --set=task.negative=COLUMN."
      )
    return dataclasses.replace(task, label=None) if task.loss in ("ranking", "triplet") else task

  def _third(self, table: Table) -> str | None:
    """The column of third texts, in a table without labels."""
    if self.loss in ("cosine", "softmax") or self.label:
      return None
    known = {name.lower(): name for name in table.names}
    third = next((known[name] for name in NEGATIVES if name in known), None)
    label = any(name in known for name in LABEL)
    return None if label or third in (self.text, self.text2) else third

  def _columns(self, table: Table) -> Columns:
    wanted = {field: getattr(self, field) for field in FIELDS}
    third = self.negative if self.negative in table.names else None
    return columns(table, self.texts, third, **wanted)

  def has_targets(self, path: Path) -> bool:
    return self.label is None or super().has_targets(path)

  def target(self, cell: str, where: str) -> Any:
    if self.loss != "cosine":
      return cell
    if (value := number(cell)) is None:
      raise UserError(f"{where} has the label {cell!r}; the loss `cosine` needs numbers.")
    return value

  def _items(self, table: Table, chosen: Columns, labelled: bool) -> list[Example]:
    items = super()._items(table, chosen, labelled and self.loss in ("cosine", "softmax"))
    if self.negative not in table.names:
      if labelled and self.negative:
        raise no_column(table, self.negative, "negative")
      return items
    thirds = [table.cell(line, row, self.negative) for line, row in table.rows]
    return [item._replace(texts=(*item.texts, third)) for item, third in zip(items, thirds)]

  def stratum(self, item: Example) -> Any:
    return item.target if self.loss == "softmax" else None

  def fitted(self, items: list[Example]) -> Self:
    if self.loss == "cosine":
      low, high = (choose(item.target for item in items) for choose in (min, max))
      if not math.isfinite(high - low):
        raise UserError(f"the numbers of {self.source!r} reach from {low} to {high}: too far.")
      if low == high:
        raise UserError(f"the numbers of {self.source!r} are all equal; nothing can be learnt.")
      return dataclasses.replace(self, low=low, high=high)
    if self.loss == "softmax":
      labels = tuple(sorted({item.target for item in items}))
      if len(labels) < 2:
        raise UserError(f"{self.source!r} has one class, {labels[0]!r}; there must be two.")
      return dataclasses.replace(self, labels=labels)
    return self

  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    targets: dict[str, Any] = {}
    if self.loss == "cosine" and all(item.target is not None for item in items):
      values = np.array([item.target for item in items])
      targets["similarity"] = ((values - self.low) / (self.high - self.low)).astype(np.float32)
    if self.loss == "softmax" and all(item.target is not None for item in items):
      unknown = next((i for i in items if i.target not in self.labels), None)
      if unknown is not None:
        raise UserError(
          f"{unknown.name} has the label {unknown.target!r}, which training never saw; it saw "
          f"{', '.join(self.labels)}."
        )
      places = [self.labels.index(item.target) for item in items]
      targets["label"] = np.array(places, np.int32)
    if self.loss in ("ranking", "triplet"):
      # A text that is equal to the own second text is no negative.
      numbers: dict[str, int] = {}
      texts = [[numbers.setdefault(text, len(numbers)) for text in i.texts] for i in items]
      targets["text"] = np.array(texts, np.int32)
    return Examples(items, encoded(items, tokenizer), targets)

  def in_rows(self, ids: Sequence[tuple[np.ndarray, ...]]) -> list[tuple[np.ndarray, ...]]:
    return [(text,) for texts in ids for text in texts]

  # --- training

  def objective(self) -> VectorLoss:
    shared: dict[str, Any] = {"together": self.together, "pooling": self.pooling or "mean"}
    if self.loss == "softmax":
      return PairClasses(labels=len(self.labels), **shared)
    if self.loss == "ranking":
      return Ranking(scale=self.scale, **shared)
    return Triplet(margin=self.margin, **shared) if self.loss == "triplet" else Cosine(**shared)

  def rows(self, examples: Examples, config: Model, tokenizer: Tokenizer) -> EncodedRows:
    """A row for each text of an example. New examples may lack the third text."""
    together = len(examples.ids[0]) if len(examples) else self.together
    rows = framed_rows(self.in_rows(examples.ids), config, tokenizer, self.length)
    targets = {
      name: array.reshape(-1) if array.ndim > 1 else np.repeat(array, together)
      for name, array in examples.targets.items()
    }
    example = np.repeat(np.arange(len(examples), dtype=np.int32), together)
    values = rows.values | targets
    return dataclasses.replace(rows, values=values, example=example, together=together)

  # --- predicting

  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """{"similarity"}: the cosine of two vectors; with `softmax` also {"label", "score"}; with
    `ranking` and `triplet` {"rank"}: the place of the second text among those of all examples."""
    rows = self.rows(examples, trained.config, trained.tokenizer)
    vectors_ND = outputs(trained, rows, Pooled(self.pooling or "mean", -1, trained.compute))
    vectors_NKD = vectors_ND.reshape(len(examples), rows.together, -1)
    predictions = self.from_vectors(examples, vectors_NKD)
    if self.loss != "softmax":
      return predictions
    classes: Any = self.objective()
    p_NC = outputs(trained, rows, classes.probabilities)
    for prediction, p_C in zip(predictions, p_NC[::2], strict=True):
      best = int(p_C.argmax())
      prediction |= {"label": self.labels[best], "score": round(float(p_C[best]), 6)}
    return predictions

  def from_targets(self, places: Iterable[Any]) -> list[Prediction]:
    """Of `softmax`: the predictions of the labels' places."""
    return [{"label": self.labels[int(place)]} for place in places]

  def from_vectors(self, examples: Examples, vectors_NKD: np.ndarray) -> list[Prediction]:
    """The predictions of vectors [examples, texts, D], without classes."""
    if not np.isfinite(vectors_NKD).all():
      raise UserError("the model's vectors are not finite numbers; its training diverged.")
    norms = np.maximum(np.linalg.norm(vectors_NKD, axis=-1, keepdims=True), 1e-12)
    unit_NKD = (vectors_NKD / norms).astype(np.float64)
    return self.from_unit_vectors(examples, unit_NKD[:, 0], unit_NKD[:, 1])

  def from_unit_vectors(self, examples: Examples, u_ND: Any, v_ND: Any) -> list[Prediction]:
    """u_ND, v_ND: arrays, dense or sparse, of the first and the second texts."""
    cosines = (u_ND * v_ND).sum(axis=1)
    predictions: list[Prediction] = [{"similarity": round(float(x), 6)} for x in cosines]
    if self.loss in ("ranking", "triplet"):
      for prediction, rank in zip(predictions, ranks(examples, u_ND, v_ND)):
        prediction["rank"] = rank
    return predictions

  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    if self.loss == "softmax":
      right = [p.get("label") == i.target for p, i in zip(predictions, examples.items)]
      return {"accuracy": float(np.mean(right))}
    if self.loss == "cosine":
      targets = np.array([item.target for item in examples.items])
      return metrics.correlations(targets, np.array([p["similarity"] for p in predictions]))
    return metrics.retrieval(np.array([prediction["rank"] for prediction in predictions]))

  def mistake(self, example: Example, prediction: Prediction) -> float:
    if self.loss == "softmax":
      return 0.0 if prediction["label"] == example.target else prediction["score"]
    if self.loss == "cosine":
      wanted = (example.target - self.low) / (self.high - self.low)
      return abs(prediction["similarity"] - wanted)
    return prediction["rank"] - 1.0

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    test = splits.test
    if self.loss == "softmax":
      labels = splits.train.targets["label"]
      majority = np.full(len(test), np.bincount(labels).argmax())
      return self.from_targets(
        best_bag_of_words(splits).predictions if name == "words" else majority
      )
    if name == "words":
      return self.from_unit_vectors(test, *tfidf_vectors(splits))
    middle = (len({item.texts[1] for item in test.items}) + 1) / 2
    return [{"similarity": 0.0, "rank": middle} for _ in test.items]


def ranks(examples: Examples, u_ND: Any, v_ND: Any) -> list[int]:
  """The place of each second text, from 1, among the different second texts by the cosine with the
  first; equal cosines come before it."""
  firsts: dict[str, int] = {}  # text -> the first example that has it
  for place, item in enumerate(examples.items):
    firsts.setdefault(item.texts[1], place)
  candidates_MD = v_ND[list(firsts.values())]
  columns = {text: column for column, text in enumerate(firsts)}
  own_N = np.array([columns[item.texts[1]] for item in examples.items])
  placed: list[int] = []
  for first in range(0, len(own_N), 1024):  # so that memory does not grow with the square
    cosine_BM = u_ND[first : first + 1024] @ candidates_MD.T
    cosine_BM = cosine_BM if isinstance(cosine_BM, np.ndarray) else cosine_BM.toarray()
    own_B1 = np.take_along_axis(cosine_BM, own_N[first : first + 1024, None], axis=1)
    placed += (cosine_BM >= own_B1).sum(axis=1).tolist()
  return placed
