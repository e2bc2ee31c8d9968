"""Attention of rows that are too long for `tpu_attention`, by JAX's kernel for TPUs: splash
attention (jax.experimental.pallas.ops.tpu). Keys and values pass through the vector memory in
blocks, as in FlashAttention-2 (Dao 2023, arXiv 2307.08691). It has no dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from plm_jax.models.attention_problem import Problem
from plm_jax.models.groups import Groups

KERNEL = "splash"  # the name of the kernels begins so, and that of what they keep is this
BLOCK = 512  # targets, and sources: a multiple of 128


def attend_in_blocks(problem: Problem, q_BTNH, k_BSKH, v_BSKH, groups: Groups) -> jax.Array:
  """`[B, T, N, H]`: the attention of this device's rows and heads, without dropout and biases."""
  scaled_BTNH = (q_BTNH.astype(jnp.float32) * problem.scale).astype(q_BTNH.dtype)
  q, k, v = (_by_heads(x) for x in (scaled_BTNH, k_BSKH, v_BSKH))
  B, N, T, S = len(q), q.shape[1], q.shape[2], k.shape[2]
  kernel = splash.make_splash_mha(
    masks.MultiHeadMask([_mask(problem, T, S)] * N),
    block_sizes=_block_sizes(),
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=KERNEL,  # else a scan would keep its float32 `[B, N, T, 128]` too
    interpret=problem.interpret,
  )
  o_BNTH = jax.vmap(kernel)(q, k, v, _segments(problem, groups, B, T, S))
  return o_BNTH[:, :, : problem.targets].swapaxes(1, 2)


def _by_heads(x_BTNH: jax.Array) -> jax.Array:
  """`[B, N, T, H]`, whole blocks of positions."""
  missing = -x_BTNH.shape[1] % BLOCK
  return jnp.pad(x_BTNH, ((0, 0), (0, missing), (0, 0), (0, 0))).swapaxes(1, 2)


def _mask(problem: Problem, targets: int, sources: int) -> masks.Mask:
  shape, window = (targets, sources), problem.window
  if window is not None:
    return masks.LocalMask(shape, (window, 0 if problem.causal else window), offset=0)
  return masks.CausalMask(shape) if problem.causal else masks.FullMask(shape)


def _segments(
  problem: Problem, groups: Groups, rows: int, targets: int, sources: int
) -> splash.SegmentIds | None:
  """The groups of whole blocks. The positions that fill them up are in a group of their own."""
  targets_BT, sources_BS = groups
  is_filled = problem.sources < sources and not problem.causal  # else it follows all targets
  if targets_BT is None and sources_BS is None and not is_filled:
    return None
  if targets_BT is None:
    targets_BT = jnp.zeros((rows, problem.targets), jnp.int32)
  if sources_BS is None:
    sources_BS = jnp.zeros((rows, problem.sources), jnp.int32)

  def filled(x: jax.Array, size: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, size - x.shape[1])), constant_values=-1)

  return splash.SegmentIds(filled(targets_BT, targets), filled(sources_BS, sources))


def _block_sizes() -> splash.BlockSizes:
  own = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
  return splash.BlockSizes(**dict.fromkeys(own, BLOCK))
