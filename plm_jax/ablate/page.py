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
  rows: Sequence[Sequence[str]]
  left: int = 1


class Picture(NamedTuple):
  path: Path
  text: str


class Code(NamedTuple):
  text: str
  folded: str = ""  # if not empty, HTML shows only this line until it is clicked


PageBlock = Heading | Text | Points | Grid | Picture | Code


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
    case Code(text, _):
      return f"```\n{text}\n```"


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
    case Code(text, folded):
      code = f"<pre><code>{html.escape(text)}</code></pre>"
      if not folded:
        return code
      return f"<details><summary>{_inline(folded)}</summary>{code}</details>"


def _table(header, rows, left) -> str:
  def cells(row, tag):
    return "".join(
      f"<{tag}{_class(cell, column < left)}>{_inline(cell)}</{tag}>"
      for column, cell in enumerate(row)
    )

  lines = [f"<tr>{cells(row, 'td')}</tr>" for row in rows]
  return (
    f'<div class="wide"><table><thead><tr>{cells(header, "th")}</tr></thead>'
    f"<tbody>{''.join(lines)}</tbody></table></div>"
  )


OUTCOMES = {"supported": "yes", "not supported": "no", "undecided": "open"}


def _class(cell: str, left: bool) -> str:
  names = [name for name in ("left" if left else "", OUTCOMES.get(cell.strip("*"), "")) if name]
  return f' class="{" ".join(names)}"' if names else ""


def _inline(text: str) -> str:
  text = html.escape(text)
  text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
  return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


STYLE = """\
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2430; background: #fff; max-width: 68rem;
  margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-bottom: .25rem;
  border-bottom: 1px solid #dde2ea; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums;
  margin: .75rem 0; }
th, td { padding: .35rem .7rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid #e6eaf0; }
th { font-weight: 600; border-bottom: 2px solid #aeb7c4; vertical-align: bottom; }
th.left, td.left { text-align: left; }
td { white-space: nowrap; } td.left { white-space: normal; }
td.yes, td.no, td.open { font-weight: 600; white-space: nowrap; }
td.yes { color: #116a34; background: #e7f6ec; } td.no { color: #a11c2b; background: #fdecee; }
td.open { color: #5b6472; background: #f1f3f6; }
code, pre { font: .86em/1.45 ui-monospace, monospace; }
code { background: #f3f5f8; padding: .1em .25em; border-radius: 3px; }
pre { background: #f3f5f8; padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; }
pre code { padding: 0; }
figure { margin: 1rem 0; } img { max-width: 100%; }
figcaption { color: #5b6472; font-size: .88rem; }
summary { cursor: pointer; }
"""
