"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
  """The numbers of one server. compilations: of the whole process, since the server was ready.
  labels: of all numbers, such as the server's name among several."""

  def __init__(self, **labels: str) -> None:
    self.registry, self._labels = CollectorRegistry(), labels
    own = {"registry": self.registry}
    self.requests = Counter("plm_jax_requests", "Answered requests.", ["route", "status"], **own)
    self.seconds = Histogram(
      "plm_jax_request_seconds", "Time of a request.", ["route"], buckets=_SECONDS, **own
    )
    self.queue = Gauge("plm_jax_queue", "Texts that wait.", ["model"], **own)
    self.batch = Histogram(
      "plm_jax_batch", "Texts computed together.", ["model", "kind"], buckets=_SIZES, **own
    )
    self.tokens = Counter("plm_jax_tokens_written", "Generated tokens.", ["model"], **own)
    self.compilations = Counter(
      "plm_jax_compilations", "Programs compiled while serving; expected: 0.", **own
    )

  def count_compilations(self) -> None:
    """From now on."""

    def heard(event: str, duration_secs: float, **_) -> None:
      if event == "/jax/core/compile/backend_compile_duration":
        self.compilations.inc()

    jax.monitoring.register_event_duration_secs_listener(heard)

  def text(self) -> bytes:
    """All numbers in Prometheus's format."""
    return generate_latest(self)  # type: ignore[arg-type]

  def collect(self) -> Iterator[Metric]:
    """The numbers with their labels, for `generate_latest`."""
    for metric in self.registry.collect():
      metric.samples = [s._replace(labels={**s.labels, **self._labels}) for s in metric.samples]
      yield metric
