"""The run of an experiment that was never trained: a configuration and a tokenizer, from which
run_finetune.py trains a model on a task from random parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plm_jax.data.preparation import prepare
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.experiment_flags import chosen_experiment
from plm_jax.tasks.file_task import FileTask
from plm_jax.tasks.finetuning import task_settings
from plm_jax.tasks.suite import Suite
from plm_jax.tasks.task import Task, with_settings
from plm_jax.train import processes
from plm_jax.train.workdir import Workdir


def is_experiment(start: str | Path) -> bool:
  """Whether `start` names an experiment, FILE.py:FUNCTION, and no directory."""
  return ".py:" in str(start) and not Path(start).exists()


def untrained_run(reference: str, task: Task | Suite, settings: Sequence[str], cache: Path) -> Path:
  """The directory runs/FILE_FUNCTION_untrained[-DATA] of an experiment, written anew. Its
  tokenizer, of the kind and size in the experiment, is trained on the task's training texts; for
  tasks without files it is that of the experiment's text. Errors: `UserError` for an experiment
  whose model is made from counts."""
  experiment, record = chosen_experiment(reference, "", "small", [], None)
  if experiment.is_counted:
    raise UserError(f"--from={reference} was given, and its model is made from counts, not trained")
  name, config = f"{record['name']}_untrained", experiment.data.tokenizer
  with processes.first_goes_first():
    if isinstance(task, FileTask) and config.path is None:
      read, items, _ = with_settings(task, task_settings(settings)).read_files()
      tokenizer = config.train(text for item in items["train"] for text in item.texts)
      text: dict[str, Any] = {"source": {"given": read.source}, "tokenizer": recorded(tokenizer)}
      name = f"{name}-{task.place}"
    else:
      prepared = prepare(experiment.data, cache, progress=processes.is_first())
      tokenizer = prepared.tokenizer
      text = {key: prepared.manifest[key] for key in ("source", "tokenizer", "splits", "dropped")}
  model: Any = experiment.model
  model = dataclasses.replace(model, vocab_size=tokenizer.vocab.size)
  experiment = dataclasses.replace(experiment, model=model)
  with Workdir(Path("runs") / name) as workdir:
    workdir.write_config(experiment, record | {"text": text, "untrained": True})
    if processes.is_first():
      tokenizer.save(workdir / "tokenizer")
    return workdir.path


def recorded(tokenizer: Tokenizer) -> dict[str, Any]:
  """The entry of config.json for a tokenizer."""
  return {"size": tokenizer.vocab.size, "fingerprint": tokenizer.fingerprint}
