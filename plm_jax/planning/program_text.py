"""The optimised program that XLA prints, as computations of instructions.

XLA's own `cost_analysis` counts the body of a loop once, and most of a step is in loops.
"""

from __future__ import annotations

import re
from math import prod
from typing import NamedTuple

BYTES = {"pred": 1, "bf16": 2, "token": 0, "opaque": 0}  # of the others the digits say it
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|\s)([a-z][\w\-]*)\(")
_WITHIN = re.compile(r'\n(?="|\}\})')  # a line break within the attributes of a kernel


class Array(NamedTuple):
  """near: in the vector memory of a TPU, so that it is no traffic of its main memory."""

  dtype: str
  shape: tuple[int, ...]
  near: bool

  @property
  def size(self) -> float:
    """Bytes."""
    digits = re.search(r"\d+", self.dtype)
    each = BYTES.get(self.dtype, int(digits[0]) / 8 if digits else 0)
    return prod(self.shape) * each

  @property
  def traffic(self) -> float:
    """Bytes of main memory."""
    return 0 if self.near else self.size


class Instruction(NamedTuple):
  """arrays: the result, several of a tuple. operands: names. rest: everything after them."""

  name: str
  arrays: list[Array]
  operation: str
  operands: list[str]
  rest: str
  line: str
  is_root: bool

  def called(self, *roles: str) -> list[str]:
    """The computations that it names in these roles, such as `calls` or `body`."""
    pattern = rf"(?:{'|'.join(roles)})=\{{?%?([\w.\-]+)"
    return re.findall(pattern, self.rest)


class Computation:
  """Instructions in order, and by name; and which read which."""

  def __init__(self):
    self.order: list[Instruction] = []
    self.by_name: dict[str, Instruction] = {}
    self.readers: dict[str, list[tuple[Instruction, int]]] = {}

  def add(self, instruction: Instruction) -> None:
    self.order.append(instruction)
    self.by_name[instruction.name] = instruction
    for place, name in enumerate(instruction.operands):
      self.readers.setdefault(name, []).append((instruction, place))

  @property
  def root(self) -> Instruction:
    return next((x for x in self.order if x.is_root), self.order[-1])

  @property
  def parameters(self) -> dict[int, Instruction]:
    own = (x for x in self.order if x.operation == "parameter")
    return {int(re.findall(r"parameter\((\d+)\)", x.line)[0]): x for x in own}


class Program(NamedTuple):
  computations: dict[str, Computation]
  entry: str


def parsed(text: str) -> Program:
  """The program of `compiled.as_text()`."""
  computations: dict[str, Computation] = {}
  entry, current = "", None
  for line in _WITHIN.sub(" ", text).splitlines():
    if not line.startswith((" ", "}")) and line.rstrip().endswith("{"):
      match = re.match(r"(ENTRY )?%?([\w.\-]+)", line)
      if match is None or match[2] == "HloModule":
        continue
      current = computations[match[2]] = Computation()
      entry = match[2] if match[1] else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and (match := _LINE.match(line)):
      current.add(_instruction(match[2], match[3], line, bool(match[1])))
  return Program(computations, entry)


def _instruction(name: str, text: str, line: str, is_root: bool) -> Instruction:
  match = _OPERATION.search(text)
  if match is None:
    return Instruction(name, arrays_in(text), "", [], "", line, is_root)
  end = _closing(text, match.end() - 1)
  inside = text[match.end() : end]
  while inside != (shorter := re.sub(r"\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)|/\*.*?\*/", "", inside)):
    inside = shorter
  operands = [part.split()[-1].lstrip("%") for part in inside.split(",") if part.strip()]
  rest, result = text[end + 1 :], arrays_in(text[: match.start()])
  return Instruction(name, result, match[1], operands, rest, line, is_root)


def _closing(text: str, start: int) -> int:
  """The place of the parenthesis that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[place], 0)
    if depth == 0:
      return place
  return len(text)


def arrays_in(text: str) -> list[Array]:
  return [
    Array(dtype, tuple(int(n) for n in dims.split(",") if n), "S(1)" in layout)
    for dtype, dims, layout in _ARRAY.findall(text)
  ]


def runs_of_loop(loop: Instruction, program: Program) -> int:
  """How often a `while` runs: as XLA notes it, else by the constant it compares its counter to."""
  if match := re.search(r"known_trip_count\D*(\d+)", loop.rest):
    return int(match[1])
  (condition,), (body,) = loop.called("condition"), loop.called("body")
  names, limits = [condition], [1]
  while names:
    for x in program.computations[names.pop()].order:
      limits += _constants(x)
      names += x.called("calls", "to_apply")
  return max(1, max(limits) // _stride(program, condition, body))


def _constants(x: Instruction) -> list[int]:
  is_number = x.operation == "constant" and [(a.dtype, a.shape) for a in x.arrays] in (
    [("s32", ())], [("u32", ())],
  )  # fmt: skip
  return [int(n) for n in re.findall(r"constant\((-?\d+)\)", x.line)] if is_number else []


def _stride(program: Program, condition: str, body: str) -> int:
  """By how much a loop's counter grows: 2 where products wait for pieces of a kernel."""
  compare, inside = program.computations[condition], program.computations[body]
  reads = (compare.by_name.get(name) for name in compare.root.operands)
  counter = next((x for x in reads if x and x.operation == "get-tuple-element"), None)
  index = re.search(r"index=(\d+)", counter.rest) if counter else None
  if index is None or inside.root.operation != "tuple":
    return 1
  x = inside.by_name.get(inside.root.operands[int(index[1])])
  while x is not None and x.operation in ("copy", "bitcast"):
    x = inside.by_name.get(x.operands[0])
  if x is None or x.operation != "add":
    return 1
  steps = [
    n for name in x.operands if name in inside.by_name for n in _constants(inside.by_name[name])
  ]
  return max([1, *steps])
