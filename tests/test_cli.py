"""Commands fail in one sentence, and experiments are found by file and name."""

import importlib.util
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from plm_jax import cli
from plm_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
COMMAND = '''
"""Counts to a number.

Usage: python command.py --count=3
"""
import errno, os, sys
from absl import flags, logging
from plm_jax import cli
from plm_jax.errors import UserError

COUNT = flags.DEFINE_integer("count", 3, "How far to count. " + "So much to say about it. " * 6)
ENDS = "well user bug wait code log full loop lost callback".split()
HOW = flags.DEFINE_enum("how", "well", ENDS, "How it ends.")
SET = flags.DEFINE_multi_string("set", [], "A setting, path=value.")
DRY = flags.DEFINE_boolean("dry_run", False, "Do nothing.")
NAME = flags.DEFINE_string("name_of_the_directory", None, "A long name.")

def main():
  if HOW.value == "user":
    raise UserError("the number\\n is wrong.")
  if HOW.value == "bug":
    raise ValueError("a defect")
  if HOW.value == "full":
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "tokens")
  if HOW.value == "loop":
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), "a.partial", None, "a")
  if HOW.value == "lost":
    open("lost")
  if HOW.value == "callback":
    import weakref
    class Thing: pass
    thing = Thing()
    def ask(_): raise KeyboardInterrupt
    callback = weakref.ref(thing, ask)
    del thing  # Python prints what a callback raises, and goes on
  if HOW.value == "code":
    return 7
  if HOW.value == "log":
    logging.info("chatter")
    logging.warning("heard")
  if HOW.value == "wait":
    print("waiting", flush=True)
    sys.stdin.read()
  print("counted", COUNT.value, SET.value)

if __name__ == "__main__":
  cli.run(main)
'''


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  path = tmp_path_factory.mktemp("command") / "command.py"
  path.write_text(COMMAND.lstrip())
  return path


def call(command, *words):
  return subprocess.run(
    [sys.executable, command, *words],
    capture_output=True,
    check=False,
    text=True,
    cwd=command.parent,
    env={"PYTHONPATH": str(ROOT), "PATH": ""},
  )


def test_a_command_that_ends_well_leaves_with_zero(command):
  done = call(command, "--count=5", "--set=a=1", "--set", "b=2", "--nodry_run")
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout == "counted 5 ['a=1', 'b=2']\n"


def test_the_value_of_main_is_the_exit_code(command):
  assert call(command, "--how=code").returncode == 7


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["--how=user"], "error: the number is wrong."),
    (["--conut=3"], "no flag --conut; did you mean --count?"),
    (["--zzzzz"], "no flag --zzzzz; --help lists the flags."),
    (["--count=many"], "--count=many"),
    (["--how=loop"], "links: a. Move what has this name away, or choose another place."),
    (["--how=badly"], "well|user|bug"),
    (["--count"], "count"),
    (["--name_of_the_directory="], "--name_of_the_directory= was given without a value"),
    (["--how=full"], "on device: tokens. Free some space, or choose another place."),
    (["three"], "'three' was given without a flag"),
    (["--count=1", "--dry_run", "false"], "'false' was given without a flag"),
    (["--", "--count=3"], "'--count=3' was given without a flag"),
  ],
)
def test_the_users_mistakes_are_one_sentence_and_exit_code_2(command, words, said):
  done = call(command, *words)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert said in done.stderr


def test_a_defect_of_ours_keeps_its_traceback(command):
  done = call(command, "--how=bug")
  assert done.returncode == 1
  assert "Traceback" in done.stderr and "ValueError: a defect" in done.stderr


def test_a_missing_file_of_ours_is_no_full_disk(command):
  assert "Traceback" in call(command, "--how=lost").stderr


def test_an_interrupt_in_a_callback_ends_the_command_too(command):
  done = call(command, "--how=callback")
  assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("word", ["--help", "-h", "--helpshort"])
def test_help_shows_the_docstring_and_the_commands_own_flags(command, word):
  done = call(command, "--count=nonsense", word)
  assert (done.returncode, done.stderr) == (0, "")
  lines = done.stdout.splitlines()
  assert lines[0] == "Counts to a number." and "Usage: python command.py --count=3" in lines
  flags = [line.split()[0] for line in lines[lines.index("Flags:") :] if line.startswith("  --")]
  assert [flag.partition("=")[0] for flag in flags] == [
    "--count",
    "--[no]dry_run",
    "--how",
    "--name_of_the_directory",
    "--set",
  ]
  assert max(map(len, lines)) <= 100
  assert "(default: 3)" in done.stdout and "--how=well|user|bug" in done.stdout
  assert "A setting, path=value. (repeatable)" in done.stdout
  assert "verbosity" not in done.stdout


def test_full_help_shows_the_flags_of_every_module(command):
  done = call(command, "--helpfull")
  assert done.returncode == 0 and "verbosity" in done.stdout


def test_libraries_are_heard_from_warnings_on(command):
  done = call(command, "--how=log")
  assert "heard" in done.stderr and "chatter" not in done.stderr
  assert "chatter" in call(command, "--how=log", "--verbosity=0").stderr


def waiting(command):
  """A command that waits for its input. A shell's background jobs ignore SIGINT, and their
  subprocesses would too: it is made the default of this process while the command starts."""
  handler = signal.signal(signal.SIGINT, signal.default_int_handler)
  process = subprocess.Popen(
    [sys.executable, command, "--how=wait"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={"PYTHONPATH": str(ROOT), "PATH": ""},
  )
  signal.signal(signal.SIGINT, handler)
  assert process.stdout.readline() == "waiting\n"
  return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_leaves_one_line_and_code_130(command, number):
  with waiting(command) as process:
    process.send_signal(number)
    _, errors = process.communicate()
  assert (process.returncode, errors) == (130, "interrupted\n")


def test_a_reader_who_leaves_is_no_error(command):
  with waiting(command) as process:
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == ""
  assert process.returncode == 141


PAPER = '''
"""A paper."""
from __future__ import annotations
import dataclasses
from functools import partial as imported

class Experiment: pass

@dataclasses.dataclass
class Sizes:
  width: int = 3

def base(budget: str = "paper") -> Experiment:
  """Table 1, row 1.

  More.
  """
  return budget, Sizes()

def no_nsp() -> "Experiment": return "no_nsp"
def qualified(budget="x") -> experiment.Experiment: "Row 2."
def _private() -> Experiment: pass
def helper(width: int) -> int: pass
def unannotated(): pass
def pair(a, b) -> Experiment: pass
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  papers = tmp_path / "papers"
  papers.mkdir()
  (papers / "paper.py").write_text(PAPER)
  (papers / "other.py").write_text("def tiny() -> Experiment:\n  'Small.'\n")
  (papers / "sizes.py").write_text("def _row() -> Experiment: ...\ndef half(x): return x / 2\n")
  return papers


def test_experiments_are_listed_with_their_first_docstring_line_and_not_run(folder):
  assert cli.list_experiments("papers") == [
    ("papers/other.py:tiny", "Small."),
    ("papers/paper.py:base", "Table 1, row 1."),
    ("papers/paper.py:no_nsp", ""),
    ("papers/paper.py:qualified", "Row 2."),
  ]
  with pytest.raises(UserError, match="no folder nowhere"):
    cli.list_experiments("nowhere")


def test_an_experiment_is_loaded_by_file_and_name(folder):
  assert cli.load_experiment("papers/paper.py:no_nsp")() == "no_nsp"
  assert cli.load_experiment(f"{folder}/paper.py:no_nsp")() == "no_nsp"
  assert cli.load_experiment("papers/paper.py:base")()[0] == "paper"


def test_a_file_is_imported_once(folder):
  first = cli.load_experiment("papers/paper.py:base")()[1]
  assert type(cli.load_experiment("papers/paper.py:base")()[1]) is type(first)


def test_arguments_are_bound_if_the_experiment_takes_them(folder):
  bound = cli.load_experiment("papers/paper.py:base", budget="smoke")
  assert bound()[0] == "smoke" and bound.__doc__.startswith("Table 1")
  with pytest.raises(UserError, match="no_nsp takes no budget"):
    cli.load_experiment("papers/paper.py:no_nsp", budget="smoke")


@pytest.mark.parametrize(
  ("ref", "said"),
  [
    ("papers/paper.py:no_npsp", "Did you mean papers/paper.py:no_nsp? It has: base, no_nsp, q"),
    ("papers/paper.py:helper", "It has: base"),
    ("papers/paper.py:imported", "It has: base"),
    ("papers/paper.py", "needs the name of an experiment after a colon. It has: base"),
    (
      "papers/papr.py:base",
      "Did you mean papers/paper.py? There is: papers/other.py, papers/paper.py.",
    ),
    ("papers:base", "not a Python file|does not exist"),
    ("", "(no name)"),
  ],
)
def test_what_is_not_there_is_answered_with_what_is(folder, ref, said):
  with pytest.raises(UserError) as error:
    cli.load_experiment(ref)
  assert any(option in str(error.value) for option in said.split("|"))


def test_the_repository_is_looked_in_after_the_current_directory(folder):
  with pytest.raises(UserError, match=r"experiments/bert\.py"):
    cli.load_experiment("experiments/bret.py:base")
  assert any(
    ref.startswith("experiments/bert.py:") for ref, _ in cli.list_experiments("experiments")
  )


def test_errors_in_an_experiment_file_keep_their_own_kind(folder):
  (folder / "broken.py").write_text("def base( -> Experiment: pass")
  with pytest.raises(SyntaxError) as error:
    cli.load_experiment("papers/broken.py:base")
  assert error.value.filename.endswith("broken.py")
  source = "import nothing_of_this_name\ndef base() -> Experiment: pass"
  (folder / "fails.py").write_text(textwrap.dedent(source))
  for _ in range(2):  # a failed import leaves nothing half made behind
    with pytest.raises(ModuleNotFoundError):
      cli.load_experiment("papers/fails.py:base")


@pytest.mark.parametrize("name", ["sweep", "report", "evaluate"])
def test_the_spelling_of_committed_reports_runs_the_same_command(name):
  old, new = (importlib.util.find_spec(f"plm_jax.{package}{name}") for package in ("ablate.", ""))
  assert old.origin == new.origin == str(ROOT / f"plm_jax/commands/{name}.py")


def test_the_library_of_published_checkpoints_is_no_command():
  command = [sys.executable, "-m", "plm_jax.export.hf", "check", "DIR"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert "python -m plm_jax.check DIR" in done.stderr


def test_the_lines_of_a_file_end_at_newlines_alone(tmp_path):
  file = tmp_path / "a.txt"
  file.write_bytes("a\u2028b\x0cc\x85d\r\n\nlast\n".encode())
  assert cli.read_lines(str(file), "--file") == ["a\u2028b\x0cc\x85d", "", "last"]
  file.write_bytes(b"")
  assert cli.read_lines(str(file), "--file") == []


def test_the_package_lists_its_commands():
  """Each with the first line of its docstring, and without importing any."""
  from plm_jax.__main__ import listed

  commands = {file.stem for file in (ROOT / "plm_jax" / "commands").glob("[a-z]*.py")}
  lines = dict(line.split(maxsplit=1) for line in listed().splitlines()[2:])
  assert lines.keys() == commands
  assert all(line.endswith((".", "?")) for line in lines.values())
