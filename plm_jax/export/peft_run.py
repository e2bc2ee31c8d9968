"""Adapters of Hugging Face PEFT and the runs of this project."""

import dataclasses
from pathlib import Path

from plm_jax.errors import UserError
from plm_jax.export import peft
from plm_jax.export.from_run import from_run
from plm_jax.export.pretrained import has_dense
from plm_jax.models.parameters import named
from plm_jax.runs import Run, RunInfo, adapted_model, base_of, check_base, with_adapter


def with_adapter_of(base: Run, path: Path) -> Run:
  """The base with the adapter in a directory: of a run with --peft, or of Hugging Face PEFT.

  Errors: `UserError` if it is neither, or belongs to another base.
  """
  if peft.is_adapter(path):
    return _with_published(base, path)
  info = RunInfo.read(path)
  if info.experiment.peft is None:
    raise UserError(f"{path} is a whole model and no adapter; load it alone.")
  check_base(info, base)
  return with_adapter(base, info)


def _with_published(base: Run, path: Path) -> Run:
  model = peft.load(path, from_run(base))
  public = {
    "config": dict(model.document),
    "architecture": model.architecture,
    "heads": model.heads,
    "pooling": base.document.get("public", {}).get("pooling"),
  }
  document = {**base.document, "public": public, "base": {"from": str(base.path)}}
  experiment = dataclasses.replace(base.experiment, model=model.config)
  changed = {"experiment": experiment, "params": model.params, "document": document, "path": path}
  return dataclasses.replace(base, **changed)


def write_adapter(path: Path, target: Path) -> str:
  """Writes the adapter of a run with --peft as a directory of Hugging Face PEFT; returns a sentence
  about it. Errors: `UserError` for a whole model, and for what PEFT does not have."""
  info = RunInfo.read(path)
  if info.experiment.peft is None:
    raise UserError(f"{path} is a whole model and no adapter; leave --to=peft out.")
  base = base_of(info)
  model, step = adapted_model(base, info)
  published = from_run(Run(**vars(info), params=model.whole, step=step))
  if has_dense(published.config, published.heads):
    raise UserError(
      f"the classes of {path} are read from the mean of the states, which no class of transformers "
      "does; leave --to=peft out, or fine-tune with --set=model.classifier=pooler"
    )
  document = {**published.document, "_name_or_path": base.document.get("converted_from")}
  adapter = peft.Adapter(model.peft, model.added, dict(named(model.trained)))
  peft.save(adapter, dataclasses.replace(published, document=document), target)
  return f"{type(model.peft).__name__}, for {published.architecture}"
