"""Communication between devices: how often, how many bytes, and what a device sends."""

from __future__ import annotations

from dataclasses import dataclass, field

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass
class Collectives:
  """Runs and bytes of a step, by kind. Bytes are those of the whole array on one device: the result
  of an all-gather, the operand of the others. sent: bytes that a device sends, by rings."""

  runs: dict[str, float] = field(default_factory=dict)
  size: dict[str, float] = field(default_factory=dict)
  sent: float = 0.0

  def add(self, kind: str, runs: float, size: float, devices: int) -> None:
    """Adds `runs` collectives of `size` bytes over groups of so many devices."""
    if devices <= 1:
      return
    self.runs[kind] = self.runs.get(kind, 0) + runs
    self.size[kind] = self.size.get(kind, 0) + runs * size
    ring = (devices - 1) / devices
    share = {"all-reduce": 2 * ring, "collective-permute": 1.0}.get(kind, ring)
    self.sent += runs * size * share
