"""A run with more words in its vocabulary, whose rows are means of those of the old pieces."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np

from plm_jax.data.extension import extended
from plm_jax.errors import UserError
from plm_jax.export.to_run import tokenizer_config
from plm_jax.models.parameters import map_roles
from plm_jax.runs import Run, in_float32, refuse_counted


def extend(run: Run, words: list[str], path: Path) -> Run:
  """Writes the run with the words in its vocabulary to the new directory `path`. Errors:
  `UserError` if it has them all, or has no table of tokens; see also `extended`."""
  refuse_counted(run)
  run = in_float32(run)
  tokenizer, parts = extended(run.tokenizer, words)
  if not parts:
    raise UserError(f"the vocabulary has a token for each of the {len(words)} words already.")
  config: Any = run.experiment.model
  first, size = run.tokenizer.vocab.size, max(tokenizer.vocab.size, config.vocab_size)
  tables = 0

  def longer(path: str, role, x):
    nonlocal tables
    if "vocab" not in role.axes:
      return x
    tables += path.endswith("token/table")
    axis = role.axes.index("vocab")
    rows = np.moveaxis(np.asarray(x), axis, 0)
    larger = np.zeros((size, *rows.shape[1:]), rows.dtype)
    larger[: len(rows)] = rows
    for new, ids in enumerate(parts, first):
      larger[new] = rows[ids].mean(0)
    return np.moveaxis(larger, 0, axis)

  params = map_roles(longer, run.params)
  if not tables:
    raise UserError(f"the model {type(config).__name__} has no table of tokens to extend.")
  model = dataclasses.replace(config, vocab_size=size)
  chosen = tokenizer_config(tokenizer, path / "tokenizer")
  data: Any = dataclasses.replace(cast(Any, run.experiment.data), tokenizer=chosen)
  experiment = dataclasses.replace(run.experiment, model=model, data=data)
  document = {**run.document, "extended": {"from": str(run.path), "words": len(parts)}}
  document.pop("fertility", None)  # that of the old tokenizer, as `text`
  if "text" in document:
    document["text"] = {**document["text"], "tokenizer": {"fingerprint": tokenizer.fingerprint}}
  larger = Run(
    experiment=experiment, params=params, tokenizer=tokenizer, document=document, step=run.step
  )
  larger.save(path)
  return Run.load(path)
