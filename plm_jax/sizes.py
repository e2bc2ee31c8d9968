"""Bounds on the sizes of an experiment: a mistyped number is refused before memory is asked for."""

from typing import Any

import jax

from plm_jax.config_tree import places
from plm_jax.errors import UserError

SIZE = 1 << 24  # of a width, a vocabulary or a row; ten times the largest that was published
LAYERS = 10_000
WORKERS = 1024
STATE = 1 << 44  # bytes of parameters and optimiser; no machine or cluster here has 16 TiB
BATCH = 1 << 32  # tokens in a global batch
_PARTS = ("model.", "data.")


def check_sizes(experiment: Any) -> None:
  """A `UserError` for a whole number of the model or the data that is beyond any machine."""
  for path, value in places(experiment):
    if type(value) is not int or not path.startswith(_PARTS):
      continue
    name = path.rpartition(".")[2]
    most = WORKERS if name == "workers" else LAYERS if "layers" in name else SIZE
    if value > most:
      raise UserError(f"{path}={value:,} is beyond any machine; expected at most {most:,}")
  tokens = experiment.global_batch * experiment.data.length
  if tokens > BATCH:
    raise UserError(
      f"global_batch={experiment.global_batch:,} rows of data.length={experiment.data.length:,} "
      f"are {tokens:,} tokens in a batch; expected at most {BATCH:,}"
    )


def check_state(shapes: Any) -> None:
  """A `UserError` if arrays of these shapes (parameters and optimiser) have over `STATE` bytes."""
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
  if size > STATE:
    raise UserError(
      f"the parameters of this model and their optimiser take {size / 2**40:,.0f} TiB; expected at "
      f"most {STATE / 2**40:,.0f} TiB; lower model.width, model.layers or model.vocab_size"
    )
