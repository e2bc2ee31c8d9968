"""The first ten steps give the recorded numbers, so that refactors that change them are seen."""

import json

import pytest

from tests.golden.record import FOLDER, curve, experiments

FIRST = ("bert_mlm_nsp", "bert_causal")  # the others are for the gate


@pytest.mark.parametrize(
  "name",
  [pytest.param(name, marks=[] if name in FIRST else pytest.mark.slow) for name in experiments()],
)
def test_a_run_gives_the_recorded_numbers(name, tmp_path):
  golden = json.loads((FOLDER / f"{name}.json").read_text())
  records = curve(name, tmp_path / "run")
  for record, expected in zip(records, golden, strict=True):
    assert record.pop("split") == expected.pop("split")
    assert record == pytest.approx(expected, rel=1e-5), f"step {expected['step']}"


def test_every_curve_belongs_to_a_run():
  assert {path.stem for path in FOLDER.glob("*.json")} == set(experiments())
