"""The texts of a corpus and the share of each: several sources in one `data.source`.

    data.source=old=tfds:installed_text,new=novels/     NAME=SOURCE, or SOURCE alone
    data.weights=0.2,0.8                                or data.alpha=0.3

With weights w_i, a text has the share w_i / sum_j w_j of the rows. Without them it has the share
n_i^alpha / sum_j n_j^alpha, n_i its training tokens: 1 is the natural share, 0 equal shares, 0.3
XLM-R's (Conneau et al. 2020, arXiv:1911.02116, section 3.1; 0.7: Devlin's multilingual BERT).
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plm_jax.errors import UserError

BLOCK = 1000  # rows with exact shares


def named_texts(source: str) -> dict[str, str]:
  """Name -> source. A single text has the name "". Errors: `UserError` for an empty source, a name
  that is none, and two texts with one name or from one source."""
  parts = [part.strip() for part in source.split(",")]
  if len(parts) == 1 or _exists(source):
    return {"": source if _exists(source) else _split(source)[1]}
  texts: dict[str, str] = {}
  for part in parts:
    name, place = (None, part) if _exists(part) else _split(part)
    name = name or _name_of(place)
    if not place:
      raise UserError(
        f"data.source={source} has an empty text; give one source between two commas."
      )
    if name in texts:
      raise UserError(
        f"data.source={source} has two texts with the name {name}; name them: "
        f"data.source=one={texts[name]},two={place}"
      )
    if place in texts.values():
      raise UserError(f"data.source={source} has the text {place} twice; give it once.")
    texts[name] = place
  return texts


def _exists(place: str) -> bool:
  return os.path.exists(os.path.expanduser(place))


def _split(part: str) -> tuple[str | None, str]:
  """The name and the source of NAME=SOURCE; no name for SOURCE alone."""
  name, equals, place = part.partition("=")
  if not equals or re.search(r"[/:]", name):
    return None, part
  if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
    raise UserError(
      f"data.source has {part}, which is no file, and {name!r} is no name: a name is a letter, "
      "then letters, digits or _."
    )
  return name, place


def _name_of(place: str) -> str:
  """`tfds:installed_text` -> installed_text, `novels/moby-dick.txt` -> moby_dick."""
  is_tfds = place.startswith("tfds:")
  stem = re.split(r"[/:]", place)[1] if is_tfds else Path(place).name.split(".")[0]
  return re.sub(r"\W", "_", stem) or "text"


def check_shares(texts: int, weights: Sequence[float], alpha: float, source: str) -> None:
  """A `UserError` for weights or an exponent that give no shares of so many texts."""
  shown = ",".join(f"{weight:g}" for weight in weights)
  if texts == 1 and (weights or alpha != 1):
    given = f"weights={shown}" if weights else f"alpha={alpha:g}"
    raise UserError(
      f"data.{given} was given, and data.source={source} is one text; give several with commas "
      "between them: data.source=A,B"
    )
  if weights and len(weights) != texts:
    raise UserError(
      f"data.weights={shown} has {len(weights)} weight{'s' * (len(weights) != 1)}, and data.source="
      f"{source} has {texts} texts; give one weight for each text"
    )
  if weights and alpha != 1:
    raise UserError(
      f"data.weights={shown} and data.alpha={alpha:g} were given; each determines the shares of "
      "the texts, so leave one out"
    )
  if any(not 0 <= weight < math.inf for weight in weights) or (weights and not sum(weights)):
    raise UserError(
      f"data.weights={shown}; weights must be at least 0 and finite, and one of them above 0"
    )
  if not 0 <= alpha < math.inf:
    raise UserError(f"data.alpha={alpha:g}; it must be at least 0 and finite, such as 0.3")


def rows_of_block(weights: Sequence[float], alpha: float, tokens: Sequence[int]) -> np.ndarray:
  """int [texts]: the rows of each text in every `BLOCK` rows; at least 1 for a weight above 0."""
  sizes = np.asarray(tokens, np.float64)
  wanted = np.asarray(weights or (sizes / sizes.max()) ** alpha, np.float64)
  wanted /= wanted.max()  # the sum of the largest numbers is infinite
  exact = BLOCK * wanted / wanted.sum()
  rows = np.where(exact > 0, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
  by_rest = np.argsort(rows - exact, kind="stable")  # the largest remainders first
  for i in range(BLOCK - int(rows.sum())):
    rows[by_rest[i]] += 1
  rows[np.argmax(rows)] -= rows.sum() - BLOCK  # the rows of texts below one in a thousand
  return rows
