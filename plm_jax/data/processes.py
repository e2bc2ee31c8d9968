"""Worker processes for host work: child processes with pipes.

`fork` is not safe with jax's threads, and `spawn` would run the user's main module again, whose
import of jax takes seconds. A worker imports only the module of its function. It ends with its
parent, however that ends, because its stdin then closes.
"""

import os
import subprocess
import sys
from pathlib import Path


def cores() -> int:
  """The number of processor cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(module: str, function: str, **environment: str) -> subprocess.Popen:
  """A process that calls `module.function()`, with pipes for its stdin and stdout (bytes)."""
  root = str(Path(__file__).parents[2])
  code = (
    # Ctrl-C reaches the whole process group; only the parent handles it.
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    f"sys.path.insert(0, {root!r}); from {module} import {function} as work; work()"
  )
  return subprocess.Popen(
    [sys.executable, "-c", code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env=os.environ | environment,
  )
