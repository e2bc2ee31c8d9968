"""The task `regress`: one text or two, and a number (ratings, similarity)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.objectives.baselines import Baseline
from plm_jax.objectives.objective import Terms
from plm_jax.tasks.bag_of_words import best_bag_of_words
from plm_jax.tasks.classification import class_logits
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits, encoded
from plm_jax.tasks.file_task import TableTask
from plm_jax.tasks.metrics import correlations
from plm_jax.tasks.predicting import outputs
from plm_jax.tasks.table_files import number, pair_of, read_table
from plm_jax.tasks.task import Context, Trained
from plm_jax.tasks.task_objective import TaskObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(TaskObjective):
  """Mean over rows of `(score - value)^2`, the score being that of one class. Values are
  standardised, so that a new head starts near them whatever their unit is."""

  name = "regress"
  heads = {"classes": 1}  # noqa: RUF012  read only

  def loss(self, model, hidden, batch, noise) -> Terms:
    scores_B = model.class_logits(hidden, batch, noise)[:, 0]
    errors_B = jnp.square(scores_B - batch["value"])
    return {"loss": ((errors_B * batch["row_weight"]).sum(), self.count(batch))}

  def baseline(self, counts, batches, scores) -> Baseline:
    values = self.values(batches, "value")
    return Baseline("mean", {"loss": float(np.var(values))}, unit="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regress(TableTask):
  """One text or two, and a number.

  pair: whether there are two texts; None finds out.
  mean, scale: of the training values; read from the data.
  """

  name: ClassVar[str] = "regress"
  metrics: ClassVar[tuple[str, ...]] = ("spearman", "pearson")
  baselines: ClassVar[dict[str, str]] = {"words": "bag of words, ridge", "majority": "mean"}

  pair: bool | None = None
  mean: float = 0.0
  scale: float = 1.0

  @property
  def question(self) -> str:
    return f"which number {'do two texts' if self.pair else 'does a text'} have?"

  @property
  def texts(self) -> int:
    return 2 if self.pair else 1

  def read(self, context: Context) -> tuple[Self, Splits]:
    task, _ = self._in_folder()
    if self.pair is None:
      names = read_table(task.source, self.header).names
      pair = bool(self.text2 or (not self.text and pair_of(names)))
      return dataclasses.replace(self, pair=pair).read(context)
    return super().read(context)

  def target(self, cell: str, where: str) -> float:
    value = number(cell)
    if value is None:
      raise UserError(
        f"{where} has the label {cell!r}, which is no finite number; --task=classify predicts "
        "classes."
      )
    return value

  def stratum(self, item: Example) -> Any:
    return None

  def fitted(self, items: list[Example]) -> Self:
    values = np.array([item.target for item in items])
    if len(set(values)) < 2:
      raise UserError(f"the numbers of {self.source!r} are all equal; nothing can be learnt.")
    return dataclasses.replace(self, mean=float(values.mean()), scale=float(values.std()))

  def objective(self) -> Regression:
    return Regression()

  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    targets: dict[str, Any] = {}
    if all(item.target is not None for item in items):
      # Standardised in float64: float32 has one number for all times of a day.
      values = (np.array([item.target for item in items]) - self.mean) / self.scale
      targets["value"] = values.astype(np.float32)
    return Examples(items, encoded(items, tokenizer), targets)

  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """{"value"}: a number."""
    rows = self.rows(examples, trained.config, trained.tokenizer)
    return self.from_targets(outputs(trained, rows, class_logits)[:, 0])

  def from_targets(self, standardised: Iterable[float]) -> list[Prediction]:
    """In the unit of the data."""
    digits = max(6, 6 - math.floor(math.log10(self.scale)))
    return [{"value": round(float(x) * self.scale + self.mean, digits)} for x in standardised]

  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    """Also the root of the mean squared error."""
    targets = np.array([item.target for item in examples.items])
    values = np.array([prediction["value"] for prediction in predictions])
    rmse = float(np.sqrt(np.mean((targets - values) ** 2)))
    return correlations(targets, values) | {"rmse": rmse}

  def mistake(self, example: Example, prediction: Prediction) -> float:
    return abs(prediction["value"] - example.target)

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    mean = np.zeros(len(splits.test))
    return self.from_targets(best_bag_of_words(splits).predictions if name == "words" else mean)
