"""The plan of a run as a page of text."""

from __future__ import annotations

from plm_jax.planning.devices import GIB
from plm_jax.planning.plan import Memory, Plan, Speed
from plm_jax.train.estimate import spoken

GB = 1e9
# As in Chowdhery et al. 2022 (PaLM, appendix B); it is counted in the traced forward pass.
FORMULA = "6 x weights + 12 x layers x width x length of attention, per token"


def page(plan: Plan, tensors: bool = False) -> str:
  """All that is known, a line each. tensors: every parameter too."""
  device, mesh = plan.device, ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
  micro = f"{plan.micro_batches} micro-batches of {plan.rows // plan.micro_batches}"
  lines = [
    f"{plan.name} on {plan.target.name}: {plan.target.count} x {device.name}",
    _row("by", f"{plan.by} ({plan.by_reason})"),
    _row("mesh", f"{mesh} ({plan.mesh_reason})"),
    _row("rows", f"{plan.global_batch:,} x {plan.length:,} tokens a step; {plan.rows} a device"),
    _row("", f"in {micro if plan.micro_batches > 1 else 'one micro-batch'}"),
    "",
    *_memory(plan, plan.memory),
    "",
    *_speed(plan, plan.speed),
  ]
  if plan.without_effect:
    lines += ["", "without effect", *(f"  {sentence}" for sentence in plan.without_effect)]
  if tensors:
    lines += ["", *_tensors(plan)]
  return "\n".join(lines)


def _row(label: str, text: str) -> str:
  return f"  {label:22}{text}".rstrip() if label or text else ""


def _memory(plan: Plan, memory: Memory) -> list[str]:
  estimate = "" if plan.by == "compiler" else ", an estimate"
  lines = [
    f"bytes per device, GB ({plan.parameters / 1e6:,.1f} M parameters)",
    _gigabytes("parameters", memory.parameters),
    _gigabytes("moments", memory.moments),
    _gigabytes("other state", memory.rest) if memory.rest > 1e6 else "",
  ]
  if memory.temporaries is not None and memory.total is not None:
    gradients = f"gradients {_number(memory.gradients / GB).strip()} and activations{estimate}"
    limit = f"of {memory.limit / GB:.2f} ({memory.limit / GIB:.2f} GiB)"
    lines += [
      _gigabytes("temporaries", memory.temporaries, gradients),
      _gigabytes("in all", memory.total, limit),
    ]
  verdict = "yes" if memory.fits else f"no: {memory.refusal}" if memory.refusal else "no"
  largest = f"{plan.largest} rows a device" if plan.largest else "none fits"
  by = "" if plan.by == "compiler" and not memory.refusal else " (by arithmetic)"
  lines += [_row("fits", verdict), _row("largest micro-batch", largest + by)]
  return [line for line in lines if line]


def _gigabytes(label: str, size: float, note: str = "") -> str:
  return _row(label, _number(size / GB) + (f"  {note}" if note else ""))


def _number(x: float) -> str:
  """In a column of numbers: two places after the point, of small ones two digits."""
  return f"{f'{x:,.2f}' if x >= 0.1 or x == 0 else f'{x:.2g}':>10}"


def _speed(plan: Plan, speed: Speed) -> list[str]:
  compiled = speed.compiler_operations
  read = compiled is not None or plan.memory.refusal
  lines = [
    "a step"
    + " (by arithmetic: the program cannot be read)" * (plan.by == "compiler" and not read),
    _row("operations", f"{_number(speed.operations / 1e12)} TFLOP: {FORMULA}"),
  ]
  if compiled is not None:
    silent = ""
    if speed.silent:
      silent = f", without those of {speed.silent:,.0f} kernels that do not state them"
    tera = _number(compiled * plan.target.count / 1e12)
    lines.append(_row("compiled", f"{tera} TFLOP on all devices{silent}"))
  lines.append(_row("traffic", f"{_number(speed.traffic / GB)} GB of memory per device"))
  sent = speed.collectives
  for kind, runs in sent.runs.items():
    lines.append(_row(kind, f"{_number(sent.size[kind] / GB)} GB in {runs:,.0f} runs per device"))
  if sent.runs:
    lines.append(_row("sent", f"{_number(sent.sent / GB)} GB per device, by rings"))
  if speed.seconds is None or speed.share is None:
    return [*lines, _row("time", "no bound: there are no published numbers for this device")]
  device, whole = plan.device, speed.seconds * plan.steps
  tokens = plan.global_batch * plan.length / speed.seconds
  kernels = "sum over kernels of max(products / peak, bytes / bandwidth)"
  memory = kernels if compiled is not None else "traffic / bandwidth"
  return [
    *lines,
    _row("at least", f"{_number(speed.seconds * 1e3)} ms, bound by {speed.bound}"),
    _row("share of the peak", f"{speed.share:>10.0%} at most (MFU), {tokens:,.0f} tokens/s"),
    _row("", f"time = max(operations / peak, {memory}, sent / link)"),
    _row("", "share = operations / (devices x peak x time)"),
    _row(
      "", f"peak {device.flops / 1e12:.0f} TFLOP/s, memory {device.bandwidth / GB:,.0f} GB/s, "
      f"links {device.link / GB:,.0f} GB/s"
    ),
    _row("", f"({device.source})"),
    _row("the run", f"{plan.steps:,} steps, {spoken(whole)} at that bound"),
  ]  # fmt: skip


def _tensors(plan: Plan) -> list[str]:
  """A parameter a line: path, shape with the mesh axis of each dimension, bytes per device."""
  rows = []
  for tensor in plan.tensors:
    sizes = [f"{n}:{axis}" if axis else str(n) for n, axis in zip(tensor.shape, tensor.split)]
    rows.append((tensor.path, f"{tensor.dtype}[{', '.join(sizes)}]", f"{tensor.size:,}"))
  wide = [max(map(len, column), default=0) for column in zip(*rows)]
  return [
    "parameters: path, shape and the mesh axis that splits it, bytes per device",
    *(f"  {p:{wide[0]}}  {s:{wide[1]}}  {b:>{wide[2]}}" for p, s, b in rows),
  ]
