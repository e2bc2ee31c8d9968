"""Progress bars: live in a terminal, a line every few seconds in a log file."""

import sys
from typing import Any

LOG_INTERVAL = 5.0  # seconds between two lines of a log; a terminal is redrawn ten times a second


def progress_bar(total: int | None, description: str, **settings: Any):
  """A `tqdm` bar on stderr; `settings` are tqdm's own and win over what is set here.

  Where stderr is no terminal a line that is drawn over would be a line more: there the bar writes
  at most one every `LOG_INTERVAL` seconds, each ended by a newline, and the last when it closes.
  """
  from tqdm import tqdm

  if sys.stderr.isatty():
    live: dict[str, Any] = {"file": sys.stderr, "dynamic_ncols": True}
    return tqdm(total=total, desc=description, **live | settings)
  logged: dict[str, Any] = {
    "file": _Lines(sys.stderr),
    "mininterval": LOG_INTERVAL,
    "maxinterval": LOG_INTERVAL,
  }
  # A line per update of the bar must not depend on how large the updates are: miniters=0 looks at
  # the clock each time.
  return tqdm(total=total, desc=description, **{**logged, "miniters": 0, "ncols": 100, **settings})


class _Lines:
  """A text stream in which every drawing of a bar is a line of its own."""

  def __init__(self, stream):
    self._stream = stream

  def write(self, text: str) -> None:
    text = text.strip("\r\n").rstrip()
    if text:
      self._stream.write(text + "\n")

  def flush(self) -> None:
    self._stream.flush()
