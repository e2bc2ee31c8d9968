"""The one training loop: everything that is trained by gradient goes through `fit`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.models.model import Parameters
from plm_jax.progress import progress_bar
from plm_jax.sharding import AnyMesh, batch_sharding, parameter_shardings, to_global
from plm_jax.sizes import check_state
from plm_jax.train import processes
from plm_jax.train.checkpoint import Checkpoints
from plm_jax.train.memory import check_fits, compile_step
from plm_jax.train.metrics import JsonLines, Records, Sink, Tee, TensorBoard, means
from plm_jax.train.processes import Interrupted
from plm_jax.train.running import OF_SKIP, running
from plm_jax.train.selection import SELECTION, Selection
from plm_jax.train.spikes import SPIKES, Rewind, Spikes
from plm_jax.train.state import TrainState, check_frozen, create_state, merge_frozen, stored
from plm_jax.train.step import evaluation_step, metric_names, together
from plm_jax.train.trace import Trace
from plm_jax.train.workdir import Workdir, run_hash

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
NO_TEXTS: Mapping[str, int] = MappingProxyType({})


class BatchStream(Protocol):
  """An iterator of host-local batches that counts the seconds its consumer waited."""

  waited: float

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]: ...
  def __next__(self) -> dict[str, np.ndarray]: ...
  def close(self) -> None: ...


class Data(NamedTuple):
  """Batches of a run. training(step): an iterator from that step on; the step is the only data
  position in a checkpoint. evaluation: held-out batches of the same shapes. texts: if they are of
  several texts, in this order: name -> number of batches."""

  training: Callable[[int], BatchStream]
  evaluation: list[dict[str, np.ndarray]]
  texts: Mapping[str, int] = NO_TEXTS


@dataclasses.dataclass(frozen=True)
class Program:
  """An experiment compiled for a mesh. step: donates the state; for batches of the shapes that were
  compiled. step_for: the step of other batches, compiled when their shapes come first. evaluate:
  float32 [2] per metric, its sum and count, and the carry after a batch. memory: bytes per device
  that the step needs, as XLA reports it. micro_batches: the number of parts of a batch."""

  experiment: Experiment
  mesh: jax.sharding.Mesh
  abstract: TrainState  # shapes, dtypes and shardings of the state
  create: Callable[[], TrainState]
  step: Callable[[TrainState, dict[str, jax.Array]], TrainState]
  step_for: Callable[[dict[str, jax.Array]], Callable]
  evaluate: Callable[[Parameters, dict[str, jax.Array], Any], tuple[dict[str, jax.Array], Any]]
  memory: int
  micro_batches: int


def compile_experiment(
  experiment: Experiment, batch: dict[str, Any], devices: list[jax.Device] | None = None
) -> Program:
  """Compiles the step for batches like `batch` (arrays or shapes of a whole global batch).

  devices: None takes all. Errors: `UserError` for an experiment that trains nothing, or does not
  fit in the devices' memory (memory.py).
  """
  experiment.check_trains()
  mesh = experiment.mesh.build(devices)
  check_batch_divides(experiment, mesh)
  settings = {"objectives": experiment.objectives, "compute": experiment.compute}
  rows = shapes_on(batch, mesh)
  create, shapes = planned_state(experiment, rows)
  abstract = placed_on(mesh, shapes)
  compiled = compile_step(experiment, abstract, rows, mesh)
  steps = {shapes_of(rows): compiled.step}

  def step_for(batch):
    key = shapes_of(batch)
    if key not in steps:
      steps[key] = compile_step(experiment, abstract, shapes_on(batch, mesh), mesh).step
    return steps[key]

  return Program(
    experiment=experiment,
    mesh=mesh,
    abstract=abstract,
    create=jax.jit(create, out_shardings=shardings_of(abstract), compiler_options=once()),
    step=compiled.step,
    step_for=step_for,
    evaluate=on_mesh(mesh, jax.jit(functools.partial(evaluation_step, **settings))),
    memory=compiled.memory,
    micro_batches=compiled.parts,
  )


def planned_state(
  experiment: Experiment, rows: dict[str, Any]
) -> tuple[Callable[[], TrainState], TrainState]:
  """A function that creates the state before training; and the state's shapes. rows: arrays or
  shapes of a batch."""
  transform = experiment.optim.transform(experiment.steps)
  settings = {"objectives": experiment.objectives, "compute": experiment.compute}
  key = jax.random.key(experiment.seed)
  continues = "begins" in rows
  if continues and not hasattr(jax.eval_shape(experiment.init_parameters, key), "carry"):
    raise UserError(
      f"data.segments.ordered=true is for models that carry a state from batch to batch, and "
      f"{type(experiment.model).__name__} does not; leave it at false"
    )

  def create():
    params = experiment.init_parameters(jax.random.fold_in(key, 0))
    names = metric_names(params, rows, **settings)
    carry = params.carry(experiment.global_batch) if continues else None
    skips = experiment.on_spike == "skip"
    state = create_state(
      params,
      transform,
      jax.random.fold_in(key, 1),
      [*names, *["skipped"] * skips],
      experiment.frozen,
      carry,
    )
    return dataclasses.replace(state, running=running() if skips else None)

  shapes = jax.eval_shape(create)
  check_state((shapes.params, shapes.opt_state))
  check_frozen(shapes.params, experiment.tuning.freeze)
  return create, shapes


def placed_on(mesh: AnyMesh, shapes: TrainState) -> TrainState:
  """The shapes of a state, with shardings on the mesh."""
  shardings = dataclasses.replace(
    parameter_shardings(dataclasses.replace(shapes, carry=None), mesh),
    carry=jax.tree.map(lambda _: batch_sharding(mesh), shapes.carry),
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def shardings_of(abstract: TrainState) -> Any:
  return jax.tree.map(lambda x: x.sharding, abstract)


def shapes_on(batch: dict[str, Any], mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of a batch's arrays on the mesh."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for name, x in batch.items()
  }


def shapes_of(batch: dict[str, Any]) -> tuple:
  """The key of a batch's compiled step."""
  return tuple((name, batch[name].shape) for name in sorted(batch))


def on_mesh(mesh, function: Callable) -> Callable:
  """`function`, traced with `mesh` set, which `placement.split_rows` reads."""

  def call(*arguments):
    with jax.set_mesh(mesh):
      return function(*arguments)

  return call


def once() -> dict[str, int]:
  """Options for a program that runs once: on a CPU, optimising it takes longer than running it."""
  return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}


def check_batch_divides(experiment: Experiment, mesh: AnyMesh) -> None:
  """A `UserError` if a micro-batch does not spread evenly over the devices, or splits a group of
  rows."""
  devices = mesh.shape["data"] * mesh.shape["fsdp"]
  parts = max(experiment.compute.micro_batches, 1)
  group = together(experiment.objectives)
  if experiment.global_batch % (parts * group):
    raise UserError(
      f"global_batch={experiment.global_batch} in {parts} micro-batches would split the {group} "
      f"rows of an example; it must be a multiple of {parts * group}"
    )
  updates = getattr(experiment.optim, "updates", 1)
  if updates > 1 and (parts > 1 or experiment.global_batch % (devices * updates)):
    raise UserError(
      f"optim.updates={updates} reads the rows of a step in as many equal parts; global_batch="
      f"{experiment.global_batch} must be a multiple of {devices * updates}, and "
      "compute.micro_batches 1"
    )
  if experiment.global_batch % (devices * parts):
    raise UserError(
      f"global_batch={experiment.global_batch} in {parts} micro-batches does not divide evenly "
      f"over {devices} devices (mesh.data * mesh.fsdp); it must be a multiple of {devices * parts}"
    )


def fit(
  program: Program,
  data: Data,
  workdir: Workdir,
  *,
  initial: Parameters | None = None,
  sinks: Sequence[Sink] = (),
  quiet: bool = False,
  title: str = "training",
  selection: Selection | None = None,
  profile: Path | None = None,
) -> tuple[TrainState, list[dict]]:
  """Trains to the end, from the last good checkpoint in `workdir` if there is one.

  initial: parameters to start from instead of random ones. sinks: further destinations of the
  records, closed by their owner. title: the label of the progress bar. selection: keeps the best
  parameters, and may end the training early. profile: a folder for a trace of a few steps
  (trace.py).
  Returns the final state and all metric records. Errors: `UserError` when the loss stops being
  finite, naming the step; `Interrupted` after SIGTERM, SIGINT or SIGHUP, with everything saved,
  also if the signal came in the last step: it holds for the whole command.
  """
  check_fits(program.memory, program.mesh)
  spikes = Spikes(program.experiment, workdir)
  options = {"sinks": sinks, "quiet": quiet, "title": title, "profile": profile}
  with Stopping() as stopping:
    while True:
      try:
        state, records, step = _fit(
          program, data, workdir, spikes, stopping, initial, selection, **options
        )
        break
      except Rewind:
        spikes.go_back()
  if stopping.at_end():
    raise Interrupted(f"saved step {step}")
  return state, records


def _fit(
  program, data, workdir, spikes, stopping, initial, selection, *, sinks, quiet, title, profile
):
  """`fit`, until it ends or goes back to an earlier step (`Rewind`); and its last step."""
  experiment, schedule = program.experiment, program.experiment.schedule
  with contextlib.ExitStack() as stack:

    def opened(resource):
      return stack.enter_context(contextlib.closing(resource))

    run = run_hash(workdir.path)
    checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", schedule.keep, run=run))
    state, start = restore_or_create(program, checkpoints, initial, workdir)
    before = checkpoints.logs(start) if start else {}
    last_record = start or -1  # a fresh start writes its evaluation of step 0 again
    metrics, timing = Records(), Records()
    if processes.is_first():
      sinks = (opened(TensorBoard(workdir / "tensorboard")), *sinks)
      metrics = opened(JsonLines(workdir / METRICS, last_record, before.get(METRICS)))
      timing = opened(JsonLines(workdir / TIMING, last_record, before.get(TIMING)))
    quiet = quiet or not processes.is_first()
    spikes.begin(start, before, checkpoints)
    written = Tee(metrics, *sinks, spikes), Tee(timing, *sinks)
    reporter = opened(Reporter(program, checkpoints, spikes, *written, start, quiet, title))
    if start and not quiet:
      print(f"{title}: resuming at step {start:,} of {experiment.steps:,}", file=sys.stderr)
    if start == 0:
      reporter.evaluated(0, evaluate(program, state.params, data.evaluation, data.texts))
    ended = selection is not None and selection.begin(start, state.params, before.get(SELECTION))
    stream = opened(data.training(start + spikes.offset))
    trace = opened(Trace(profile if processes.is_first() else None, start))

    step = start
    for step in range(start + 1, (start if ended else experiment.steps) + 1):
      batch = to_global(next(stream), program.mesh)
      state = program.step_for(batch)(state, batch)
      reporter.stepped(stream.waited)
      trace.stepped(step, state)
      last = step == experiment.steps
      if selection is not None and selection.due(step, last):
        last = selection.look(step, state.params) or last
      stops = stopping.now()
      if step % schedule.log == 0 or last:
        state = reporter.take(step, state)
      if last or schedule.evaluates(step):
        reporter.write()
        reporter.evaluated(step, evaluate(program, state.params, data.evaluation, data.texts))
      if last or step % schedule.save == 0 or stops:
        reporter.write()
        raise_if_nonfinite(int(state.first_bad), checkpoints, spikes)
        logs = {METRICS: metrics.sync(), TIMING: timing.sync(), SPIKES: spikes.text}
        if selection is not None:
          logs[SELECTION] = selection.sync()
        kept, meta = stored(state, experiment.omitted), {"step": step, "seed": experiment.seed}
        checkpoints.save(step, kept, meta, logs, spikes.protected(step, checkpoints.steps()))
      if last or stops:
        break
  spikes.at_end()
  return state, metrics.records, step


def restore_or_create(
  program: Program, checkpoints: Checkpoints, initial, workdir: Workdir
) -> tuple[TrainState, int]:
  """The state to continue from, and its step. Errors: `UserError` if its checkpoint was lost."""
  step, omitted = checkpoints.latest_good(), program.experiment.omitted
  if step is not None:
    state, _, step = checkpoints.restore(stored(program.abstract, omitted), step, OF_SKIP)
    return completed(state, program, initial) if omitted else state, step
  if lost := workdir.lost(program.experiment.schedule.save):
    raise UserError(
      f"{workdir / METRICS} has records up to step {lost}, but {checkpoints.directory} has no "
      f"checkpoint; put it back, or move {workdir.path} away to start from the beginning"
    )
  state = program.create()
  if initial is not None:
    shardings = jax.tree.map(lambda x: x.sharding, program.abstract.params)
    if program.experiment.on_spike == "rewind":  # they are needed again
      initial = jax.tree.map(jnp.copy, initial)
    state = dataclasses.replace(state, params=jax.device_put(initial, shardings))
  return state, 0


def completed(state: TrainState, program: Program, initial) -> TrainState:
  """A restored state with the parameters that checkpoints leave out, which are as at the start."""
  first = program.create().params if initial is None else initial
  shardings = jax.tree.map(lambda x: x.sharding, program.abstract.params)
  params = jax.device_put(merge_frozen(state.params, first), shardings)
  return dataclasses.replace(state, params=params)


def evaluate(
  program: Program, params, batches: Iterable[dict], texts: Mapping[str, int] = NO_TEXTS
) -> dict[str, float]:
  """The mean of every metric over all held-out predictions, accumulated in float64, and over those
  of each of several texts. A model that carries a state in training carries it here too."""
  sums, carry = [], None
  if program.abstract.carry is not None:
    carry = jax.tree.map(_zeros, program.abstract.carry)
  for batch in batches:
    terms, carry = program.evaluate(params, to_global(batch, program.mesh), carry)
    sums.append(terms)
  values, first = means(sums), 0
  for text, count in texts.items():
    of_text = means(sums[first : first + count])
    values |= {f"{text}/{name}": value for name, value in of_text.items()}
    first += count
  return values


def _zeros(x: jax.ShapeDtypeStruct) -> jax.Array:
  return jnp.zeros(x.shape, x.dtype, device=x.sharding)


def raise_if_nonfinite(first_bad: int, checkpoints: Checkpoints, spikes: Spikes) -> None:
  """A `UserError`, or `Rewind`, if an update since the last check was not finite."""
  if not first_bad:
    return
  checkpoints.wait()
  spikes.nonfinite(first_bad)
  good = checkpoints.steps()
  last = f"the last good checkpoint is that of step {good[-1]}" if good else "nothing was saved yet"
  raise UserError(
    f"the loss or its gradient stopped being finite at step {first_bad}; {last}. Lower optim.peak, "
    "lengthen optim.warmup or check the data"
  )


class Reporter:
  """Progress bar, metrics and timing. Reads a step's numbers only after the next step has been
  dispatched, so that the device never waits for the host."""

  def __init__(
    self, program, checkpoints, spikes, metrics: Sink, timing: Sink, start: int, quiet, title
  ):
    experiment = program.experiment
    self._checkpoints, self._spikes = checkpoints, spikes
    self._metrics, self._timing = metrics, timing
    # Not `device_put`, with which processes would compare the zeros over the devices every time.
    empty = program.abstract.metrics
    self._zeros = jax.jit(
      lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), empty),
      out_shardings=jax.tree.map(lambda x: x.sharding, empty),
    )
    self._tokens = experiment.global_batch * experiment.data.length
    self._pending: tuple | None = None
    self._window = (time.perf_counter(), time.process_time(), start, 0.0)
    self._waited = 0.0
    self._bar = progress_bar(
      experiment.steps,
      title,
      initial=start,
      unit="step",
      disable=quiet,
      bar_format="{desc} {n_fmt}/{total_fmt} |{bar:12}| {elapsed}<{remaining}{postfix}",
    )

  def stepped(self, waited: float) -> None:
    """After a step is dispatched: writes the numbers that an earlier `take` set aside."""
    self._waited = waited
    self.write()
    self._bar.update(1)

  def take(self, step: int, state: TrainState) -> TrainState:
    """Sets a window's numbers aside; returns the state with empty metrics for the next one."""
    self.write()
    self._pending = (step, state.metrics, state.first_bad + 0)
    return dataclasses.replace(state, metrics=self._zeros())

  def evaluated(self, step: int, values: dict[str, float]) -> None:
    self._metrics.write({"step": step, "split": "valid", **values})

  def close(self) -> None:
    self._bar.close()

  def write(self) -> None:
    """Writes the numbers that are set aside. Errors: `UserError` if a loss was not finite."""
    if self._pending is None:
      return
    (step, *numbers), self._pending = self._pending, None
    numbers, first_bad = jax.device_get(numbers)
    raise_if_nonfinite(int(first_bad), self._checkpoints, self._spikes)
    values = {name: float(total / (count or 1)) for name, (total, count) in numbers.items()}
    self._metrics.write({"step": step, "split": "train", **values})
    self._write_timing(step, values["loss"])

  def _write_timing(self, step: int, loss: float) -> None:
    now, processor = time.perf_counter(), time.process_time()
    then, processor_then, step_then, waited_then = self._window
    self._window = (now, processor, step, self._waited)
    speed = (step - step_then) * self._tokens / (now - then)
    waited = self._waited - waited_then
    record = {"step": step, "tokens_per_second": speed, "seconds": now - then, "data_wait": waited}
    record["processor_seconds"] = processor - processor_then
    self._timing.write(record)
    self._bar.set_postfix_str(
      f"loss {loss:.3f}, {speed / 1000:.1f}k tokens/s, data wait {self._waited:.1f}s",
      refresh=False,  # the next step draws it, or a log would get a line each time
    )


class Stopping:
  """Turns the first SIGTERM, SIGINT or SIGHUP into a request to save and stop, on which all
  processes agree; the second ends at once."""

  def __init__(self):
    self.asked = False
    self._any_asked = processes.AskedToStop()
    self._before: dict[int, Any] = {}

  def __enter__(self) -> Stopping:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
        continue  # nohup
      # Outside the main thread the caller's handlers stay.
      with contextlib.suppress(ValueError):
        self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def now(self) -> bool:
    """Whether the run stops after this step; called at every step, and equal in all processes."""
    return self._any_asked(self.asked)

  def at_end(self) -> bool:
    """As `now`, with all signals until the context was left."""
    self.now()
    return self.now()

  def _ask(self, number, frame) -> None:
    del frame
    self.asked = True
    signal.signal(number, self._before[number])
