"""Scaling laws: a known law is recovered with an honest interval, and the report says what it
predicted, what was measured and which runs follow no law."""

import functools
import math

import numpy as np
import pytest

from experiments import scaling
from plm_jax import overrides
from plm_jax.ablate import scaling_report
from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.page import Grid, markdown
from plm_jax.ablate.plan import PlannedRun, RunState, SweepPlan, workdir_of
from plm_jax.ablate.scaling_law import Law, Point, _objective, fit
from plm_jax.ablate.scaling_runs import ScaledRun, Sizes, rises, sizes
from plm_jax.errors import UserError
from plm_jax.train.spikes import SPIKES

TRUE = Law(E=1.8, A=15.0, B=120.0, alpha=0.25, beta=0.33)
KAPLAN = Law(E=0.0, A=5e7, B=5e10, alpha=0.7, beta=1.0, gamma=0.12)
SIZES = (12e3, 49e3, 98e3, 221e3, 442e3, 786e3)
TOKENS = (0.25e6, 0.5e6, 1e6, 2e6)
GOAL = (1.8e6, 4e6)


def drawn(noise, seed=0, law=TRUE):
  """Runs of a law whose losses have a relative error."""
  generator = np.random.default_rng(seed)
  return [
    Point(n, d, float(law.loss(n, d) * np.exp(noise * generator.normal())))
    for n in SIZES
    for d in TOKENS
  ]


@pytest.fixture(scope="module")
def noisy():
  return fit(drawn(0.003, seed=1), resamples=40)


@pytest.mark.parametrize(("form", "law"), [("Hoffmann", TRUE), ("Kaplan", KAPLAN)])
def test_the_constants_of_a_law_are_recovered_from_its_losses(form, law):
  found = fit(drawn(0.0, law=law), form, resamples=1)
  np.testing.assert_allclose(found.law, law, rtol=1e-3)
  assert found.spread < 1e-5
  value, _ = found.predicted(*GOAL)
  assert value == pytest.approx(law.loss(*GOAL), rel=1e-5)


def test_the_form_of_the_law_shows_in_the_runs_that_are_left_out():
  """In Kaplan's form tokens are worth less to a small model."""
  points = drawn(0.001, law=KAPLAN)
  right, wrong = (fit(points, form, resamples=1) for form in ("Kaplan", "Hoffmann"))
  assert right.spread < 0.0015
  assert wrong.spread > 2 * right.spread


@pytest.mark.parametrize(
  "theta", [(0.5, 0.3, 0.4, 0.25, 0.33, 1.0), (-50, 9.0, 9.5, 0.7, 1.0, 0.15)]
)
def test_the_gradient_is_that_of_finite_differences(theta):
  data = np.random.default_rng(0).normal((0.0, 0.0, 1.5), 0.05, (20, 3))
  _, gradient = _objective(np.array(theta), data)
  for i, step in enumerate(1e-7 * np.eye(6)):
    by_difference = (_objective(theta + step, data)[0] - _objective(theta - step, data)[0]) / 2e-7
    assert gradient[i] == pytest.approx(by_difference, rel=1e-4, abs=1e-4)


def test_intervals_contain_the_truth_and_shrink_with_the_noise(noisy):
  quiet = fit(drawn(0.0005, seed=1), resamples=40)
  for name in ("E", "alpha", "beta", "a", "b"):
    assert getattr(TRUE, name) in noisy.interval(name), name
    wide, narrow = noisy.interval(name), quiet.interval(name)
    assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)
  _, interval = noisy.predicted(*GOAL)
  assert float(TRUE.loss(*GOAL)) in interval
  assert interval.high - interval.low > 2 * 0.003 * TRUE.loss(*GOAL)  # never below the noise


def test_a_fit_is_the_same_every_time(noisy):
  again = fit(noisy.points, resamples=40)
  assert again == noisy
  assert fit(noisy.points, resamples=40, seed=1).resampled != noisy.resampled


def test_one_run_that_failed_moves_the_law_little(noisy):
  """The Huber loss weighs it by its sign alone; least squares would follow it."""
  points = drawn(0.0)
  points[9] = points[9]._replace(loss=1.2 * points[9].loss)
  assert fit(points, resamples=1).law.alpha == pytest.approx(TRUE.alpha, abs=2e-3)


@pytest.mark.parametrize("law", [TRUE, KAPLAN], ids=["Hoffmann", "Kaplan"])
@pytest.mark.parametrize("compute", [1e10, 1e13])
def test_the_best_size_is_the_numeric_minimum_along_a_compute(law, compute):
  n = np.geomspace(1e2, 1e8, 200_001)
  numeric = n[np.argmin(law.loss(n, compute / 6 / n))]
  best = law.best_parameters(compute)
  assert best == pytest.approx(numeric, rel=1e-3)
  assert 6 * best * law.best_tokens(compute) == pytest.approx(compute)
  assert law.best_parameters(10 * compute) / best == pytest.approx(10**law.a)
  assert law.a + law.b == pytest.approx(1)


@pytest.mark.parametrize(
  ("points", "why"),
  [
    (drawn(0.0)[:7], "7 runs are measured, .* needs at least 8"),
    ([point for point in drawn(0.0) if point.tokens < 1e6], "three numbers of tokens"),
    ([*drawn(0.0)[:-1], Point(1e6, 1e6, math.nan)], "exploded"),
  ],
  ids=["few", "two budgets", "not finite"],
)
def test_a_fit_is_refused_in_a_sentence(points, why):
  with pytest.raises(UserError, match=why):
    fit(points)


def test_parameters_are_counted_with_and_without_tables():
  experiment = scaling.gpt().arm("2x64-one").experiment("small")
  settings = scaling.gpt().arm("2x64-one").settings
  counted = sizes(overrides.apply(experiment, settings).resolve(2048))
  layer = 12 * 64**2 + 13 * 64  # kernels, and biases and gains
  assert counted.layers == 2 * layer + 2 * 64
  assert counted.all - counted.layers == (2048 + 64) * 64


def test_a_larger_run_with_a_higher_loss_is_named():
  runs = [
    ScaledRun("a", "1x32", Sizes(1, 2), 10, 5.0),
    ScaledRun("b", "1x32", Sizes(1, 2), 20, 5.1),
    ScaledRun("c", "2x32", Sizes(2, 3), 10, 4.9),
  ]
  assert rises(runs) == ["b has a higher loss (5.100) than a (5.000)"]


HELD_OUT = "6x160-four"


def measured(folder, losses, unigram=6.4):
  """A sweep of experiments/scaling.py:gpt whose runs have these losses, by arm."""
  table = scaling.gpt()
  runs = [PlannedRun(name, 0) for name in losses]
  configs = {}
  for run in runs:
    arm = table.arm(run.arm)
    experiment = overrides.apply(arm.experiment("small"), arm.settings).resolve(2048)
    configs[run] = {"experiment": overrides.to_json(experiment)}
  return Measured(
    out=folder,
    plan=SweepPlan("scaling.py:gpt", "small", (), 1, {}, {}),
    table=table,
    scores={run.arm: {0: {"clm_loss": losses[run.arm]}} for run in runs},
    records={},
    configs=configs,
    states={run: RunState("done", 1) for run in runs},
    references={"clm_loss": unigram},
    notes=[],
    verdicts=[],
  )


def of_law(noise=0.002):
  """The loss of every arm by `TRUE`, with N without tables."""
  generator, losses = np.random.default_rng(0), {}
  for arm in scaling.gpt().arms:
    experiment = overrides.apply(arm.experiment("small"), arm.settings).resolve(2048)
    tokens = experiment.steps * experiment.global_batch * experiment.data.length
    loss = TRUE.loss(sizes(experiment).layers, tokens)
    losses[arm.name] = float(loss * np.exp(noise * generator.normal()))
  return losses


@functools.cache
def quick_fit(points, form):
  return fit(points, form, resamples=8)


@pytest.fixture
def page(tmp_path, monkeypatch):
  """page(losses) -> the blocks of the report."""
  monkeypatch.setattr(scaling_report, "fit", lambda points, form: quick_fit(tuple(points), form))

  def make(losses, **more):
    return scaling_report.blocks(measured(tmp_path, losses, **more), tmp_path, "clm_loss", HELD_OUT)

  return make


def test_the_page_predicts_the_held_out_run_and_says_whether_it_was_right(page, tmp_path):
  losses = of_law()
  right = losses.pop(HELD_OUT)
  before = markdown(page(losses))
  assert "It is not measured yet." in before and "| 4.1M tokens" not in before
  assert (tmp_path / "scaling.png").stat().st_size > 20_000
  after = markdown(page({**losses, HELD_OUT: right}))
  assert (
    ": inside, " in after and "law of Hoffmann et al.'s form, with N as parameters without" in after
  )
  # The held-out run is not fitted: the constants are the same.
  law = next(line for line in before.splitlines() if line.startswith("| Hoffmann, parameters"))
  assert law in after
  missed = markdown(page({**losses, HELD_OUT: right + 0.5}))
  assert ": outside by 0.4" in missed and "nats above the prediction" in missed


def test_runs_on_the_plateau_are_named_and_not_fitted(page):
  losses = of_law()
  flat = [name for name in losses if name.endswith("-quarter")]
  losses |= dict.fromkeys(flat, 6.1)
  blocks = page(losses)
  text = markdown(blocks)
  assert "no power law describes these runs" not in text
  assert f"They are {', '.join(flat)}." in text
  fits = next(b for b in blocks if isinstance(b, Grid) and b.header[0] == "form")
  assert [row[2] for row in fits.rows] == ["18"] * 4 + ["24, with the plateau"] * 4
  assert fits.rows[0][-1] == "inside"
  assert float(fits.rows[0][3].rstrip("%")) < float(fits.rows[4][3].rstrip("%"))


def test_runs_without_a_law_are_called_so(page):
  text = markdown(page(of_law(noise=0.1)))
  assert "With such an error no power law describes these runs" in text


def test_a_run_that_exploded_is_named_and_not_fitted(page, tmp_path):
  folder = workdir_of(tmp_path, PlannedRun("2x64-one", 0))
  folder.mkdir(parents=True)
  (folder / SPIKES).write_text('{"step": 100}\n')
  text = markdown(page(of_law()))
  assert "2x64-one: its training loss exploded" in text
  assert text.count("| 23 |") == 4


def test_too_few_runs_have_losses_and_no_law(page):
  losses = dict(list(of_law().items())[:5])
  text = markdown(page(losses))
  assert "No law is fitted: 5 runs are measured" in text
  assert f"{losses['1x32-half']:.4f}" in text
  assert page({}) == []


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_the_held_out_arm_is_larger_and_longer_than_every_fitted_one(name):
  table = getattr(scaling, name)()
  *fitted, larger = [
    overrides.apply(arm.experiment("small"), arm.settings).resolve(2048) for arm in table.arms
  ]
  assert ["held out" in arm.note for arm in table.arms] == [False] * len(fitted) + [True]
  assert len({sizes(one).layers for one in fitted}) >= 5
  assert len({one.steps for one in fitted}) >= 4
  assert sizes(larger).layers > max(sizes(one).layers for one in fitted)
  assert larger.steps > max(one.steps for one in fitted)
  for one in fitted:
    assert one.optim.warmup == one.steps // 12
    assert one.global_batch * one.data.length == 1024
