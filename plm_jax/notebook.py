"""HTML of results for notebooks: tables, curves as SVG, pages in a frame."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 420, 200, 52, 34, 24
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
  """An SVG picture of curves over steps. lines: name -> curve; empty ones are left out."""
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
  for number, (name, curve) in enumerate(lines.items()):
    colour = _COLOURS[number % len(_COLOURS)]
    points = " ".join(place(*point) for point in curve)
    parts.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.5'/>")
    parts += [_dot(place(*point), colour) for point in curve] if len(curve) < 20 else []
    parts.append(_text(_LEFT + 110 * number, _HEIGHT - 4, f"— {name}", "start", colour))
  return (
    f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{_HEIGHT}' "
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


class LiveCurves:
  """A sink of records that draws them in the cell of a notebook while a model is trained."""

  def __init__(self):
    from IPython.display import HTML, display

    self._html = HTML
    self._records: list[Mapping[str, Any]] = []
    self._place: Any = display(HTML(""), display_id=True)

  def write(self, record: Mapping[str, Any]) -> None:
    if "split" in record:
      self._records.append(record)
      self._place.update(self._html(loss_curves(self._records)))

  def close(self) -> None: ...


def live_sinks() -> list[LiveCurves]:
  """`LiveCurves` in a notebook, elsewhere nothing."""
  shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
  return [LiveCurves()] if type(shell).__name__ in ("ZMQInteractiveShell", "Shell") else []


def _dot(point: str, colour: str) -> str:
  x, y = point.split(",")
  return f"<circle cx='{x}' cy='{y}' r='2.5' fill='{colour}'/>"


def _text(x: float, y: float, words: str, anchor: str, colour: str = "#333") -> str:
  return (
    f"<text x='{x:.0f}' y='{y:.0f}' text-anchor='{anchor}' fill='{colour}'>{html.escape(words)}"
    "</text>"
  )
