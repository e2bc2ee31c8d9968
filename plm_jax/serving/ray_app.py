"""The server on several machines: its application in replicas of Ray Serve.

  serve run plm_jax.serving.ray_app:app model=runs/bert_tiny replicas=2
  serve run plm_jax.serving.ray_app:app model=reviews=DIR,runs/gpt_tiny batch=4 gpus=1

The arguments are the flags of `python -m plm_jax.serve` without its host and port, which are Ray's,
and `replicas`, and the `cpus` and `gpus` of each. Every replica loads and compiles all models.
docs/serving.md tells more. Ray is an extra: pip install 'plm_jax[ray]'.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click
from absl import flags

from plm_jax.data.corpora import default_cache
from plm_jax.errors import UserError
from plm_jax.serving import server_flags
from plm_jax.serving.guard import Guard
from plm_jax.serving.server import CONNECTIONS, KEY, application, named_paths
from plm_jax.train.process import keep_compilations


class Replica:
  """A replica, besides its requests."""

  app: Guard  # which Ray sets

  def check_health(self) -> None:
    """Ray replaces a replica for which this raises."""
    self.app.served.check_running()


class Mistake(click.ClickException):
  """A `UserError`, of which `serve run` prints the sentence alone."""

  exit_code = 2


def app(arguments: Mapping[str, Any]) -> Any:
  """The application, for `serve run`, `serve deploy` and `ray.serve.run`. Errors: `Mistake` in the
  arguments, `UserError` without Ray."""
  try:
    values = _parsed(arguments)
    paths = {name: _absolute(path) for name, path in named_paths(values.model).items()}
  except UserError as error:
    raise Mistake(str(error)) from None
  limits, key = server_flags.limits_of(values), os.environ.get(KEY)
  serve = _import_serve()

  def build() -> Guard:
    """Runs in each replica."""
    keep_compilations(default_cache())
    name = serve.get_replica_context().replica_id.unique_id
    return application(paths, limits, key or os.environ.get(KEY) or None, replica=name)

  return serve.deployment(
    serve.ingress(build)(Replica),
    name="plm_jax",
    num_replicas=values.replicas,
    max_ongoing_requests=CONNECTIONS,  # they wait in the replica, where they are batched
    max_queued_requests=CONNECTIONS,
    graceful_shutdown_timeout_s=values.grace,
    graceful_shutdown_wait_loop_s=0.1,
    ray_actor_options={"num_cpus": values.cpus, "num_gpus": values.gpus},
  ).bind()


def _import_serve() -> Any:
  try:
    from ray import serve
  except ImportError:
    raise UserError("Ray Serve is not installed: pip install 'plm_jax[ray]'.") from None
  return serve


def _parsed(arguments: Mapping[str, Any]) -> flags.FlagValues:
  """Errors: `UserError` for an unknown argument, a bad value, or no model."""
  values = flags.FlagValues()
  server_flags.define_flags(values)
  more = {"lower_bound": 0, "flag_values": values}
  flags.DEFINE_integer("replicas", 1, "Processes that answer.", lower_bound=1, flag_values=values)
  flags.DEFINE_float("cpus", 1.0, "Cores that Ray reserves for a replica.", **more)
  flags.DEFINE_float("gpus", 0.0, "GPUs of a replica.", **more)
  try:
    values(["app", *(f"--{name}={_written(value)}" for name, value in arguments.items())])
  except flags.UnrecognizedFlagError as error:
    known = ", ".join(sorted(set(values) - {"flagfile", "undefok"}))
    raise UserError(f"there is no argument {error.flagname}; there are {known}.") from None
  except flags.Error as error:
    raise UserError(f"{error}.".replace("flag --", "", 1)) from None
  if not values.model:
    raise UserError("model=DIR, the directory of a model, is needed.")
  return values


def _absolute(path: str) -> str:
  """A replica runs in another directory. Errors: `UserError` for a relative path that is not here;
  an absolute one may be on the machines of the replicas alone."""
  if not os.path.isabs(path) and not os.path.isdir(path):
    raise UserError(f"model={path} is no directory; give one, or its whole path on all machines.")
  return os.path.abspath(path)


def _written(value: Any) -> str:
  """An argument as text; a file of `serve deploy` may have numbers and lists."""
  return ",".join(map(str, value)) if isinstance(value, list) else str(value)
