"""Selection of the best parameters of a training by their score, and early stopping.

    selection.jsonl   the score of every evaluation
    best/             a checkpoint of the best parameters so far, without the optimiser's state

A run that is killed continues from its last checkpoint: later scores are dropped with the steps,
and computed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from plm_jax.errors import UserError
from plm_jax.train.checkpoint import BEST, Checkpoints
from plm_jax.train.metrics import JsonLines, Records
from plm_jax.train.processes import is_first
from plm_jax.train.state import merge_frozen, trainable
from plm_jax.train.workdir import Workdir, read_records


class Selection(contextlib.AbstractContextManager):
  """score: of parameters, higher is better. every: steps between two evaluations. patience:
  evaluations without a better score after which training ends. omitted: path patterns of parameters
  that are not kept, since they do not change."""

  def __init__(
    self,
    workdir: Workdir,
    score: Callable[[Any], float],
    every: int,
    patience: int,
    omitted: tuple[str, ...] = (),
  ):
    self._workdir, self._score, self._omitted = workdir, score, omitted
    self._every, self._patience = every, patience
    self._best = Checkpoints(workdir / BEST, keep=1)
    self._lines: Records | None = None

  def begin(self, step: int, params: Any) -> bool:
    """Continues after `step`; whether training has ended."""
    path = self._workdir / "selection.jsonl"
    if is_first():
      self._lines = JsonLines(path, step)
    else:  # with the records that the first process writes
      self._lines = Records()
      self._lines.records += [record for record in read_records(path) if record["step"] <= step]
    return self.look(0, params) if step == 0 and not self._lines.records else self.ended

  def due(self, step: int, last: bool) -> bool:
    return last or step % self._every == 0

  def look(self, step: int, params: Any) -> bool:
    """Scores the parameters after a step, and keeps the best; whether training has ended."""
    score, before = self._score(params), self._records
    if not before or score > max(record["score"] for record in before):
      kept = {"params": trainable(params, self._omitted)}
      self._best.save(step, kept, {"step": step, "score": score})
      self._best.wait()  # before the step's own checkpoint, from which a run may continue
    self._lines.write({"step": step, "score": score})
    return self.ended

  @property
  def ended(self) -> bool:
    """Whether the last `patience` scores were no better than one before them."""
    scores = [record["score"] for record in self._records]
    return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= self._patience

  @property
  def best_step(self) -> int:
    return max(self._records, key=lambda record: record["score"])["step"]

  def best(self, abstract: Any, last: Any) -> Any:
    """The best parameters; those that are not kept are of `last`. Errors: `UserError` if their
    checkpoint was removed."""
    if self.best_step not in self._best.steps():
      raise UserError(
        f"{self._workdir / BEST} has no checkpoint of step {self.best_step}, the best one; move "
        f"{self._workdir.path} away and train again"
      )
    kept = {"params": trainable(abstract, self._omitted)}
    return merge_frozen(self._best.restore(kept, self.best_step)[0]["params"], last)

  @property
  def _records(self) -> list[dict[str, Any]]:
    assert self._lines is not None  # after `begin`
    return self._lines.records

  def __exit__(self, *_) -> None:
    self._best.close()
    if self._lines is not None:
      self._lines.close()
