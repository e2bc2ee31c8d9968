"""How the C library hands out memory to XLA on a CPU."""

from __future__ import annotations

import ctypes

_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1  # malloc.h of glibc


def keep_freed_memory() -> None:
  """Tells glibc to keep what is freed instead of returning it to the kernel (mallopt(3)).

  XLA allocates the scratch memory of a step anew every time; by default it is mapped and zeroed
  page by page in every step, 11% of a small BERT's step (docs/speed.md). Call it before the first
  thread is started. Does nothing where the C library is not glibc.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
    if mallopt:
      mallopt(option, value)
