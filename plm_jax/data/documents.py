"""The documents of a corpus."""

import hashlib
from typing import NamedTuple


class Document(NamedTuple):
  """Sentences that belong together, in order."""

  name: str
  sentences: tuple[str, ...]
  label: str = ""  # the origin of the text, for tasks that predict it


def share_of(document: Document, purpose: bytes) -> float:
  """A hash in [0, 1) of the document's text."""
  text = "\n".join(document.sentences).encode()
  return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=purpose).digest()) / 2**64
