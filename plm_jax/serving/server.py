"""The process of a server: it takes the port, loads and compiles, answers, and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import uvicorn

from plm_jax.errors import UserError
from plm_jax.progress import progress_bar
from plm_jax.serving.app import create_app
from plm_jax.serving.connection import Connection
from plm_jax.serving.guard import Guard
from plm_jax.serving.limits import Limits
from plm_jax.serving.metrics import Metrics
from plm_jax.serving.model import ServedModel

KEY = "PLM_JAX_API_KEY"
CONNECTIONS = 1024  # that are open at a time
_WAITING = 2048  # connections that are not accepted yet
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(paths: Sequence[str], host: str, port: int, limits: Limits, grace: float) -> None:
  """Serves until SIGTERM or Ctrl-C. paths: "DIR" or "NAME=DIR". grace: seconds for the requests in
  flight at the end. Errors: `UserError` for a port in use, an unknown host, a bad directory."""
  with _bound(host, port) as taken:
    key = os.environ.get(KEY) or None
    app = application(named_paths(paths), limits, key)
    if host not in _LOOPBACK and key is None:
      print(
        f"note: everyone who reaches {host} may use the models; {KEY}=... asks for a key",
        file=sys.stderr,
      )
    try:
      taken.listen(_WAITING)
    except OSError as error:  # another program took the port while the models were compiled
      raise _unusable(host, port, error) from None
    config = uvicorn.Config(
      app,
      http=partial(Connection, seconds=limits.timeout),  # type: ignore[arg-type]
      lifespan="off",
      ws="none",
      log_level="warning",
      access_log=False,
      server_header=False,
      limit_concurrency=CONNECTIONS,
      timeout_graceful_shutdown=int(grace),
    )
    _Server(config, app.served.end, grace).run(sockets=[taken])
  models = app.served.by_name.values()
  for model in models:
    model.close(1.0)  # whoever waited was answered by now
  print("the server has ended", flush=True)
  if any(model.is_running for model in models):
    os._exit(0)  # a thread of XLA that still computes would end the interpreter by SIGSEGV


def application(paths: Mapping[str, str], limits: Limits, key: str | None, **labels: str) -> Guard:
  """The application of models that are compiled and started. paths: by names. key: that requests
  need. labels: of its numbers."""
  metrics = Metrics(**labels)
  models = load(paths, limits, metrics)
  app = Guard(create_app(models, limits, metrics), limits, metrics, key)
  metrics.count_compilations()
  for model in models:
    model.start()
    print(f"{model.name}: {', '.join(f'/{name}' for name in model.abilities)}")
  return app


def named_paths(paths: Sequence[str]) -> dict[str, str]:
  """The directories of models by their names. paths: "DIR" or "NAME=DIR". Errors: `UserError` for
  a name that is there twice."""
  named: dict[str, str] = {}
  for entry in paths:
    name, equals, path = entry.partition("=")
    if not equals or "/" in name:  # a path, which may have the sign in it
      name, path = os.path.basename(os.path.normpath(entry)), entry
    if name in named:
      raise UserError(
        f"--model names {name} twice; give each a name: --model=first={named[name]},second={path}"
      )
    named[name] = path
  return named


def load(paths: Mapping[str, str], limits: Limits, metrics: Metrics) -> list[ServedModel]:
  """The models, compiled. paths: by names."""
  models = [ServedModel.load(name, path, limits, metrics) for name, path in paths.items()]
  total = sum(len(model.programs()) for model in models)
  with progress_bar(total, "compiling", unit=" programs") as bar:
    for model in models:
      model.warm_up(lambda: bar.update(1))
  return models


def _bound(host: str, port: int) -> socket.socket:
  """A socket that is not listening yet: who connects before the models are ready is refused."""
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    taken = socket.socket(family, kind, protocol)
    try:
      taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      taken.bind(address)
    except OSError:
      taken.close()
      raise
  except OSError as error:
    raise _unusable(host, port, error) from None
  return taken


def _unusable(host: str, port: int, error: OSError) -> UserError:
  is_host = isinstance(error, socket.gaierror)
  advice = "another host" if is_host else "another port, or end the program that has it"
  return UserError(
    f"--host={host} --port={port} cannot be used: {error.strerror or error}; choose {advice}."
  )


class _Server(uvicorn.Server):
  """Tells when it listens, and ends by itself after SIGTERM: uvicorn raises the signal again, which
  would be an error. end: refuses who still waits, a second before uvicorn would cut them off."""

  def __init__(self, config: uvicorn.Config, end: Callable[[], None], grace: float):
    super().__init__(config)
    self._end, self._grace = end, grace

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    asyncio.get_running_loop().call_later(max(0.0, self._grace - 1), self._end)
    await super().shutdown(sockets)

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    await super().startup(sockets)
    for each in sockets or ():
      host, port = each.getsockname()[:2]
      shown = f"[{host}]" if ":" in host else host
      print(f"http://{shown}:{port}/ is ready", flush=True)

  @contextmanager
  def capture_signals(self):
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
      loop.add_signal_handler(number, self.handle_exit, number, None)
    yield
