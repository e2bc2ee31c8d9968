"""The task `regress`: one text or two, and a number (ratings, similarity)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.models.model import Model
from plm_jax.objectives.baselines import Baseline
from plm_jax.objectives.objective import Terms
from plm_jax.tasks.bag_of_words import best_bag_of_words
from plm_jax.tasks.classification import class_logits
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits, encoded
from plm_jax.tasks.file_task import TableTask
from plm_jax.tasks.metrics import correlations
from plm_jax.tasks.predicting import outputs
from plm_jax.tasks.rows import EncodedRows, framed_rows
from plm_jax.tasks.table_files import number, pair_of, read_table
from plm_jax.tasks.task import Context, Trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression:
  """Mean over rows of `(score - (value - mean) / scale)^2`, the score being that of one class.

  mean, scale: of the training values, so that a new head starts near them whatever their unit is.
  """

  mean: float = 0.0
  scale: float = 1.0
  weight: float = 1.0
  name = "regress"

  @property
  def heads(self) -> dict[str, int]:
    return {"classes": 1}

  def corrupt(self, batch, draws, vocab) -> dict:
    """The batch unchanged: values are in the rows."""
    return batch

  def count(self, batch) -> jax.Array:
    return batch["row_weight"].sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    scores_B = model.class_logits(hidden, batch, noise)[:, 0]
    errors_B = jnp.square(scores_B - (batch["value"] - self.mean) / self.scale)
    return {"loss": ((errors_B * batch["row_weight"]).sum(), self.count(batch))}

  def baseline(self, counts, batches, scores) -> Baseline:
    values = np.concatenate([b["value"][b["row_weight"] > 0] for b in batches])
    return Baseline("mean", {"loss": float(np.var(values / self.scale))}, unit="")


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
    return Regression(mean=self.mean, scale=self.scale)

  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    targets: dict[str, Any] = {}
    if all(item.target is not None for item in items):
      targets["value"] = np.array([item.target for item in items], np.float32)
    return Examples(items, encoded(items, tokenizer), targets)

  def rows(self, examples: Examples, config: Model, tokenizer: Tokenizer) -> EncodedRows:
    rows = framed_rows(examples.ids, config, tokenizer, self.length)
    return dataclasses.replace(rows, values=rows.values | examples.targets)

  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """{"value"}: a number."""
    rows = self.rows(examples, trained.config, trained.tokenizer)
    scores_N = outputs(trained, rows, class_logits)[:, 0]
    return [{"value": round(float(x) * self.scale + self.mean, 6)} for x in scores_N]

  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    """Also the root of the mean squared error."""
    targets = np.array([item.target for item in examples.items])
    values = np.array([prediction["value"] for prediction in predictions])
    rmse = float(np.sqrt(np.mean((targets - values) ** 2)))
    return correlations(targets, values) | {"rmse": rmse}

  def mistake(self, example: Example, prediction: Prediction) -> float:
    return abs(prediction["value"] - example.target)

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    values = np.full(len(splits.test), splits.train.targets["value"].mean())
    if name == "words":
      values = best_bag_of_words(splits).predictions
    return [{"value": float(value)} for value in values]
