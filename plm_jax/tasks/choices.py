"""Multiple choice in tables: which column is the prompt, which are the choices, which one is right.

Known by their names: HellaSwag (ctx, endings, label), SWAG (sent1, sent2, ending0 to ending3), COPA
(premise, question, choice1, choice2), PIQA (goal, sol1, sol2), RACE (article, question, options,
answer), ARC and CommonsenseQA (question, choices {"text", "label"}, answerKey).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from plm_jax.errors import UserError
from plm_jax.tasks.examples import Example
from plm_jax.tasks.table_files import DOCUMENT, NAME, Table, no_column, written

PROMPTS = ("prompt", "ctx", "context", "article", "passage", "premise", "goal", "startphrase")
PROMPTS += ("sent1", "question", "question_stem", "stem", "query", "text", "sentence")
MIDDLES = ("question", "sent2")  # between prompt and choice
CHOICES = ("choices", "endings", "options", "alternatives", "candidates", "answers")
NUMBERED = re.compile(
  r"(choice|ending|option|sol|answer|alternative|hypothesis)_?(\d+|[a-e])", re.I
)
RIGHT = ("label", "gold", "index", "answer", "correct", "answerkey", "correct_answer", "target")
RIGHT += ("most-plausible-alternative", "right", "answer_index")
# COPA's questions (Roemmele et al. 2011) in words, as SuperGLUE's users write them.
QUESTIONS = {"cause": "What was the cause?", "effect": "What happened as a result?"}


class Layout(NamedTuple):
  """The columns. choices: one with a list, or one for each choice. None where there is none."""

  prompt: str
  middle: str | None
  choices: tuple[str, ...]
  label: str | None
  name: str | None
  document: str | None
  note: str


def layout_of(table: Table, task: Any) -> Layout:
  """The columns by the task's fields, else by those of known data sets. Errors: `UserError` if
  prompt or choices are missing."""
  present = {name.lower(): name for name in reversed(table.names)}
  for field in ("text", "then", "choices"):
    column = getattr(task, field)
    if column and column not in table.names:
      raise no_column(table, column, field)

  def known(names: tuple[str, ...], taken: tuple = ()) -> str | None:
    return next((present[n] for n in names if n in present and present[n] not in taken), None)

  choices = _choices(table, task.choices or known(CHOICES))
  prompt = task.text or known(PROMPTS, choices)
  missing = "choices" if not choices else None if prompt else "text"
  if missing:
    raise table.lacking(f"of {missing}", missing)
  middle = task.then or (None if task.text else known(MIDDLES, (*choices, prompt)))
  taken = (*choices, prompt, middle)
  label = task.label if task.label in table.names else known(RIGHT, taken)
  label = None if task.label and task.label not in table.names else label
  name = task.id or known(NAME, (*taken, label))
  document = task.document or known(DOCUMENT, (*taken, label, name))
  shown = {"text": prompt, "then": middle, "choices": ", ".join(choices), "label": label}
  columns = ", ".join(f"{field} = {column!r}" for field, column in shown.items() if column)
  note = f"{table.path.name}: columns: {columns}"
  return Layout(prompt, middle, choices, label, name, document, note)


def _choices(table: Table, column: str | None) -> tuple[str, ...]:
  """The column with lists, or all that are numbered as `column` is; or as any known name is."""
  matches = {name: NUMBERED.fullmatch(name) for name in table.names}
  stems: dict[str, list[str]] = {}
  for name, match in matches.items():
    if match:
      stems.setdefault(match[1].lower(), []).append(name)
  if column:
    match = matches.get(column)
    return tuple(stems[match[1].lower()]) if match else (column,)
  return next((tuple(names) for names in stems.values() if len(names) > 1), ())


def examples_in(
  table: Table, layout: Layout, first: int | None, labelled: bool
) -> tuple[list[Example], int | None]:
  """The examples (prompt, choices; the number of the right one from 0), and the number of the first
  choice in the label's column, None if labels are names or texts. Errors: `UserError` for a row
  with fewer than two choices, or a label that is none of them."""
  if labelled and layout.label is None:
    raise table.lacking("that tells the right choice", "label")
  rows = [(line, row, *_read(table, line, row, layout)) for line, row in table.rows]
  labels = [written(row.get(layout.label)) for _, row, *_ in rows] if labelled else []
  if first is None:
    first = _first(labels, max((len(texts) - 1 for _, _, texts, _ in rows), default=0))
  items = []
  for number, (line, row, texts, names) in enumerate(rows):
    target = None
    if labelled:
      target = number_of(labels[number], texts[1:], names, first)
      if target is None:
        raise UserError(
          f"{table.at(line)} has {labels[number]!r} as its right choice, which is none of its "
          f"{len(texts) - 1} choices; correct it, or give --set=task.first=0 or 1."
        )
    where = f"{table.path.name}:{line}"
    name = (written(row.get(layout.name)) if layout.name else "") or where
    document = (written(row.get(layout.document)) if layout.document else "") or where
    items.append(Example(texts, target, name, document))
  return items, first


def _first(labels: list[str], most: int) -> int | None:
  """The number of the first choice: 1 if no label is 0 and one is the number of choices, else 0.
  None without numbers."""
  numbers = {int(label) for label in labels if label.isdecimal()}
  if not numbers:
    return None
  return 1 if max(numbers) >= most and 0 not in numbers else 0


def number_of(
  label: str, choices: tuple[str, ...], names: tuple[str, ...], first: int | None
) -> int | None:
  """The number from 0 of the right choice: by the choices' names (A, B, ...), as a number, or by
  the text of the choice. None if it is none of them."""
  for known in (names, tuple("ABCDEFGHIJ"[: len(choices)])):
    if label in known:
      return known.index(label)
  if label.isdecimal() and 0 <= int(label) - (first or 0) < len(choices):
    return int(label) - (first or 0)
  return choices.index(label) if label in choices else None


def _read(table: Table, line: int, row: dict, layout: Layout) -> tuple[tuple, tuple]:
  """(prompt, choices) and the names of the choices."""
  prompt, values = row.get(layout.prompt), row.get(layout.choices[0])
  if isinstance(prompt, dict):  # CommonsenseQA: {"stem": ..., "choices": [...]}
    values, prompt = values or prompt.get("choices"), prompt.get("stem")
  texts, names = _listed(values)
  if len(layout.choices) > 1:
    texts = [written(row.get(column)) for column in layout.choices]
  texts = [text for text in texts if text]
  if len(texts) < 2:
    raise UserError(f"{table.at(line)} has {len(texts)} choices; two are needed.")
  if layout.middle and (middle := written(row.get(layout.middle))):
    texts = [f"{QUESTIONS.get(middle, middle)} {text}" for text in texts]
  if not written(prompt):
    raise table.empty(line, layout.prompt)
  return (written(prompt), *texts), tuple(names)


def _listed(values: Any) -> tuple[list[str], list[str]]:
  """The texts and names of choices in a list of texts, a list of {"text", "label"}, or a {"text":
  list, "label": list}."""
  if isinstance(values, dict):
    return [*map(written, values.get("text", []))], [*map(written, values.get("label", []))]
  if not isinstance(values, list):
    return [], []
  if all(isinstance(value, dict) for value in values):
    return [written(v.get("text")) for v in values], [written(v.get("label")) for v in values]
  return [*map(written, values)], []
