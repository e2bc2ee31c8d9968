"""Continued pretraining on another domain: its gain and its loss. Each function is a run.

The arms are those of domain-adaptive pretraining (Gururangan et al. 2020, arXiv:2004.10964), with
replay as in Ibrahim et al. 2024 (arXiv:2403.08763). All read the same two texts in one vocabulary,
which was trained on both, and differ in the share of each: `old` is the installed documentation,
`new` is yours:

    python -m plm_jax.sweep --table=experiments/continuation.py:domain
      --set=data.source=old=tfds:installed_text,new=novels/

The runs that go on start from the run of `base` with the same seed. Held-out losses of both texts
are in metrics.jsonl before, during and after a run. A GPT-2 of two layers is trained in rows of 64
tokens, 8 of them in a step; nothing was tuned for this page.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.history import PLAIN, SIZE, TEXT
from plm_jax.ablate.domains import blocks
from plm_jax.ablate.table import Arm, Better, NotWorse, Table
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.experiment_flags import SHARE
from plm_jax.models.gpt import Gpt2
from plm_jax.objectives.clm import CLM
from plm_jax.optim.adamw import AdamW

STEPS = {
  "smoke": (10, 4),
  "small": (4_000, 1_500),
  "paper": (4_000, 1_500),
}  # before, and of an arm
PEAK = 2e-3
REPLAYED = 0.2  # of the rows


def base(budget: Budget = "small") -> Experiment:
  """No continuation: the old text alone."""
  return _run(STEPS[budget][0], (1.0, 0.0), PEAK)


def scratch(budget: Budget = "small") -> Experiment:
  """From scratch on the new text."""
  return _run(STEPS[budget][1], (0.0, 1.0), PEAK)


def continued(budget: Budget = "small") -> Experiment:
  """Continuation on the new text, at a tenth of the peak."""
  return _run(STEPS[budget][1], (0.0, 1.0), SHARE * PEAK)


def replay(budget: Budget = "small") -> Experiment:
  """The same with the old text in a fifth of the rows."""
  return _run(STEPS[budget][1], (REPLAYED, 1 - REPLAYED), SHARE * PEAK)


def full_rate(budget: Budget = "small") -> Experiment:
  """Continuation on the new text, at the peak of the first training."""
  return _run(STEPS[budget][1], (0.0, 1.0), PEAK)


def _run(steps: int, weights: tuple[float, ...], peak: float) -> Experiment:
  return Experiment(
    model=Gpt2(**SIZE, **PLAIN),
    objectives=(CLM(),),
    data=replace(TEXT, source="old=tfds:installed_text,new=novels", weights=weights),
    optim=AdamW(peak=peak, warmup=max(1, steps // 12), b2=0.98, schedule="wsd"),
    global_batch=8,
    steps=steps,
    schedule=Intervals(
      log=max(1, steps // 20), evaluate=max(1, steps // 4), save=steps, evaluation_rows=512
    ),
  )


def domain() -> Table:
  """Continuation on a new domain: what is gained there, and what is forgotten."""
  old, new = "old/clm_loss", "new/clm_loss"
  return Table(
    title="Continued pretraining: the gain on a new text, and the loss on the old one",
    source="ours; after Gururangan et al. 2020 and Ibrahim et al. 2024",
    question="A model goes on with text of another kind. What does it gain there, and what does it forget?",
    arms=(
      Arm.of(base),
      Arm.of(scratch),
      Arm.of(continued, start="base"),
      Arm.of(replay, start="base"),
      Arm.of(full_rate, start="base"),
    ),
    claims=(
      Better(new, "continued", than="base", sentence="continuation gains on the new text"),
      Better(new, "continued", than="scratch", sentence="it beats the new text from scratch"),
      Better(old, "base", than="continued", sentence="without replay it forgets the old text"),
      Better(old, "replay", than="continued", sentence="replay forgets less"),
      NotWorse(
        new,
        "replay",
        than="continued",
        margin=0.05,
        sentence="replay gains as much on the new text, within 0.05 nats",
      ),
      Better(
        old,
        "continued",
        than="full-rate",
        sentence="a tenth of the peak forgets less than the peak",
      ),
    ),
    caveat="A model of 2 layers. `old` is the installed documentation, `new` the text of "
    "data.source. One vocabulary was trained on both, so no arm reads a text in bad pieces. The "
    "arms after base read as many tokens as each other; those of base come on top of all but "
    "scratch.",
    blocks=blocks,
  )
