"""Compares the outputs of a published directory here with those of transformers.

  python -m plm_jax.check DIR

Random tokens, in rows without padding and with padding on the right, on the left and on both sides.
The exit code is 1 where an output differs by more than the tolerance.
"""

from __future__ import annotations

from absl import flags

from plm_jax import cli
from plm_jax.export.check import TOLERANCE, compare

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_float("tolerance", TOLERANCE, "The largest difference that is allowed.")


def main(directory: str) -> int:
  compared = compare(directory)
  print(f"{'output':28}{'rows':18}{'largest difference':>20}{'top-1 agreement':>18}")
  for line in compared:
    agreement = "" if line.agreement is None else f"{line.agreement:.1%}"
    print(f"{line.output:28}{line.rows:18}{line.difference:>20.1e}{agreement:>18}")
  worst, tolerance = max(line.difference for line in compared), FLAGS.tolerance
  verdict = "agrees" if worst <= tolerance else "DIFFERS"
  print(f"{directory} {verdict}: {worst:.1e} at most, where {tolerance:.0e} is allowed")
  return int(worst > tolerance)


if __name__ == "__main__":
  cli.run(main, words=("DIR",))
