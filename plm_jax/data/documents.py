"""What a corpus is made of."""

from typing import NamedTuple


class Document(NamedTuple):
  """Sentences that belong together, in order."""

  name: str
  sentences: tuple[str, ...]
  label: str = ""  # where the text comes from, for tasks that ask for it
