"""Attention in one kernel: no array `[B, N, T, S]` is written to memory. `fused_attention` chooses
the kernels of the device; here are those for NVIDIA GPUs, in tpu_attention.py those for TPUs.

The algorithm is FlashAttention-2 (Dao 2023, arXiv 2307.08691): blocks of queries read blocks of
keys, the softmax is accumulated over them, and the backward pass computes the scores again. Dropout
draws the hash of `plm_jax.models.dropout` inside the kernel, so that it drops the same weights as
plain attention. The kernels are written in Pallas for its Triton backend; on a CPU they are
interpreted, which is for tests.

A mask is given as groups, not as an array: see `Groups`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from plm_jax.models.attention_problem import MASKED, Problem
from plm_jax.models.dropout import column_keys, kept
from plm_jax.models.groups import Groups
from plm_jax.models.long_rows import attend_in_blocks
from plm_jax.models.tpu_attention import LONGEST, attend_on_tpu
from plm_jax.placement import split_heads


@dataclasses.dataclass(frozen=True)
class Tiling:
  """Sizes of the blocks and launch options of a kernel. rows: of the array a program owns
  (queries, or keys and values); columns: of the array that it reads in a loop."""

  rows: int
  columns: int
  warps: int
  stages: int


TILING = Tiling(rows=64, columns=64, warps=4, stages=3)  # of all kernels: docs/speed.md, GPU


@dataclasses.dataclass(frozen=True)
class _Problem(Problem):
  """A problem with the blocks that a block sees."""

  def scores(self, q, k, rows, columns, row_groups, column_groups):
    """float32 `[rows, columns]`, scaled and masked."""
    products = triton.dot(q, k, trans_b=True)
    return self.masked(products, rows[:, None], columns[None, :], row_groups, column_groups)

  def factors(self, row_keys, column_keys):
    """Of weights by dropout, by keys that broadcast."""
    keeps = kept(row_keys, column_keys, self.rate)
    return jnp.where(keeps, jnp.float32(1.0 / (1.0 - self.rate)), 0.0)

  def first_source(self, first_row, tiling: Tiling):
    """The first block of sources that a block of targets sees."""
    if self.window is None:
      return 0
    return jnp.maximum(first_row - self.window, 0) // tiling.columns

  def end_of_sources(self, first_row, tiling: Tiling, width: int):
    """The end of the blocks of sources that a block of targets sees."""
    end = first_row + tiling.rows
    if not self.causal:
      if self.window is None:
        return pl.cdiv(width, tiling.columns)
      end = end + self.window
    return jnp.minimum(end + tiling.columns - 1, width + tiling.columns - 1) // tiling.columns

  def first_target(self, first_column, tiling: Tiling):
    """The first block of targets that sees a block of sources."""
    if self.causal:
      return first_column // tiling.columns
    if self.window is None:
      return 0
    return jnp.maximum(first_column - self.window, 0) // tiling.columns

  def end_of_targets(self, first_column, tiling: Tiling, width: int):
    """The end of the blocks of targets that see a block of sources."""
    if self.window is None:
      return pl.cdiv(width, tiling.columns)
    end = first_column + tiling.rows + self.window
    return jnp.minimum(end + tiling.columns - 1, width + tiling.columns - 1) // tiling.columns


def _block(start, size):
  """The slice of a block, and its positions."""
  return pl.ds(start, size), start + jax.lax.broadcasted_iota(jnp.int32, (size,), 0)


def _group(ref, block, axis: int):
  """The groups of a block, with a new axis."""
  return None if ref is None else jnp.expand_dims(ref[block], axis)


# --- kernels -------------------------------------------------------------------------------------
# keys_ref: of sources, for dropout; tg_ref, sg_ref: groups of targets and sources. None without.


def _forward_kernel(
  place_ref, keys_ref, q_ref, k_ref, v_ref, tg_ref, sg_ref, o_ref, lse_ref, *,
  problem: _Problem, tiling,
):  # fmt: skip
  """One block of queries of one head. lse: log2 of the softmax's denominator, of each query."""
  first = pl.program_id(0) * tiling.rows
  block, rows = _block(first, tiling.rows)
  place = problem.place(place_ref, pl.program_id(1) * problem.heads + pl.program_id(2))
  row_keys = problem.row_keys(place, rows)
  q, target_groups = q_ref[...], _group(tg_ref, block, 1)

  def body(number, carry):
    o, highest, total = carry
    block, columns = _block(number * tiling.columns, tiling.columns)
    k, v = k_ref[block, :], v_ref[block, :]
    scores = problem.scores(q, k, rows, columns, target_groups, _group(sg_ref, block, 0))
    before, highest = highest, jnp.maximum(highest, scores.max(axis=1))
    weights = jnp.exp2(scores - highest[:, None])
    shrink = jnp.exp2(before - highest)
    total = total * shrink + weights.sum(axis=1)
    if problem.rate:
      keeps = kept(row_keys[:, None], keys_ref[block][None, :], problem.rate)
      weights = jnp.where(keeps, weights, 0.0)
    return o * shrink[:, None] + triton.dot(weights.astype(v.dtype), v), highest, total

  start = (
    jnp.zeros((tiling.rows, q.shape[-1]), jnp.float32),
    jnp.full((tiling.rows,), MASKED, jnp.float32),
    jnp.zeros((tiling.rows,), jnp.float32),
  )
  begin = problem.first_source(first, tiling)
  end = problem.end_of_sources(first, tiling, k_ref.shape[0])
  o, highest, total = jax.lax.fori_loop(begin, end, body, start)
  o_ref[...] = (o / (total * (1.0 - problem.rate))[:, None]).astype(o_ref.dtype)
  lse_ref[...] = highest + jnp.log2(total)


def _score_gradients(weights, factors, g_weights, delta):
  """Gradients of the scores. factors: of dropout, or None. g_weights: of the dropped weights.
  delta: sum of output times its gradient, of each query."""
  g = g_weights if factors is None else g_weights * factors
  return weights * (g - delta)


def _queries_kernel(
  place_ref, keys_ref, q_ref, k_ref, v_ref, tg_ref, sg_ref, g_ref, lse_ref, delta_ref, dq_ref, *,
  problem: _Problem, tiling,
):  # fmt: skip
  """The gradient of one block of queries of one head."""
  first = pl.program_id(0) * tiling.rows
  block, rows = _block(first, tiling.rows)
  place = problem.place(place_ref, pl.program_id(1) * problem.heads + pl.program_id(2))
  q, g, lse, delta = q_ref[...], g_ref[...], lse_ref[...], delta_ref[...]
  target_groups, row_keys = _group(tg_ref, block, 1), problem.row_keys(place, rows)

  def body(number, dq):
    block, columns = _block(number * tiling.columns, tiling.columns)
    k, v = k_ref[block, :], v_ref[block, :]
    scores = problem.scores(q, k, rows, columns, target_groups, _group(sg_ref, block, 0))
    factors = None
    if problem.rate:
      factors = problem.factors(row_keys[:, None], keys_ref[block][None, :])
    weights, g_weights = jnp.exp2(scores - lse[:, None]), triton.dot(g, v, trans_b=True)
    d_scores = _score_gradients(weights, factors, g_weights, delta[:, None])
    return dq + triton.dot(d_scores.astype(k.dtype), k)

  begin = problem.first_source(first, tiling)
  end = problem.end_of_sources(first, tiling, k_ref.shape[0])
  dq = jax.lax.fori_loop(begin, end, body, jnp.zeros(q.shape, jnp.float32))
  dq_ref[...] = (dq * problem.scale).astype(dq_ref.dtype)


def _keys_kernel(
  place_ref, keys_ref, q_ref, k_ref, v_ref, tg_ref, sg_ref, g_ref, lse_ref, delta_ref, row_keys_ref,
  dk_ref, dv_ref, *, problem: _Problem, tiling,
):  # fmt: skip
  """The gradients of one block of keys and values of one key head, from all its query heads. Scores
  have keys first, so that they are the left side of a product as they lie in the registers."""
  del place_ref
  first, heads = pl.program_id(0) * tiling.rows, q_ref.shape[1]
  block, columns = _block(first, tiling.rows)
  k, v, source_groups = k_ref[...], v_ref[...], _group(sg_ref, block, 1)
  column_keys = keys_ref[block][:, None] if problem.rate else None
  begin = problem.first_target(first, tiling)
  end = problem.end_of_targets(first, tiling, q_ref.shape[0])
  carry = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  for head in range(heads):

    def body(number, carry, head=head):
      dk, dv = carry
      block, rows = _block(number * tiling.columns, tiling.columns)
      q, g = q_ref[block, head, :], g_ref[block, head, :]
      products = triton.dot(k, q, trans_b=True)
      places = rows[None, :], columns[:, None], _group(tg_ref, block, 0), source_groups
      weights = jnp.exp2(problem.masked(products, *places) - lse_ref[head, block][None, :])
      factors = None
      if problem.rate:
        factors = problem.factors(row_keys_ref[head, block][None, :], column_keys)
      dropped = weights if factors is None else weights * factors
      dv += triton.dot(dropped.astype(g.dtype), g)
      g_weights = triton.dot(v, g, trans_b=True)
      d_scores = _score_gradients(weights, factors, g_weights, delta_ref[head, block][None, :])
      return dk + triton.dot(d_scores.astype(q.dtype), q), dv

    carry = jax.lax.fori_loop(begin, end, body, carry)
  dk, dv = carry
  dk_ref[...] = (dk * problem.scale).astype(dk_ref.dtype)
  dv_ref[...] = dv.astype(dv_ref.dtype)


# --- the function --------------------------------------------------------------------------------


def fused_attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  groups: Groups,
  *,
  scale: float | None = None,
  causal: bool = False,
  window: int | None = None,
  rate: float = 0.0,
  seed: jax.Array | None = None,
  bias_NTS: jax.Array | None = None,
  platform: str | None = None,
) -> jax.Array:
  """`[B, T, N, H]`, as plain attention has it; a target that sees nothing has arbitrary values.

  causal, window: a target sees the sources that are not after it, and at most `window` positions
  away. seed: uint32 `[]` of a hash `Noise`; None is no dropout. H is a power of 2, at least 16.
  bias: float32, added to the scores of every row, by the kernel for TPUs only. On a mesh every
  device computes its rows and heads. platform: `tpu` or `gpu`, whose kernels run; None
  is that of the device, and of a GPU on a CPU, where kernels are interpreted.
  """
  (_, T, N, H), S = q_BTNH.shape, k_BSKH.shape[1]
  problem = _Problem(
    scale=H**-0.5 if scale is None else scale,
    causal=causal,
    window=window,
    rate=0.0 if seed is None else rate,
    heads=N,
    targets=T,
    sources=S,
    interpret=jax.default_backend() == "cpu",
  )
  seed = jnp.uint32(0) if seed is None else seed.astype(jnp.uint32)

  def local(first_head, q_BTNH, k_BSKH, v_BSKH, groups, seed, bias_NTS):
    first = first_head.astype(jnp.uint32) * jnp.uint32(T)
    place = jnp.stack([seed, first])
    if (platform or jax.default_backend()) == "tpu":
      if max(T, S) > LONGEST:
        assert bias_NTS is None and not problem.rate, "chosen_kind takes neither for long rows"
        return attend_in_blocks(problem, q_BTNH, k_BSKH, v_BSKH, groups)
      return attend_on_tpu(problem, q_BTNH, k_BSKH, v_BSKH, groups, place, bias_NTS)
    assert bias_NTS is None, "chosen_kind takes it for TPUs only"
    return _attend(problem, q_BTNH, k_BSKH, v_BSKH, groups, place)

  return split_heads(local, q_BTNH, k_BSKH, v_BSKH, groups, seed, bias_NTS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(problem: _Problem, q_BTNH, k_BSKH, v_BSKH, groups, place):
  return _attend_forward(problem, q_BTNH, k_BSKH, v_BSKH, groups, place)[0]


def _attend_forward(problem: _Problem, q_BTNH, k_BSKH, v_BSKH, groups, place):
  tiling = _fitted(problem.targets, problem.sources)
  q, k, v = _padded(q_BTNH, tiling), _padded(k_BSKH, tiling), _padded(v_BSKH, tiling)
  grid, own, read, of_query = _by_queries(q, k, tiling)
  B, T, N, _ = q.shape
  o, lse = _call(
    _forward_kernel,
    problem,
    tiling,
    grid,
    [own, read, read],
    (q, k, v),
    groups,
    place,
    out=[(own, q), (of_query, jax.ShapeDtypeStruct((B, N, T), jnp.float32))],
  )
  o_BTNH = o[:, : problem.targets]
  return o_BTNH, (q_BTNH, k_BSKH, v_BSKH, groups, place, o_BTNH, lse[:, :, : problem.targets])


def _attend_backward(problem: _Problem, kept, g_BTNH):
  q_BTNH, k_BSKH, v_BSKH, groups, place, o_BTNH, lse_BNT = kept
  delta_BNT = jnp.einsum("BTNH,BTNH->BNT", o_BTNH, g_BTNH, preferred_element_type=jnp.float32)
  dq = _query_gradients(problem, q_BTNH, k_BSKH, v_BSKH, groups, place, g_BTNH, lse_BNT, delta_BNT)
  dk, dv = _key_gradients(
    problem, q_BTNH, k_BSKH, v_BSKH, groups, place, g_BTNH, lse_BNT, delta_BNT
  )
  return dq, dk, dv, jax.tree.map(lambda _: None, groups), None


_attend.defvjp(_attend_forward, _attend_backward)


def _query_gradients(problem, q, k, v, groups, place, g, lse, delta):
  tiling = _fitted(problem.targets, problem.sources)
  q, k, v, g = (_padded(x, tiling) for x in (q, k, v, g))
  lse, delta = (_padded(x, tiling, axis=2) for x in (lse, delta))
  grid, own, read, of_query = _by_queries(q, k, tiling)
  (dq,) = _call(
    _queries_kernel,
    problem,
    tiling,
    grid,
    [own, read, read],
    (q, k, v),
    groups,
    place,
    out=[(own, q)],
    more=[(own, g), (of_query, lse), (of_query, delta)],
  )
  return dq[:, : problem.targets]


def _key_gradients(problem, q, k, v, groups, place, g, lse, delta):
  tiling = _fitted(problem.sources, problem.targets)
  q, k, v, g = (_padded(x, tiling) for x in (q, k, v, g))
  lse, delta = (_padded(x, tiling, axis=2) for x in (lse, delta))
  (B, S, K, H), T, group = k.shape, q.shape[1], q.shape[2] // k.shape[2]
  own = pl.BlockSpec((None, tiling.rows, None, H), lambda s, b, n: (b, s, n, 0))
  read = pl.BlockSpec((None, T, group, H), lambda s, b, n: (b, 0, n, 0))
  of_query = pl.BlockSpec((None, group, T), lambda s, b, n: (b, n, 0))
  row_keys = None
  if problem.rate:
    heads = jnp.arange(B)[:, None, None] * problem.heads + jnp.arange(q.shape[2])[:, None]
    row_keys = problem.row_keys(problem.place(place, heads), jnp.arange(T))
  dk, dv = _call(
    _keys_kernel,
    problem,
    tiling,
    (S // tiling.rows, B, K),
    [read, own, own],
    (q, k, v),
    groups,
    place,
    out=[(own, k), (own, v)],
    more=[(read, g), (of_query, lse), (of_query, delta), (of_query, row_keys)],
  )
  return dk[:, : problem.sources], dv[:, : problem.sources]


def _by_queries(q, k, tiling: Tiling):
  """The grid of a kernel that owns blocks of queries, and the blocks of its own queries, of the
  keys and values that it reads, and of numbers for each query."""
  (B, T, N, H), group = q.shape, q.shape[2] // k.shape[2]
  own = pl.BlockSpec((None, tiling.rows, None, H), lambda t, b, n: (b, t, n, 0))
  read = pl.BlockSpec((None, k.shape[1], None, H), lambda t, b, n: (b, 0, n // group, 0))
  of_query = pl.BlockSpec((None, None, tiling.rows), lambda t, b, n: (b, n, t))
  return (T // tiling.rows, B, N), own, read, of_query


def _call(kernel, problem, tiling, grid, specs, inputs, groups, place, *, out, more=()):
  """A kernel's call. out: blocks and shapes of the results; more: further inputs with blocks."""
  whole = lambda x: pl.BlockSpec((None, x.shape[1]), lambda i, b, n: (b, 0))  # noqa: E731
  marks = [None if x is None else _padded(x, tiling, value=-2 + i) for i, x in enumerate(groups)]
  keys = column_keys(place[0], jnp.arange(problem.sources)) if problem.rate else None
  keys = None if keys is None else _padded(keys, tiling, axis=0)
  return pl.pallas_call(
    functools.partial(kernel, problem=problem, tiling=tiling),
    grid=grid,
    in_specs=[
      pl.BlockSpec((2,), lambda i, b, n: (0,)),
      None if keys is None else pl.BlockSpec(keys.shape, lambda i, b, n: (0,)),
      *specs,
      *(None if x is None else whole(x) for x in marks),
      *(None if x is None else spec for spec, x in more),
    ],
    out_specs=[spec for spec, _ in out],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in out],
    compiler_params=triton.CompilerParams(num_warps=tiling.warps, num_stages=tiling.stages),
    interpret=problem.interpret,
  )(place, keys, *inputs, *marks, *(x for _, x in more))


def _fitted(rows: int, columns: int) -> Tiling:
  """The tiling with blocks that are not much longer than the arrays, and at least 16."""

  def shortest(size: int, positions: int) -> int:
    return min(size, max(16, 1 << (positions - 1).bit_length()))

  return dataclasses.replace(
    TILING, rows=shortest(TILING.rows, rows), columns=shortest(TILING.columns, columns)
  )


def _padded(x: jax.Array, tiling: Tiling, axis: int = 1, value: int = 0) -> jax.Array:
  """x with whole blocks along an axis of positions."""
  size = x.shape[axis]
  missing = -size % max(tiling.rows, tiling.columns)
  if not missing:
    return x
  return jnp.pad(
    x, [(0, missing if a == axis else 0) for a in range(x.ndim)], constant_values=value
  )
