"""Several processes are one run: its numbers, its files, its end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.finetune import recipe
from plm_jax import pretraining
from plm_jax.errors import UserError
from plm_jax.tasks import finetuning
from plm_jax.tasks.classify import Classify
from plm_jax.train import loop, process, processes
from plm_jax.train.launch import Place, place_of, wait_for
from plm_jax.train.workdir import read_records
from tests.tasks.conftest import documents, source, table, tokenizer  # noqa: F401  fixtures
from tests.test_run_pretrain import PICO, ROOT, in_process, results, words_of
from tests.test_run_pretrain import wait_for as wait_until
from tests.toy_run import LANGUAGE, write_corpus

SLURM = {
  "SLURM_JOB_ID": "4096",
  "SLURM_STEP_NODELIST": "node[7-10]",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "1",
  "SLURM_LOCALID": "0",
}
OPEN_MPI = {
  "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:34911",
  "OMPI_COMM_WORLD_SIZE": "2",
  "OMPI_COMM_WORLD_RANK": "1",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


@pytest.mark.parametrize(
  ("environment", "place"),
  [
    ({}, None),
    (SLURM, Place("node7:61440", 4, 1, [0])),
    (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
    (OPEN_MPI, Place("10.0.0.1:61441", 2, 1, [1])),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
  ],
  ids=["laptop", "slurm", "slurm, one task", "open mpi", "a lone pod"],
)
def test_the_environment_of_a_launcher_is_detected(monkeypatch, environment, place):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  assert place_of(None, None, None, 1) == place
  assert place_of(None, 1, None, 1) is None  # --processes=1 runs alone


@pytest.mark.parametrize(
  ("given", "sentence"),
  [
    (("a:1", None, None), "belong together"),
    ((None, 2, 0), "belong together"),
    (("a", 2, 0), "expected HOST:PORT"),
    (("a:1", 2, 2), "--process=2 must be at least 0 and below --processes=2"),
    (("a:1", 2, -1), "--process=-1"),
  ],
)
def test_flags_that_make_no_place_are_refused(given, sentence):
  with pytest.raises(UserError, match=sentence):
    place_of(*given, seconds=1)


def test_a_first_process_that_is_not_there_is_a_sentence():
  with socket.socket() as taken:  # bound and not listening: nothing answers
    taken.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(UserError, match=f"not reached at {address} within 0.1 seconds .*refused"):
      wait_for(address, 0.1)


@pytest.mark.parametrize(
  ("environment", "threads"),
  [
    ({"XLA_FLAGS": "--xla_force_host_platform_device_count=16"}, "48"),
    ({"JAX_NUM_CPU_DEVICES": "32"}, "96"),
    ({}, None),
    ({"JAX_NUM_CPU_DEVICES": "32", "NPROC": "7"}, "7"),
  ],
)
def test_simulated_devices_get_threads(monkeypatch, environment, threads):
  monkeypatch.setattr(os, "cpu_count", lambda: 2)
  for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "NPROC"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  process.enough_threads()
  assert os.environ.get("NPROC") == threads


# Runs of local processes with one simulated device each.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with an experiment file and a text."""
  folder = tmp_path_factory.mktemp("place")
  (folder / "pico.py").write_text(PICO)
  write_corpus(folder / "toy.txt", LANGUAGE, 60, sentences=10, words=12)
  return folder


def start_all(count, *command):
  """The processes of a command, each with one device; {} in a word becomes the process's number,
  COORDINATOR the address of the first."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    coordinator = f"127.0.0.1:{free.getsockname()[1]}"
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
  return [
    subprocess.Popen(
      [sys.executable, *(w.replace("COORDINATOR", coordinator).replace("{}", n) for w in command)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=environment,
    )
    for n in map(str, range(count))
  ]


def start(place, workdir, count, *words):
  """The processes of a run."""
  numbers = ("--coordinator=COORDINATOR", f"--processes={count}", "--process={}")
  settings = (f"--workdir={workdir}", f"--set=mesh.data={count}", *words, *numbers)
  return start_all(count, str(ROOT / "run_pretrain.py"), *words_of(place, *settings))


def ends(started):
  """(exit code, stdout, stderr) of every process."""
  texts = [process.communicate(timeout=300) for process in started]
  return [(process.returncode, *text) for process, text in zip(started, texts, strict=True)]


def sentences(errors):
  return [line for line in errors.splitlines() if line.startswith("error: ")]


def lines(folder):
  path = folder / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def two(place):
  """The directory of a whole run of two processes, and their outputs."""
  outputs = ends(start(place, place / "two", 2))
  assert [code for code, *_ in outputs] == [0, 0], outputs
  return place / "two", outputs


@pytest.mark.slow
def test_two_processes_train_as_one_with_two_devices(place, two, tmp_path, monkeypatch, capsys):
  folder, ((_, shown, _), (_, of_second, _)) = two
  compiled = loop.compile_experiment
  devices = jax.devices()[:2]
  monkeypatch.setattr(pretraining, "compile_experiment", lambda e, b: compiled(e, b, devices))
  workdir = tmp_path / "one"
  words = words_of(place, f"--workdir={workdir}", "--set=mesh.data=2")
  assert in_process(monkeypatch, *words) == 0
  alone = capsys.readouterr().out
  assert (workdir / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
  assert results(alone) == results(shown) and results(alone)
  assert not [line for line in of_second.splitlines() if not line.startswith("[Gloo]")]
  files = [sorted(p.name for p in path.iterdir()) for path in (workdir, folder)]
  assert files[0] == files[1] and len(list((folder / "tensorboard").iterdir())) == 1


NGRAM = '''
from dataclasses import replace
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.experiment import Budget, Experiment
from plm_jax.models.ngram import NGram
from plm_jax.objectives.clm import CLM
from tests.toy_run import TOY

def base(budget: Budget = "small") -> Experiment:
  """A trigram model."""
  data = replace(TOY.data, segments=PackedDocuments())
  return replace(TOY, model=NGram(order=3), objectives=(CLM(),), steps=0, data=data)
'''


@pytest.mark.slow
def test_two_processes_count_what_one_counts(place, tmp_path):
  (place / "grams.py").write_text(NGRAM)
  reference = f"--experiment={place / 'grams.py'}:base"
  told = {}
  for count in (1, 2):
    outputs = ends(start(place, tmp_path / str(count), count, reference))
    assert [code for code, *_ in outputs] == [0] * count, outputs
    told[count] = results(outputs[0][1])
  assert told[1] == told[2] and told[1]
  (one,), (two,) = (read_records(tmp_path / str(count) / "metrics.jsonl") for count in (1, 2))
  assert two["clm/loss"] == pytest.approx(one["clm/loss"], rel=1e-6)
  again = ends(start(place, tmp_path / "2", 2, reference))
  assert [code for code, *_ in again] == [0, 0] and results(again[0][1]) == told[1]
  assert "counted" not in again[0][2]


@pytest.mark.slow
def test_four_processes_go_on_with_the_examples_that_two_had_before_them(place, two, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(two[0], folder)
  shutil.rmtree(folder / "checkpoints/12")
  outputs = ends(start(place, folder, 4))
  assert [code for code, *_ in outputs] == [0] * 4, outputs
  assert "resuming at step 10 of 12" in outputs[0][2]
  ours, theirs = read_records(folder / "metrics.jsonl"), read_records(two[0] / "metrics.jsonl")
  for mine, expected in zip(ours, theirs, strict=True):
    assert mine.keys() == expected.keys()
    numbers = [[r[k] for k in r if k != "split"] for r in (mine, expected)]
    np.testing.assert_allclose(*numbers, rtol=1e-5)


@pytest.mark.slow
def test_a_refusal_of_the_first_ends_all_with_its_sentence(place, two):
  outputs = ends(start(place, two[0], 2, "--seed=1"))
  assert [code for code, *_ in outputs] == [2, 2]
  first, second = (sentences(errors) for *_, errors in outputs)
  assert first == second and len(first) == 1
  assert "seed is 0 there and 1 here" in first[0]


@pytest.mark.slow
def test_sigterm_to_one_process_saves_on_all(place, tmp_path):
  folder = tmp_path / "run"
  steps = ("--set=steps=100_000", "--set=schedule.save=50_000", "--set=schedule.evaluation_rows=8")
  started = start(place, folder, 2, *steps)
  assert wait_until(started[1], lambda: lines(folder) > 3)
  started[1].send_signal(signal.SIGTERM)
  outputs = ends(started)
  (step,) = [int(p.name) for p in (folder / "checkpoints").iterdir()]
  for code, _, errors in outputs:
    assert code == 130 and f"interrupted: saved step {step}" in errors


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_and_the_first_writes(source, table, tmp_path, monkeypatch):  # noqa: F811
  settings = ["steps=6", "optim.warmup=2"]
  words = [str(ROOT / "run_finetune.py"), f"--cache={tmp_path}", f"--from={source.path}"]
  words += [f"--data={table}", "--arms=pretrained", *(f"--set={each}" for each in settings)]
  words += ["--coordinator=COORDINATOR", "--processes=2", "--process={}"]
  outputs = ends(start_all(2, *words, f"--workdir={tmp_path / 'two'}"))
  assert [code for code, *_ in outputs] == [0, 0], outputs
  assert "linear probe" in outputs[0][1] and "bag of words" in outputs[0][1]
  assert not [line for line in outputs[1][1].splitlines() if not line.startswith("[Gloo]")]
  refused = ends(start_all(2, *words, f"--workdir={tmp_path / 'two'}", "--seeds=0"))
  assert [code for code, *_ in refused] == [2, 2]
  assert all("--seeds=0 was given" in errors for *_, errors in refused)
  devices, compiled = jax.devices()[:2], loop.compile_experiment
  monkeypatch.setattr(finetuning, "compile_experiment", lambda e, b: compiled(e, b, devices))
  made = finetuning.plan(source, recipe, Classify(source=str(table)), settings, tmp_path, tmp_path)
  alone = finetuning.model_cell(made, "pretrained", None, 0, "alone")
  scores = json.loads((tmp_path / "two/pretrained-all-0/scores.json").read_text())
  assert scores["test"] == pytest.approx(alone.test, abs=1e-6)
  folders = (tmp_path / "pretrained-all-0", tmp_path / "two/pretrained-all-0")
  one, two = (read_records(folder / "metrics.jsonl") for folder in folders)
  assert [r["class/loss"] for r in one] == pytest.approx([r["class/loss"] for r in two], rel=1e-6)
  files = [sorted(path.name for path in folder.iterdir()) for folder in folders]
  assert files[0] == files[1] and len(list((folders[1] / "tensorboard").iterdir())) == 1


# Two processes whose devices meet in every round, until the second one ends.
ROUNDS = """
import os, signal, sys
from plm_jax.errors import UserError
from plm_jax.train import processes

def kill():
  os.kill(os.getpid(), signal.SIGKILL)

def refuse():
  raise UserError("the disk is full")

number = int(sys.argv[2])
try:
  with processes.joined(sys.argv[1], 2, number, 60):
    asked = processes.AskedToStop()
    for step in range(1 << 30):
      if step == 3 and number == WHO:
        END()
      asked(False)
finally:
  sum(range(30_000_000))  # a process that ends slowly
"""


def rounds(end, who=1):
  script = ROUNDS.replace("END", end).replace("WHO", str(who))
  return ends(start_all(2, "-c", script, "COORDINATOR", "{}"))


@pytest.mark.slow
def test_a_killed_process_ends_the_other_with_a_sentence():
  (first, _, errors), (second, _, last_words) = rounds("kill")
  assert (first, second) == (2, -signal.SIGKILL)
  assert "process 0 of 2 lost another one" in errors
  assert "process 1 of 2 was killed" in sentences(last_words)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_refusal_of_any_process_ends_the_others_in_the_midst_of_a_step(who):
  outputs = rounds("refuse", who)
  assert [code for code, *_ in outputs] == [2, 2], outputs
  assert sentences(outputs[1 - who][2]) == ["error: the disk is full"]
  assert "the disk is full" in outputs[who][2]


def test_one_process_needs_no_agreement():
  assert processes.is_first() and not jax.distributed.is_initialized()
  asked = processes.AskedToStop()
  assert asked(True) and not asked(False)
