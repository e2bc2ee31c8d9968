"""Writes a file to start from: an experiment, a table or a task of your own, ready to run.

  python -m plm_jax.new experiment NAME        NAME.py, for run_pretrain.py
  python -m plm_jax.new table NAME             NAME.py, for plm_jax.sweep and plm_jax.report
  python -m plm_jax.new task NAME              NAME.py and NAME.csv, for run_finetune.py

The file is written to this folder, which can be any. Its first lines have the commands.
"""

import importlib.util
import itertools
import keyword
import sys
from pathlib import Path

from plm_jax import cli
from plm_jax.errors import UserError

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
REPO = TEMPLATES.parents[1]
# A file of such a name hides a module of Python's or of this project, or is hidden by it.
TAKEN = {*sys.stdlib_module_names, *keyword.kwlist, "plm_jax", "experiments", "data", "tests"}
TAKEN |= {"NAME"}  # stands for the name in the commands of --help


def define_flags() -> None:
  """None: both words have a place."""


def main(kind: str, name: str) -> None:
  for path in new(kind, name, Path()):
    print(path)
  print(f"next: the commands are at the top of {name.removesuffix('.py')}.py")


def new(kind: str, name: str, folder: Path) -> list[Path]:
  """Writes the files; returns their paths. Errors: `UserError` for an unknown kind, a name that is
  none in Python or is taken, and a file that exists."""
  kinds = sorted(path.stem for path in TEMPLATES.glob("*.txt"))
  if kind not in kinds:
    raise UserError(f"{kind!r} was given; expected {', '.join(kinds[:-1])} or {kinds[-1]}.")
  name = name.removesuffix(".py")
  if not name.isidentifier():
    raise UserError(f"{name!r} cannot name a Python file; take letters, digits and _.")
  if name in TAKEN or hides_a_package(name, folder):
    raise UserError(
      f"{name!r} is already the name of a module or a word of Python; choose another."
    )
  code = (TEMPLATES / f"{kind}.txt").read_text()
  repo = "" if Path.cwd() == REPO else f"{REPO}/"
  files = {f"{name}.py": code.replace("REPO/", repo).replace("NAME", name)}
  if kind == "task":
    files[f"{name}.csv"] = reviews()
  for file in files:
    if (folder / file).exists():
      raise UserError(f"{folder / file} already exists; choose another name.")
  for file, text in files.items():
    (folder / file).write_text(text)
  return [folder / file for file in files]


def hides_a_package(name: str, folder: Path) -> bool:
  """Whether a file of this name would be imported in place of an installed package."""
  try:
    spec = importlib.util.find_spec(name)
  except (ImportError, ValueError):
    return False
  # A folder without code hides nothing, and files of this folder have another error.
  if spec is None or spec.origin is None:
    return False
  return Path(spec.origin).parent != folder.resolve()


def reviews() -> str:
  """A table of made-up reviews, with a column of stars."""
  stars = {"fine": 5, "warm": 4, "clever": 5, "dull": 2, "loud": 1, "thin": 2}
  nouns = ("film", "book", "play", "song", "meal", "game", "story", "show", "scene", "cast")
  rows = itertools.product(stars, nouns)
  return "\n".join(["text,stars", *(f"a {a} {noun},{stars[a]}" for a, noun in rows)]) + "\n"


if __name__ == "__main__":
  cli.run(main, words=("KIND", "NAME"))
