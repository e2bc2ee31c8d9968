"""HTML of results for notebooks: tables, curves as SVG, pages in a frame."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

_COLOURS = (
  *("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b"),
  *("#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#d62728"),
)
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 420, 200, 52, 34, 24
_LINE, _LETTER = 14, 6.5  # height of a line and width of a letter
Curve = Sequence[tuple[float, float]]
"""(step, value) of one metric."""


def facts(values: Mapping[str, str]) -> str:
  """A table of two columns."""
  return _table(
    f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
    for name, value in values.items()
  )


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table with a header; the first column is aligned left."""

  def line(cells: Sequence[str], tag: str) -> str:
    sides = ["left", *["right"] * (len(cells) - 1)]
    shown = (
      f"<{tag} style='text-align:{side}'>{html.escape(cell)}</{tag}>"
      for side, cell in zip(sides, cells)
    )
    return f"<tr>{''.join(shown)}</tr>"

  return _table([line(header, "th"), *(line(row, "td") for row in rows)])


def _table(rows: Iterable[str]) -> str:
  return f"<table>{''.join(rows)}</table>"


def frame(page: str, height: int = 640) -> str:
  """A whole page inside another, which keeps the styles of both apart."""
  source = html.escape(page, quote=True)
  return f"<iframe srcdoc='{source}' style='width:100%;height:{height}px;border:0'></iframe>"


def curves(title: str, lines: Mapping[str, Curve]) -> str:
  """An SVG picture of curves over steps. lines: name -> curve; empty ones are left out. A value of
  step 0 is a dot, since no step between it and the next was measured."""
  lines = {name: curve for name, curve in lines.items() if curve}
  steps = [step for curve in lines.values() for step, _ in curve]
  values = [value for curve in lines.values() for _, value in curve]
  if not values:
    return ""
  right, low, high = max(steps) or 1, min(values), max(values)
  room = (high - low) or 1.0

  def place(step: float, value: float) -> str:
    x = _LEFT + (_WIDTH - _LEFT - 10) * step / right
    y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / room)
    return f"{x:.1f},{y:.1f}"

  base = _HEIGHT - _BOTTOM
  parts = [
    f"<path d='M{_LEFT},{_TOP}V{base}H{_WIDTH - 10}' fill='none' stroke='#999'/>",
    _text(_WIDTH / 2, 14, title, "middle"),
    _text(_LEFT - 4, _TOP + 8, f"{high:.3g}", "end"),
    _text(_LEFT - 4, base, f"{low:.3g}", "end"),
    _text(_WIDTH - 10, base + 14, f"step {right:,}", "end"),
  ]
  room_of_name = max(110, _LETTER * (max(map(len, lines)) + 3))
  names = max(1, int((_WIDTH - _LEFT) / room_of_name))  # in a line of the legend
  for number, (name, curve) in enumerate(lines.items()):
    colour = _COLOURS[number % len(_COLOURS)]
    points = " ".join(place(*point) for point in curve if point[0])
    parts.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.5'/>")
    parts += [_dot(place(*point), colour) for point in curve] if len(curve) < 20 else []
    row, column = divmod(number, names)
    x, y = _LEFT + room_of_name * column, _HEIGHT - 4 + _LINE * row
    parts.append(_text(x, y, f"— {name}", "start", colour))
  height = _HEIGHT + _LINE * ((len(lines) - 1) // names)
  return (
    f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height}' "
    f"style='background:#fff' font-family='sans-serif' font-size='11'>{''.join(parts)}</svg>"
  )


def loss_curves(records: Sequence[Mapping[str, Any]]) -> str:
  """A picture of each loss in the records of a run (metrics.jsonl), training and held out."""
  names = {"train": "training", "valid": "held out"}
  losses = dict.fromkeys(m for r in records for m in r if m.endswith("/loss"))
  return "".join(
    curves(
      f"{metric.removesuffix('/loss').upper()} loss",
      {
        name: [(r["step"], r[metric]) for r in records if r.get("split") == s and metric in r]
        for s, name in names.items()
      },
    )
    for metric in losses
  )


class _Cell:
  """An output in the cell of a notebook that is drawn again and again."""

  def __init__(self):
    from IPython.display import HTML, display

    self._html = HTML
    self._place: Any = display(HTML(""), display_id=True)

  def show(self, text: str) -> None:
    self._place.update(self._html(text))


class LiveCurves:
  """A sink of records that draws them in the cell of a notebook while a model is trained."""

  def __init__(self):
    self._cell = _Cell()
    self._records: list[Mapping[str, Any]] = []

  def write(self, record: Mapping[str, Any]) -> None:
    if "split" in record:
      self._records.append(record)
      self._cell.show(loss_curves(self._records))

  def close(self) -> None: ...


class LiveArms:
  """The training losses of a sweep in the cell of a notebook: a line for each arm, the mean over
  the seeds that got so far. stored: (arm, seed, records) of earlier calls."""

  def __init__(self, stored: Iterable[tuple[str, int, Iterable[Mapping[str, Any]]]] = ()):
    self._cell = _Cell()
    self._losses: dict[str, dict[str, dict[int, dict[int, float]]]] = {}
    for arm, seed, records in stored:
      for record in records:
        self._keep(arm, seed, record)
    self._show()

  def sink(self, arm: str, seed: int) -> _ArmSink:
    """The sink of one run."""
    return _ArmSink(lambda record: self._keep(arm, seed, record) and self._show())

  def _keep(self, arm: str, seed: int, record: Mapping[str, Any]) -> bool:
    """Whether the record has a training loss."""
    losses = [name for name in record if name.endswith("/loss")]
    if record.get("split") != "train":
      return False
    for name in losses:  # metric -> arm -> step -> seed
      steps = self._losses.setdefault(name, {}).setdefault(arm, {})
      steps.setdefault(record["step"], {})[seed] = record[name]
    return bool(losses)

  def _show(self) -> None:
    pictures = (
      curves(
        f"{name.removesuffix('/loss').upper()} loss, training",
        {
          arm: [(step, fmean(steps[step].values())) for step in sorted(steps)]
          for arm, steps in arms.items()
        },
      )
      for name, arms in self._losses.items()
    )
    self._cell.show("".join(pictures))


class _ArmSink:
  """A sink that hands every record to a function."""

  def __init__(self, write: Callable[[Mapping[str, Any]], Any]):
    self.write = write

  def close(self) -> None: ...


def in_notebook() -> bool:
  shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
  return type(shell).__name__ in ("ZMQInteractiveShell", "Shell")


def live_sinks() -> list[LiveCurves]:
  """`LiveCurves` in a notebook, elsewhere nothing."""
  return [LiveCurves()] if in_notebook() else []


def _dot(point: str, colour: str) -> str:
  x, y = point.split(",")
  return f"<circle cx='{x}' cy='{y}' r='2.5' fill='{colour}'/>"


def _text(x: float, y: float, words: str, anchor: str, colour: str = "#333") -> str:
  return (
    f"<text x='{x:.0f}' y='{y:.0f}' text-anchor='{anchor}' fill='{colour}'>{html.escape(words)}"
    "</text>"
  )
