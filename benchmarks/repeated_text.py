"""A text of any size from a small real one: runs of its paragraphs as documents, with every tenth
word replaced by another of its words, so that no two documents are equal."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from plm_jax.errors import UserError


def paragraphs_of(place: Path, lines: bool) -> list[str]:
  """The paragraphs of a file or of the .txt files of a folder; `lines`: a sentence per line."""
  files = sorted(place.rglob("*.txt")) if place.is_dir() else [place]
  blocks = [b for file in files for b in re.split(r"\n\s*\n", file.read_text("utf-8"))]
  paragraphs = [" ".join(block.split()) for block in blocks]
  paragraphs = [p for p in paragraphs if len(p) > 60]
  if not paragraphs:
    raise UserError(f"--text={place} has no paragraphs; give a .txt file or a folder of them.")
  return [re.sub(r"(?<=[.!?]) ", "\n", p) if lines else p for p in paragraphs]


def documents(paragraphs: list[str]) -> Iterator[str]:
  """Endless documents of 1 to 40 paragraphs, 7 on average."""
  draw = random.Random(0)
  words = [word for paragraph in paragraphs for word in paragraph.split()]
  while True:
    first, count = draw.randrange(len(paragraphs)), min(40, 1 + int(draw.expovariate(1 / 6)))
    yield "\n".join(
      re.sub(r"\S+", lambda m: draw.choice(words) if draw.random() < 0.1 else m[0], paragraph)
      for paragraph in paragraphs[first : first + count]
    )


def write_text(source: Path, out: Path, megabytes: float, lines: bool = False) -> None:
  """Writes a text of that size to `out`."""
  size = 0
  with out.open("w", encoding="utf-8") as file:
    for document in documents(paragraphs_of(source, lines)):
      size += file.write(document + "\n\n")
      if size >= megabytes * 1e6:
        return
