"""Launchers of the runs of a sweep: this machine, a Ray cluster or a Slurm queue.

A launcher is `(out, plan, runs, jobs) -> failed runs`, or None if it only submits them. Every
launcher starts `python -m plm_jax.ablate.task DIR ARM SEED`.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from plm_jax.ablate.plan import (
  ATTEMPT,
  ROOT,
  PlannedRun,
  SweepPlan,
  environment,
  failure_of,
  log_of,
)
from plm_jax.ablate.view import View
from plm_jax.errors import UserError

PINS = hasattr(os, "sched_setaffinity")  # Linux
_TAIL = 15  # lines of a failed run's log


def task_command(out: Path, run: PlannedRun) -> list[str]:
  return [sys.executable, "-m", "plm_jax.ablate.task", str(out), run.arm, str(run.seed)]


# --- this machine ---------------------------------------------------------------------------------


def local(out: Path, plan: SweepPlan, runs: list[PlannedRun], jobs: int) -> list[PlannedRun]:
  """Runs up to `jobs` processes at a time, each on its share of the cores and GPUs."""
  cores = sorted(os.sched_getaffinity(0)) if PINS else list(range(os.cpu_count() or 1))
  slots = shares(jobs, cores, gpus())
  waiting, working, failed = list(runs), {}, []
  view = View(out, plan, runs, jobs)
  stopping = _Stopping()
  with stop_signals(stopping.ask), view:
    while waiting or working:
      while len(working) < jobs and not stopping.asked:
        slot = next(i for i in range(jobs) if i not in {s for s, _ in working.values()})
        ready = [run for run in waiting if plan.start_of(run) not in (*waiting, *working)]
        if not ready:
          break
        waiting.remove(run := ready[0])
        working[run] = (slot, _start(out, run, slots[slot], pinned=PINS and jobs > 1))
        view.started(run)
      for run, (_, process) in list(working.items()):
        if stopping.asked:
          stopping.hand_on(process)
        if process.poll() is None:
          continue
        del working[run]
        view.ended(run, process.returncode)
        if process.returncode and not stopping.asked:
          failed.append(run)
          view.say(failure(out, run, process.returncode))
      if stopping.asked and not working:
        raise KeyboardInterrupt(stopping.message)
      view.refresh(set(working))
      time.sleep(0.1)
  return failed


def _start(out: Path, run: PlannedRun, share: tuple[list[int], dict[str, str]], pinned: bool):
  cores, variables = share
  words = [*task_command(out, run), f"--die_with={os.getpid()}"]
  if pinned:
    words.append(f"--cores={','.join(map(str, cores))}")
  log = log_of(out, run)
  log.parent.mkdir(exist_ok=True)
  with open(log, "ab") as file:
    # A separate session: Ctrl-C reaches only the sweep, which forwards it once.
    return subprocess.Popen(
      words,
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=file,
      env=environment() | variables,
      start_new_session=True,
    )


def failure(out: Path, run: PlannedRun, code: int) -> str:
  """The last lines of a failed run's log, of its last attempt."""
  text = log_of(out, run).read_text(errors="replace").rpartition(f"{ATTEMPT}\n")[2]
  lines = text.replace("\r", "\n").splitlines()
  tail = [line for line in lines if line.strip()][-_TAIL:]
  heading = f"{run} failed with exit code {code}; the end of {log_of(out, run)}:"
  if not failure_of(out, run).exists():
    heading = f"{run} was ended from outside ({code}); the end of {log_of(out, run)}:"
  return "\n".join([heading, *(f"  | {line}" for line in tail)])


def shares(
  jobs: int, cores: list[int], devices: list[str]
) -> list[tuple[list[int], dict[str, str]]]:
  """For each job: its cores, and the variables that set its GPUs and its part of their memory."""
  parts = []
  for job in range(jobs):
    own = cores[job * len(cores) // jobs : (job + 1) * len(cores) // jobs]
    variables = {}
    if devices and jobs > 1:
      mine = devices[job::jobs] or [devices[job % len(devices)]]
      variables["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
      together = -(-jobs // len(devices))
      if together > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / together:.3f}"
    parts.append((own or [cores[job % len(cores)]], variables))
  return parts


def gpus() -> list[str]:
  """The GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
  if "CUDA_VISIBLE_DEVICES" in os.environ:
    return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
  try:
    listed = subprocess.run(
      ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
    )
  except (OSError, subprocess.TimeoutExpired):
    return []
  return [str(i) for i, line in enumerate(l for l in listed.stdout.splitlines() if l[:3] == "GPU")]


@contextlib.contextmanager
def stop_signals(handler: Callable) -> Iterator[None]:
  """Gives SIGTERM, SIGINT and SIGHUP another handler within the block; nohup's stays."""
  numbers = [signal.SIGTERM, signal.SIGINT]
  if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    numbers.append(signal.SIGHUP)
  before = {number: signal.signal(number, handler) for number in numbers}
  try:
    yield
  finally:
    for number, earlier in before.items():
      signal.signal(number, earlier)


class _Stopping:
  """Stops all runs: the first SIGTERM or SIGINT lets them save and end, the second kills them."""

  def __init__(self):
    self.asked = 0
    self._told: dict[int, int] = {}

  @property
  def message(self) -> str:
    if self.asked == 1:
      return "every run has saved its state; the same command goes on"
    return "the runs were killed; the same command goes on from their last checkpoints"

  def ask(self, number, frame):
    del number, frame
    self.asked += 1

  def hand_on(self, process: subprocess.Popen) -> None:
    told = self._told.get(process.pid, 0)
    self._told[process.pid] = self.asked
    if process.poll() is not None or told == self.asked:
      return
    if self.asked == 1:
      process.terminate()
    else:
      os.killpg(process.pid, signal.SIGKILL)


# --- Ray ------------------------------------------------------------------------------------------


def import_ray():
  """The module `ray`. Errors: `UserError` if it is not installed."""
  try:
    import ray
  except ImportError:
    raise UserError(
      "--launcher=ray needs the extra `ray`: pip install 'plm_jax[ray]', or take another launcher"
    ) from None
  return ray


def ray(out: Path, plan: SweepPlan, runs: list[PlannedRun], jobs: int) -> list[PlannedRun]:
  """Runs them as Ray tasks, on the cluster of RAY_ADDRESS or on one that it starts.

  All machines must share the file system of `out` and the cache. jobs: runs that share a machine.
  """
  ray = import_ray()
  variables = {"PYTHONPATH": environment()["PYTHONPATH"]}
  ray.init(
    address=os.environ.get("RAY_ADDRESS"),
    runtime_env={"env_vars": variables},
    log_to_driver=False,
    configure_logging=False,
    **({} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}),
  )
  nodes = [node for node in ray.nodes() if node["Alive"]]
  cores = min(node["Resources"].get("CPU", 1) for node in nodes)
  devices = min(node["Resources"].get("GPU", 0) for node in nodes)

  @ray.remote(num_cpus=max(1, int(cores // jobs)), num_gpus=devices / jobs, max_retries=3)
  def perform(words: list[str], folder: str) -> int:
    words = [*words, f"--die_with={os.getpid()}"]
    done = subprocess.run(words, cwd=folder, stdin=subprocess.DEVNULL, check=False)
    return done.returncode

  here = str(Path.cwd())
  failed: list[PlannedRun] = []
  with View(out, plan, runs, jobs * len(nodes)) as view:
    tasks = {perform.remote(task_command(out.absolute(), run), here): run for run in runs}
    while tasks:
      ended, _ = ray.wait(list(tasks), timeout=0.5)
      for reference in ended:
        run, code = tasks.pop(reference), ray.get(reference)
        view.ended(run, code)
        if code:
          failed.append(run)
          view.say(failure(out, run, code))
      view.refresh(None)
  ray.shutdown()
  return failed


# --- Slurm ----------------------------------------------------------------------------------------


def slurm(out: Path, plan: SweepPlan, runs: list[PlannedRun], jobs: int) -> None:
  """Writes a job array with a task per run, and prints how to submit it."""
  commands = out / "tasks.txt"
  commands.write_text("".join(shlex.join(task_command(out, run)) + "\n" for run in runs))
  (out / "logs").mkdir(exist_ok=True)
  script = out / "sweep.sbatch"
  script.write_text(SBATCH.format(
    last=len(runs) - 1, jobs=jobs, folder=shlex.quote(str(Path.cwd())),
    path=shlex.quote(str(ROOT)), tasks=shlex.quote(str(commands.absolute())),
    logs=shlex.quote(str((out / "logs").absolute())),
  ))  # fmt: skip
  print(f"\n{len(runs)} tasks are in {commands}, a command each; submit them with")
  print(f"  sbatch {shlex.quote(str(script))}")
  print("after adding the options of your cluster (partition, account, --gres=gpu:1, time).")
  print("Submit the script again to continue stopped tasks; finished tasks are skipped.")
  print(f"then: python -m plm_jax.report {shlex.quote(str(out))}")


SBATCH = """\
#!/bin/bash
#SBATCH --job-name=plm_jax_sweep
#SBATCH --array=0-{last}%{jobs}
#SBATCH --ntasks=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output={logs}/slurm-%A_%a.txt
# Each line of tasks.txt is a run; --signal gives it two minutes to save its state.
cd {folder} || exit 1
export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}
mapfile -t tasks < {tasks}
eval "exec srun ${{tasks[$SLURM_ARRAY_TASK_ID]}}"
"""

LAUNCHERS = {"local": local, "ray": ray, "slurm": slurm}
