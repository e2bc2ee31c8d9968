"""Rows of an experiment file for its tests: their names, their changes and their parameters."""

import math

import jax

from plm_jax import cli, overrides


def rows_of(file: str) -> list[str]:
  """The names of the experiments of `experiments/{file}.py`, in their order."""
  references = (reference for reference, _ in cli.list_experiments("experiments"))
  parts = (reference.partition(":") for reference in references)
  return [name for path, _, name in parts if path == f"experiments/{file}.py"]


def changed(config, base) -> set[str]:
  """The paths of the fields in which an experiment differs from another."""
  return {path for path, _, _ in overrides.diff(config, base)}


def beyond(found: set[str], allowed: set[str]) -> set[str]:
  """What of the changed paths is at or below none of the allowed ones."""
  return {p for p in found if not any(p == a or p.startswith(a + ".") for a in allowed)}


def parameters(config, vocab_size: int) -> int:
  """How many parameters an experiment trains, encoder and heads."""
  config = config.resolve(vocab_size)
  shapes = jax.eval_shape(lambda: config.init_parameters(jax.random.key(0)))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
