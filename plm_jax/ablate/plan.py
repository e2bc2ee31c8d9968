"""A sweep on disk: its arms and seeds, the directory of each run, and the run's commands.

    DIR/sweep.json        the `SweepPlan`; the directory of another sweep is refused
        ARM/SEED/         the working directory of one pretraining run, as run_pretrain.py makes it
        ARM/SEED/scores.json        its evaluation
        logs/ARM.SEED.log           the output of its commands
        states/ARM.SEED.json        how its last attempt ended, if it failed

A sweep only runs commands that a user can also type (`SweepPlan.commands`). This file does not
import jax, which keeps the process that starts a run small.
"""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import sys
import typing
from pathlib import Path
from typing import Any, NamedTuple, Self

from absl import flags

from plm_jax import overrides
from plm_jax.config_tree import field_types, fits
from plm_jax.errors import UserError
from plm_jax.files import read_json
from plm_jax.tasks.comparison import numbers_of_labels
from plm_jax.train.integrity import damage, without_digest
from plm_jax.train.workdir import read_records, run_hash, write_whole

FORMAT = 1
_PART = re.compile(r"([^:,]+\.py:\w+|\w+)(?:\s*:(.+))?")  # TASK:DATA, or FILE.py:CLASS:DATA
ROOT = Path(__file__).resolve().parents[2]
ATTEMPT = "--- a new attempt"  # a line of a log
CELL = "(made in Python)"  # of an arm that no file has; of a table, before its title
SWEEP, SCORES = "sweep.json", "scores.json"
_TAIL = 1 << 14  # bytes of a run's records that a view reads once a second


def define_evaluation() -> None:
  """The flags of `Evaluation`."""
  flags.DEFINE_string("blimp", None, "A folder of BLiMP's .jsonl files to evaluate on.")
  flags.DEFINE_integer("blimp_pairs", None, "At most this many pairs of each of its files.")
  flags.DEFINE_string("finetune", None, "Fine-tune on these numbers of labels, such as 500,all.")
  flags.DEFINE_string("tasks", None, "Fine-tune on TASK:DATA,TASK:DATA, or word_order.")
  flags.DEFINE_bool("gaps", False, "Measure how well gaps of three tokens are filled.")
  flags.DEFINE_string("probe", None, "Probe frozen states on these numbers of labels.")
  flags.DEFINE_string("tags", None, "Probe them on tagged words: two files, TRAIN,TEST.")
  flags.DEFINE_string("prompt", None, "Write a text from this prompt.")


class PlannedRun(NamedTuple):
  """One arm with one seed."""

  arm: str
  seed: int

  def __str__(self) -> str:
    return f"{self.arm}/{self.seed}"


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The flags of plm_jax/commands/evaluate.py: measurements of a run besides its held-out loss."""

  blimp: str | None = None
  blimp_pairs: int | None = None
  finetune: str | None = None
  tasks: str | None = None
  gaps: bool = False
  probe: str | None = None
  tags: str | None = None
  prompt: str | None = None

  def __post_init__(self):
    if self.blimp_pairs is not None and self.blimp_pairs < 1:
      raise UserError(f"--blimp_pairs={self.blimp_pairs} must be at least 1.")
    if self.blimp_pairs is not None and self.blimp is None:
      raise UserError(f"--blimp_pairs={self.blimp_pairs} says nothing without --blimp=FOLDER.")
    self.labels, self.probe_labels, self.parts  # noqa: B018  raise if they cannot be parsed

  @property
  def labels(self) -> list[int | None]:
    return numbers_of_labels(self.finetune, "finetune") if self.finetune else []

  @property
  def probe_labels(self) -> list[int | None]:
    return numbers_of_labels(self.probe, "probe") if self.probe else []

  @property
  def parts(self) -> dict[str, str | None]:
    """task -> its data, of `tasks`; None where a task has a text of its own."""
    if self.tasks is None:
      return {}
    parts = [_PART.fullmatch(part.strip()) for part in self.tasks.split(",")]
    names = [part and part[1] for part in parts]
    if None in names or len({*names}) < len(names):
      raise UserError(
        f"--tasks={self.tasks} was given; expected TASK:DATA, separated by commas, each task once, "
        "such as word_order,tag:FOLDER,answer:squad.json. A path must have no comma."
      )
    return {part[1]: part[2] and os.path.expanduser(part[2].strip()) for part in parts if part}

  def beside(self, before: Self) -> Self:
    """These flags, and those of `before` that are not set here: repeated commands keep them."""
    pairs = self if self.blimp else before
    names = [field.name for field in dataclasses.fields(self)]
    kept = {name: getattr(self, name) or getattr(before, name) for name in names}
    return type(self)(**kept | {"blimp": pairs.blimp, "blimp_pairs": pairs.blimp_pairs})

  def flags(self) -> list[str]:
    """Those that are set, as words of a command."""
    values = dataclasses.asdict(self)
    return [f"--{n}" if v is True else f"--{n}={v}" for n, v in values.items() if v]

  def is_that_of(self, record: dict[str, Any]) -> bool:
    """Whether a record, perhaps of an earlier version with fewer flags, has the same ones set."""
    ours, theirs = dataclasses.asdict(self), dict(record)
    return {k: v for k, v in ours.items() if v} == {k: v for k, v in theirs.items() if v}


@dataclasses.dataclass(frozen=True)
class SweepPlan:
  """The content of sweep.json. table, references of arms: `FILE:FUNCTION`, or `CELL`. steps: those
  of each arm. starts: arm -> the arm from whose run of the same seed it goes on. own: arm -> the
  settings of this arm alone."""

  table: str
  budget: str
  settings: tuple[str, ...]
  seeds: int
  references: dict[str, str]
  steps: dict[str, int]
  evaluation: Evaluation = Evaluation()
  cache: str | None = None
  starts: dict[str, str] = dataclasses.field(default_factory=dict)
  own: dict[str, list[str]] = dataclasses.field(default_factory=dict)

  @property
  def is_of_cell(self) -> bool:
    """Whether only the process that made the table can run it."""
    return self.table.startswith(CELL) or CELL in self.references.values()

  def runs(self, arms: list[str] | None = None) -> list[PlannedRun]:
    """All runs, seed by seed, so that all arms can be compared as early as possible."""
    return [PlannedRun(arm, s) for s in range(self.seeds) for arm in arms or self.references]

  def start_of(self, run: PlannedRun) -> PlannedRun | None:
    """The run that a run goes on from."""
    return PlannedRun(self.starts[run.arm], run.seed) if run.arm in self.starts else None

  def settings_of(self, run: PlannedRun) -> list[str]:
    """The settings of a run; one that goes on from another has that one's tokenizer."""
    settings = [*self.own.get(run.arm, ()), *self.settings]
    goes_on = run.arm in self.starts
    return [s for s in settings if not (goes_on and s.startswith("data.tokenizer"))]

  def commands(self, out: Path, run: PlannedRun) -> dict[str, list[str]]:
    """The commands of a run, in their order: name -> words."""
    workdir, script = workdir_of(out, run), ROOT / "run_pretrain.py"
    script = script.name if Path.cwd() == ROOT else str(script)
    cache = [f"--cache={self.cache}"] if self.cache else []
    pretrain = [f"--experiment={self.references[run.arm]}", f"--budget={self.budget}"]
    pretrain += [f"--seed={run.seed}", f"--workdir={workdir}"]
    if start := self.start_of(run):
      pretrain.append(f"--from={workdir_of(out, start)}")
    pretrain += [f"--set={setting}" for setting in self.settings_of(run)]
    evaluate = ["-m", "plm_jax.evaluate", f"--from={workdir}", *self.evaluation.flags()]
    return {
      "pretraining": [sys.executable, script, *pretrain, *cache],
      "evaluation": [sys.executable, *evaluate, *cache],
    }

  def shown(self, out: Path, run: PlannedRun) -> list[str]:
    """The same commands as a user would type them; none for an arm that no file has."""
    if self.references[run.arm] == CELL:
      return [f"{run}: its experiment was made in Python"]
    return [shlex.join(["python", *words[1:]]) for words in self.commands(out, run).values()]

  def record(self) -> dict[str, Any]:
    return {"format": FORMAT, **dataclasses.asdict(self)}


def environment() -> dict[str, str]:
  """The variables of a command, which finds this repository from any directory."""
  path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
  return {**os.environ, "PYTHONPATH": path}


def read_plan(out: Path) -> SweepPlan:
  """The sweep of a directory. Errors: `UserError` if it holds none."""
  try:
    record = read_json(out / SWEEP)
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(f"{out} is not the directory of a sweep: it has no {SWEEP}") from None
  if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
    raise UserError(f"{out / SWEEP} is not a sweep of this version")
  try:
    record["evaluation"] = _typed(Evaluation, record["evaluation"])
    return _typed(SweepPlan, record | {"settings": tuple(record["settings"])})
  except (KeyError, TypeError):
    raise UserError(f"{out / SWEEP} is not a sweep of this version") from None


def _typed(kind: type, record: dict[str, Any]) -> Any:
  """A dataclass from JSON. Errors: `TypeError` for a field of another type."""
  types = field_types(kind)
  for name, value in record.items():
    expected = typing.get_origin(types[name]) or types[name]
    right = isinstance(value, dict) if expected is dict else fits(value, types[name])
    if not right:
      raise TypeError(f"{name} is {value!r}")
  return kind(**record)


def claim(out: Path, plan: SweepPlan) -> SweepPlan:
  """Makes `out` the directory of this sweep, or continues the sweep in it.

  Seeds and evaluation may be extended later. Neither ever shrinks, so a report shows all runs. A
  sweep without any started run may be replaced by another: a command that was refused, because it
  lacked a teacher for example, can be corrected and repeated in the same directory. Errors:
  `UserError` if the directory contains something else.
  """
  others = [p.name for p in out.iterdir() if p.name not in (".lock", SWEEP, SWEEP + ".partial")]
  if others and not (out / SWEEP).exists():
    raise UserError(f"{out} is not empty and holds no sweep ({others[0]}); choose another --out")
  if (out / SWEEP).exists():
    before = read_plan(out)
    names = {"table": "table", "budget": "budget", "settings": "set"}
    if overrides.canonical(plan.settings) == overrides.canonical(before.settings):
      plan = dataclasses.replace(plan, settings=before.settings)  # 1.0 for 1
    different = [name for name in names if getattr(before, name) != getattr(plan, name)]
    if different and others:
      old, new = (_shown(getattr(each, different[0])) for each in (before, plan))
      raise UserError(
        f"{out} holds another sweep: --{names[different[0]]} is {old} there and {new} here; "
        "choose another --out"
      )
    if not different:
      plan = dataclasses.replace(
        plan,
        seeds=max(plan.seeds, before.seeds),
        evaluation=plan.evaluation.beside(before.evaluation),
      )
  write_whole(out / SWEEP, json.dumps(plan.record(), indent=2) + "\n")
  return plan


def _shown(value) -> str:
  return " ".join(value) or "nothing" if isinstance(value, tuple) else str(value)


# --- one run's state ------------------------------------------------------------------------------


class RunState(NamedTuple):
  """The progress of a run."""

  phase: str  # waiting, starting, training, evaluating, done, failed or stopped
  step: int = 0
  loss: float | None = None
  seconds_per_step: float | None = None
  why: str = ""
  evaluated_in: float | None = None  # seconds


def workdir_of(out: Path, run: PlannedRun) -> Path:
  return out / run.arm / str(run.seed)


def log_of(out: Path, run: PlannedRun) -> Path:
  return out / "logs" / f"{run.arm}.{run.seed}.log"


def begin_attempt(out: Path, run: PlannedRun) -> None:
  """Forgets why a run failed, and begins a new attempt in its log."""
  for path in (failure_of(out, run), log_of(out, run)):
    path.parent.mkdir(parents=True, exist_ok=True)
  failure_of(out, run).unlink(missing_ok=True)
  with open(log_of(out, run), "a") as log:
    log.write(f"{ATTEMPT}\n")


def failure_of(out: Path, run: PlannedRun) -> Path:
  return out / "states" / f"{run.arm}.{run.seed}.json"


def is_trained(out: Path, run: PlannedRun, steps: int) -> bool:
  """Whether the folder of the last checkpoint exists, which gets its name when it is complete."""
  return (workdir_of(out, run) / "checkpoints" / str(steps)).is_dir()


def has_trained(out: Path, run: PlannedRun, steps: int) -> bool:
  """Whether the last checkpoint is there, undamaged and of this run."""
  workdir = workdir_of(out, run)
  folder = workdir / "checkpoints" / str(steps)
  if not is_trained(out, run, steps) or folder.is_symlink() or damage(folder):
    return False
  return read_json(folder / "checkpoint.json").get("run") in (None, run_hash(workdir))


_SCORES = ("asked", "metrics", "counts", "sets", "references", "notes", "parameters")


def read_scores(out: Path, run: PlannedRun) -> dict[str, Any] | None:
  """The evaluation of a run; None if there is none. Errors: `UserError` if it is damaged."""
  path = workdir_of(out, run) / SCORES
  try:
    scores = without_digest(read_json(path), path)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except UserError as error:
    raise UserError(f"{error}; {_AGAIN}") from None
  complete = isinstance(scores, dict) and all(name in scores for name in _SCORES)
  tables = complete and all(isinstance(scores[name], dict) for name in ("asked", "metrics"))
  if not tables or not all(type(v) in (float, int) for v in scores["metrics"].values()):
    raise UserError(f"{path} is no evaluation of this version; {_AGAIN}")
  if scores.get("run") not in (None, run_hash(path.parent)):
    raise UserError(f"{path} is the evaluation of another run; {_AGAIN}")
  return scores


_AGAIN = "delete it, and the sweep's command measures this run again"


def is_done(out: Path, run: PlannedRun, plan: SweepPlan) -> bool:
  """Whether a run has all the measurements of the sweep."""
  scores = read_scores(out, run)
  return scores is not None and plan.evaluation.is_that_of(scores["asked"])


def state_of(out: Path, run: PlannedRun, plan: SweepPlan, alive: bool = False) -> RunState:
  """The state of a run by its files. alive: whether a process works on it."""
  step, loss, pace = _progress(workdir_of(out, run))
  steps = plan.steps[run.arm]
  if is_done(out, run, plan):
    seconds = read_scores(out, run).get("seconds")
    return RunState("done", steps, loss, pace, evaluated_in=seconds)
  if alive:
    phase = "training" if step else "starting"
    return RunState("evaluating" if is_trained(out, run, steps) else phase, step, loss, pace)
  if failure_of(out, run).exists():
    why = ""
    with contextlib.suppress(UserError, OSError, KeyError, TypeError):  # the log has the reason too
      why = str(read_json(failure_of(out, run))["why"])
    return RunState("failed", step, loss, pace, why)
  return RunState("stopped" if step else "waiting", step, loss, pace)


def _progress(workdir: Path) -> tuple[int, float | None, float | None]:
  """(last reported step, its loss, recent seconds per step)."""
  metrics = read_records(workdir / "metrics.jsonl", _TAIL)
  records = [record for record in metrics if record.get("split") == "train" and "loss" in record]
  timing = [r for r in read_records(workdir / "timing.jsonl", _TAIL) if "seconds" in r][-10:]
  if not records:
    return 0, None, None
  pace = None
  if len(timing) > 1:  # the first window includes the start
    pace = sum(r["seconds"] for r in timing[1:]) / (timing[-1]["step"] - timing[0]["step"])
  return records[-1]["step"], records[-1]["loss"], pace
