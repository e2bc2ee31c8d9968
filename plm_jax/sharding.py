"""The mesh of devices, and the rules that place parameters and batches on it.

The three mesh axes have their usual names (T5X, MaxText): `data` copies the parameters and splits
the batch; `fsdp` splits the batch and the parameters; `tensor` splits the heads, the feed-forward
width and the vocabulary of a layer. All three compute the same numbers.

The path of a parameter determines its logical axes (models/parameters.py), these its mesh axes
(`RULES`) and its `NamedSharding`. Models do not know them. The rows of activations are split where
models call `split_rows` (placement.py). XLA inserts the communication (`AxisType.Auto`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from plm_jax.errors import UserError
from plm_jax.models.parameters import ROLES, Role, named, path_name, role, roles_of, stacked_axes
from plm_jax.placement import AXES, ROW_AXES

AnyMesh = Mesh | AbstractMesh
_AUTO = (AxisType.Auto,) * len(AXES)


@dataclass(frozen=True, kw_only=True)
class MeshShape:
  """The number of devices along each axis; one of them may be -1, for all remaining devices.

  The presets are `DATA_PARALLEL`, `FULLY_SHARDED` and `TENSOR_PARALLEL`. Errors: `UserError` for a
  number that is neither positive nor -1, for several -1, and in `build` for a product that is not
  the number of devices.
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
          "or -1 for all remaining devices."
        )
    if self._sizes().count(-1) > 1:
      raise UserError(
        f"the mesh {self} has -1 more than once; only one axis can take the remaining devices: "
        "give the others a number."
      )

  def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all), `tensor` innermost, where the links are fastest."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh(self.over(len(devices)), AXES, axis_types=_AUTO, devices=devices)

  def abstract(self, devices: int) -> AbstractMesh:
    """The mesh over as many devices that are not there, for shapes and shardings."""
    return AbstractMesh(self.over(devices), AXES, axis_types=_AUTO)

  def over(self, devices: int) -> tuple[int, ...]:
    """The number of devices along each axis, of so many in all."""
    sizes = self._sizes()
    product = prod(size for size in sizes if size != -1)
    if -1 not in sizes and product != devices:
      raise UserError(
        f"the mesh {self} has {product} places, but there {_are(devices, 'device')}; make the "
        f"product {devices}, or set one number to -1 for all remaining devices."
      )
    if devices % product:
      free = AXES[sizes.index(-1)]
      raise UserError(
        f"the mesh {self} does not divide the devices: there {_are(devices, 'device')}, and "
        f"the product of the numbers beside {free}=-1 is {product}; {_which_fit(devices)}"
      )
    return tuple(devices // product if size == -1 else size for size in sizes)

  def __str__(self) -> str:
    return ", ".join(f"{name}={getattr(self, name)}" for name in AXES)

  def _sizes(self) -> tuple[int, ...]:
    return tuple(getattr(self, name) for name in AXES)


def _are(count: int, noun: str) -> str:
  return f"is 1 {noun}" if count == 1 else f"are {count} {noun}s"


def _which_fit(devices: int) -> str:
  if devices == 1:
    return "only 1 fits."
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  return f"choose {', '.join(map(str, divisors[:-1]))} or {divisors[-1]}."


DATA_PARALLEL = MeshShape()  # fastest if the whole training state fits on one device
FULLY_SHARDED = MeshShape(data=1, fsdp=-1)  # state split over all devices: large models
TENSOR_PARALLEL = MeshShape(data=1, tensor=-1)  # smallest memory per device, most communication

REPLICATED = "replicated"  # of counts, keys and sums of metrics, which are not parameters
# The mesh axis of each logical axis; None: never split.
RULES: dict[str, str | None] = {
  "vocab": "tensor",
  "heads": "tensor",
  "feed_forward": "tensor",
  "width": "fsdp",
  # A gain or bias of the residual stream is D floats: gathering it costs more than keeping it.
  "norm": None,
  "features": None,  # the output of a head's square kernel, small compared with the layers
  "head_width": None,
  "positions": None,
  "segments": None,
  "classes": None,
  "gates": None,
  "ngrams": None,
  REPLICATED: None,
  "layers": None,  # the scan slices this axis: a split would make every layer wait for one device
}

# Fields of a TrainState that are not parameters and are equal on all devices.
NOT_PARAMETERS = ("metrics",)
# Parts of an optimiser's state with fewer axes than the parameter: small, so replicated.
REDUCED = {"v_row", "v_col"}


def logical_axes(path: str, rank: int, roles: Mapping[str, Role] = ROLES) -> tuple[str, ...]:
  """The logical axis of each dimension of the parameter at `path`, which has `rank` dimensions.

  The end of the path also identifies an optimiser's state (`opt_state/0/mu/blocks/...`); scalars
  have no axes. Errors: `LookupError` if `roles` has no row, or a row of another rank.
  """
  if rank == 0:
    return ()
  names = path.split("/")
  if names[0] in NOT_PARAMETERS or REDUCED & set(names):
    return (REPLICATED,) * rank
  row = role(path, roles)
  return ("layers",) * stacked_axes(path, row, rank) + row.axes


def parameter_shardings(shapes: Any, mesh: AnyMesh) -> Any:
  """`NamedSharding` of each leaf of a tree of parameters, optimiser state or a whole train state.

  shapes: arrays or `jax.ShapeDtypeStruct`s; random keys and scalars are replicated.

  A dimension that its mesh axis does not divide is replicated along that axis: BERT's 30522 = 2 x 3
  x 5087 tokens do not split over 4, but the other three quarters of the model do. The numbers are
  the same, but it takes more memory: `kept_whole` lists these cases, and refuses an axis that
  splits nothing at all. Errors: `LookupError` for a parameter without a row.
  """
  roles = roles_of(shapes)

  def sharding(key_path, leaf):
    return NamedSharding(mesh, _spec(_axes_of(path_name(key_path), leaf, roles), leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(sharding, shapes)


def kept_whole(shapes: Any, mesh: AnyMesh) -> list[str]:
  """A sentence for each logical axis that its mesh axis does not divide, naming the parameters.

  shapes: the model's parameters. Errors: `UserError` if the `fsdp` or `tensor` axis has several
  devices and splits no parameter: these devices would repeat each other's work or memory.
  """
  split: set[str] = set()
  whole: dict[tuple[str, str, int], list[str]] = {}  # (mesh axis, logical axis, size) -> paths
  roles = roles_of(shapes)
  for path, leaf in named(shapes):
    axes = _axes_of(path, leaf, roles)
    split.update(mesh_axis for mesh_axis in _spec(axes, leaf.shape, mesh) if mesh_axis)
    for axis, size in zip(axes, leaf.shape, strict=True):
      mesh_axis = RULES[axis]
      if mesh_axis is not None and size % mesh.shape[mesh_axis]:
        whole.setdefault((mesh_axis, axis, size), []).append(path)
  for name in ("fsdp", "tensor"):
    if mesh.shape[name] > 1 and name not in split:
      unsplit = [f"{axis} {size}" for mesh_axis, axis, size in whole if mesh_axis == name]
      sizes = ", ".join(unsplit) or "nothing"
      raise UserError(
        f"the mesh has {name}={mesh.shape[name]}, which divides none of the sizes it could split "
        f"({sizes}); choose a divisor of one of them, or {name}=1."
      )
  return [
    f"{axis} {size} is not divisible by {mesh_axis}={mesh.shape[mesh_axis]}, so each device along "
    f"that axis keeps all of {', '.join(paths)}."
    for (mesh_axis, axis, size), paths in whole.items()
  ]


def _axes_of(path: str, leaf, roles: Mapping[str, Role]) -> tuple[str, ...]:
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return (REPLICATED,) * len(leaf.shape)
  return logical_axes(path, len(leaf.shape), roles)


def _spec(axes: tuple[str, ...], shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
  entries: list[str | None] = []
  for axis, size in zip(axes, shape, strict=True):
    mesh_axis = RULES[axis]
    devices = 1 if mesh_axis is None else mesh.shape[mesh_axis]
    entries.append(mesh_axis if devices > 1 and size % devices == 0 else None)
  while entries and entries[-1] is None:  # P("fsdp", None) and P("fsdp") would compile twice
    entries.pop()
  return PartitionSpec(*entries)


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
  """The sharding of rows: split over `data` and `fsdp`, the same along `tensor`."""
  return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def to_global(batch: Mapping[str, np.ndarray], mesh: AnyMesh) -> dict[str, jax.Array]:
  """This process's rows [B_local, ...] of each array -> one array [B, ...] over all devices.

  B is B_local times the number of processes of the mesh; process p has rows p * B_local onwards.
  Errors: `UserError` if the rows do not divide over the devices, or a `tensor` group spans two
  processes.
  """
  sharding = batch_sharding(mesh)
  processes = jax.process_count() if mesh.is_multi_process else 1
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
