"""English text from the documentation inside installed packages; every installation has it.

Source: the docstrings of the Python standard library and of the project's own core dependencies,
and the language reference in `pydoc_data.topics`. Nothing is imported or downloaded. A document
is one module with its docstrings in source order (or one topic), labelled with its package. Only
the first occurrence of a sentence, in the order of `modules()`, is kept.
"""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from plm_jax.data import docstrings, processes, prose, sentences
from plm_jax.data.documents import Document
from plm_jax.errors import UserError

# Packages that jax installs, with similar documentation; read in addition to the dependencies.
_COMPANIONS = ("jaxlib", "scipy")
_STANDARD_LIBRARY = "python"
_SKIPPED = "test tests testing idle_test site-packages dist-packages __pycache__ lib2to3 test_data"
_SKIPPED_FOLDERS = frozenset(_SKIPPED.split())


class Module(NamedTuple):
  label: str  # top-level package, "python" for the standard library
  name: str  # dotted
  path: str


@functools.cache
def distributions() -> tuple[tuple[str, str], ...]:
  """(name, version) of the project's installed core dependencies, in alphabetical order."""
  try:
    required = importlib.metadata.requires("plm_jax") or ()
  except importlib.metadata.PackageNotFoundError:
    raise UserError(
      "The package plm_jax is not installed in this environment, so its dependencies, whose "
      "documentation is the text, are not known: run `pip install -e .` in its folder."
    ) from None
  names = {re.match(r"[\w.-]+", line)[0] for line in required if "extra ==" not in line}
  versions = []
  for name in sorted(names | set(_COMPANIONS), key=str.lower):
    try:
      versions.append((name, importlib.metadata.version(name)))
    except importlib.metadata.PackageNotFoundError:
      continue  # a companion that a later release of jax no longer needs
  return tuple(versions)


@functools.cache
def version() -> str:
  """A digest of everything the text depends on: Python, the dependencies and the code."""
  digest = hashlib.blake2b(digest_size=6)
  digest.update(repr((sys.version_info[:3], distributions())).encode())
  for part in (__file__, docstrings.__file__, prose.__file__, sentences.__file__):
    digest.update(Path(part).read_bytes())
  return digest.hexdigest()


def modules() -> list[Module]:
  """All modules to read, in a fixed order: the standard library, then the dependencies."""
  modules = list(_standard_library())
  for name, _ in distributions():
    modules += _distribution(name)
  return modules


def _standard_library() -> Iterator[Module]:
  root = Path(sysconfig.get_paths()["stdlib"])
  for folder, folders, files in os.walk(root):
    folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
    for file in sorted(files):
      if file.endswith(".py") and not _is_test(file):
        path = Path(folder, file)
        yield Module(_STANDARD_LIBRARY, _dotted(path.relative_to(root).parts), str(path))


def _distribution(name: str) -> list[Module]:
  """The modules of one installed distribution; a stub is read only where there is no source."""
  modules = {}
  for file in importlib.metadata.files(name) or ():
    if file.suffix not in (".py", ".pyi") or _is_test(file.name):
      continue
    if not _SKIPPED_FOLDERS.isdisjoint(file.parts):
      continue
    dotted = _dotted(file.parts)
    if file.suffix == ".py" or dotted not in modules:
      modules[dotted] = Module(file.parts[0], dotted, os.fspath(file.locate()))
  return sorted(modules.values())


def _is_test(file: str) -> bool:
  return file.startswith("test_") or file.endswith("_test.py") or file == "conftest.py"


def _dotted(parts: Iterable[str]) -> str:
  name = ".".join(parts).removesuffix(".pyi").removesuffix(".py")
  return name.removesuffix(".__init__")


def documents() -> tuple[list[Document], dict]:
  """The whole text and its record: sha256, counts, reasons for dropped text. Takes seconds."""
  dropped, seen, kept = Counter(), set(), []
  size, digest = 0, hashlib.sha256()
  for (label, name, _), texts, counts in _read_all():
    dropped.update(counts)
    for part, lines in texts:
      new = [line for line in lines if not (line.lower() in seen or seen.add(line.lower()))]
      dropped["sentences seen before"] += len(lines) - len(new)
      if not new:
        dropped["documents without a new sentence"] += 1
        continue
      kept.append(Document(f"{name}.{part}" if part else name, tuple(new), label))
      block = ("\n".join(new) + "\n\n").encode()
      size += len(block)
      digest.update(block)
  if not kept:
    raise UserError(
      "No documentation was found in the installed packages (sources stripped?): give another text "
      "with --set data.source=PATH."
    )
  record = {
    "sha256": digest.hexdigest(),
    "bytes": size,
    "documents": len(kept),
    "sentences": sum(len(document.sentences) for document in kept),
    "documents by label": dict(Counter(document.label for document in kept).most_common()),
    "dropped": dict(sorted(dropped.items())),
    "python": sys.version.split()[0],
    "distributions": dict(distributions()),
  }
  return kept, record


Texts = list[tuple[str, list[str]]]  # (part of the module, its sentences)


def _read_all() -> Iterator[tuple[Module, Texts, dict[str, int]]]:
  """Yields every module with its texts, in order; all processor cores parse."""
  todo = modules()
  workers = min(processes.cores(), 8)
  if workers == 1:
    yield from ((module, *read(module)) for module in todo)
    return
  children = [processes.start(__name__, "read_part") for _ in range(workers)]
  # Dealt out by size, largest first, so that all finish at about the same time.
  by_size = sorted(range(len(todo)), key=lambda i: -os.path.getsize(todo[i].path))
  results = {}
  for rank, process in enumerate(children):
    process.stdin.write(json.dumps([todo[i] for i in by_size[rank::workers]]).encode())
    process.stdin.close()
  for rank, process in enumerate(children):
    out = process.stdout.read()
    process.stdout.close()
    if process.wait() != 0:
      raise RuntimeError(f"reading the installed text failed with exit code {process.returncode}")
    results.update(zip(by_size[rank::workers], json.loads(out), strict=True))
  yield from ((module, *results[i]) for i, module in enumerate(todo))


def read_part() -> None:
  """A subprocess's work: a list of modules on stdin, their texts on stdout, as JSON."""
  result = [read(Module(*fields)) for fields in json.load(sys.stdin)]
  json.dump(result, sys.stdout)


def read(module: Module) -> tuple[Texts, dict[str, int]]:
  """The prose of one file, [(part, sentences)], and drop counts. Part is "" or the topic."""
  try:
    source = Path(module.path).read_bytes()
  except OSError:
    return [], {"files that cannot be read": 1}
  if module.name == "pydoc_data.topics":
    texts = _topics(source)
  else:
    texts = {"": docstrings.docstrings(source)}
  if not texts.get("", True):
    return [], {"files without documentation": 1}
  parts, refused = [], 0
  for part, docs in texts.items():
    lines = []
    for doc in docs:
      kept, dropped = prose.sentences(doc)
      lines += kept
      refused += dropped
    parts.append((part, lines))
  return parts, {"sentences that are not prose": refused}


def _topics(source: bytes) -> dict[str, list[str]]:
  """The language reference `topics = {"assert": "text", ...}`, one document per topic."""
  for node in ast.parse(source).body:
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
      return {key: [text] for key, text in sorted(ast.literal_eval(node.value).items())}
  return {}
