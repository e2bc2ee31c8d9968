"""Attention in one kernel, for TPUs: no array `[B, N, T, S]` is written to memory.

A program has the queries, keys and values of some heads of one row in the vector memory, and makes
the scores of a block of targets with all their sources there. The softmax needs no second pass, and
the backward pass computes it again from queries and keys: nothing but them and the values is kept.
Dropout draws the hash of `plm_jax.models.dropout`, so that it drops the weights of plain attention.

Heads lie side by side in the last axis `[B, T, N H]`, as projections write them. A TPU reads 128
numbers of that axis at once. So a program has 128 / H heads, and a head is chosen by zeros in the
places of the others: the matrix unit is 128 wide, and they cost it nothing.

JAX's own kernels (flash_attention and splash_attention in jax.experimental.pallas.ops.tpu) have no
dropout, and read `[B, N, T, H]`, where a TPU pads heads of 64 to 128 numbers; the first keeps two
float32 arrays `[B, N, T, 128]` too.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from plm_jax.models.attention_problem import LOG2E, Problem
from plm_jax.models.dropout import column_keys, kept
from plm_jax.models.groups import Groups

LANES = 128  # numbers that a TPU reads at once along the last axis
ROWS = 256  # targets of a block
LONGEST = 2048  # positions of a row: all of its keys and values are in the vector memory
WIDEST = 256  # numbers of all heads, if LANES does not divide them
MEMORY = 64 * 2**20  # bytes of the vector memory; v5e, v5p and v6e have 128 MiB


def lanes_of(heads: int, width: int) -> int | None:
  """The numbers of one program's heads; None if there is no such division. heads: of a device."""
  if heads * width % LANES == 0:
    return max(width, LANES)
  return heads * width if heads * width <= WIDEST else None


def misfit(
  heads: int, width: int, positions: int, biased: bool = False, dropped: bool = False
) -> str | None:
  """The reason why the kernels do not take heads of a device, or rows of so many positions. biased:
  whether the scores have a bias; dropped: whether weights are."""
  if positions > LONGEST:  # long_rows.py
    if not (biased or dropped):
      return None
    what = "a bias" if biased else "dropout"
    return f"rows of {positions} positions, more than {LONGEST}, have no kernel with {what}"
  lanes = lanes_of(heads, width)
  if lanes is None:
    return f"a device has {heads} heads of {width}, which {LANES} does not divide"
  # float32 biases and gradients of a program's heads, each of them twice: one is on its way
  needed = lanes // width * (positions + -positions % LANES) ** 2 * 16
  if biased and needed > MEMORY // 2:
    return f"the biases of {lanes // width} heads and {positions} positions do not fit"
  return None


# --- kernels -------------------------------------------------------------------------------------


class _Row:
  """The parts of a kernel that both passes share: blocks of targets, their sources, their heads."""

  def __init__(self, problem: Problem, width: int, place_ref, marks):
    self.problem, self.width, self.place_ref = problem, width, place_ref
    self.targets, self.sources = marks

  def blocks(self, targets: int, sources: int):
    """The targets of each block, and the sources that the mask lets them see. All is known when the
    kernel is compiled, so causal rows compute little more than half."""
    causal, window = self.problem.causal, self.problem.window
    for first in range(0, targets, ROWS):
      end = min(first + ROWS, targets)
      begin_seen, end_seen = 0, min(end, sources) if causal else sources
      if window is not None:
        begin_seen = max(first - window, 0) // LANES * LANES
        end_seen = min(end_seen, -(-(end + window) // LANES) * LANES)
      yield slice(first, end), slice(begin_seen, end_seen)

  def for_heads(self, body, start):
    """`x = body(x, head, own, place)` for each head of the program, from `start` `[rows, lanes]`.
    own: bool `[1, lanes]`, the head's numbers; place: of its first row. One head is compiled."""
    group, row, lanes, width = pl.program_id(0), pl.program_id(1), start.shape[1], self.width
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, lanes), 1)
    count = lanes // width

    def of_head(head, x):
      own = (lane >= head * width) & (lane < (head + 1) * width)
      index = row * self.problem.heads + group * count + head
      return body(x, head, own, self.problem.place(self.place_ref, index))

    return jax.lax.fori_loop(0, count, of_head, start)

  def masked(self, products, targets: slice, sources: slice, axis: int, bias=None):
    """Scores. products: float32 with targets along `axis`; bias: as `Problem.masked`."""
    rows, columns = self.positions(products.shape, targets, sources, axis)
    row_groups = column_groups = None
    if self.targets is not None:
      row_groups = _along(self.targets[:, targets], axis)
      column_groups = _along(self.sources[:, sources], 1 - axis)
    return self.problem.masked(products, rows, columns, row_groups, column_groups, bias)

  def positions(self, shape, targets: slice, sources: slice, axis: int):
    rows = targets.start + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    return rows, sources.start + jax.lax.broadcasted_iota(jnp.int32, shape, 1 - axis)

  def dropped(self, weights, place, targets: slice, sources: slice, axis: int):
    """Weights or their gradients without those that dropout takes, not scaled."""
    if not self.problem.rate:
      return weights

    def along(axis: int, start: int):
      shape = tuple(n if a == axis else 1 for a, n in enumerate(weights.shape))
      return start + jax.lax.broadcasted_iota(jnp.int32, shape, axis)

    rows = self.problem.row_keys(place, along(axis, targets.start))
    columns = column_keys(place[0], along(1 - axis, sources.start))
    return jnp.where(kept(rows, columns, self.problem.rate), weights, 0.0)


def _along(groups, axis: int):
  """int32 `[1, P]` along an axis of two; the other has size 1, or 128 where it is transposed."""
  if axis == 1:
    return groups
  return jnp.broadcast_to(groups, (LANES, groups.shape[1])).T[:, :1]


def _dot(a, b, axis_a: int, axis_b: int):
  """float32: the product over an axis of each of two matrices."""
  dimensions = (((axis_a,), (axis_b,)), ((), ()))
  return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _forward_kernel(place_ref, q_ref, k_ref, v_ref, *refs, problem: Problem, width: int, biased):
  """refs: biases `[heads, T, S]` and groups of targets and sources, if there are any, and the
  result."""
  bias_ref, refs = (refs[0], refs[1:]) if biased else (None, refs)
  *marks, o_ref = refs
  row = _Row(problem, width, place_ref, marks or (None, None))
  for targets, sources in row.blocks(q_ref.shape[0], k_ref.shape[0]):

    def of_head(o, head, own, place, targets=targets, sources=sources):
      q, v = jnp.where(own, q_ref[targets], 0), v_ref[sources]
      bias = bias_ref[head, targets, sources] if biased else None
      scores = row.masked(_dot(q, k_ref[sources], 1, 1), targets, sources, 0, bias)
      weights = jnp.exp2(scores - scores.max(axis=1, keepdims=True))
      total = weights.sum(axis=1, keepdims=True) * (1.0 - problem.rate)
      weights = row.dropped(weights, place, targets, sources, 0)
      return jnp.where(own, _dot(weights.astype(v.dtype), v, 1, 0) / total, o)

    o = row.for_heads(of_head, jnp.zeros(q_ref[targets].shape, jnp.float32))
    o_ref[targets] = o.astype(o_ref.dtype)


def _backward_kernel(
  place_ref, q_ref, k_ref, v_ref, g_ref, *refs, problem: Problem, width: int, biased: bool
):
  """Scores and weights have sources first, so that only one of five products reads a matrix
  transposed. refs: biases `[heads, S, T]` and groups, if there are any, the three gradients, that
  of the biases, and the sums of two in float32. The rows of a head come one after the other, and
  add to the same gradient of its biases.
  """
  bias_ref, refs = (refs[0], refs[1:]) if biased else (None, refs)
  *refs, dk_sum, dv_sum = refs
  dbias_ref, refs = (refs[-1], refs[:-1]) if biased else (None, refs)
  *marks, dq_ref, dk_ref, dv_ref = refs
  row = _Row(problem, width, place_ref, marks or (None, None))
  if biased:

    @pl.when(pl.program_id(1) == 0)
    def _():
      dbias_ref[...] = jnp.zeros(dbias_ref.shape, jnp.float32)

  kept = 1.0 / (1.0 - problem.rate)
  dk_sum[...] = jnp.zeros(dk_sum.shape, jnp.float32)
  dv_sum[...] = jnp.zeros(dv_sum.shape, jnp.float32)
  for targets, sources in row.blocks(q_ref.shape[0], k_ref.shape[0]):

    def of_head(dq, head, own, place, targets=targets, sources=sources):
      q, g = jnp.where(own, q_ref[targets], 0), jnp.where(own, g_ref[targets], 0)
      k, v = k_ref[sources], v_ref[sources]
      bias = bias_ref[head, sources, targets] if biased else None
      scores = row.masked(_dot(k, q, 1, 1), targets, sources, 1, bias)
      weights = jnp.exp2(scores - scores.max(axis=0, keepdims=True))
      weights = weights / weights.sum(axis=0, keepdims=True)
      dropped = row.dropped(weights * kept, place, targets, sources, 1)
      dv_sum[sources] += _dot(dropped.astype(g.dtype), g, 1, 0)
      # The gradient of a dropped weight is 0 and that of another is scaled, as the weights are.
      g_scores = dropped * _dot(v, g, 1, 1)
      g_scores = g_scores - weights * g_scores.sum(axis=0, keepdims=True)
      if biased:
        dbias_ref[head, sources, targets] += g_scores
      g_scores = g_scores.astype(q.dtype)
      dk_sum[sources] += _dot(g_scores, q, 1, 0)
      return jnp.where(own, _dot(g_scores, k, 0, 0), dq)

    dq = row.for_heads(of_head, jnp.zeros(q_ref[targets].shape, jnp.float32))
    dq_ref[targets] = (dq * problem.scale).astype(dq_ref.dtype)
  dk_ref[...] = (dk_sum[...] * problem.scale).astype(dk_ref.dtype)
  dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)


# --- the function --------------------------------------------------------------------------------


def attend_on_tpu(
  problem: Problem, q_BTNH, k_BSKH, v_BSKH, groups: Groups, place, bias_NTS=None
) -> jax.Array:
  """`[B, T, N, H]`: the attention of this device's rows and heads. With fewer key than query heads
  the keys and values are repeated. place: uint32 `[2]`, the seed, and the number of the
  device's first row of weights. bias: float32, added to the scores of every row. Its
  shapes must have `lanes_of`."""
  B, T, N, H = q_BTNH.shape
  if k_BSKH.shape[2] != N:
    k_BSKH, v_BSKH = (jnp.repeat(x, N // x.shape[2], axis=2) for x in (k_BSKH, v_BSKH))
  flat = [_whole(x.reshape(B, -1, N * H)) for x in (q_BTNH, k_BSKH, v_BSKH)]
  marks = tuple(
    _whole(x[:, None], axis=2, value=-2 + i) for i, x in enumerate(groups) if x is not None
  )
  if bias_NTS is not None:
    bias_NTS = _whole(_whole(bias_NTS), axis=2)
  o_BTL = _attend(problem, H, *flat, marks, place, bias_NTS)
  return o_BTL[:, :T].reshape(B, T, N, H)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(problem: Problem, width: int, q_BTL, k_BSL, v_BSL, marks, place, bias_NTS):
  return _attend_forward(problem, width, q_BTL, k_BSL, v_BSL, marks, place, bias_NTS)[0]


def _attend_forward(problem: Problem, width: int, q_BTL, k_BSL, v_BSL, marks, place, bias_NTS):
  options = {"problem": problem, "width": width, "biased": bias_NTS is not None}
  kernel = functools.partial(_forward_kernel, **options)
  inputs = q_BTL, k_BSL, v_BSL
  bias = () if bias_NTS is None else (bias_NTS * LOG2E,)
  o_BTL = _call(kernel, problem, width, place, inputs, bias, marks, [q_BTL], products=2)[0]
  return o_BTL, (*inputs, marks, place, bias)


def _attend_backward(problem: Problem, width: int, kept, g_BTL):
  *inputs, marks, place, bias = kept
  options = {"problem": problem, "width": width, "biased": bool(bias)}
  kernel = functools.partial(_backward_kernel, **options)
  bias = tuple(x.swapaxes(1, 2) for x in bias)
  arguments = problem, width, place, (*inputs, g_BTL), bias, marks, inputs
  dq, dk, dv, *of_bias = _call(kernel, *arguments, products=5, sums=2, of_bias=True)
  of_bias = of_bias[0].swapaxes(1, 2) if of_bias else None
  return dq, dk, dv, jax.tree.map(lambda _: None, marks), None, of_bias


_attend.defvjp(_attend_forward, _attend_backward)


def _call(
  kernel, problem, width, place, inputs, bias, marks, results, *,
  products: int, sums: int = 0, of_bias: bool = False,
):  # fmt: skip
  """A kernel's call. bias: at most one array, float32 of all pairs of positions for each head.
  marks: int32 `[B, 1, P]`. results: arrays of the results' shapes. products: of all pairs of
  positions, for each head. sums: float32 arrays of the keys' size. of_bias: whether an array like
  that of the biases is a result."""
  (B, T, L), S = inputs[0].shape, inputs[1].shape[1]
  lanes = lanes_of(L // width, width)

  def own(x):
    return pl.BlockSpec((None, x.shape[1], lanes), lambda n, b: (b, 0, n))

  def of_row(x):
    return pl.BlockSpec((None, 1, x.shape[2]), lambda n, b: (b, 0, 0))

  def of_heads(x):  # the rows of a head follow each other, so it is read and written once
    return pl.BlockSpec((lanes // width, *x.shape[1:]), lambda n, b: (n, 0, 0))

  made = bias if of_bias else ()
  size = sum(x.size * x.dtype.itemsize for x in (*inputs, *bias, *marks, *results, *made))
  pairs = B * T * S * (L // width) // (2 if problem.causal else 1)
  return pl.pallas_call(
    kernel,
    grid=(L // lanes, B),
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      *(own(x) for x in inputs),
      *(of_heads(x) for x in bias),
      *(of_row(x) for x in marks),
    ],
    out_specs=[*(own(x) for x in results), *(of_heads(x) for x in made)],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*results, *made)],
    scratch_shapes=[pltpu.VMEM((S, lanes), jnp.float32)] * sums,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary" if made else "parallel"),
      vmem_limit_bytes=MEMORY,
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * pairs * width, transcendentals=pairs, bytes_accessed=size
    ),
    interpret=problem.interpret,
  )(place, *inputs, *bias, *marks)


def _whole(x: jax.Array, axis: int = 1, value: int = 0) -> jax.Array:
  """x with a multiple of `LANES` positions along an axis."""
  missing = -x.shape[axis] % LANES
  if not missing:
    return x
  edges = [(0, missing if a == axis else 0) for a in range(x.ndim)]
  return jnp.pad(x, edges, constant_values=value)
