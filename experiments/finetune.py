"""Fine-tuning a checkpoint on a task (Devlin et al. 2019, section 4 and appendix A.3).

The paper trains all parameters of the pretrained model and a new classification layer on the
pooled [CLS] state: batch 16 or 32, peak rate 5e-5 to 2e-5, 2 to 4 epochs, warmup over a tenth of
the steps. Its repository fine-tunes small models with rates up to 3e-4 for 4 epochs.

Two rules, by the checkpoint: `public_rule` for a published one, `own_rule` for one that this
project pretrained for minutes. Small published models have the rates of ELECTRA-small: 3e-4 for the
classifier, and 0.8 of the rate above for each lower layer (Clark et al. 2020, appendix B).

A run of this project that was pretrained with Adafactor (T5) is fine-tuned with it, at a constant
rate (Raffel et al. 2020, section 3.1.2). Its embeddings begin with a deviation of 1, and AdamW's steps, which do
not depend on the size of a weight, hardly move them (docs/recipe.md).

Deviation of `own_rule`: the classifier reads the mean of the tokens' states, not the pooled [CLS]
state. Only next-sentence prediction trains that state, and a short pretraining hardly does. Both
arms have this deviation. A published model keeps its head, so that `convert` can export it. But a
Sentence-BERT has no head: where its vectors are means of states, the classifier reads those.

An ELMo is frozen: a task learns the weights of its layers, and the heads (Peters et al. 2018).

A decoder's classifier reads the last token. In an encoder-decoder, the decoder reads the source
again after its start token. The classifier, a dense layer and a linear map, reads the end of the
text (Lewis et al. 2020, section 3.1; transformers' T5 has the same).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from plm_jax.errors import UserError
from plm_jax.experiment import Experiment, Intervals, Tuning
from plm_jax.objectives.mix_penalty import MixPenalty
from plm_jax.optim.adafactor import Adafactor
from plm_jax.optim.adamw import AdamW
from plm_jax.peft.bitfit import BitFit
from plm_jax.peft.bottleneck import Bottleneck
from plm_jax.peft.ia3 import Ia3
from plm_jax.peft.lora import Lora
from plm_jax.peft.methods import AnyPeft
from plm_jax.peft.prefix import Prefix
from plm_jax.peft.prompt import Prompt
from plm_jax.runs import RunInfo
from plm_jax.tasks.search import Grid
from plm_jax.tasks.task import Task

BATCH = 32
BASE, LARGE = 768, 1024  # the widths from which a model is no longer small, and is large
FEWEST_STEPS = 300  # for a published model with few labels (Mosbach et al. 2021)


class Rule(NamedTuple):
  """The defaults of a fine-tuning. layer_decay: 1 is off. classifier: what it reads, of models with
  a choice; None is as the checkpoint has it. relative: Adafactor, whose rates are relative to the
  size of a weight, instead of AdamW."""

  peak: float
  steps: int
  warmup: int
  why: str
  layer_decay: float = 1.0
  classifier: str | None = None
  relative: bool = False

  def optimiser(self) -> AdamW | Adafactor:
    if self.relative:
      return Adafactor(peak=self.peak, warmup=self.warmup, schedule="constant")
    return AdamW(peak=self.peak, warmup=self.warmup, layer_decay=self.layer_decay)

  def __str__(self) -> str:
    falling = "then constant, by Adafactor" if self.relative else "then linear decay"
    lower = f", {self.layer_decay:g} of it for each lower layer" if self.layer_decay < 1 else ""
    reads = f"; classes are read from the {self.classifier} of the states" * bool(self.classifier)
    return (
      f"{self.why}: peak rate {self.peak:g}{lower}, {self.steps:,} steps of {BATCH} examples, "
      f"{self.warmup} of warmup, {falling}{reads}"
    )


# Peak rates of methods that train few parameters: those of the papers where they name one for
# AdamW (LoRA, table 9: 4e-4 to 5e-4; (IA)3, section 3.3: 3e-3), and higher ones for small models.
PEFT_PEAKS: dict[type, float] = {
  **{Lora: 1e-3, Bottleneck: 1e-3, BitFit: 1e-3},
  **{Ia3: 3e-3, Prefix: 1e-2, Prompt: 3e-2},
}


def rule(source: RunInfo, examples: int, peft: AnyPeft | None = None) -> Rule:
  """The defaults for a checkpoint, a number of labelled examples, and a method."""
  if "untrained" in source.document:
    chosen = scratch_rule(examples, "random parameters")
    return chosen._replace(peak=source.experiment.optim.peak, relative=has_adafactor(source))
  if frozen_features(source) and peft is None:
    return scratch_rule(examples, "frozen features")
  chosen = (public_rule if "public" in source.document else own_rule)(source, examples)
  if peft is None:
    return chosen
  why = f"{chosen.why}, {type(peft).__name__}"
  return chosen._replace(peak=PEFT_PEAKS[type(peft)], layer_decay=1.0, why=why, relative=False)


def scratch_rule(examples: int, why: str) -> Rule:
  """Up to 2,000 examples are read for 20 epochs, more for 10."""
  steps = max(1, (10 if examples > 2000 else 20) * examples // BATCH)
  return Rule(2e-3, steps, max(1, steps // 10), why)


def own_rule(source: RunInfo, examples: int) -> Rule:
  """Up to 2,000 examples are read for 4 epochs, more for 2."""
  epochs = 2 if examples > 2000 else 4
  steps = max(1, epochs * examples // BATCH)
  why = "a checkpoint of a short pretraining"
  relative, classifier = has_adafactor(source), mean_classifier(source)
  peak = 1e-2 if relative else 1e-3
  return Rule(peak, steps, max(1, steps // 10), why, classifier=classifier, relative=relative)


def has_adafactor(source: RunInfo) -> bool:
  """Whether the run was pretrained with it."""
  return isinstance(source.experiment.optim, Adafactor)


def public_rule(source: RunInfo, examples: int) -> Rule:
  """3 epochs, and at least `FEWEST_STEPS` steps; rates by the model's width."""
  steps = max(3 * examples // BATCH, FEWEST_STEPS)
  width = getattr(source.config, "width", BASE)
  if width >= BASE:
    peak, layer_decay, kind = 2e-5 if width >= LARGE else 5e-5, 1.0, "a published checkpoint"
  else:
    peak, layer_decay, kind = 3e-4, 0.8, "a small published checkpoint"
  pooling = source.document["public"].get("pooling") or {}
  is_mean = list(pooling.get("modes", ())) == ["mean"]
  classifier = mean_classifier(source) if is_mean else None
  return Rule(peak, steps, steps // 10, kind, layer_decay, classifier)


def mean_classifier(source: RunInfo) -> str | None:
  """ "mean", for a model whose classifier would read a pooled state; a decoder has none."""
  return "mean" if "pooler" in getattr(source.config, "classifier", "") else None


def grid(source: RunInfo, peft: AnyPeft | None = None) -> Grid:
  """The recipes that --search tries: those of appendix A.3 for a published checkpoint, higher rates
  for small ones, and for one that this project pretrained for minutes. Random parameters and those
  that read frozen features are trained for more epochs."""
  if peft is not None:
    peaks = tuple(factor * PEFT_PEAKS[type(peft)] for factor in (3.0, 1.0, 0.3))
  elif "public" not in source.document:
    peaks = (2e-2, 1e-2, 5e-3) if has_adafactor(source) else (3e-3, 1e-3, 3e-4)
  elif getattr(source.config, "width", BASE) < BASE:
    peaks = (3e-4, 2e-4, 1e-4)
  else:
    peaks = (5e-5, 3e-5, 2e-5)
  is_scratch = "untrained" in source.document or (frozen_features(source) and peft is None)
  return Grid(peaks, (16, 32), (5, 10, 20) if is_scratch else (2, 3, 4))


def recipe(source: RunInfo, task: Task, examples: int, peft: AnyPeft | None = None) -> Experiment:
  """The experiment of both arms, which differ only in the parameters that they start from.

  task: one that has read its data. examples: the number of labelled examples.
  """
  model, defaults = source.config, rule(source, examples, peft)
  if defaults.classifier:
    model = replace(model, classifier=defaults.classifier)
  objectives = (task.objective(),)
  if hasattr(model, "features"):
    if not objectives[0].heads:
      raise UserError(
        f"the task {task.name} trains vectors, and those of {type(model).__name__} are frozen; "
        "give another model"
      )
    objectives += (MixPenalty(),)
  return Experiment(
    model=replace(model, **dropout_rates(source)),
    objectives=objectives,
    data=task,
    optim=defaults.optimiser(),
    global_batch=BATCH * task.together,
    steps=defaults.steps,
    schedule=Intervals(log=25, save=200, keep=1),
    tuning=Tuning(freeze=() if peft else frozen_features(source)),
    peft=peft,
  )


def frozen_features(source: RunInfo) -> tuple[str, ...]:
  """The paths of the parameters that are not trained: the language model of a trained ELMo."""
  return () if "untrained" in source.document else getattr(source.config, "features", ())


def dropout_rates(source: RunInfo) -> dict[str, float]:
  """0.1 at all places of a checkpoint; those of the experiment for random parameters."""
  model = source.config
  if "untrained" in source.document:
    return {}
  if frozen_features(source):  # what reads the features has the rate of AllenNLP's ELMo
    return {"dropout": 0.0, "classifier_dropout": 0.5}
  rates = {name: 0.1 for name in ("dropout", "attention_dropout") if hasattr(model, name)}
  if getattr(model, "hidden_dropout", 0) or getattr(model, "final_dropout", False):
    rates["hidden_dropout"] = 0.1  # T5 has one rate for all places
  return rates
