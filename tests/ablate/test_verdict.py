"""Verdicts come from the measured numbers alone, and chance makes few of them."""

import itertools

import numpy as np
import pytest
from scipy.special import stdtr

from experiments import bert
from plm_jax import cli
from plm_jax.ablate.table import AboveChance, Arm, AtChance, Better, NotWorse, Ordered, Table
from plm_jax.ablate.verdict import ALPHA, verdicts
from plm_jax.errors import UserError

ARMS = ("a", "b", "c", "d")
CLAIMS = (
  Better("mlm_loss", "b", than="a"),
  Better("mlm_loss", "c", than="a"),
  Ordered("mlm_loss", ("a", "b", "c", "d")),
  Better("sop_accuracy", "d", than="a"),
)


def sweep(levels, sd, generator, metric="mlm_loss", seeds=3):
  """Scores of arms with the given means, with a part of the noise common to a seed."""
  common = generator.normal(0, sd, seeds)
  return {
    arm: {seed: {metric: mean + common[seed] + generator.normal(0, sd)} for seed in range(seeds)}
    for arm, mean in levels.items()
  }


def merged(*parts):
  return {
    arm: {s: {k: v for p in parts for k, v in p[arm][s].items()} for s in parts[0][arm]}
    for arm in parts[0]
  }


def outcomes(claims, scores):
  return [verdict.outcome for verdict in verdicts(claims, scores)]


@pytest.mark.slow
def test_reports_without_an_effect_seldom_say_anything_but_undecided():
  generator = np.random.default_rng(0)
  null = dict.fromkeys(ARMS, 3.0)
  reports, said = 1000, 0
  for _ in range(reports):
    scores = merged(sweep(null, 0.01, generator), sweep(null, 0.02, generator, "sop_accuracy"))
    said += any(outcome != "undecided" for outcome in outcomes(CLAIMS, scores))
  assert said / reports <= ALPHA


def test_two_arms_with_several_metrics_seldom_differ_by_luck():
  """With one pair of arms no other arm's noise holds a lucky agreement back: Holm's part alone."""
  generator = np.random.default_rng(8)
  metrics = ("mlm_loss", "nsp_accuracy", "sop_accuracy", "blimp")
  claims = [Better(metric, "b", than="a") for metric in metrics]
  null = dict.fromkeys(("a", "b"), 0.5)
  reports, said = 1000, 0
  for _ in range(reports):
    scores = merged(*(sweep(null, 0.01, generator, metric) for metric in metrics))
    said += any(outcome != "undecided" for outcome in outcomes(claims, scores))
  assert said / reports <= ALPHA


@pytest.mark.parametrize("noisy", [0.1, 10.0])
def test_the_level_holds_where_one_arm_is_noisier_than_the_others(noisy):
  generator = np.random.default_rng(1)
  reports, said = 1000, 0
  for _ in range(reports):
    scores = sweep(dict.fromkeys(ARMS, 3.0), 0.01, generator)
    for values in scores["a"].values():
      values["mlm_loss"] += generator.normal(0, 0.01 * noisy)
    said += any(outcome != "undecided" for outcome in outcomes(CLAIMS, scores))
  assert said / reports <= ALPHA


def test_a_report_of_shuffled_arms_is_undecided():
  """Large true effects, and arms exchanged within every seed: what a shuffle leaves is no noise,
  but large differences of either sign."""
  generator = np.random.default_rng(2)
  true = sweep({"a": 3.6, "b": 3.4, "c": 3.2, "d": 3.0}, 0.005, generator)
  said = count = 0
  orders = list(itertools.permutations(ARMS))
  for _ in range(600):
    chosen = [orders[i] for i in generator.integers(len(orders), size=3)]
    if len(set(chosen)) == 1:
      continue  # the same exchange at every seed only renames the arms
    shuffled = {
      arm: {seed: true[order[i]][seed] for seed, order in enumerate(chosen)}
      for i, arm in enumerate(ARMS)
    }
    count += 1
    said += any(outcome != "undecided" for outcome in outcomes(CLAIMS, shuffled))
  assert said / count <= ALPHA


def test_two_arms_exchanged_at_one_seed_are_undecided():
  scores = {
    "a": {0: {"mlm_loss": 3.5}, 1: {"mlm_loss": 3.51}, 2: {"mlm_loss": 3.0}},
    "b": {0: {"mlm_loss": 3.0}, 1: {"mlm_loss": 3.01}, 2: {"mlm_loss": 3.5}},
  }
  assert outcomes([Better("mlm_loss", "b", than="a")], scores) == ["undecided"]


def test_effects_beyond_the_seeds_are_supported_and_their_opposites_not():
  generator = np.random.default_rng(3)
  scores = merged(
    sweep({"a": 3.6, "b": 3.4, "c": 3.2, "d": 3.0}, 0.003, generator),
    sweep({"a": 0.5, "b": 0.5, "c": 0.8, "d": 0.9}, 0.003, generator, "sop_accuracy"),
  )
  assert outcomes(CLAIMS, scores) == ["supported"] * 4
  opposite = [
    Better("mlm_loss", "a", than="b"),
    Ordered("mlm_loss", ("d", "c", "b", "a")),
    AtChance("sop_accuracy", "d", chance=0.5),
    NotWorse("mlm_loss", "a", than="b", margin=0.05),
  ]
  assert outcomes(opposite, scores) == ["not supported"] * 4
  of_one_arm = [
    AtChance("sop_accuracy", "a", chance=0.5),
    AboveChance("sop_accuracy", "d", chance=0.5),
    NotWorse("mlm_loss", "b", than="a", margin=0.05),
  ]
  assert outcomes(of_one_arm, scores) == ["supported"] * 3


def test_perplexities_and_losses_give_the_same_verdict():
  generator = np.random.default_rng(4)
  scores = sweep({"a": 3.1, "b": 3.0}, 0.02, generator)
  for seeds in scores.values():
    for values in seeds.values():
      values["mlm_perplexity"] = np.exp(values["mlm_loss"])
  by_loss, by_perplexity = (
    verdicts([Better(metric, "b", than="a")], scores)[0]
    for metric in ("mlm_loss", "mlm_perplexity")
  )
  assert by_loss.p == pytest.approx(by_perplexity.p)


def test_one_reversed_link_contradicts_an_order():
  generator = np.random.default_rng(5)
  scores = sweep({"a": 3.6, "b": 3.2, "c": 3.4, "d": 3.0}, 0.002, generator)
  (verdict,) = verdicts([Ordered("mlm_loss", ARMS)], scores)
  assert verdict.outcome == "not supported"
  (part,) = verdicts([Ordered("mlm_loss", ("a", "b", "d"))], scores)
  assert part.outcome == "supported"


def test_what_is_not_measured_is_undecided_and_says_so():
  scores = {"a": {0: {"mlm_loss": 3.0}, 1: {"mlm_loss": 3.1}}, "b": {0: {"mlm_loss": 2.0}}}
  (verdict,) = verdicts([Better("mlm_loss", "b", than="a")], scores)
  assert verdict.outcome == "undecided" and verdict.numbers == "1 of 3 seeds that are needed"
  (verdict,) = verdicts([Better("blimp", "b", than="a")], scores)
  assert (verdict.outcome, verdict.numbers) == ("undecided", "no run of this sweep has blimp")


def test_a_claim_about_counted_models_is_decided_by_one_seed_and_trained_ones_are_not():
  scores = {arm: {0: {"clm_loss": loss}} for arm, loss in zip("abc", (3.0, 2.5, 2.5))}
  better, worse = Better("clm_loss", "b", than="a"), Better("clm_loss", "a", than="b")
  claims = [better, worse, Better("clm_loss", "b", than="c")]
  by_counts = verdicts(claims, scores, counted=scores)
  assert [v.outcome for v in by_counts] == ["supported", "not supported", "undecided"]
  assert by_counts[0].numbers == "+0.5, whatever the seed"
  assert verdicts([better], scores, counted=["a"])[0].outcome == "undecided"
  varying = {arm: {0: seeds[0], 1: {"clm_loss": 9.0}} for arm, seeds in scores.items()}
  assert verdicts([better], varying, counted=varying)[0].outcome == "undecided"


def test_a_value_that_is_not_finite_is_not_measured():
  generator = np.random.default_rng(6)
  scores = sweep({"a": 3.1, "b": 2.0}, 0.01, generator)
  scores["b"][1]["mlm_loss"] = float("nan")
  assert outcomes([Better("mlm_loss", "b", than="a")], scores) == ["undecided"]


def test_chance_may_be_a_measured_share():
  scores = {"a": {s: {"nsp_accuracy": 0.55 + 0.001 * s, "nsp_majority": 0.55} for s in range(3)}}
  claims = [
    AtChance("nsp_accuracy", "a", chance="nsp_majority"),
    AboveChance("nsp_accuracy", "a", chance="nsp_majority"),
  ]
  assert outcomes(claims, scores) == ["supported", "not supported"]


def test_the_numbers_of_a_claim_at_chance_are_those_of_the_side_that_decides():
  for level, bound in ((0.52, "against +0.05"), (0.48, "against -0.05")):
    values = {"a": {s: {"sop_accuracy": level + 0.01 * s} for s in (-1, 0, 1)}}
    tested = AtChance("sop_accuracy", "a", chance=0.5).test(values)
    assert bound in tested.numbers
    t = float(tested.numbers.rpartition("t = ")[2])
    assert tested.p_for == pytest.approx(stdtr(2, -abs(t)), abs=1e-3)


def test_a_head_that_always_says_the_same_is_at_chance():
  scores = {"a": {s: {"sop_accuracy": 0.5} for s in range(3)}}
  assert outcomes([AtChance("sop_accuracy", "a", chance=0.5)], scores) == ["supported"]
  equal = {arm: {s: {"sop_accuracy": x} for s in range(3)} for arm, x in (("a", 0.5), ("b", 0.6))}
  assert outcomes([Better("sop_accuracy", "b", than="a")], equal) == ["undecided"]


def test_more_claims_make_each_of_them_stricter():
  generator = np.random.default_rng(7)
  scores = sweep({"a": 3.02, "b": 3.0}, 0.004, generator)
  claim = Better("mlm_loss", "b", than="a")
  alone = verdicts([claim], scores)[0]
  among = verdicts([claim] * 10, scores)[0]
  assert alone.p == among.p and among.threshold == pytest.approx(alone.threshold / 10)
  late = verdicts([claim, *[Better("mlm_loss", "c", than="a")] * 9], scores)[0]
  assert late.threshold == among.threshold
  unasked = verdicts([claim, *[Better("blimp", "b", than="a")] * 9], scores)[0]
  assert unasked.threshold == alone.threshold


def test_a_table_refuses_what_it_cannot_be():
  arm = Arm("a", bert.base, published={"Avg": 80.1})
  with pytest.raises(UserError, match="different names"):
    Table(title="t", source="s", arms=(arm, arm))
  with pytest.raises(UserError, match="Did you mean 'a'"):
    Table(title="t", source="s", arms=(arm,), claims=(AtChance("sop_accuracy", "a1", 0.5),))
  with pytest.raises(UserError, match="no published column 'MNLI'"):
    Table(title="t", source="s", arms=(arm,), beside={"MNLI": "mlm_loss"})
  with pytest.raises(UserError, match="nothing measures 'mlm_los'"):
    Table(title="t", source="s", arms=(arm,), claims=(AtChance("mlm_los", "a", 0.5),))
  with pytest.raises(UserError, match="names a directory"):
    Arm("../a", bert.base)
  with pytest.raises(UserError, match=r'write them as \("steps=2",\)'):
    Arm.of(bert.base, laptop="steps=2")
  with pytest.raises(UserError, match="a tuple of texts"):
    Table(title="t", source="s", arms=(arm,), laptop="steps=2")


TABLES = [reference for reference, _ in cli.list_experiments("experiments", returns="Table")]


@pytest.mark.parametrize("reference", TABLES)
def test_a_table_makes_claims_or_says_that_the_paper_makes_none(reference):
  table = cli.load_experiment(reference, returns="Table")()
  assert table.claims or "it claims no order" in table.caveat, "a table says what it claims"


def test_the_noise_of_another_text_does_not_hold_a_verdict_back():
  generator = np.random.default_rng(4)
  quiet = sweep({"a-0.1": 3.0, "b-0.1": 2.9}, 0.01, generator, seeds=5)
  loud = sweep({"a-0.9": 5.0, "b-0.9": 5.0, "c-0.9": 5.0}, 2.0, generator, seeds=5)
  claim, scores = Better("mlm_loss", "b-0.1", than="a-0.1"), quiet | loud
  dials = {arm: float(arm[2:]) for arm in scores}
  (of_all,), (of_the_text,) = verdicts([claim], scores), verdicts([claim], scores, dials)
  assert (of_all.outcome, of_the_text.outcome) == ("undecided", "supported")
  assert of_all.side == of_the_text.side == "for"
