"""The command: its mistakes are sentences, and a run that is killed ends as if it had not been."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

import run_pretrain
from plm_jax import cli, pretraining
from plm_jax.train import loop
from plm_jax.train.workdir import read_config, read_records
from tests.toy_language import random_language, write_corpus
from tests.toy_run import LANGUAGE, WORDS

ROOT = Path(__file__).resolve().parents[1]

# A run of seconds: its steps are those of tests/toy_run.py, its file is a user's own.
PICO = '''
"""An experiment file of a user's own."""
from plm_jax.experiment import Budget, Experiment
from tests.toy_run import TOY

def base(budget: Budget = "small") -> Experiment:
  """A BERT of one layer."""
  return TOY
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with an experiment file and a text."""
  folder = tmp_path_factory.mktemp("place")
  (folder / "pico.py").write_text(PICO)
  write_corpus(folder / "toy.txt", LANGUAGE, 60, sentences=10, words=12)
  return folder


def words_of(place, *words):
  """The flags of a run in `place`; later ones win."""
  return (f"--experiment={place / 'pico.py'}:base", f"--set=data.source={place / 'toy.txt'}",
          f"--cache={place / 'cache'}", *words)  # fmt: skip


def in_process(monkeypatch, *words) -> int:
  """The exit code of `python run_pretrain.py WORDS`, run in this process."""
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  monkeypatch.setattr(sys, "argv", ["run_pretrain.py", *words])
  monkeypatch.setattr(run_pretrain, "keep_compilations", lambda cache: None)
  with pytest.raises(SystemExit) as end:
    cli.run(run_pretrain.main)
  return end.value.code or 0


@pytest.fixture
def command(place, monkeypatch, capsys, tmp_path):
  """Runs the command in this process on one device: (code, stdout, stderr)."""
  compiled = loop.compile_experiment
  monkeypatch.setattr(
    pretraining, "compile_experiment", lambda e, batch: compiled(e, batch, jax.devices()[:1])
  )

  def run(*words, workdir=tmp_path / "run"):
    code = in_process(monkeypatch, *words_of(place, f"--workdir={workdir}", *words))
    return code, *capsys.readouterr()

  return run


def refused(result) -> str:
  """The one sentence of a run that was refused."""
  code, _, errors = result
  sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
  assert (code, len(sentences)) == (2, 1), errors
  assert "Traceback" not in errors and errors.rstrip().endswith(sentences[0])
  return sentences[0]


# Bad input. None of these gets as far as compiling.


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["--set=data.source=nowhere.txt"], "'nowhere.txt' does not exist: give"),
    (["--experiment=experiments/bert.py:no_npsp"], "Did you mean experiments/bert.py:no_nsp?"),
    (["--experiment=experiments/bret.py:base"], "Did you mean experiments/bert.py?"),
    (["--set=optim.paek=1"], "Did you mean 'optim.peak'?"),
    (["--set=optim.peak"], "--set takes path=value, such as --set optim.peak=2e-4"),
    (["--set=steps=many"], "steps=many: expected an integer"),
    (["--set=steps=1.5"], "expected an integer"),
    (["--set=model.attention=sideways"], "expected bidirectional or causal"),
    (["--set=steps=-5"], "must be at least 1, and steps=-5 at least 0"),
    (["--set=global_batch=0"], "global_batch=0 must be at least 1"),
    (["--set=steps=0"], "steps=0 with 2 objectives trains nothing"),
    (["--set=optim.peak=nan"], "expected a number"),
    (["--set=model.width=17"], "not a multiple of model.heads"),
    (["--set=data.length=64"], "lower data.length or raise model.positions"),
    (["--set=model.vocab_size=20"], "leave model.vocab_size at none"),
    (["--set=compute.micro_batches=3"], "equal parts"),
    (["--set=steps=1e30"], "must both be below 2**31"),
    (["--set=data.length=40000"], "at most 32767 tokens"),
    (["--set=model.norm_eps=-1"], "model.norm_eps=-1.0 must be above 0"),
    (["--set=model.initializer_range=inf"], "above 0 and finite"),
    (["--set=objectives.mlm.weight=inf"], "mlm.weight=inf must be at least 0, and finite"),
    (["--from="], "--from= was given without a value"),
    (["--set=data.source="], "does not exist"),
    (["--set=data.source=~nobody-of-that-name/a.txt"], "does not exist"),
    (["--set=data.source=tfds:installed_text:train[5"], "write it as train"),
    (["--set=objectives="], "at least one objective"),
    (["--seed=abc"], "--seed=abc"),
    (["--seed=-1"], "seed=-1 must be at least 0"),
    (["--budget=large"], "smoke|laptop|small|paper"),
    (["--sede=1"], "did you mean --seed?"),
    (["--from=nowhere"], "nowhere is not the directory of a run"),
    (["more"], "'more' was given without a flag"),
    (["--list=foo"], "--list=foo was given, and no line has it; the files are albert, bart, bert"),
    (["--dry_run=foo"], "--dry_run=foo was given; this flag takes no value."),
    (["--set=lr=1e-4"], "--set lr=1e-4: lr is called optim.peak here; write --set optim.peak="),
    (["--cache=/dev/null/cache"], "the cache /dev/null/cache cannot be created"),
    (["--set=model.layers=0"], "model.layers=0 must be at least 1"),
  ],
)
def test_mistakes_on_the_command_line_are_a_sentence(command, tmp_path, words, said):
  assert said in refused(command(*words))
  assert not (tmp_path / "run/metrics.jsonl").exists()


def corpus(tmp_path, content):
  path = tmp_path / "text.txt"
  path.write_bytes(content)
  return f"--set=data.source={path}"


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (b"", "is empty"),
    (b"\n \n\n", "is empty"),
    (b"gr\xfc\xdfe\n\nan alle\n", "is not UTF-8: byte 0xfc at offset 2, line 1. Convert it"),
    (b"only one document in it\n", "at least two are needed"),
    (b"one\n\ntwo\n", "held_out|fewer than one global batch"),
  ],
)
def test_text_that_cannot_be_used_is_a_sentence(command, tmp_path, content, said):
  sentence = refused(command(corpus(tmp_path, content), "--set=data.held_out=0.3"))
  assert any(option in sentence for option in said.split("|"))


def test_a_corpus_smaller_than_a_batch_is_a_sentence(command):
  assert "fewer than one global batch of 4096" in refused(command("--set=global_batch=4096"))


def test_a_folder_without_text_is_a_sentence(command, tmp_path):
  assert "contains no text" in refused(command(f"--set=data.source={tmp_path}"))


def test_a_mesh_that_does_not_divide_the_devices_is_a_sentence(command, monkeypatch):
  monkeypatch.setattr(pretraining, "compile_experiment", loop.compile_experiment)
  assert "8 devices" in refused(command("--set=mesh.data=3"))  # and may be corrected:
  assert "multiple of 8" in refused(command("--set=mesh.data=8", "--set=global_batch=12"))


def test_a_warmup_longer_than_the_run_is_a_sentence(command):
  assert "optim.warmup=13 is more than steps=12" in refused(command("--set=optim.warmup=13"))


def test_a_working_directory_that_cannot_be_written_is_a_sentence(command, tmp_path):
  (tmp_path / "file").write_text("")
  assert "cannot be written" in refused(command(workdir=tmp_path / "file" / "run"))


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["--set=data.weights=1,2"], "toy.txt is one text; give several with commas"),
    (["--set=data.source=a.txt,b.txt", "--set=data.weights=0,0"], "one of them above 0"),
    (["--set=data.source=a.txt,b.txt", "--set=data.weights=1"], "has 1 weight, and data.source="),
    (["--set=data.source=a.txt,b.txt"], "The text 'a.txt' does not exist"),
    (["--set=sampling_alpha=0.3"], "is called data.alpha here"),
  ],
)
def test_mistakes_in_a_mixture_of_texts_are_a_sentence(command, words, said):
  assert said in refused(command(*words))


# What works.


@pytest.mark.slow
def test_a_run_on_two_texts_reports_the_held_out_loss_of_each(command, place, tmp_path):
  other = random_language(WORDS, seed=5)
  write_corpus(place / "other.txt", other, 30, sentences=10, words=12)
  texts = f"--set=data.source=toy={place / 'toy.txt'},other={place / 'other.txt'}"
  code, shown, errors = command(texts, "--set=data.weights=0,1")
  assert code == 0, errors
  assert "toy, 0.0% of the rows: " in shown and "other, 100.0% of the rows: " in shown
  records = read_records(tmp_path / "run/metrics.jsonl")
  first, *_, last = (record for record in records if record["split"] == "valid")
  assert last["other/mlm/loss"] < first["other/mlm/loss"]
  rows = re.findall(r"^  on (\w+) +([\d.]+) +([\d.]+)$", shown, re.MULTILINE)
  assert rows[0] == ("toy", f"{first['toy/mlm/loss']:.3f}", f"{last['toy/mlm/loss']:.3f}")
  assert read_config(tmp_path / "run")["text"]["texts"].keys() == {"toy", "other"}


def test_the_list_has_every_experiment_with_its_first_line_and_published_numbers(command):
  code, shown, _ = command("--list")
  assert code == 0 and 'Table 5, "No NSP". Published in BERT, Table 5: MNLI-m 83.9,' in shown
  for reference, line in cli.list_experiments("experiments"):
    assert f"{reference:45} {line}".strip() in shown
  code, shown, _ = command("--list=Electra")
  assert code == 0 and "\nexperiments/electra.py: ELECTRA (Clark et al. 2020" in shown
  assert "experiments/electra.py:small" in shown and "experiments/t5.py" not in shown


def test_a_dry_run_tells_the_costs_and_writes_nothing(command, tmp_path):
  code, shown, _ = command("--dry_run", "--set=seed=3")
  assert code == 0
  assert "seed" in shown and "0 -> 3" in shown
  assert "8 x 27 = 216 positions" in shown and "MiB per device" in shown
  assert "of training on this machine, as busy as it is now: an estimate by one timed step" in shown
  assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(place):
  """An uninterrupted run of the command, as a process."""
  folder = place / "finished"
  done = start(place, folder).communicate(timeout=600)
  assert (folder / "curves.png").exists(), done[1]
  return folder, done[0]


def start(place, workdir, *words):
  """The command as a process on one device."""
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
  return subprocess.Popen(
    [sys.executable, ROOT / "run_pretrain.py", *words_of(place, f"--workdir={workdir}", *words)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=place,
    env=environment,
  )


def wait_for(process, condition):
  """Returns once the condition holds, or the process has ended: True if it was still running."""
  while process.poll() is None:
    if condition():
      return True
    time.sleep(0.002)
  return False


def arrays(folder):
  """Every parameter of the last checkpoint."""
  from plm_jax.train.checkpoint import restore_parameters
  from tests.toy_run import program

  with contextlib.redirect_stderr(io.StringIO()):
    return jax.device_get(restore_parameters(folder, program().abstract.params).params)


def assert_same_end(finished, folder, shown):
  assert (folder / "metrics.jsonl").read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()
  jax.tree.map(np.testing.assert_array_equal, arrays(folder), arrays(finished[0]))
  assert results(shown) == results(finished[1])


def results(shown):
  return [line for line in shown.splitlines() if line.startswith(("on ", "MLM", "NSP"))]


@pytest.mark.slow
def test_a_run_killed_at_many_moments_ends_bit_identical(place, finished, tmp_path):
  folder = tmp_path / "run"
  checkpoints = folder / "checkpoints"

  def lines():
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0

  moments = {
    "after some lines": lambda: lines() >= 3,
    "while a checkpoint is written": lambda: any(checkpoints.glob("*.saving")),
    "when a checkpoint is there": (checkpoints / "10").is_dir,
  }
  killed = 0
  for moment in moments.values():
    process = start(place, folder)
    if wait_for(process, moment):
      process.send_signal(signal.SIGKILL)
      killed += 1
    process.communicate()
  assert killed >= 2  # the last moments may come too late on a fast machine
  process = start(place, folder)
  shown, errors = process.communicate()
  assert process.returncode == 0, errors
  assert_same_end(finished, folder, shown)


@pytest.mark.slow
def test_sigterm_saves_and_says_so_and_the_command_goes_on(place, tmp_path):
  """A long run, so that the signal always comes in its midst and long before a regular save."""
  words = ("--set=steps=100_000", "--set=schedule.save=5_000", "--set=schedule.evaluation_rows=8")
  folder = tmp_path / "run"
  process = start(place, folder, *words)
  metrics = folder / "metrics.jsonl"
  assert wait_for(process, lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 5)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate()
  assert process.returncode == 130
  assert "Traceback" not in errors
  (step,) = [int(p.name) for p in (folder / "checkpoints").iterdir()]
  assert f"saved step {step}" in errors and step % 5_000
  before = metrics.read_bytes()
  process = start(place, folder, *words)
  assert wait_for(process, lambda: metrics.stat().st_size > len(before))
  process.send_signal(signal.SIGTERM)
  process.communicate()
  assert metrics.read_bytes().startswith(before)
  steps = [r["step"] for r in read_records(metrics) if r["split"] == "train"]
  assert steps == list(range(2, steps[-1] + 1, 2))


@pytest.mark.slow
def test_a_finished_run_started_again_trains_nothing_and_prints_the_same(
  command, finished, monkeypatch
):
  def never(*_):
    raise AssertionError("a step was prepared")

  monkeypatch.setattr(pretraining.Batches, "__call__", never)
  before = (finished[0] / "metrics.jsonl").read_bytes()
  code, shown, errors = command(workdir=finished[0])
  assert code == 0, errors
  assert results(shown) == results(finished[1]) and results(shown)
  assert (finished[0] / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["--set=optim.peak=2e-3"], "optim.peak is 0.01 there and 0.002 here"),
    (["--seed=1"], "seed is 0 there and 1 here"),
    (["--from={}"], "holds another experiment: data.tokenizer.path"),
  ],
)
def test_another_run_s_directory_is_refused_and_left_alone(command, finished, words, said):
  folder = finished[0]
  before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
  sentence = refused(command(*(w.format(folder) for w in words), workdir=folder))
  assert said in sentence and "--workdir" in sentence
  assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_changed_text_is_refused_in_the_old_directory(command, finished, place, tmp_path):
  path = place / "toy.txt"
  original = path.read_bytes()
  try:
    path.write_bytes(original + b"\n\nw1 w2 w3\n")
    before = {p: p.read_bytes() for p in finished[0].rglob("*") if p.is_file()}
    assert "another text" in refused(command(workdir=finished[0]))
    assert {p: p.read_bytes() for p in finished[0].rglob("*") if p.is_file()} == before
  finally:
    path.write_bytes(original)


@pytest.mark.slow
def test_a_tokenizer_that_does_not_fit_the_checkpoint_is_a_sentence(command, finished):
  words = (f"--from={finished[0]}", "--set=data.tokenizer=WordPiece(vocab_size=50)")
  assert "does not fit the checkpoint" in refused(command(*words))


@pytest.mark.slow
def test_a_model_that_does_not_fit_the_checkpoint_is_a_sentence(command, finished):
  assert "does not fit: " in refused(command(f"--from={finished[0]}", "--set=model.width=32"))


@pytest.mark.slow
def test_another_run_can_start_from_the_parameters_of_one(command, finished, tmp_path):
  code, _, errors = command(f"--from={finished[0]}", "--set=optim.peak=1e-9")
  assert code == 0, errors
  ours = read_records(tmp_path / "run/metrics.jsonl")
  theirs = read_records(finished[0] / "metrics.jsonl")
  assert ours[0]["step"] == 0
  assert ours[0]["mlm/loss"] == pytest.approx(theirs[-1]["mlm/loss"], rel=1e-5)
  assert ours[0]["mlm/loss"] != pytest.approx(theirs[0]["mlm/loss"], rel=1e-3)


def test_a_loss_that_explodes_is_a_sentence_and_good_checkpoints_stay(command, tmp_path):
  """The rate rises from 0: the first updates are harmless, then float32 overflows."""
  words = ("--set=optim.peak=1e38", "--set=optim.clip=0", "--set=schedule.save=1")
  sentence = refused(command(*words, "--set=optim.warmup=3"))
  assert "stopped being finite at step" in sentence and "Lower optim.peak" in sentence
  kept = [int(p.name) for p in (tmp_path / "run/checkpoints").glob("[0-9]*")]
  assert kept and f"step {max(kept)}." in sentence
