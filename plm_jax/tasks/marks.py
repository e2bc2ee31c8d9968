"""Combining marks (Unicode's category M), which are parts of words: Hindi's vowel signs, accents of
decomposed letters. `re` counts them as no letters."""

import functools
import re
import unicodedata


@functools.cache
def marks() -> str:
  """All of them, for a class of a regular expression."""
  places = (*range(0x300, 0x1E950), *range(0xE0100, 0xE01F0))
  return re.escape("".join(c for c in map(chr, places) if unicodedata.category(c)[0] == "M"))
