"""The documents of a corpus."""

from typing import NamedTuple


class Document(NamedTuple):
  """Sentences that belong together, in order."""

  name: str
  sentences: tuple[str, ...]
  label: str = ""  # the origin of the text, for tasks that predict it
