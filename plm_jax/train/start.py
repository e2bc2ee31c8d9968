"""From a command line to a resolved experiment, and what has to stand before the first step."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from plm_jax import cli, overrides
from plm_jax.data.draws import Draws
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.segments import beginning, ending
from plm_jax.data.tokenizers import Tokenizer, Vocab, load_tokenizer
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.models.distilbert import Distilled
from plm_jax.train.checkpoint import restore_parameters
from plm_jax.train.loop import Program
from plm_jax.train.workdir import read_config

# Heads come and go between runs, for example when continuing without next-sentence prediction.
HEADS = (
  *("mlm/*", "lm/*", "nsp/*", "sop/*", "rtd/*", "pooler/*", "classes/*", "bilstm/*"),
  *("token_classes/*", "span/*"),
)


class Source(NamedTuple):
  """The run that another one starts from."""

  path: Path
  document: dict[str, Any]
  experiment: Experiment
  tokenizer: Tokenizer


def continued_from(path: str | Path) -> Source:
  """Errors: `UserError` if `path` is not the directory of a run."""
  path = Path(path)
  document = read_config(path)
  experiment = overrides.from_json(document["experiment"])
  return Source(path, document, experiment, load_tokenizer(path / "tokenizer"))


def chosen_experiment(
  reference: str | None,
  default: str,
  budget: str,
  settings: list[str],
  seed: int | None,
  source: Source | None = None,
) -> tuple[Experiment, dict[str, Any]]:
  """The resolved experiment of a command line, and the record of how it came about.

  With a source, its experiment is the default and its tokenizer is kept; of a published model
  (plm_jax/commands/convert.py) the model too, whatever the experiment has. The record names the
  difference to the file's `base` at the same budget.
  """
  if reference is None:
    reference = source.document["reference"] if source else default
  experiment = cli.load_experiment(reference, budget=budget)()
  base = base_of(reference, budget) or experiment
  if source is not None and "public" in source.document and not experiment.model.encoder_path:
    experiment = with_model(experiment, source.experiment.model)
  experiment = overrides.apply(experiment, settings)
  if seed is not None:
    experiment = dataclasses.replace(experiment, seed=seed)
  if source is not None:
    experiment = with_tokenizer(experiment, source, settings)
  teacher = teacher_of(experiment, budget)
  if teacher is not None:
    if source is not None and source.tokenizer.fingerprint != teacher.tokenizer.fingerprint:
      raise UserError(
        f"--from={source.path} and model.teacher={teacher.path} have different tokenizers; a "
        "student reads what its teacher reads"
      )
    experiment = with_teacher(experiment, teacher, settings)
  experiment = experiment.resolve(vocab_size_of(experiment))
  file, _, function = reference.partition(":")
  suffix = "" if budget == "small" else f"_{budget}"
  record = {
    "name": f"{Path(file).stem}_{function}{suffix}",
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
    "command": sys.argv,
    "versions": versions(),
  }
  return experiment, record


def with_model(experiment: Experiment, model) -> Experiment:
  """The experiment with a published model, and rows that are no longer than it can read."""
  data = dataclasses.replace(experiment.data, length=min(experiment.data.length, model.positions))
  return dataclasses.replace(experiment, model=model, data=data)


def base_of(reference: str, budget: str) -> Experiment | None:
  """The experiment that a file's rows derive from: its function `base`, if there is one."""
  file, _, function = reference.partition(":")
  if function == "base" or "base" not in cli.experiments_of(file):
    return None
  return cli.load_experiment(f"{file}:base", budget=budget)()


def with_tokenizer(
  experiment: Experiment, source: Source, settings: list[str], role: str = "--from="
) -> Experiment:
  """The experiment with the source's tokenizer, without which its parameters mean nothing. role:
  how a sentence names the source."""
  chosen = experiment.data.tokenizer
  given = any(s.startswith("data.tokenizer") for s in settings)
  if given and (chosen.path is None or chosen.load().fingerprint != source.tokenizer.fingerprint):
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
  """The experiment with documents, if it packs any, that are framed only if the vocabulary has
  tokens for it."""
  segments = getattr(experiment.data, "segments", None)  # a labelled text has none
  if not isinstance(segments, PackedDocuments) or (beginning(vocab) and ending(vocab)):
    return experiment
  data = dataclasses.replace(experiment.data, segments=dataclasses.replace(segments, framed=False))
  return dataclasses.replace(experiment, data=data)


def teacher_of(experiment: Experiment, budget: str = "small") -> Source | None:
  """The run that a distillation learns from; None where nothing is distilled.

  Errors: `UserError` if it is not there, with the command that makes it, or predicts no tokens.
  """
  if not isinstance(experiment.model, Distilled):
    return None
  path = Path(experiment.model.teacher)
  if not (path / "config.json").exists():
    raise UserError(
      f"there is no teacher in {path}: train it with python run_pretrain.py "
      f"--experiment=experiments/bert.py:base --budget={budget} --workdir={path}, or name another "
      "run with --set=model.teacher=DIR"
    )
  source = continued_from(path)
  key = jax.random.key(0)
  if jax.eval_shape(source.experiment.init_parameters, key).encoder().masked_lm() is None:
    raise UserError(
      f"the teacher in {path} cannot teach: its encoder has no masked-LM head; name a run with one "
      "by --set=model.teacher=DIR"
    )
  return source


def with_teacher(experiment: Experiment, teacher: Source, settings: list[str]) -> Experiment:
  """The experiment with its teacher's sizes and tokenizer, which both must share."""
  model = dataclasses.replace(experiment.model, teacher_model=teacher.experiment.model.encoder)
  experiment = dataclasses.replace(experiment, model=model)
  return with_tokenizer(experiment, teacher, settings, "model.teacher=")


def vocab_size_of(experiment: Experiment) -> int:
  """The number of tokens that the tokenizer has, or will have at most once it is trained."""
  tokenizer = experiment.data.tokenizer
  if tokenizer.path is None:
    return tokenizer.vocab_size + tokenizer.added
  return tokenizer.load().vocab.size


def initial_record(source: Source | None) -> dict[str, Any] | None:
  if source is None:
    return None
  return {"from": str(source.path.absolute()), "tokenizer": source.tokenizer.fingerprint}


def initial_parameters(program: Program, source: Source | None) -> Any:
  """The source's parameters on the program's mesh, with heads that it lacks drawn afresh; without
  a source those that a teacher gives, or None.

  An encoder takes a composite model's encoder, a composite one of its own class everything.
  Errors: `UserError` naming shapes that do not fit.
  """
  if source is None:
    return taught_parameters(program)
  model, stored = program.experiment.model, source.experiment.model
  if model.encoder_path and type(model) is not type(stored):
    raise UserError(
      f"--from={source.path} holds a {type(stored).__name__}, from which a {type(model).__name__} "
      f"cannot start; expected a run of a {type(model).__name__}."
    )
  fresh = program.create().params
  place = "" if model.encoder_path else stored.encoder_path
  restored = restore_parameters(source.path, fresh, HEADS, HEADS, within=place)
  for names, what in ((restored.fresh, "starts at random"), (restored.unused, "is left out")):
    for name in names:
      print(f"{name} {what}: --from={source.path} and this run have different heads")
  return restored.params


def taught_parameters(program: Program) -> Any:
  """A distillation's parameters before the first step: its teacher's, and the student's from them.

  They are part of the state and so of every checkpoint: a run goes on with the very teacher that it
  began with, whatever has become of the directory where that was.
  """
  teacher = teacher_of(program.experiment)
  if teacher is None:
    return None
  fresh = program.create().params
  place = teacher.experiment.model.encoder_path
  restored = restore_parameters(teacher.path, fresh.teacher, allow_unused=HEADS, within=place)
  return fresh.taught(restored.params)


def example_batch(experiment: Experiment) -> dict[str, np.ndarray]:
  """A global batch of the right names, shapes and dtypes, before any text is read."""
  rows, length = experiment.global_batch, experiment.data.length
  special = np.zeros(16, bool)
  special[:5] = True
  tokenizer, any_ = experiment.data.tokenizer, np.ones(16, bool)
  vocab = Vocab(
    *(16, 0, 1, 2, 3, 4, None, None, special, any_, np.ones(16, int)),
    sentinels=np.full(tokenizer.sentinels, 15, np.int32) if tokenizer.sentinels else None,
    languages=dict.fromkeys(tokenizer.languages, 15),
    full_stop=any_,
  )
  batch = {
    "input_ids": np.full((rows, length), 5, np.int32),
    "segment_ids": np.zeros((rows, length), np.int32),
    "length": np.full(rows, length, np.int32),
    "pair_label": np.zeros(rows, np.int32),
    "row_weight": np.ones(rows, np.float32),
  }
  if getattr(getattr(experiment.data, "segments", None), "separate", False):
    batch["document_ids"] = np.zeros((rows, length), np.int32)
  if getattr(getattr(experiment.data, "segments", None), "ordered", False):
    batch |= {"begins": np.ones(rows, bool), "next_ids": np.zeros(rows, np.int32)}
  draws = Draws(0, 0, np.arange(rows))
  for objective in experiment.objectives:
    batch = objective.corrupt(batch, draws, vocab)
  return batch


def keep_compilations(cache: Path) -> None:
  """Keeps compiled programs on disk, so that a second start need not compile."""
  jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def versions() -> dict[str, str]:
  """What a number may depend on besides the configuration."""
  packages = ("plm_jax", "jax", "jaxlib", "flax", "optax", "numpy", "tokenizers")
  return {
    "python": platform.python_version(),
    "platform": f"{jax.default_backend()}: {jax.device_count()} x {jax.devices()[0].device_kind}",
    **{name: importlib.metadata.version(name) for name in packages},
  }
