"""docs/settings.md from the dataclasses: every field that `--set` takes, of every class that an
experiment has.

  python -m tests.settings_page        writes it anew; tests/test_overrides.py compares
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

from plm_jax import cli
from plm_jax.config_tree import field_types, has_default, places, show
from plm_jax.experiment import Experiment
from plm_jax.peft.methods import AnyPeft
from plm_jax.tasks.augmentation import Augmentation
from plm_jax.tasks.classification import Classification
from plm_jax.tasks.registry import TASKS
from plm_jax.tasks.regress import Regression

PAGE = Path(__file__).resolve().parents[1] / "docs/settings.md"
PLACES = {
  "model": "The model",
  "objectives": "What is trained",
  "data": "The text and its rows",
  "data.tokenizer": "The tokenizer",
  "data.segments": "What a row holds",
  "optim": "The optimiser",
  "schedule": "Reports, evaluations and checkpoints",
  "mesh": "Devices",
  "compute": "How it is computed",
  "tuning": "Options of fine-tuning",
}
HEAD = """\
# Settings: what `--set` takes

`--set=FIELD=VALUE` changes any field of an experiment, typed and checked. This page says which
fields there are, and with which defaults; the values of an experiment are what `--dry_run` prints.
`none`, `true` and `1e6` are read as such, and values of a tuple have commas between them. A whole
part is given by its class:

```
--set=steps=2000 --set=optim.warmup=100
--set "data.tokenizer=BytePairs(vocab_size=8192)" --set "objectives=MLM(rate=0.4), NSP()"
```

This page is written by `python -m tests.settings_page` and compared with the classes by the tests.
"""


def page() -> str:
  lines = [HEAD, "## The run\n", *table(Experiment, "")]
  found = classes()
  for place, title in PLACES.items():
    lines.append(f"## {title}: `{place}`\n")
    for kind in sorted(found[place], key=lambda kind: (len(kind.__mro__), kind.__name__)):
      base = base_of(kind)
      lines += [f"### {kind.__name__}\n", *([] if base else [f"{first_line(kind)}\n"])]
      lines += differences(kind, base) if base else table(kind, place)
  lines.append("## Few parameters: `peft`\n")
  for kind in typing.get_args(AnyPeft):
    lines += [f"### {kind.__name__}\n", f"{first_line(kind)}\n", *table(kind, "peft")]
  lines.append("## In run_finetune.py\n")
  for kind in TASKS.values():
    lines += [f"### {kind.__name__}\n", f"{first_line(kind)}\n", *table(kind, "task")]
  for kind, place in (
    (Augmentation, "task.augment"),
    (Classification, "objectives"),
    (Regression, "objectives"),
  ):
    lines += [f"### {kind.__name__}\n", f"{first_line(kind)}\n", *table(kind, place)]
  return "\n".join(lines).rstrip() + "\n"


def classes() -> dict[str, set[type]]:
  """Place -> the classes that stand there in some experiment, and the configurations of models that
  these are settings of."""
  found: dict[str, set[type]] = {place: set() for place in PLACES}
  for reference, _ in cli.list_experiments("experiments"):
    for budget in ("small", "paper"):
      for path, value in places(cli.load_experiment(reference, budget=budget)()):
        place = "objectives" if path.startswith("objectives") else path
        if dataclasses.is_dataclass(value) and place in found:
          found[place].add(type(value))
  found["optim"] = set(typing.get_args(field_types(Experiment)["optim"]))
  found["model"] |= {base for kind in found["model"] if (base := base_of(kind))}
  return found


def base_of(kind: type) -> type | None:
  """The configuration that a model is settings of: Encoder of Bert."""
  above = kind.__mro__[1]
  is_model = dataclasses.is_dataclass(above) and hasattr(above, "init")
  return above if is_model and "models" in kind.__module__ else None


def table(kind: type, place: str) -> list[str]:
  """A row per field."""
  types_, said = field_types(kind), meanings(kind)
  if not types_:
    return ["No fields.\n"]
  rows = ["| field | takes | default | meaning |", "|---|---|---|---|"]
  for field in dataclasses.fields(kind):
    if field.name in types_:
      path = path_of(kind, place, field.name)
      shown = f"`{show(default_of(field))}`" if has_default(field) else ""
      cells = (f"`{path}`", takes(types_[field.name]), shown, said.get(field.name, ""))
      rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
  return [*rows, ""]


def path_of(kind: type, place: str, name: str) -> str:
  if place == "objectives":
    place = f"objectives.{getattr(kind, 'name', kind.__name__)}"
  return f"{place}.{name}" if place else name


def differences(kind: type, base: type) -> list[str]:
  """What a model is called, and in which defaults it differs from the class above it."""
  above = {field.name: field for field in dataclasses.fields(base)}
  changed = []
  for field in (field for field in dataclasses.fields(kind) if field.init):
    if not has_default(field):
      changed.append(f"`{field.name}`, which must be given")
    elif field.name not in above or default_of(field) != default_of(above[field.name]):
      changed.append(f"`{field.name}={show(default_of(field))}`")
  own = f"; {', '.join(changed)}" if changed else ""
  return [f"{first_line(kind)} As {base.__name__}{own}.\n"]


def default_of(field: dataclasses.Field) -> Any:
  is_plain = field.default is not dataclasses.MISSING
  return field.default if is_plain else field.default_factory()


def takes(annotation: Any) -> str:
  """A field's annotation in a reader's words."""
  names = {int: "an integer", float: "a number", bool: "true, false", str: "text"}
  names |= {type(None): "none", Any: "see below"}
  if annotation in names:
    return names[annotation]
  parts = typing.get_args(annotation)
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return " or ".join(map(takes, parts))
  if typing.get_origin(annotation) is Literal:
    return ", ".join(f"`{show(part)}`" for part in parts)
  if typing.get_origin(annotation) is tuple:
    return f"{takes(parts[0])}, ..."
  return f"{annotation.__name__}(...)" if dataclasses.is_dataclass(annotation) else "see below"


def first_line(kind: type) -> str:
  """The first sentence of the docstring."""
  paragraph = " ".join(inspect.getdoc(kind).partition("\n\n")[0].split())
  return re.match(r".*?[.:](?= [A-Z`]|$)|.*", paragraph)[0].rstrip(":.") + "."


def meanings(kind: type) -> dict[str, str]:
  """Field -> what the docstring says after "field: ", up to the next field or paragraph."""
  names = "|".join(field_types(kind)) or "-"
  found = {}
  for above in reversed(kind.__mro__[:-1]):
    for paragraph in (inspect.cleandoc(above.__doc__ or "")).split("\n\n"):
      text = " ".join(paragraph.split())
      said = rf"(?:^|(?<=[.;] ))({names}): (.*?)(?=[.;] (?:{names})(?:, \w+)*: |$)"
      found |= {name: words.rstrip(".") for name, words in re.findall(said, text)}
  return found


if __name__ == "__main__":
  PAGE.write_text(page())
