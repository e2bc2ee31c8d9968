"""A page as a list of blocks, written as Markdown and as one HTML file with its figures.

Texts mark `code` and **strong** as in Markdown.
"""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Heading(NamedTuple):
  text: str
  level: int = 2


class Text(NamedTuple):
  text: str


class Points(NamedTuple):
  items: Sequence[str]


class Grid(NamedTuple):
  """A table. The first `left` columns are aligned left, the others right."""

  header: Sequence[str]
  rows: list[list[str]]
  left: int = 1


class Picture(NamedTuple):
  path: Path
  text: str


class Code(NamedTuple):
  text: str


class Card(NamedTuple):
  """A verdict: its outcome, the claim, one sentence, and the numbers of the test."""

  outcome: str
  claim: str
  sentence: str
  numbers: str


class Folded(NamedTuple):
  """Blocks of which only a line is shown until it is clicked."""

  line: str
  blocks: "Sequence[PageBlock]"


PageBlock = Heading | Text | Points | Grid | Picture | Code | Card | Folded


def markdown(blocks: Sequence[PageBlock]) -> str:
  return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: PageBlock) -> str:
  match block:
    case Heading(text, level):
      return f"{'#' * level} {text}"
    case Text(text):
      return text
    case Points(items):
      return "\n".join(f"- {item}" for item in items)
    case Grid(header, rows, left):
      rules = ["---"] * left + ["--:"] * (len(header) - left)
      lines = [header, rules, *rows]
      return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines
      )
    case Picture(path, text):
      return f"![{text}]({path.name})"
    case Code(text):
      return f"```\n{text}\n```"
    case Card(outcome, claim, sentence, numbers):
      return f"- **{outcome}**: {claim}. {sentence} ({numbers})"
    case Folded(line, blocks):
      return f"<details><summary>{html.escape(line)}</summary>\n\n{markdown(blocks)}\n</details>"


def page(title: str, blocks: Sequence[PageBlock]) -> str:
  """One HTML file that contains its styles and figures."""
  body = "\n".join(_html(block) for block in blocks)
  return (
    f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}\n"
    "</body>\n</html>\n"
  )


def _html(block: PageBlock) -> str:
  match block:
    case Heading(text, level):
      return f"<h{level}>{_inline(text)}</h{level}>"
    case Text(text):
      return f"<p>{_inline(text)}</p>"
    case Points(items):
      return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"
    case Grid(header, rows, left):
      return _table(header, rows, left)
    case Picture(path, text):
      data = base64.b64encode(path.read_bytes()).decode()
      alt = html.escape(text, quote=True)
      return (
        f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_inline(text)}</figcaption></figure>"
      )
    case Code(text):
      return f"<pre><code>{html.escape(text)}</code></pre>"
    case Card(outcome, claim, sentence, numbers):
      return (
        f'<div class="card {OUTCOMES[outcome]}"><b>{outcome}</b><h3>{_inline(claim)}</h3>'
        f"<p>{_inline(sentence)}</p><small>{_inline(numbers)}</small></div>"
      )
    case Folded(line, blocks):
      inside = "\n".join(map(_html, blocks))
      return f"<details><summary>{_inline(line)}</summary>\n{inside}</details>"


LEFT = ' class="left"'


def _table(header, rows, left) -> str:
  def cells(row, tag, show):
    return "".join(
      f"<{tag}{LEFT if column < left else ''}>{show(cell)}</{tag}>"
      for column, cell in enumerate(row)
    )

  lines = [f"<tr>{cells(row, 'td', _cell)}</tr>" for row in rows]
  return (
    f'<div class="wide"><table><thead><tr>{cells(header, "th", _header)}</tr></thead>'
    f"<tbody>{''.join(lines)}</tbody></table></div>"
  )


OUTCOMES = {"supported": "yes", "not supported": "no", "undecided": "open"}


def _cell(text: str) -> str:
  """The deviation of a mean is small, below it, which halves the width of a column."""
  return re.sub(r" (± [^ ]+)$", r"<small>\1</small>", _inline(text))


def _header(text: str) -> str:
  """Two lines: the name, which may be broken at `_` and not at `-`, and after a comma its kind."""
  name, _, kind = text.replace("`", "").partition(", ")
  name = "".join(f"<span>{html.escape(part)}</span>" for part in re.split("(?<=_)", name) if part)
  return f"{name}<small>{_inline(kind)}</small>" if kind else name


def _inline(text: str) -> str:
  text = html.escape(text)
  text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
  return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


STYLE = """\
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2430; background: #fff; max-width: 72rem;
  margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-bottom: .25rem;
  border-bottom: 1px solid #dde2ea; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
.card { border: 1px solid #dde2ea; border-left: .4rem solid; border-radius: 6px;
  margin: .6rem 0; padding: .6rem 1rem; }
.card h3, .card p { color: #1d2430; margin: .1rem 0; } .card small { color: #5b6472; }
.card b { float: right; margin-left: 1rem; }
.yes { color: #116a34; background: #f1faf4; } .no { color: #a11c2b; background: #fef5f6; }
.open { color: #5b6472; background: #f8f9fb; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  margin: .75rem 0; }
th, td { padding: .35rem .55rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid #e6eaf0; }
th { font-weight: 600; border-bottom: 2px solid #aeb7c4; vertical-align: bottom; }
th.left, td.left { text-align: left; }
th span { display: inline-block; white-space: nowrap; } td { white-space: nowrap; }
td.left + td.left { white-space: normal; }
th small, td small { display: block; font-weight: 400; color: #5b6472; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
code, pre { font: .86em/1.45 ui-monospace, monospace; }
code { background: #f3f5f8; padding: .1em .25em; border-radius: 3px; }
pre { background: #f3f5f8; padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; }
pre code { padding: 0; }
figure { margin: 1rem 0; } img { max-width: 100%; }
figcaption { color: #5b6472; font-size: .88rem; }
summary { cursor: pointer; margin: .5rem 0; }
"""
