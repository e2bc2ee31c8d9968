"""Shared parts of every command: flags, errors as sentences, and finding experiments.

A command is a module with a docstring, `define_flags()`, `main()`, and `cli.run(main)` as its last
line. Flags are defined when a command runs, not on import, since several commands have flags of the
same name. Exit codes: 0 success (`--help` included), 1 a bug of ours (with its traceback), 2 the
user's mistake (one sentence on stderr), 130 interrupted (Ctrl-C, SIGTERM, SIGHUP), 141 closed pipe.
"""

import ast
import ctypes
import difflib
import errno
import functools
import importlib
import importlib.util
import inspect
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from absl import flags, logging

from plm_jax.errors import UserError

_ROOT = Path(__file__).resolve().parents[1]
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1  # malloc.h of glibc
_HELP = ("--help", "-help", "-h", "-?", "--helpshort", "-helpshort")
_HELP_FULL = ("--helpfull", "-helpfull")


# --- running -------------------------------------------------------------------------------------


def keep_freed_memory() -> None:
  """Tells glibc to keep freed memory instead of returning it to the kernel (mallopt(3)).

  XLA allocates the scratch memory of a program anew every time; by default it is mapped and zeroed
  page by page, 11 to 21% of a small BERT's step (docs/speed.md). Call it before the first thread is
  started. Does nothing where the C library is not glibc.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
    if mallopt:
      mallopt(option, value)


def run(main: Callable[..., int | None], words: tuple[str, ...] = ()) -> NoReturn:
  """Parses the flags, calls `main()` and exits with its return value or the error's exit code.

  words: the names of the positional arguments that `main` takes, such as ("SRC", "DST").
  """
  keep_freed_memory()
  module = sys.modules[main.__module__]
  if not _own_flags(module):
    main.__globals__["define_flags"]()  # `runpy` does not put its module into sys.modules
  hook, sys.unraisablehook = sys.unraisablehook, _end_if_interrupted
  stops = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
  ending = [number for number in stops if signal.getsignal(number) is signal.SIG_DFL]
  for number in ending:
    signal.signal(number, signal.default_int_handler)
  try:
    code = main(*_parse_flags(module, sys.argv, words))
    sys.stdout.flush()
  except UserError as error:
    _say(f"error: {error}")
    code = 2
  except KeyboardInterrupt as error:
    _say(f"interrupted: {error}" if str(error) else "interrupted")
    code = 130
  except _HelpShown:
    code = 0
  except BrokenPipeError:
    # The reader (`| head`) has ended: discard the buffered output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 141
  except OSError as error:
    if error.errno not in (*_FULL, *_OCCUPIED, *_FORBIDDEN):
      raise
    name = error.filename2 or error.filename  # of a rename, the new one
    where = f": {name}" if name else ""
    advice = "Free some space, or choose" if error.errno in _FULL else "Choose"
    if error.errno in _OCCUPIED:
      advice = "Move what has this name away, or choose"
    own = {flag.name for flag in _own_flags(module)}
    places = " or ".join(f"--{name}" for name in ("workdir", "out", "cache") if name in own)
    _say(f"error: {error.strerror}{where}. {advice} another {places or 'place'}.")
    code = 2
  finally:
    sys.unraisablehook = hook
    for number in ending:
      signal.signal(number, signal.SIG_DFL)
  if main.__module__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of the interpreter's own end
    if code == 130:
      # Threads of XLA that still run when the interpreter is taken down end it by SIGSEGV.
      sys.stdout.flush()
      os._exit(code)
  sys.exit(code)


# Errors of full, read-only, forbidden or impossible folders, which the user can fix. A missing file
# is not among them: it may be a bug of ours.
_FULL = (errno.EDQUOT, errno.EFBIG, errno.ENOSPC)
_OCCUPIED = (errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)
_FORBIDDEN = (errno.EACCES, errno.ENAMETOOLONG, errno.EPERM, errno.EROFS)


def _end_if_interrupted(unraisable) -> None:
  """Exits on Ctrl-C in a callback whose exceptions Python only prints, such as jax's after each
  compilation. Files on disk stay consistent, as after SIGKILL."""
  if unraisable.exc_type is not None and issubclass(unraisable.exc_type, KeyboardInterrupt):
    _say("interrupted")
    sys.stdout.flush()
    os._exit(130)
  sys.__unraisablehook__(unraisable)


class _HelpShown(Exception):
  pass


def _say(sentence: str) -> None:
  print(" ".join(sentence.split()), file=sys.stderr)


def _parse_flags(module: ModuleType, argv: list[str], expected: tuple[str, ...] = ()) -> list[str]:
  """Parses `argv` into absl's FLAGS and returns the positional arguments, as many as `expected`.
  Errors: `UserError` for anything that cannot be parsed."""
  before_end = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
  if any(word in _HELP for word in before_end):
    print(_help(module))
    raise _HelpShown
  if any(word in _HELP_FULL for word in before_end):
    print(_help(module), "\n\nFlags of every module:\n", flags.FLAGS.get_help(), sep="")
    raise _HelpShown
  own = {flag.name: flag for flag in _own_flags(module)}
  try:
    words = flags.FLAGS(argv)[1:]
  except flags.UnrecognizedFlagError as error:
    near = difflib.get_close_matches(error.flagname, [*own, "help"], n=1, cutoff=0.5)
    meant = f"; did you mean --{near[0]}?" if near else "; --help lists the flags."
    raise UserError(f"there is no flag --{error.flagname}{meant}") from None
  except flags.Error as error:
    if match := re.match(r"flag (--\S+): \('Non-boolean", str(error)):
      raise UserError(f"{match[1]} was given; this flag takes no value.") from None
    sentence = str(error)
    raise UserError(sentence if sentence.endswith((".", "?", "!")) else sentence + ".") from None
  if expected and len(words) != len(expected):
    actual = " ".join(words) or "nothing"
    raise UserError(f"{actual} was given; expected {' '.join(expected)} (--help tells more).")
  if words and not expected:
    raise UserError(f"{words[0]!r} was given without a flag; write --flag=value (see --help).")
  for name, flag in own.items():
    if flag.present and flag.value == "":  # often an unset shell variable
      raise UserError(f"--{name}= was given without a value; give one or leave it out.")
  if flags.FLAGS["verbosity"].using_default_value:
    logging.set_verbosity(logging.WARNING)
  return words


def read_text(path: str, flag: str) -> str:
  """The text of a file. Errors: `UserError`, with `flag`, for what is no text, and for devices."""
  if Path(path).is_char_device():
    raise UserError(f"{flag}={path} is a device; expected a file of text.")
  try:
    return Path(path).read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    raise UserError(f"{flag}={path} cannot be read as text: {error}.") from None


def read_lines(path: str, flag: str) -> list[str]:
  """The lines of a file, as those of standard input: not `splitlines()`, which also splits at
  U+2028 and at form feeds. Errors: as `read_text`."""
  text = read_text(path, flag)  # with "\n" for "\r\n"
  return text.removesuffix("\n").split("\n") if text else []


class _WordOrAll(flags.ArgumentParser):
  """The parser of a flag that may be given alone or with a word."""

  syntactic_help = "a word, or nothing for all"

  def parse(self, argument: Any) -> str | None:
    return {"true": "all", "false": None}.get(argument, argument)


def DEFINE_word(name: str, text: str, module: str) -> None:
  """A flag whose value is "all" if it is given alone, or a word; None if it is not given. module:
  the command's `__name__`."""
  flag = flags.Flag(_WordOrAll(), None, name, None, text, boolean=True)
  # absl knows the module that is run by its file.
  flags.DEFINE_flag(flag, module_name=sys.argv[0] if module == "__main__" else module)


# --- help ----------------------------------------------------------------------------------------


def _own_flags(module: ModuleType) -> list[flags.Flag]:
  """The flags that a command defines itself (or adopts with `flags.adopt_module_key_flags`)."""
  return sorted(flags.FLAGS.get_key_flags_for_module(module), key=lambda flag: flag.name)


def _help(module: ModuleType) -> str:
  """The module's docstring and its own flags, one line each if they fit."""
  own = _own_flags(module)
  usages = [_flag_usage(flag) for flag in own]
  width = min(max(map(len, usages), default=0), 28)
  lines = [inspect.cleandoc(module.__doc__ or ""), "", "Flags:"]
  for usage, flag in zip(usages, own):
    text = textwrap.wrap(_flag_help(flag), 96 - width) or [""]
    if len(usage) > width:
      lines.append(f"  {usage}")
      usage = ""
    lines += [f"  {start:<{width}}  {t}" for start, t in zip([usage, *[""] * len(text)], text)]
  return "\n".join(lines)


def _flag_usage(flag: flags.Flag) -> str:
  if isinstance(flag.parser, _WordOrAll):
    return f"--{flag.name}[=WORD]"
  if flag.boolean:
    return f"--[no]{flag.name}"
  choices = getattr(flag, "enum_values", None) or getattr(flag.parser, "enum_values", None)
  return f"--{flag.name}={'|'.join(choices) if choices else flag.name.upper()}"


def _flag_help(flag: flags.Flag) -> str:
  text = " ".join((flag.help or "").split())
  # absl adds an enum's values in front (the usage has them) and a note on repeating at the end.
  text = re.sub(r"^<[^>]*>: ", "", text)
  text, repeats, _ = text.partition("; repeat this option to specify a list of values")
  if flag.default not in (None, "", [], False):
    text += f" (default: {str(flag.default_as_str).strip(chr(39))})"
  return text + (" (repeatable)" if repeats else "")


# --- experiments ---------------------------------------------------------------------------------


def load_experiment(ref: str, returns: str = "Experiment", **arguments: Any) -> Callable:
  """The function of a reference such as `experiments/bert.py:no_nsp`, with `arguments` bound.

  The file is searched in the current directory, then in the repository. An experiment is a public
  function annotated to return Experiment, a table of experiments one annotated to return Table.
  Errors: `UserError` for an unknown file or function; errors in the file keep their traceback.
  """
  path_text, colon, name = ref.partition(":")
  path = _experiment_file(path_text)
  known = _experiments_in(path, returns)
  noun = returns.lower()
  if name not in known:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f" Did you mean {path_text}:{near[0]}?" if near else ""
    fault = f"has no {noun} {name!r}" if colon else f"needs the name of {_a(noun)} after a colon"
    rest = f"It has: {', '.join(known)}." if known else f"No function in it returns {_a(returns)}."
    raise UserError(f"{path_text} {fault}.{meant} {rest}")
  function = getattr(_import(path), name)
  if not arguments:
    return function
  unknown = [a for a in arguments if a not in inspect.signature(function).parameters]
  if unknown:
    raise UserError(f"The {noun} {ref} takes no {' and no '.join(unknown)}.")
  return functools.update_wrapper(functools.partial(function, **arguments), function)


def _a(word: str) -> str:
  return f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}"


def list_experiments(folder: str, returns: str = "Experiment") -> list[tuple[str, str]]:
  """(`experiments/bert.py:no_nsp`, first line of its docstring) of a folder's functions.

  The files are read, not run. Order: files by name, functions as in the file.
  """
  root = _find(folder, Path.is_dir)
  if root is None:
    raise UserError(f"There is no folder {folder} here or in {_ROOT}.")
  return [
    (f"{Path(folder, path.relative_to(root)).as_posix()}:{name}", line)
    for path in sorted(root.rglob("*.py"))
    for name, line in _experiments_in(path, returns).items()
  ]


def listed(lines: list[tuple[str, str]], word: str) -> dict[str, list[tuple[str, str]]]:
  """Those of (FILE:FUNCTION, text) that have a word, in capitals or not ("all" is in all), by the
  title of their file. Errors: `UserError` if none has it."""
  files: dict[str, list[tuple[str, str]]] = {}
  for reference, text in lines:
    if word == "all" or word.lower() in f"{reference} {text}".lower():
      files.setdefault(reference.partition(":")[0], []).append((reference, text))
  if not files:
    names = ", ".join(dict.fromkeys(Path(r.partition(":")[0]).stem for r, _ in lines))
    raise UserError(f"--list={word} was given, and no line has it; the files are {names}.")
  return {_title(file): rows for file, rows in files.items()}


def _title(file: str) -> str:
  """The paper in the first line of a file's docstring, such as `BERT (Devlin et al. 2019)`."""
  line = (ast.get_docstring(ast.parse(_experiment_file(file).read_bytes())) or file).split("\n")[0]
  paper, closed, _ = line.partition(")")
  return f"{file}: {paper}{closed}"


def _find(text: str, exists: Callable[[Path], bool]) -> Path | None:
  return next((p.resolve() for p in (Path(text), _ROOT / text) if exists(p)), None)


def _experiment_file(text: str) -> Path:
  path = _find(text, Path.is_file)
  if path is not None and path.suffix == ".py":
    return path
  folder = _find(str(Path(text).parent), Path.is_dir)
  if Path(text).parent == Path() or not folder:
    folder = _ROOT / "experiments"
  base = next((b for b in (Path.cwd(), _ROOT) if folder.is_relative_to(b)), Path("/"))
  files = [p.relative_to(base).as_posix() for p in sorted(folder.glob("*.py"))]
  row = re.compile(r"^def (?!_).*-> .*\b(Experiment|Table)\b", re.MULTILINE)
  files = [f for f in files if row.search((base / f).read_text(errors="replace"))]
  near = difflib.get_close_matches(text, files, n=1, cutoff=0.6)
  meant = f" Did you mean {near[0]}?" if near else ""
  choices = f" There is: {', '.join(files)}." if files else ""
  fault = "is not a Python file" if path else "does not exist"
  raise UserError(f"The experiment file {text or '(no name)'} {fault}.{meant}{choices}")


def _experiments_in(path: Path, returns: str = "Experiment") -> dict[str, str]:
  """Names and first docstring lines of a file's functions that return `returns`; it is not run."""
  try:
    tree = ast.parse(path.read_bytes(), str(path))
  except ValueError as error:
    raise UserError(f"{path} cannot be read as Python: {error}.") from None
  return {
    node.name: (ast.get_docstring(node) or "").partition("\n")[0]
    for node in tree.body
    if isinstance(node, ast.FunctionDef) and _returns(node, returns)
  }


def _returns(node: ast.FunctionDef, kind: str) -> bool:
  """Whether it is public, returns `kind` (by name, without imports) and has 0 or 1 arguments."""
  if node.name.startswith("_") or node.returns is None:
    return False
  returns = ast.unparse(node.returns).strip("'\"").rpartition(".")[2]
  arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
  return returns == kind and len(arguments) <= 1


def _import(path: Path) -> ModuleType:
  """The module of a file, imported once; in the repository it has its dotted name."""
  inside = path.is_relative_to(_ROOT)
  name = ".".join(path.relative_to(_ROOT).with_suffix("").parts) if inside else f"file:{path}"
  for module in (sys.modules.get(name), sys.modules.get("__main__")):
    if module is not None and getattr(module, "__file__", None) == str(path):
      return module
  return execute(name, path)


def execute(name: str, path: Path) -> ModuleType:
  """Imports a file as the module `name`; if it fails, the module is not there."""
  if str(_ROOT) not in sys.path:
    sys.path.append(str(_ROOT))  # so that a user's file can import from experiments.bert
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None and spec.loader is not None  # the path ends in .py
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]
    raise
  return module


def load_module(name: str) -> ModuleType:
  """A module of the repository, such as `experiments.finetune`, from any directory."""
  if str(_ROOT) not in sys.path:
    sys.path.append(str(_ROOT))
  return importlib.import_module(name)


def load_class(ref: str, kind: type) -> type:
  """The class of a reference such as `my_task.py:Task`, which is a `kind`. Errors: `UserError` for
  an unknown file or class; errors in the file keep their traceback."""
  file, _, name = ref.partition(":")
  path = _find(file, Path.is_file)
  if path is None or path.suffix != ".py":
    raise UserError(f"the Python file {file} does not exist, neither here nor in {_ROOT}.")
  module = _import(path)
  classes = [
    n for n, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, kind) and value.__module__ == module.__name__
  ]  # fmt: skip
  if name not in classes:
    rest = f"it has {', '.join(classes)}" if classes else "it has none"
    raise UserError(f"{file} has no {kind.__name__.lower()} {name!r}; {rest}.")
  return getattr(module, name)


def experiments_of(file: str, returns: str = "Experiment") -> list[str]:
  """The names of the experiments, or of the tables, in one file."""
  return list(_experiments_in(_experiment_file(file), returns))
