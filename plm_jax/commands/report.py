"""The report of a sweep: published and measured numbers in one table, a verdict on each claim.

  python -m plm_jax.report sweeps/bert_table_6_small
  python -m plm_jax.report sweeps/bert_table_6_small --to=results/bert_table_6

Writes report.md, report.html (one file with everything in it), results.json, metrics.png and, where
a run reported more than twice, curves.png. The report of an unfinished
sweep has the runs that are measured.
"""

from absl import flags

from plm_jax import cli
from plm_jax.ablate.reporting import report

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("to", None, "Where the report is written (default: DIR/report).")


def main(directory: str) -> None:
  measured, files = report(directory, FLAGS.to)
  print(*files, sep="\n")
  if measured.done < (planned := len(measured.plan.runs())):
    print(f"{measured.done} of {planned} runs are measured; the command of the sweep goes on")
  for verdict in measured.verdicts:
    print(f"{verdict.outcome:14} {verdict.claim}")


if __name__ == "__main__":
  cli.run(main, words=("DIR",))
