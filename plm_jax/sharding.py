"""Devices as a mesh, and the rules that say how parameters and batches lie on it.

Three mesh axes, after the usual names (T5X, MaxText): `data` copies the parameters and splits the
batch; `fsdp` splits the batch and also stores each parameter in pieces; `tensor` splits the heads,
the feed-forward width and the vocabulary inside a layer. All three compute the same numbers.

The way of a parameter: path -> logical axes (models/parameters.py) -> mesh axes (`RULES`) ->
`NamedSharding`.
Models know nothing of it. XLA inserts the communication (`AxisType.Auto`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from plm_jax.errors import UserError
from plm_jax.models.parameters import ROLES, Role, named, path_name, role, roles_of, stacked_axes

AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True, kw_only=True)
class MeshShape:
  """How many devices lie along each axis; one number may be -1, "all that are left".

  The presets `DATA_PARALLEL`, `FULLY_SHARDED` and `TENSOR_PARALLEL` are below. Errors: `UserError`
  for a number that is neither positive nor -1, for two times -1, and, in `build`, for a product
  that is not the number of devices.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    for name in AXES:
      size = getattr(self, name)
      if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
        raise UserError(
          f"mesh.{name} = {size!r} was given; expected a positive whole number of devices, "
          "or -1 for all that are left."
        )
    if self._sizes().count(-1) > 1:
      raise UserError(
        f"the mesh {self} has -1 more than once; only one axis can take the devices that are left: "
        "give the others a number."
      )

  def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all), `tensor` innermost, where the links are fastest."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = self._sizes()
    given = prod(size for size in sizes if size != -1)
    if -1 not in sizes and given != len(devices):
      raise UserError(
        f"the mesh {self} has {given} places, but there {_are(len(devices), 'device')}; make the "
        f"product {len(devices)}, or set one number to -1 for all that are left."
      )
    if len(devices) % given:
      free = AXES[sizes.index(-1)]
      raise UserError(
        f"the mesh {self} does not divide the devices: there {_are(len(devices), 'device')}, and "
        f"the product of the numbers beside {free}=-1 is {given}; {_which_fit(len(devices))}"
      )
    sizes = tuple(len(devices) // given if size == -1 else size for size in sizes)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)

  def __str__(self) -> str:
    return ", ".join(f"{name}={getattr(self, name)}" for name in AXES)

  def _sizes(self) -> tuple[int, ...]:
    return tuple(getattr(self, name) for name in AXES)


def _are(count: int, noun: str) -> str:
  return f"is 1 {noun}" if count == 1 else f"are {count} {noun}s"


def _which_fit(devices: int) -> str:
  if devices == 1:
    return "only 1 fits."
  fit = [n for n in range(1, devices + 1) if devices % n == 0]
  return f"what fits: {', '.join(map(str, fit[:-1]))} or {fit[-1]}."


DATA_PARALLEL = MeshShape()  # the fastest where the whole training state fits on one device
FULLY_SHARDED = MeshShape(data=1, fsdp=-1)  # state split over all devices: large models
TENSOR_PARALLEL = MeshShape(data=1, tensor=-1)  # smallest memory per device, most communication

REPLICATED = "replicated"  # of what is no parameter: counts, keys, sums of metrics
# Where each logical axis lies on the mesh; None: never split.
RULES: dict[str, str | None] = {
  "vocab": "tensor",
  "heads": "tensor",
  "feed_forward": "tensor",
  "width": "fsdp",
  # A gain or bias of the residual stream is D floats: gathering it costs more than keeping it.
  "norm": None,
  "features": None,  # the output of a square kernel of a head, small beside the layers
  "head_width": None,
  "positions": None,
  "segments": None,
  "classes": None,
  "gates": None,
  REPLICATED: None,
  "layers": None,  # the scan slices this axis; a split would make every layer wait for one device
}

# Fields of a TrainState that are no parameters and are the same on every device.
NOT_PARAMETERS = ("metrics",)
# Parts of an optimiser's state that have fewer axes than the parameter, and are small beside it.
REDUCED = {"v_row", "v_col"}


def logical_axes(path: str, rank: int, roles: Mapping[str, Role] = ROLES) -> tuple[str, ...]:
  """The logical axis of each dimension of the parameter at `path`, which has `rank` dimensions.

  An optimiser's state is found by the end of its path (`opt_state/0/mu/blocks/...`), scalars have
  no axes. Errors: `LookupError` where `roles` has no row, or one with another number of axes.
  """
  if rank == 0:
    return ()
  names = path.split("/")
  if names[0] in NOT_PARAMETERS or REDUCED & set(names):
    return (REPLICATED,) * rank
  row = role(path, roles)
  return ("layers",) * stacked_axes(path, row, rank) + row.axes


def parameter_shardings(shapes: Any, mesh: Mesh) -> Any:
  """`NamedSharding` of each leaf of a tree of parameters, optimiser state or a whole train state.

  `shapes`: arrays or `jax.ShapeDtypeStruct`s; random keys and scalars are replicated.

  A dimension that its mesh axis does not divide stays whole on every device of that axis: BERT's
  30522 = 2 x 3 x 5087 tokens do not split over 4, and refusing would forbid the other three
  quarters of the model to be split. Numbers are the same, memory is not, so it must be seen:
  `kept_whole` lists these cases, and refuses an axis that splits nothing at all.
  Errors: `LookupError` for a parameter without a row.
  """

  roles = roles_of(shapes)

  def sharding(key_path, leaf):
    return NamedSharding(mesh, _spec(_axes_of(path_name(key_path), leaf, roles), leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(sharding, shapes)


def kept_whole(shapes: Any, mesh: Mesh) -> list[str]:
  """A sentence for each logical axis that its mesh axis does not divide, naming the parameters.

  Pass the model's parameters. Errors: `UserError` if the `fsdp` or `tensor` axis has several
  devices and splits no parameter at all: these devices would repeat each other's work or memory.
  """
  split: set[str] = set()
  whole: dict[tuple[str, str, int], list[str]] = {}  # (mesh axis, logical axis, size) -> paths
  roles = roles_of(shapes)
  for path, leaf in named(shapes):
    axes = _axes_of(path, leaf, roles)
    split.update(on for on in _spec(axes, leaf.shape, mesh) if on)
    for axis, size in zip(axes, leaf.shape, strict=True):
      on = RULES[axis]
      if on is not None and size % mesh.shape[on]:
        whole.setdefault((on, axis, size), []).append(path)
  for name in ("fsdp", "tensor"):
    if mesh.shape[name] > 1 and name not in split:
      sizes = ", ".join(f"{axis} {size}" for on, axis, size in whole if on == name) or "nothing"
      raise UserError(
        f"the mesh has {name}={mesh.shape[name]}, which divides none of the sizes it could split "
        f"({sizes}); choose a divisor of one of them, or {name}=1."
      )
  return [
    f"{axis} {size} is not divisible by {on}={mesh.shape[on]}, so each device along that axis "
    f"keeps all of {', '.join(paths)}."
    for (on, axis, size), paths in whole.items()
  ]


def _axes_of(path: str, leaf, roles: Mapping[str, Role]) -> tuple[str, ...]:
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return (REPLICATED,) * len(leaf.shape)
  return logical_axes(path, len(leaf.shape), roles)


def _spec(axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  entries: list[str | None] = []
  for axis, size in zip(axes, shape, strict=True):
    on = RULES[axis]
    fits = on is not None and mesh.shape[on] > 1 and size % mesh.shape[on] == 0
    entries.append(on if fits else None)
  while entries and entries[-1] is None:  # P("fsdp", None) and P("fsdp") would compile twice
    entries.pop()
  return PartitionSpec(*entries)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows are split over `data` and `fsdp` together; devices along `tensor` see the same rows."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's rows [B_local, ...] of each array -> one array [B, ...] over all devices.

  B is B_local times the number of processes; process p has rows p * B_local onwards. Errors:
  `UserError` if the rows do not divide over the devices, or a `tensor` group spans two processes.
  """
  sharding, processes = batch_sharding(mesh), jax.process_count()
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  for name, rows in batch.items():
    if rows.shape[0] * processes % shards:
      raise UserError(
        f"a batch of {rows.shape[0] * processes} rows ({name}) does not divide over data x fsdp = "
        f"{mesh.shape['data']} x {mesh.shape['fsdp']} = {shards} devices; make it a multiple."
      )
  if processes == 1:  # one transfer for the whole dict
    return jax.device_put(dict(batch), sharding)
  if jax.local_device_count() % mesh.shape["tensor"]:
    raise UserError(
      f"tensor={mesh.shape['tensor']} does not divide the {jax.local_device_count()} devices of "
      "each process, which read different rows; choose a divisor."
    )
  return {
    name: jax.make_array_from_process_local_data(
      sharding, rows, (rows.shape[0] * processes, *rows.shape[1:])
    )
    for name, rows in batch.items()
  }
