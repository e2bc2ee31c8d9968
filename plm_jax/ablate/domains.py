"""The held-out losses of several texts before, during and after each run of a sweep."""

import statistics
from collections import defaultdict
from pathlib import Path

from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.page import Grid, Heading, PageBlock, Text
from plm_jax.ablate.plan import workdir_of
from plm_jax.ablate.report_numbers import number
from plm_jax.train.workdir import read_records


def blocks(measured: Measured, to: Path) -> list[PageBlock]:
  """A table with a row for each evaluation of an arm, of the mean over its seeds."""
  del to
  values: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
  for run in measured.records:
    for record in read_records(workdir_of(measured.out, run) / "metrics.jsonl"):
      for name, value in record.items():
        text, _, metric = name.partition("/")
        if record.get("split") == "valid" and metric.endswith("/loss"):
          values[run.arm, record["step"]][text].append(value)
  texts = list(dict.fromkeys(text for losses in values.values() for text in losses))
  order = [arm.name for arm in measured.arms]
  rows = [
    [arm, f"{step:,}", *(number(statistics.fmean(losses[text])) for text in texts)]
    for (arm, step), losses in sorted(values.items(), key=lambda x: (order.index(x[0][0]), x[0][1]))
  ]
  if not rows:
    return []
  return [
    Heading("Before, during and after"),
    Text("Held-out losses of each text in nats per token, mean of the seeds. Step 0 is before."),
    Grid(("arm", "step", *texts), rows, left=1),
  ]
