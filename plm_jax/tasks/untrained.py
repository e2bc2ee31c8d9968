"""The run of an experiment that was never trained: a configuration and a tokenizer, from which
run_finetune.py trains a model on a task from random parameters."""

from __future__ import annotations

from pathlib import Path

from plm_jax.data.preparation import prepare
from plm_jax.errors import UserError
from plm_jax.experiment_flags import chosen_experiment
from plm_jax.train import processes
from plm_jax.train.workdir import Workdir


def is_experiment(start: str | Path) -> bool:
  """Whether `start` names an experiment, FILE.py:FUNCTION, and no directory."""
  return ".py:" in str(start) and not Path(start).exists()


def untrained_run(reference: str, cache: Path) -> Path:
  """The directory runs/FILE_FUNCTION_untrained of an experiment, made anew if the experiment has
  changed. Its tokenizer is that of the experiment's text. Errors: `UserError` for an experiment
  whose model is made from counts."""
  experiment, record = chosen_experiment(reference, "", "small", [], None)
  if experiment.is_counted:
    raise UserError(f"--from={reference} was given, and its model is made from counts, not trained")
  with processes.first_goes_first():
    prepared = prepare(experiment.data, cache, progress=processes.is_first())
  text = {name: prepared.manifest[name] for name in ("source", "tokenizer", "splits", "dropped")}
  with Workdir(Path("runs") / f"{record['name']}_untrained") as workdir:
    workdir.write_config(experiment, record | {"text": text, "untrained": True})
    if processes.is_first():
      prepared.tokenizer.save(workdir / "tokenizer")
    return workdir.path
