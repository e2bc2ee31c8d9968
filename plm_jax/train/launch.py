"""This process's place among those of a run, from flags or from the launcher's environment."""

from __future__ import annotations

import os
import re
import socket
import time
import warnings
from typing import NamedTuple

from absl import flags
from jax._src import clusters

from plm_jax.errors import UserError


def define_flags() -> None:
  """The flags of a command that may run as several processes."""
  flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of several processes.")
  flags.DEFINE_integer("processes", None, "Number of processes; 1 runs alone (default: detected).")
  flags.DEFINE_integer("process", None, "Number of this process, from 0.")
  flags.DEFINE_integer("join_seconds", 300, "How long to wait for the other processes.")


def flags_of_place() -> tuple[str | None, int | None, int | None, int]:
  """The arguments of `processes.joined` that the flags give."""
  values = flags.FLAGS
  return values.coordinator, values.processes, values.process, values.join_seconds


class Place(NamedTuple):
  """This process among all. devices: its local devices; None is all of its machine."""

  coordinator: str
  processes: int
  process: int
  devices: list[int] | None = None


def place_of(
  coordinator: str | None, processes: int | None, process: int | None, seconds: int
) -> Place | None:
  """This process's place, None for a run of one process. Errors: `UserError`."""
  if processes == 1:
    return None
  if coordinator is None and processes is None and process is None:
    return _detected(seconds)
  if coordinator is None or processes is None or process is None:
    raise UserError(
      "--coordinator, --processes and --process belong together: the address HOST:PORT of the "
      "first process, the number of processes, and the number of this one, counted from 0"
    )
  if not re.fullmatch(r".+:\d+", coordinator):
    raise UserError(f"--coordinator={coordinator} was given; expected HOST:PORT")
  if not 0 <= process < processes:
    raise UserError(f"--process={process} must be at least 0 and below --processes={processes}")
  return Place(coordinator, processes, process)


def _detected(seconds: int) -> Place | None:
  indexed = "JOB_COMPLETION_INDEX" in os.environ
  detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
  try:
    with warnings.catch_warnings():
      if not indexed:  # a lone pod needs no package `kubernetes`
        warnings.simplefilter("ignore")
      coordinator, processes, process, devices = detect(None, None, None, None, None, seconds)
  except RuntimeError as error:
    if "KUBERNETES_SERVICE_HOST" in os.environ and not indexed:
      return None
    raise UserError(
      f"the other processes of this run cannot be found: {error}; give --coordinator, --processes "
      "and --process, or --processes=1 to run alone"
    ) from error
  if coordinator is None or processes is None or process is None or processes == 1:
    return None
  return Place(coordinator, processes, process, None if devices is None else list(devices))


def wait_for(address: str, seconds: float) -> None:
  """Returns when a process listens at HOST:PORT. Errors: `UserError` after `seconds`."""
  host, _, port = address.rpartition(":")
  end, reason = time.monotonic() + seconds, "no answer"
  while time.monotonic() < end:
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
      return
    except (OSError, OverflowError) as error:
      reason = getattr(error, "strerror", None) or str(error)
      time.sleep(min(0.5, max(0.0, end - time.monotonic())))
  raise UserError(
    f"the first process was not reached at {address} within {seconds:g} seconds ({reason}); start "
    "it, and check that the address is that of its machine and the port is open"
  )
