"""A pytree as {path: array} in a folder that Orbax writes, and back onto any mesh.

The index describes the arrays: {"arrays": {path: [dtype, shape]}, "keys": {path: generator}}. A
typed random key is stored as its words and its generator's name.
"""

import functools
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from plm_jax.errors import UserError
from plm_jax.models.parameters import path_name


def to_arrays(state: Any) -> tuple[dict, dict[str, Any]]:
  """The index described above, and {path: array} with keys as their words.

  Errors: `TypeError` for a leaf that would come back in another dtype (numpy's int64).
  """
  arrays, described, keys = {}, {}, {}
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
    name = path_name(key_path)
    if name in arrays:
      raise ValueError(f"two leaves of the state have the path {name}")
    narrowed = jax.eval_shape(lambda x: x, leaf).dtype
    if narrowed != leaf.dtype:
      raise TypeError(f"{name} is {leaf.dtype}, which JAX gives back as {narrowed}; convert it")
    described[name] = _described(leaf)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      keys[name] = str(jax.random.key_impl(leaf))
      leaf = jax.random.key_data(leaf)
    arrays[name] = leaf
  return {"arrays": described, "keys": keys}, arrays


def load_arrays(folder: Path, index: dict, wanted: dict[str, Any]) -> dict[str, jax.Array]:
  """The wanted arrays from `folder`, each on the sharding of its template."""
  ocp = quiet_orbax()
  shapes = {}
  for name, leaf in wanted.items():
    data = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    if name in index["keys"]:  # its words are one more axis, which its sharding leaves whole
      data = jax.eval_shape(jax.random.key_data, data)
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    shapes[name] = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
  if not shapes:
    return {}
  restore_args = ocp.checkpoint_utils.construct_restore_args(shapes)
  args = ocp.args.PyTreeRestore(shapes, restore_args=restore_args, partial_restore=True)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    arrays = checkpointer.restore(folder, args=args)
  for name in wanted.keys() & index["keys"].keys():
    arrays[name] = jax.random.wrap_key_data(arrays[name], impl=index["keys"][name])
  return arrays


def zeros(wanted: dict[str, Any]) -> dict[str, jax.Array]:
  """Arrays like the templates."""
  # Not `device_put`, with which processes would compare the zeros over the devices.
  make = jax.jit(
    lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), wanted),
    out_shardings={name: leaf.sharding for name, leaf in wanted.items()},
  )
  return make() if wanted else {}


def check_finite(tree: Any, place: Path) -> None:
  """A `UserError` that names the first array with a number that is not finite."""
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if jax.dtypes.issubdtype(leaf.dtype, jnp.inexact) and not _is_finite(leaf):
      raise UserError(
        f"{path_name(path)} of {place} has numbers that are not finite (NaN or infinite), with "
        "which nothing can be computed; take another checkpoint"
      )


@jax.jit
def _is_finite(x: jax.Array) -> jax.Array:
  return jnp.isfinite(x).all()


def check_readable(folder: Path, names: Iterable[str]) -> None:
  """A `ValueError` if the index of the written arrays lacks one of them."""
  import tensorstore

  base = {"driver": "file", "path": f"{folder}/"}
  store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
  written = set(store.list().result())
  if lost := [name for name in names if f"{name}/.zarray".encode() not in written]:
    raise ValueError(f"{folder} was written and cannot be read again: it lacks {lost[0]}")


def refuse_misfits(folder: Path, index: dict, wanted: dict, stored: Iterable[str]) -> None:
  """A `UserError` naming the first five differences between `wanted` and `stored`."""
  indexed, stored, show = index["arrays"], set(stored), "{0[0]}{0[1]}".format
  wrong = [
    f"{name} should be {show(_described(leaf))} and is {show(indexed[name])}"
    for name, leaf in wanted.items()
    if name in stored and indexed[name] != _described(leaf)
  ]
  wrong += [f"{name} is missing" for name in wanted if name not in stored]
  wrong += [f"{name} is not in the model" for name in sorted(stored - wanted.keys())]
  if wrong:
    more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    raise UserError(
      f"the checkpoint {folder} does not fit: {'; '.join(wrong[:5])}{more}. Use the configuration "
      "it was trained with."
    )


def _described(leaf: Any) -> list:
  return [str(leaf.dtype), list(leaf.shape)]


def quiet_orbax():
  """The module `orbax.checkpoint`, imported on first use and without its log."""
  import orbax.checkpoint as ocp

  # Orbax logs each file through absl, and prints tracebacks of errors that it also raises; neither
  # belongs on a user's terminal.
  absl = logging.getLogger("absl")
  if _not_from_orbax not in absl.filters:
    absl.addFilter(_not_from_orbax)
    logging.getLogger("asyncio").addFilter(_is_no_echo)
    sys.unraisablehook = functools.partial(_without_echoes, sys.unraisablehook)
  return ocp


def _without_echoes(hook, unraisable) -> None:
  # If a file cannot be written (a full disk), Orbax closes its event loop and raises; TensorStore's
  # threads then print "Event loop is closed" once for each unfinished file.
  echo = unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"
  if not echo:
    hook(unraisable)


def _is_no_echo(record: logging.LogRecord) -> bool:
  # Of several files that cannot be written, one error is raised; asyncio logs the others.
  error = record.exc_info[1] if record.exc_info else None
  return not (isinstance(error, ValueError) and "os_error_code=" in str(error))


def _not_from_orbax(record: logging.LogRecord) -> bool:
  return "orbax" not in Path(record.pathname).parts
