"""Golden curves: the first steps of tiny runs on the toy language, on one CPU device.

A refactor that changes a number on the way from text to updated parameters moves them. Compiled by
another release of XLA the same program rounds differently, so they are compared to 1e-5 relative
and not bit for bit. After a change that is meant to move them, write them anew and say so:

    python -m tests.golden.record
"""

import json
from dataclasses import replace
from pathlib import Path

FOLDER = Path(__file__).parent


def experiments():
  """Name -> experiment; dropout, accumulation, scan and both data layouts are on the way."""
  from plm_jax.data.segments import SegmentPair
  from plm_jax.experiment import Intervals
  from plm_jax.models.albert import Albert
  from plm_jax.objectives.clm import CLM
  from plm_jax.objectives.mlm import MLM
  from plm_jax.objectives.nsp import NSP
  from plm_jax.objectives.sop import SOP
  from plm_jax.optim.adamw import LAMB
  from tests.toy_run import ONE_STRETCH, TOY

  schedule = Intervals(log=1, evaluate=5, save=100, evaluation_rows=20)
  bert = replace(TOY, steps=10, schedule=schedule)
  two_layers = replace(bert.compute, layers="scan", micro_batches=2)
  return {
    "bert_mlm_nsp": bert,
    "bert_static_whole_word_faithful": replace(
      bert,
      objectives=(MLM(masking="static", copies=2, unit="whole_word"), NSP()),
      model=replace(bert.model, layers=2, activation="gelu_erf"),
      optim=bert.optim.paper_faithful(),
      compute=two_layers,
    ),
    "bert_causal": replace(
      bert,
      objectives=(CLM(),),
      model=replace(bert.model, attention="causal"),
      data=replace(bert.data, segments=ONE_STRETCH),
    ),
    "albert_sop_ngram_lamb": replace(
      bert,
      objectives=(MLM(unit="ngram"), SOP()),
      model=Albert(layers=2, width=16, heads=2, embedding=8, positions=32),
      data=replace(bert.data, segments=SegmentPair(next="swapped")),
      optim=LAMB(peak=1e-2, warmup=3).paper_faithful(),
      compute=two_layers,
    ),
  }


def curve(name: str, folder: Path) -> list[dict]:
  """The metrics of a golden run, a record per step and evaluation."""
  from tests.toy_run import run

  return run(folder, experiments()[name])[1]


def main() -> None:
  import tempfile

  for name in experiments():
    with tempfile.TemporaryDirectory() as folder:
      records = curve(name, Path(folder) / "run")
    lines = ",\n".join("  " + json.dumps(record) for record in records)
    (FOLDER / f"{name}.json").write_text(f"[\n{lines}\n]\n")
    print(f"{name}: {records[-1]}")


if __name__ == "__main__":
  import tests.conftest  # noqa: F401  the settings that the tests run with

  main()
