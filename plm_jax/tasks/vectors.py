"""Vectors of texts: the states of one layer, pooled over the tokens of each text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.decode.neighbours import with_word_vectors
from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.recording import all_states
from plm_jax.runs import Run, refuse_counted, row_limit
from plm_jax.tasks.predicting import outputs, trained
from plm_jax.tasks.rows import frame_of, framed_rows
from plm_jax.tasks.task import Trained

PoolingMode = Literal["mean", "cls", "max", "last"]
POOLINGS: tuple[str, ...] = get_args(PoolingMode)


class Pooled(NamedTuple):
  """Reads a vector from the states of a row; `predicting.outputs` takes it.

  pooling: the mean or the maximum over the tokens, special tokens included; the first token
  (`cls`); or the last. layer: 0 has the embeddings, l the states after layer l, and -1 those after
  the last layer and its norm. Of an encoder-decoder it reads the encoder.
  """

  pooling: str = "mean"
  layer: int = -1
  compute: Compute = Compute()

  def __call__(
    self, model, hidden: jax.Array, batch: dict, noise: Noise | None = None
  ) -> jax.Array:
    """float32 `[B, D]`. noise: for the dropout of an encoder-decoder's encoder."""
    states_BTD = self._states(model, hidden, batch, noise).astype(jnp.float32)
    length_B = jnp.maximum(batch["length"], 1)
    if self.pooling == "cls":
      return states_BTD[:, 0]
    if self.pooling == "last":
      return jnp.take_along_axis(states_BTD, length_B[:, None, None] - 1, axis=1)[:, 0]
    real_BT1 = (jnp.arange(states_BTD.shape[1]) < length_B[:, None])[..., None]
    if self.pooling == "max":
      return jnp.where(real_BT1, states_BTD, -jnp.inf).max(axis=1)
    return jnp.where(real_BT1, states_BTD, 0).sum(axis=1) / length_B[:, None]

  def _states(self, model, hidden: jax.Array, batch: dict, noise: Noise | None) -> jax.Array:
    if self.layer == -1:
      return model.encode(batch, self.compute, noise) if hasattr(model, "encode") else hidden
    states, _ = all_states(model, batch, self.compute)
    if not -len(states) <= self.layer < len(states):
      raise UserError(
        f"--layer={self.layer} was given; this model has the states {-len(states)} to "
        f"{len(states) - 1}, of which 0 is the embeddings and -1 the last."
      )
    return states[self.layer]


@dataclasses.dataclass(frozen=True)
class TextEncoder:
  """The vectors of texts, as a run was trained for them. longest: tokens of a row."""

  trained: Trained
  pooled: Pooled
  longest: int
  lowercase: bool
  normalized: bool

  @classmethod
  def of_run(
    cls,
    run: Run,
    pooling: str | None = None,
    layer: int = -1,
    loaded: Trained | None = None,
  ) -> TextEncoder:
    """pooling: None is that of the run's training, else mean. loaded: the model of the run; None
    makes it. Errors: `UserError` for a model without vectors of texts, or with a pooling that is
    not here."""
    if pooling not in (None, *POOLINGS):
      raise UserError(f"--pooling={pooling} was given; expected one of {', '.join(POOLINGS)}.")
    refuse_counted(run)
    own = run.pooling or {}
    modes = own.get("modes", ["mean"])
    if pooling is None and (len(modes) > 1 or modes[0] not in POOLINGS):
      raise UserError(
        f"{run.path} pools by {' and '.join(modes)}, which this command does not have; choose one "
        f"of {', '.join(POOLINGS)} with --pooling."
      )
    loaded = loaded or trained(run)
    return cls(
      loaded._replace(params=with_word_vectors(loaded.params, run.tokenizer)),
      Pooled(pooling or modes[0], layer, run.compute),
      own.get("length") or row_limit(run),
      bool(own.get("lowercase")),
      pooling is None and layer == -1 and own.get("normalize", False),
    )

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """float32 [texts, D], and how many of them are cut."""
    rows = [(text.lower() if self.lowercase else text,) for text in texts]
    array_ND, cut = vectors(self.trained, rows, self.pooled, self.longest)
    if self.normalized:
      array_ND /= np.maximum(np.linalg.norm(array_ND, axis=1, keepdims=True), 1e-12)
    return array_ND, cut


def vectors(
  trained: Trained, texts: Sequence[tuple[str, ...]], pooled: Pooled, longest: int
) -> tuple[np.ndarray, int]:
  """float32 [N, D], a vector for each row of one text or two, in order; and how many rows are cut.

  longest: tokens of a row.
  """
  tokenizer, config = trained.tokenizer, trained.config
  flat = iter(tokenizer.encode_batch([text for row in texts for text in row]))
  ids = [tuple(next(flat) for _ in row) for row in texts]
  start, between, end = map(len, frame_of(config, tokenizer))
  sizes = [start + sum(map(len, row)) + between * (len(row) - 1) + end for row in ids]
  length = 16
  while length < max(sizes):  # powers of 2, so that the calls have few shapes together
    length *= 2
  rows = framed_rows(ids, config, tokenizer, min(length, longest))
  array_ND = outputs(trained, rows, pooled).astype(np.float32)
  return array_ND, sum(size > longest for size in sizes)


def attentions(trained: Trained, text: str, longest: int) -> tuple[np.ndarray, np.ndarray]:
  """The ids of a text with special tokens, int32 [T], and its attention weights, float32 [layers,
  heads, T, T]; of an encoder-decoder the encoder's. Errors: `UserError` for a text of more than
  `longest` tokens, and for a model without attention."""
  tokenizer, config = trained.tokenizer, trained.config
  rows = framed_rows([(tokenizer.encode(text),)], config, tokenizer, longest + 1)
  size = int(rows.values["length"][0])
  if size > longest:
    raise UserError(f"the text has more than {longest} tokens; give a shorter sentence.")
  single = trained._replace(batch=1, compute=Compute(dtype="float32"))
  (weights,) = outputs(single, rows, attention_weights)
  return rows.tokens["input_ids"][0, :size], weights[:, :, :size, :size]


def attention_weights(model, hidden, batch) -> jax.Array:
  """float32 [B, layers, heads, T, T]."""
  seen = all_states(model, batch, Compute(dtype="float32"))[1]
  if not seen:
    raise UserError(f"a model of type {type(model).__name__} has no attention.")
  return jnp.stack(seen, axis=1)
