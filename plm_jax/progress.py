"""Progress bars: live in a terminal or a notebook, a line every few seconds in a log file."""

import functools
import sys
from typing import Any

from plm_jax.notebook import in_notebook

LOG_INTERVAL = 5.0  # seconds between two lines in a log file; a terminal is redrawn every 0.1 s


def progress_bar(total: int | None, description: str, **settings: Any):
  """A `tqdm` bar on stderr; `settings` of tqdm override those set here.

  In a log file, lines cannot be redrawn: the bar writes at most one line every `LOG_INTERVAL`
  seconds, each with a newline, and the last when it closes.
  """
  from tqdm import tqdm

  if sys.stderr.isatty():
    live: dict[str, Any] = {"file": sys.stderr, "dynamic_ncols": True}
    return tqdm(total=total, desc=description, **live | settings)
  if in_notebook():  # every drawing is a message to the browser
    live = {"file": sys.stderr, "ncols": 100, "mininterval": 1.0}
    return tqdm(total=total, desc=description, **live | settings)
  logged: dict[str, Any] = {
    "file": _Lines(sys.stderr),
    "mininterval": LOG_INTERVAL,
    "maxinterval": LOG_INTERVAL,
    "miniters": 0,  # checks the clock at every update, however large the updates are
    "ncols": 100,
  }
  return tqdm(total=total, desc=description, **logged | settings)


@functools.cache
def say_once(sentence: str) -> None:
  """Prints a sentence the first time that it is said in this process."""
  print(sentence, flush=True)


class _Lines:
  """A text stream that writes every drawing of a bar as a separate line."""

  def __init__(self, stream):
    self._stream = stream

  def write(self, text: str) -> None:
    text = text.strip("\r\n").rstrip()
    if text:
      self._stream.write(text + "\n")

  def flush(self) -> None:
    self._stream.flush()
