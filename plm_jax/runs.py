"""A run: an experiment with its parameters and its tokenizer, in memory or in a directory.

    run = Run.load("runs/bert_tiny")    # the newest good checkpoint
    run.save("copy")

plm_jax/train/workdir.py lists the files of a directory. Every model with parameters can be a run:
trained, imported, or made from counts (`steps=0`, `objectives=()`).
"""

import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from plm_jax import overrides
from plm_jax.compression.forms import expanded, stored_as
from plm_jax.data.tokenizers import Tokenizer, load_tokenizer
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.models.compute import Compute
from plm_jax.models.model import Model, Parameters
from plm_jax.models.parameters import head_patterns, named, roles_of
from plm_jax.peft.adapted import AdaptedModel
from plm_jax.train.checkpoint import BEST, Checkpoints, Restored, restore_parameters
from plm_jax.train.process import versions
from plm_jax.train.stored_arrays import check_finite
from plm_jax.train.workdir import FORMAT, hash_of, own_code_entry, read_config, write_whole

if TYPE_CHECKING:
  from plm_jax.train.loop import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunInfo:
  """A run without its parameters.

  path, document: its directory and config.json's content; None and empty for a run in memory.
  """

  experiment: Experiment
  tokenizer: Tokenizer
  path: Path | None = None
  document: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def read(cls, path: str | Path) -> "RunInfo":
    """Errors: `UserError` if `path` is not the directory of a run."""
    path = Path(path)
    document = read_config(path)
    try:
      experiment = overrides.from_json(document["experiment"])
    except UserError as error:
      raise UserError(f"{path / 'config.json'}: {error}") from None
    tokenizer = load_tokenizer(path / "tokenizer")
    text = document.get("text")
    recorded = text.get("tokenizer") if isinstance(text, dict) else None
    known = recorded.get("fingerprint") if isinstance(recorded, dict) else None
    if known is not None and known != tokenizer.fingerprint:
      raise UserError(
        f"{path / 'tokenizer'} is not the tokenizer that {path / 'config.json'} records; put that "
        "one back"
      )
    return RunInfo(
      experiment=experiment,
      tokenizer=tokenizer,
      path=path,
      document=document,
    )

  @property
  def config(self) -> Model:
    """The model that is fine-tuned and evaluated: the discriminator of an ELECTRA."""
    return self.experiment.model.encoder

  @property
  def compute(self) -> Compute:
    return self.experiment.compute

  @property
  def pooling(self) -> dict[str, Any] | None:
    """How a text becomes a vector, of a model that was trained for it here (the task `similar`) or
    elsewhere: `modes`, and for a published one `normalize`, `length` and `lowercase`."""
    if mode := getattr(self.experiment.data, "pooling", None):
      return {"modes": [mode]}
    return (self.document.get("public") or {}).get("pooling")

  @property
  def form(self) -> str | None:
    """The form of the parameters in the checkpoint (plm_jax/compression/forms.py)."""
    return (self.document.get("shrunk") or {}).get("form")

  @property
  def heads(self) -> dict[str, int]:
    """The heads in the checkpoint: those of the objectives, or of the imported architecture."""
    public = self.document.get("public")
    return self.experiment.heads if public is None else public["heads"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(RunInfo):
  """A run with its parameters. step: that of their checkpoint."""

  params: Parameters
  step: int = 0

  @classmethod
  def load(cls, path: str | Path) -> "Run":
    """The newest good checkpoint in a run's directory, on one device.

    Errors: `UserError` if `path` is not the directory of a run, or has no good checkpoint.
    """
    info = RunInfo.read(path)
    if info.experiment.peft is not None:
      return with_adapter(base_of(info), info)
    restored = restore_parameters(info.path, shapes_of(info, info.form))
    return cls(**vars(info), params=restored.params, step=int(restored.folder.name))

  def save(self, path: str | Path) -> None:
    """Writes the run as a directory that every command reads, without an optimiser's state.

    Errors: `UserError` if it is not empty (a newer checkpoint would win), or cannot be written, or
    if the run has modules that no configuration describes.
    """
    path = Path(path)
    check_merged(self)
    check_finite(self.params, path)
    try:
      path.mkdir(parents=True, exist_ok=True)
      if (path / "config.json").exists():
        raise UserError(f"{path} already holds a run or a model; choose another directory")
      if any(path.iterdir()):
        raise UserError(f"{path} is not empty and holds no run; choose another directory")
      self.tokenizer.save(path / "tokenizer")
    except OSError as error:
      raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    document = {
      "name": path.name,
      "diff": [],
      "initial": None,
      "teacher": None,
      "command": sys.argv,
      "versions": versions(),
      **{name: entry for name, entry in self.document.items() if name != "base"},
      "format": FORMAT,
      "experiment": overrides.to_json(self.experiment),
    }
    document |= own_code_entry(path, document)
    document = json.loads(json.dumps(document))
    with Checkpoints(path / "checkpoints", run=hash_of(document)) as checkpoints:
      checkpoints.save(self.step, {"params": self.params}, {"step": self.step})
    write_whole(path / "config.json", json.dumps(document, indent=2) + "\n")


def shapes_of(run: RunInfo, form: str | None = None) -> Parameters:
  """The shapes of a run's parameters in a form; None is float32."""
  model = run.experiment.model
  return jax.eval_shape(lambda key: stored_as(form, model.init(key, run.heads)), jax.random.key(0))


def in_float32(run: Run) -> Run:
  """The run with its parameters in float32, as its model makes them."""
  if run.form is None:
    return run
  document = {name: entry for name, entry in run.document.items() if name != "shrunk"}
  params = expanded(run.params, shapes_of(run))
  return dataclasses.replace(run, params=params, document=document)


# --- adapters and their bases ---------------------------------------------------------------------


def parameters_hash(params: Parameters) -> str:
  """SHA-256 of the names, shapes and values of a run's parameters: the same for every copy."""
  digest = hashlib.sha256()
  for path, leaf in named(params):
    digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


def base_record(source: RunInfo) -> dict[str, str]:
  """The entry of config.json for the base of an adapter."""
  path = source.path or Path()
  files = sorted(file for name in (BEST, "checkpoints") for file in path.glob(f"{name}/*/manifest"))
  digest = _hash_of_run(path, tuple(file.read_text() for file in files))
  return {"from": str(path.absolute()), "parameters": digest}


@functools.lru_cache(maxsize=4)
def _hash_of_run(path: Path, manifests: tuple[str, ...]) -> str:
  """Computed once for the cells of a comparison. manifests: those of the run as it is."""
  del manifests
  return parameters_hash(Run.load(path).params)


def base_of(adapter: RunInfo, path: str | Path | None = None) -> Run:
  """The base of an adapter, in the directory where it was, or at `path`. Errors: `UserError` if
  there is none, or if it is another model."""
  record = adapter.document.get("base") or {}
  place = Path(path or record.get("from", ""))
  if not os.path.exists(place / "config.json"):  # also for names that no file can have
    raise UserError(
      f"{adapter.path} is an adapter of the base in {place}, which is not there; name the place "
      f"where it is: python -m plm_jax.adapter --model={adapter.path} --base=DIR"
    )
  base = Run.load(place)
  check_base(adapter, base)
  return base


def check_base(adapter: RunInfo, base: Run) -> None:
  """A `UserError` unless the adapter was trained on this base."""
  record = adapter.document.get("base") or {}
  if parameters_hash(base.params) != record.get("parameters"):
    raise UserError(
      f"{adapter.path} was trained on the base {record.get('from')}, and the parameters in "
      f"{base.path} are others: that run was trained on, or it is another model; name the base as "
      f"it was: python -m plm_jax.adapter --model={adapter.path} --base=DIR"
    )


def adapted_model(base: Run, adapter: RunInfo) -> tuple[AdaptedModel, int]:
  """The parameters of a training that is stored without its base, and their step."""
  experiment = adapter.experiment
  shapes = jax.eval_shape(experiment.init_parameters, jax.random.key(0))
  kept = restore_parameters(adapter.path, dataclasses.replace(shapes, base=None))
  whole = base.params if experiment.model.encoder_path else base.params.encoder()
  arrays = dict(named(whole))
  wanted = named(shapes.base)
  for path, leaf in wanted:
    if path not in arrays or arrays[path].shape != leaf.shape:
      stored = f"has {list(arrays[path].shape)}" if path in arrays else "does not have it"
      raise UserError(
        f"{adapter.path} does not fit the base {base.path}: {path} should be {list(leaf.shape)}, "
        f"and the base {stored}"
      )
  frozen = jax.tree.unflatten(jax.tree.structure(shapes.base), [arrays[path] for path, _ in wanted])
  return dataclasses.replace(kept.params, base=frozen), int(kept.folder.name)


def with_adapter(base: Run, adapter: RunInfo, merge: bool = True) -> Run:
  """A run of the base with an adapter, for use. merge: compute the sum of both once, if the method
  can; otherwise the base's arrays are shared with the base."""
  model, step = adapted_model(base, adapter)
  params = model.result() if merge else model.applied()
  config: Any = adapter.experiment.model
  if columns := model.peft.columns:
    config = dataclasses.replace(config, positions=config.positions - columns)
  experiment = dataclasses.replace(adapter.experiment, model=config, peft=None)
  return Run(**vars(adapter) | {"experiment": experiment}, params=params, step=step)


def check_merged(run: Run) -> None:
  """A `UserError` for a run with modules of an adapter, which its configuration does not have."""
  if "base" not in run.document:
    return
  if jax.tree.structure(shapes_of(run)) != jax.tree.structure(run.params):
    raise UserError(
      f"the adapter in {run.path} cannot be merged into its base, so it is no model without it; "
      "keep the directory of the adapter (--to=peft of plm_jax.convert may write it for peft)"
    )


def refuse_counted(run: RunInfo) -> None:
  """A `UserError` for a model that was made from counts."""
  if hasattr(run.config, "counted"):
    raise UserError(
      f"the model {type(run.config).__name__} is made from counts and has no vectors of tokens; "
      "give another model."
    )


def check_predicts_tokens(run: Run) -> None:
  """A `UserError` for a run without a head that predicts tokens."""
  if classes := run.experiment.heads.get("classes"):
    raise UserError(
      f"{run.path} was fine-tuned to predict {classes} classes, not tokens; python -m "
      f"plm_jax.convert {run.path} DST makes it a classifier for transformers"
    )
  public = run.document.get("public")
  pretraining = jax.eval_shape(
    lambda key: stored_as(run.form, run.experiment.init_parameters(key)), jax.random.key(0)
  )
  if public and jax.tree.structure(run.params) != jax.tree.structure(pretraining):
    raise UserError(
      f"{run.path} is a {public['architecture']}, which has no head that predicts tokens; "
      "convert a checkpoint that has one, or train one with run_pretrain.py --from"
    )


# --- parameters that another run starts from ------------------------------------------------------


def history(run: RunInfo) -> Iterator[RunInfo]:
  """The run, the one that it started from, and so on, as far as their directories exist."""
  yield run
  while (initial := run.document.get("initial")) and "from" in initial:
    try:
      run = RunInfo.read(initial["from"])
    except UserError as error:
      print(f"note: the text of the pretraining before that is unknown: {error}", file=sys.stderr)
      return
    yield run


def row_limit(run: RunInfo) -> int:
  """The most tokens of a row. Learned positions that no run in its history reached are random."""
  most = run.config.positions
  if getattr(run.config, "position", None) != "learned":
    return most
  runs = list(history(run))
  if "untrained" in run.document or any("public" in each.document for each in runs):
    return most
  return min(most, max(each.experiment.data.length for each in runs))


def initial_record(source: RunInfo | None) -> dict[str, Any] | None:
  """The entry of config.json for the run that parameters were taken from."""
  if source is None:
    return None
  return {"from": str(source.path.absolute()), "tokenizer": source.tokenizer.fingerprint}


def initial_parameters(program: "Program", source: RunInfo | None) -> Parameters | None:
  """The source's parameters on the program's mesh, with new random heads where it lacks them.
  Without a source: the teacher's and the student's, or None without a teacher.

  An encoder starts from a composite model's encoder, a composite model from one of the same class.
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
  place = "" if model.encoder_path else stored.encoder_path
  restored = restored_onto(program, source, place)
  for head in dict.fromkeys(name.split("/")[0] for name in restored.fresh):
    print(f"note: --from={source.path} has no head {head!r}, so a new one starts at random; its "
          "first losses are near those of guesses")  # fmt: skip
  for head in dict.fromkeys(name.split("/")[0] for name in restored.unused):
    print(f"note: the head {head!r} of --from={source.path} is left out: no objective needs it")
  return restored.params


def restored_onto(program: "Program", source: RunInfo, place: str) -> Restored:
  """The program's first parameters with those of a source, all but the heads that only one of them
  has. place: of the source's parameters in its checkpoint.

  Errors: `UserError` naming shapes that do not fit, and a source that is itself an adapter.
  """
  if source.experiment.peft is not None:
    raise UserError(
      f"{source.path} holds an adapter without its base, from which no training starts; merge it "
      f"first: python -m plm_jax.adapter --model={source.path} --merge=DIR"
    )
  if source.form is not None:
    raise UserError(
      f"{source.path} is stored as {source.form}, and training needs float32; start from the run "
      f"that it was made from, {source.document['shrunk'].get('from')}"
    )
  fresh = program.create().params
  is_adapted = program.experiment.peft is not None
  whole = fresh.whole if is_adapted else fresh
  heads = head_patterns(roles_of(whole))
  restored = restore_parameters(source.path, whole, heads, heads, within=place)
  if not is_adapted:
    return restored
  frozen = {path for path, _ in named(fresh.base)}
  for name in frozen.intersection(restored.fresh):
    raise UserError(
      f"{name} is new, because --from={source.path} has no such head, and peft would leave it as "
      f"it is drawn; train it too: --set=peft.train={name.split('/')[0]}/*"
    )
  return restored._replace(params=fresh.on(restored.params))


def taught_parameters(program: "Program") -> Parameters | None:
  """The initial parameters of a distillation: the teacher's, and the student's made from them.

  Every checkpoint has them: a run resumes with its original teacher, whatever its directory holds.
  """
  teacher = teacher_of(program.experiment)
  if teacher is None:
    return None
  fresh = program.create().params
  place = teacher.experiment.model.encoder_path
  heads = head_patterns(roles_of(fresh.teacher))
  restored = restore_parameters(teacher.path, fresh.teacher, allow_unused=heads, within=place)
  return fresh.taught(restored.params)


def teacher_of(experiment: Experiment, budget: str = "small") -> RunInfo | None:
  """The run that a distillation learns from; None for all other experiments.

  Errors: `UserError` if the directory is missing, or if the run predicts no masked tokens.
  """
  if not hasattr(experiment.model, "teacher"):
    return None
  path = Path(experiment.model.teacher)
  if not (path / "config.json").exists():
    raise UserError(
      f"there is no teacher in {path}: train it with python run_pretrain.py "
      f"--experiment=experiments/bert.py:base --budget={budget} --workdir={path}, or name another "
      "run with --set=model.teacher=DIR"
    )
  teacher = RunInfo.read(path)
  key = jax.random.key(0)
  if jax.eval_shape(teacher.experiment.init_parameters, key).encoder().masked_lm() is None:
    raise UserError(
      f"the teacher in {path} cannot teach: its encoder has no masked-LM head; name a run with one "
      "by --set=model.teacher=DIR"
    )
  return teacher
