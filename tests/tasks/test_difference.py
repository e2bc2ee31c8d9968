"""The tests of a difference give the p-values of their definitions."""

import math

import numpy as np
import pytest

from plm_jax.tasks.classify import Classify
from plm_jax.tasks.difference import MCNEMAR, bootstrap_p, difference, mcnemar
from plm_jax.tasks.examples import Example, Examples
from plm_jax.tasks.glue import GlueLabels
from plm_jax.tasks.glue_files import MISMATCHED, PARTS
from plm_jax.tasks.regress import Regress
from plm_jax.tasks.tag import Tag
from plm_jax.tasks.write import Write
from tests.tasks.conftest import examples_of


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 8), (5, 5), (0, 0), (0, 6)])
def test_mcnemar_is_a_sign_test_of_the_examples_that_one_has_right(only_a, only_b):
  count = only_a + only_b
  tail = sum(math.comb(count, k) for k in range(min(only_a, only_b) + 1)) / 2**count
  assert mcnemar(only_a, only_b) == pytest.approx(min(1.0, 2 * tail))


def test_the_bootstrap_counts_resamples_beyond_zero():
  assert bootstrap_p(np.arange(1, 1000)) == pytest.approx(2 / 1000)
  assert bootstrap_p(np.zeros(9)) == 1.0


def test_a_large_difference_is_sure_and_a_seed_repeats_it():
  examples = examples_of([[5]] * 40, [0, 1] * 20)
  task = Classify(labels=("0", "1"), length=8)
  good = [{"label": item.target, "score": 0.9} for item in examples.items]
  bad = [{"label": "0", "score": 0.9}] * 40
  found = difference(task, examples, bad, good, seed=3)
  assert found == difference(task, examples, bad, good, seed=3)
  assert (found.a, found.b, found.only_a, found.only_b) == (0.5, 1.0, 0, 20)
  assert 0 < found.low < 0.5 < found.high and found.p == pytest.approx(2 / 2**20)


def test_numbers_are_compared_by_resampled_correlations():
  rng = np.random.default_rng(0)
  values = rng.normal(size=50)
  examples = Examples([Example(("x",), float(v)) for v in values], [(np.array([5]),)] * 50)
  near = [{"value": float(v)} for v in values + rng.normal(size=50) / 5]
  far = [{"value": float(v)} for v in rng.normal(size=50)]
  found = difference(Regress(length=8), examples, far, near)
  assert found.metric == "spearman" and found.low > 0 and found.p < 0.01


def test_the_accuracy_of_words_is_compared_by_resampled_sentences():
  items = [Example(("x",), ["N"] * 20, str(n)) for n in range(20)]
  examples = Examples(items, [(np.array([5]),)] * 20)

  def tagger(wrong):
    tags = ["V"] * wrong + ["N"] * (20 - wrong)
    return [{"tags": tags, "scores": [0.9] * 20}] * 20

  # No sentence is right in either, so a test of whole sentences sees no difference.
  result = difference(Tag(tags=("N", "V")), examples, tagger(6), tagger(1))
  assert (result.metric, result.a, result.b) == ("accuracy", 0.7, 0.95)
  assert result.test.startswith("paired bootstrap") and result.low > 0 and result.p < 0.01


def test_a_written_label_is_right_where_its_accuracy_counts_it():
  task = Write(labels=("Good", "Bad"))
  example = Example(("x",), "Good")
  assert task.mistake(example, {"output": "good", "label": "Good"}) == 0
  assert task.mistake(example, {"output": "good", "label": "Bad"}) == 1


def test_mismatched_texts_of_mnli_are_compared_by_their_own_accuracy():
  task = GlueLabels(part="mnli", labels=PARTS["mnli"].classes)
  yes, no = task.labels[:2]
  examples = Examples([Example(("x", "y"), yes, f"{MISMATCHED}:{n}") for n in range(8)], [()] * 8)
  good, bad = ([{"label": label, "score": 0.9}] * 8 for label in (yes, no))
  result = difference(task, examples, bad, good)
  assert (result.metric, result.a, result.b) == ("accuracy_mm", 0.0, 1.0)
  assert result.only_b == 8 and result.test == MCNEMAR
