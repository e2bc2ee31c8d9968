"""Hashes of the files of prepared text: of all bytes where that is quick, else of random blocks.

A file of up to `WHOLE` bytes is hashed whole at every start. Of a larger one every start reads its
first and last block and `SAMPLE` others, so damage to many places is noticed at once, and a single
flipped bit only by chance.
"""

import hashlib
import os
import random
from pathlib import Path
from typing import Any

from plm_jax.errors import UserError
from plm_jax.files import open_file

BLOCK = 4 << 20
WHOLE = 1 << 28
SAMPLE = 32


def digests(path: Path) -> dict[str, Any]:
  """The size and the sha256 of a file, and hashes of the blocks of a large one."""
  whole, blocks = hashlib.sha256(), []
  with open_file(path) as file:
    size = os.fstat(file.fileno()).st_size
    while block := file.read(BLOCK):
      whole.update(block)
      if size > WHOLE:
        blocks.append(_short(block))
  return {"bytes": size, "sha256": whole.hexdigest(), **({"blocks": blocks} if blocks else {})}


def damage(path: Path, record: Any, after: int = 0) -> str | None:
  """The damage of a file as a phrase, by its record of `digests`; None if nothing is seen. after:
  bytes of the file that follow those of the record."""
  try:
    with open_file(path) as file:
      size = record["bytes"]
      if os.fstat(file.fileno()).st_size != size + after:
        return f"{path.name} has another size"
      if "blocks" not in record:
        whole = hashlib.sha256()
        for start in range(0, size, BLOCK):
          whole.update(file.read(min(BLOCK, size - start)))
        return None if whole.hexdigest() == record["sha256"] else f"{path.name} has other bytes"
      count = len(record["blocks"])
      chosen = {0, count - 1, *random.SystemRandom().sample(range(count), min(SAMPLE, count))}
      for number in sorted(chosen):
        file.seek(number * BLOCK)
        if _short(file.read(min(BLOCK, size - number * BLOCK))) != record["blocks"][number]:
          return f"{path.name} has other bytes"
  except FileNotFoundError:
    return f"{path.name} is missing"
  except (UserError, OSError, TypeError, KeyError, IndexError):
    return f"{path.name} cannot be read"
  return None


def _short(block: bytes) -> str:
  return hashlib.blake2b(block, digest_size=8).hexdigest()
