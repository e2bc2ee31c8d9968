"""Whether a text can be split by document into one part to train on and one to evaluate on."""

import numpy as np

from plm_jax.data.corpora import Source
from plm_jax.data.documents import share_of
from plm_jax.errors import UserError


def check_split(source: Source, name: str, held_out: float) -> None:
  """Raises at once, not after minutes, if a split would be empty."""
  sides, least, documents = set(), 1.0, 0
  for document in source.documents():
    share = share_of(document, b"split")
    sides.add(share < held_out)
    least, documents = min(least, share), documents + 1
    if len(sides) == 2:
      return
  raise _one_sided(name, held_out, documents, least)


def _one_sided(name: str, held_out: float, documents: int, least: float) -> UserError:
  size = f"The text {name!r} has {documents} document{'s' * (documents != 1)}"
  if documents < 2:
    return UserError(
      f"{size} of a few sentences, and at least two are needed, one of them to evaluate on: "
      "separate documents by a blank line, or give more text."
    )
  if least >= held_out:
    enough = np.ceil(least * 1000 + 1) / 1000
    hint = f", or set data.held_out to at least {enough:g}" if enough <= 0.5 else ""
    return UserError(
      f"{size} and held_out={held_out} keeps none for evaluation: give more text{hint}."
    )
  return UserError(f"{size} and held_out={held_out} leaves none to train on: lower data.held_out.")
