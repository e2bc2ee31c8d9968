"""The table of parameters: the axes, the kind and the depth of each.

Sharding, optimisers, initial weights, decoding and `--from` read it. The row of a parameter is the
one that matches the longest end of its path. A model adds rows by an attribute `ROLES` of any of
its module classes:

    class LstmModel(nnx.Module):
      ROLES: ClassVar = linear_rows("blocks/input", "layer", ("width",), ("gates", "features"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax

Kind = Literal["kernel", "table", "bias", "gain"]
Depth = Literal["embedding", "layer", "end", "head"]


class Role(NamedTuple):
  """One row of the table.

  axes: the logical axis of each dimension (plm_jax/sharding.py, `RULES`), without leading layer
    axes.
  kind: the last name of the path; a `kernel` is contracted with the input, a `table` indexed.
  depth: `end` is after the last layer of every model (the final norm); a `head` exists if an
    objective needs it. A tied token table is an `embedding`.
  inputs: the number of axes of a kernel that are contracted with the input; 1 for a table.
  query: whether it makes the queries of attention, to which the scores are proportional.
  residual: whether its product is added to the residual stream.
  """

  axes: tuple[str, ...]
  kind: Kind
  depth: Depth
  inputs: int = 1
  query: bool = False
  residual: bool = False

  @property
  def is_weight(self) -> bool:
    """Whether it is a kernel or a table, which are decayed, factored and drawn at random."""
    return self.kind in ("kernel", "table")


def linear_rows(
  path: str, depth: Depth, inputs: tuple[str, ...], outputs: tuple[str, ...], **more
) -> dict[str, Role]:
  """The rows of a `Linear`. A bias of width D is sharded like those of norms."""
  bias = ("norm",) if outputs == ("width",) else outputs
  return {
    f"{path}/kernel": Role((*inputs, *outputs), "kernel", depth, len(inputs), **more),
    f"{path}/bias": Role(bias, "bias", depth, **more),
  }


def _norm(path: str, depth: Depth) -> dict[str, Role]:
  return {f"{path}/{kind}": Role(("norm",), kind, depth) for kind in ("gain", "bias")}


def _attention(path: str) -> dict[str, Role]:
  into, heads = ("width",), ("heads", "head_width")
  return {
    **linear_rows(f"{path}/query", "layer", into, heads, query=True),
    **linear_rows(f"{path}/key", "layer", into, heads),
    **linear_rows(f"{path}/value", "layer", into, heads),
    **linear_rows(f"{path}/output", "layer", heads, into, residual=True),
    **_norm(f"{path}_norm", "layer"),
  }


def _lstm(path: str, depth: Depth) -> dict[str, Role]:
  gates = ("gates", "features")
  return {
    **linear_rows(f"{path}/input", depth, ("width",), gates),
    **linear_rows(f"{path}/recurrent", depth, ("features",), gates),
  }


def _heads(*names: str) -> dict[str, Role]:
  rows = (linear_rows(name, "head", ("width",), ("classes",)) for name in names)
  return {tail: row for linear in rows for tail, row in linear.items()}


ROLES: dict[str, Role] = {
  "token/table": Role(("vocab", "width"), "table", "embedding"),
  "position/table": Role(("positions", "width"), "table", "embedding"),
  "segment/table": Role(("segments", "width"), "table", "embedding"),
  "relative/table": Role(("positions", "heads"), "table", "embedding"),
  **_norm("embed/norm", "embedding"),
  **_norm("embed_norm", "embedding"),
  **linear_rows("embed/project", "embedding", ("features",), ("width",)),
  **linear_rows("generator/project", "embedding", ("features",), ("width",)),
  **_attention("attention"),
  **_attention("cross"),
  **linear_rows("feed_forward/gate", "layer", ("width",), ("feed_forward",)),
  **linear_rows("feed_forward/up", "layer", ("width",), ("feed_forward",)),
  **linear_rows("feed_forward/down", "layer", ("feed_forward",), ("width",), residual=True),
  **_norm("feed_forward_norm", "layer"),
  **_norm("norm", "end"),
  "lm/table": Role(("vocab", "width"), "table", "head"),
  **linear_rows("mlm/dense", "head", ("width",), ("features",)),
  **_norm("mlm/norm", "head"),
  "mlm/decoder/table": Role(("vocab", "width"), "table", "head"),
  "mlm/bias": Role(("vocab",), "bias", "head"),
  **linear_rows("pooler", "head", ("width",), ("features",)),
  **linear_rows("rtd/dense", "head", ("width",), ("features",)),
  **_lstm("bilstm/forward", "head"),
  **_lstm("bilstm/backward", "head"),
  **_heads("rtd/score", "copying", "nsp", "sop", "classes", "token_classes", "span"),
  **linear_rows("pair_classes", "head", ("features",), ("classes",)),
}


def role(path: str, roles: Mapping[str, Role] = ROLES) -> Role:
  """The row of the parameter at `path`. Errors: `LookupError` if there is none."""
  names = path.split("/")
  for start in range(len(names)):
    row = roles.get("/".join(names[start:]))
    if row is not None:
      return row
  raise LookupError(
    f"the parameter {path} has no row in the table of parameters; add one to ROLES in "
    "plm_jax/models/parameters.py, or to an attribute ROLES of the class of its model."
  )


def roles_of(tree: Any) -> dict[str, Role]:
  """`ROLES` and the rows that the classes of modules in `tree` add to it.

  Gradients, moments and shardings are trees of the same modules.
  """
  added: dict[str, Role] = {}

  def visit(node) -> bool:
    added.update(getattr(type(node), "ROLES", {}))
    return False

  jax.tree.leaves(tree, is_leaf=visit)
  return ROLES | added


def with_roles(params: Any) -> list[tuple[str, Role, Any]]:
  """(path, role, leaf) of every parameter, in the order of `jax.tree.leaves`."""
  roles = roles_of(params)
  return [(path, role(path, roles), leaf) for path, leaf in named(params)]


def map_roles(f: Callable, params: Any, *rest: Any) -> Any:
  """`jax.tree.map` of `f(path, role, leaf, *leaves of rest)` over a tree of parameters."""
  tree = jax.tree.structure(params)
  columns = [tree.flatten_up_to(each) for each in rest]
  leaves = [f(*first, *more) for first, *more in zip(with_roles(params), *columns, strict=True)]
  return jax.tree.unflatten(tree, leaves)


def head_patterns(roles: Mapping[str, Role] = ROLES) -> tuple[str, ...]:
  """Path patterns of the heads, which differ between runs: `("lm/*", "mlm/*", ...)`. The row of a
  head begins with the head's name."""
  heads = (tail for tail, row in roles.items() if row.depth == "head")
  return tuple(dict.fromkeys(tail.split("/")[0] + "/*" for tail in heads))


def path_name(key_path: Sequence[Any]) -> str:
  """`blocks/attention/query/kernel` from the key path of `jax.tree_util.tree_flatten_with_path`.

  The final `value`, which nnx.Param adds as an attribute, is dropped; a dict key `value` is not.
  """
  last = key_path[-1] if key_path else None
  if isinstance(last, jax.tree_util.GetAttrKey) and last.name == "value":
    key_path = key_path[:-1]
  return jax.tree_util.keystr(tuple(key_path), simple=True, separator="/")


def named(tree: Any) -> list[tuple[str, Any]]:
  """(path, leaf) of every leaf, in the order of `jax.tree.leaves`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return [(path_name(key_path), leaf) for key_path, leaf in leaves]


def is_stacked(path: str) -> bool:
  """Whether the parameter at `path` has leading axes of layers."""
  return "blocks" in path.split("/")


def stacked_axes(path: str, role: Role, rank: int) -> int:
  """The number of leading layer axes of the parameter at `path`: those that its row does not name.

  Errors: `LookupError` if the row does not fit the rank.
  """
  stacked = rank - len(role.axes)
  if stacked < 0 or (stacked and not is_stacked(path)):
    raise LookupError(
      f"the parameter {path} has {rank} dimensions, but its row in the table of parameters names "
      f"{len(role.axes)}: {role.axes}; give it a row of its whole path, in ROLES of "
      "plm_jax/models/parameters.py or of the class of its model."
    )
  return stacked


def layer_of(path: str) -> tuple[str, int | None]:
  """The stack and the layer number of the parameter at `path`.

  `lstm/1/input/kernel` -> ("lstm", 1). The number is None if the leading axis has all layers:
  `student/blocks/attention/query/kernel` -> ("student/blocks", None). Any other path is layer 0 of
  the stack "".
  """
  names = path.split("/")
  numbered = [at for at, name in enumerate(names) if name.isdecimal()]
  if numbered:
    return "/".join(names[: numbered[-1]]), int(names[numbered[-1]])
  return ("/".join(names[: names.index("blocks") + 1]), None) if is_stacked(path) else ("", 0)
