"""Worker processes for host work: plain children that talk through their pipes.

`fork` is not safe beside jax's threads, and `spawn` would run the user's own main module again,
which imports jax for seconds. A worker imports the module it works in and nothing else. It ends
when its parent does, however that ends: then its stdin is at the end.
"""

import os
import subprocess
import sys
from pathlib import Path


def cores() -> int:
  """How many processor cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(module: str, function: str, **environment: str) -> subprocess.Popen:
  """A process that calls `module.function()`, with pipes for its stdin and stdout (bytes)."""
  root = str(Path(__file__).parents[2])
  code = (
    # Ctrl-C reaches the whole group; the parent decides, and a child has nothing to say.
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    f"sys.path.insert(0, {root!r}); from {module} import {function} as work; work()"
  )
  return subprocess.Popen(
    [sys.executable, "-c", code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env=os.environ | environment,
  )
