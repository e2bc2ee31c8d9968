"""An experiment refuses combinations that could not mean what they say."""

from dataclasses import replace

import pytest

from plm_jax.data.segments import SegmentPair
from plm_jax.errors import UserError
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.nsp import NSP
from plm_jax.objectives.sop import SOP
from tests.toy_run import TOY


def with_pairs(next, *objectives):
  data = replace(TOY.data, segments=SegmentPair(next=next))
  return replace(TOY, data=data, objectives=(MLM(), *objectives))


@pytest.mark.parametrize(
  ("objective", "next"),
  [(NSP(), "none"), (NSP(), "swapped"), (SOP(), "none"), (SOP(), "random")],
)
def test_labels_that_mean_something_else_are_refused(objective, next):
  right = {"nsp": "random", "sop": "swapped"}[objective.name]
  with pytest.raises(UserError, match=f"next={next} .*set data.segments.next={right}"):
    with_pairs(next, objective)
  assert with_pairs(right, objective).heads == {"mlm": 0, objective.name: 0}


@pytest.mark.parametrize("next", ["none", "random", "swapped"])
def test_masked_language_modelling_reads_any_pairs(next):
  assert with_pairs(next)
