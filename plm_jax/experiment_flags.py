"""The resolved experiment of a command line's flags."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from plm_jax import budgets, cli, overrides
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.models.model import Model
from plm_jax.runs import RunInfo, base_record, initial_record, teacher_of
from plm_jax.train import processes
from plm_jax.train.process import versions


def chosen_experiment(
  reference: str | Experiment | None,
  default: str,
  budget: str,
  settings: list[str],
  seed: int | None,
  source: RunInfo | None = None,
) -> tuple[Experiment, dict[str, Any]]:
  """The resolved experiment of a command line, and its record for config.json. reference:
  FILE:FUNCTION, or the experiment itself.

  With a source, its experiment is the default, at the peak of `continuing`, and its tokenizer is
  kept; a published model (plm_jax/commands/convert.py) also replaces the experiment's model. The
  record lists the differences from the file's `base` at the same budget.
  """
  # A named row has its own recipe, and few parameters beside a frozen model forget nothing.
  is_peft = any(s.startswith("peft=") for s in settings)
  goes_on = source is not None and reference is None and not is_peft
  if reference is None:
    reference = (source.document.get("reference") if source else None) or default
  if isinstance(reference, Experiment):
    experiment = base = budgets.scaled(reference, budget, None)
    reference, name = None, "experiment"
  else:
    experiment, base = row_and_base(reference, budget)
    file, _, function = reference.partition(":")
    name = f"{Path(file).stem}_{function}{'' if budget == 'small' else f'_{budget}'}"
  if source is not None and "public" in source.document and not experiment.model.encoder_path:
    experiment = with_model(experiment, source.experiment.model)
  if goes_on:
    experiment = continuing(experiment, source)
  peak = experiment.optim.peak
  experiment = overrides.apply(experiment, settings)
  if goes_on and experiment.optim.peak == peak:
    place = source.document.get("converted_from", source.path)
    optim = experiment.optim
    processes.say(
      f"note: --from={place} goes on with {type(optim).__name__} at optim.peak={peak:.2g}, after a "
      f"warmup of {optim.warmup} steps: that forgets less than the peak of a first training; "
      "--set=optim.peak=NUMBER changes it"
    )
  if seed is not None:
    experiment = dataclasses.replace(experiment, seed=seed)
  if source is not None:
    experiment = with_tokenizer(experiment, source, settings)
  teacher = teacher_of(experiment, budget)
  if teacher is not None:
    if source is not None and source.tokenizer.fingerprint != teacher.tokenizer.fingerprint:
      raise UserError(
        f"--from={source.path} and model.teacher={teacher.path} have different tokenizers; a "
        "student needs its teacher's tokenizer"
      )
    experiment = with_teacher(experiment, teacher, settings)
  experiment = experiment.resolve(vocab_size_of(experiment))
  if experiment.peft is not None and source is None:
    raise UserError(
      f"peft={overrides.show(experiment.peft)} trains a few parameters beside a model that is "
      "there; name it: --from=DIR"
    )
  record = {
    "name": name,
    "reference": reference,
    "budget": budget,
    "diff": [
      {"field": path, "base": overrides.show(old), "here": overrides.show(new)}
      for path, old, new in overrides.diff(experiment, base)
      # These follow from the tokenizer and from the teacher.
      if path not in ("model.vocab_size", "model.teacher_model")
    ],
    "initial": initial_record(source),
    "teacher": initial_record(teacher),
    **({"base": base_record(source)} if source and experiment.peft else {}),
    "command": sys.argv,
    "versions": versions(),
  }
  return experiment, record


def with_model(experiment: Experiment, model: Model) -> Experiment:
  """The experiment with a published model, and rows no longer than the model's positions."""
  data = dataclasses.replace(experiment.data, length=min(experiment.data.length, model.positions))
  return dataclasses.replace(experiment, model=model, data=data)


SHARE = 0.1  # of the peak of the first training
PUBLISHED_PEAK = 5e-5  # transformers, run_mlm.py and run_clm.py; BERT, appendix A.3: 2e-5 to 5e-5


def continuing(experiment: Experiment, source: RunInfo) -> Experiment:
  """The recipe of a run with a peak that forgets less: a tenth of the recipe's, as between T5's
  pretraining and fine-tuning, and for a published model at most `PUBLISHED_PEAK` with Adam.

  The warmup stays. A higher peak gains more on the new text and loses more of the old one (Gupta et
  al. 2023, arXiv:2308.04014).
  """
  peak = SHARE * experiment.optim.peak
  if "public" in source.document and hasattr(experiment.optim, "b2"):
    peak = min(peak, PUBLISHED_PEAK)
  return dataclasses.replace(experiment, optim=dataclasses.replace(experiment.optim, peak=peak))


def row_and_base(reference: str, budget: str) -> tuple[Experiment, Experiment]:
  """A row of a file, and the experiment that the file's rows derive from: its function `base`, else
  the row itself."""
  file, _, function = reference.partition(":")
  of_rows = budgets.of_rows(budget)
  row, base = cli.load_experiment(reference, budget=of_rows)(), None
  if function != "base" and "base" in cli.experiments_of(file):
    base = cli.load_experiment(f"{file}:base", budget=of_rows)()
  experiment = budgets.scaled(row, budget, base)
  return experiment, budgets.scaled(base, budget, None) if base else experiment


def with_tokenizer(
  experiment: Experiment, source: RunInfo, settings: list[str], role: str = "--from="
) -> Experiment:
  """The experiment with the source's tokenizer. role: the source's name in an error."""
  chosen = experiment.data.tokenizer
  is_set = any(s.startswith("data.tokenizer") for s in settings)
  if is_set and (chosen.path is None or chosen.load().fingerprint != source.tokenizer.fingerprint):
    raise UserError(
      f"the tokenizer does not fit the checkpoint: {role}{source.path} was trained with the one "
      f"in {source.path / 'tokenizer'}; leave data.tokenizer out"
    )
  size = source.experiment.model.vocab_size
  if experiment.model.vocab_size not in (None, size):
    raise UserError(
      f"model.vocab_size={experiment.model.vocab_size} does not fit the checkpoint: that of "
      f"{role}{source.path} is {size}; leave model.vocab_size out"
    )
  kept = dataclasses.replace(
    source.experiment.data.tokenizer, path=str((source.path / "tokenizer").absolute())
  )
  if not any(s.startswith("data.segments") for s in settings):
    experiment = with_rows_of(experiment, source.tokenizer.vocab)
  return dataclasses.replace(
    experiment,
    data=dataclasses.replace(experiment.data, tokenizer=kept),
    model=dataclasses.replace(experiment.model, vocab_size=source.experiment.model.vocab_size),
  )


def with_rows_of(experiment: Experiment, vocab: Vocab) -> Experiment:
  """The experiment, with tokens around packed documents only if the vocabulary has both."""
  segments = getattr(experiment.data, "segments", None)  # a labelled text has none
  if not isinstance(segments, PackedDocuments) or (vocab.begin and vocab.end):
    return experiment
  data = dataclasses.replace(experiment.data, segments=dataclasses.replace(segments, framed=False))
  return dataclasses.replace(experiment, data=data)


def with_teacher(experiment: Experiment, teacher: RunInfo, settings: list[str]) -> Experiment:
  """The experiment with its teacher's sizes and tokenizer, which both must share."""
  model = dataclasses.replace(experiment.model, teacher_model=teacher.experiment.model.encoder)
  experiment = dataclasses.replace(experiment, model=model)
  return with_tokenizer(experiment, teacher, settings, "model.teacher=")


def vocab_size_of(experiment: Experiment) -> int:
  """The number of the tokenizer's tokens; before its training, the most that it can have."""
  tokenizer = experiment.data.tokenizer
  if tokenizer.path is None:
    return tokenizer.vocab_size + tokenizer.added
  return tokenizer.load().vocab.size
