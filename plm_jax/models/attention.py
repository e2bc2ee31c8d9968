"""Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2), of a row to itself or
to another row, with computed or cached keys and values; and the masks of attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.cache import KeyValues, KVStore
from plm_jax.models.compute import AttentionKind
from plm_jax.models.dropout import Noise, Part, dropout
from plm_jax.models.groups import Groups
from plm_jax.models.layers import Linear
from plm_jax.models.positions import Rotation, rotate
from plm_jax.models.products import einsum_float32
from plm_jax.models.recording import active
from plm_jax.placement import heads_are_split_by, splits_rows
from plm_jax.progress import say_once

BLOCK = 64  # queries of a block of causal attention, at least
MOST_BLOCKS = 8  # of one row: each block is compiled separately

MASKED = -1e30  # finite, so that a fully masked row gives no NaN


class Attention(nnx.Module):
  """`softmax(scale Q K^T + score bias) V W_O` with N heads of width H.

  kv_heads: K, key and value heads; each is read by N / K query heads (grouped-query attention,
    Ainslie et al. 2023). None is N.
  head_width: H; None is D / N. scale: None is H^-0.5; T5 has 1. bias: on all four projections.
  """

  def __init__(
    self,
    key,
    width: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    head_width: int | None = None,
    scale: float | None = None,
    bias: bool = True,
    output_bias: bool | None = None,
  ):
    q, k, v, o = jax.random.split(key, 4)
    head_width = head_width or width // heads
    per_query, per_key = (heads, head_width), (kv_heads or heads, head_width)
    self.query = Linear(q, (width,), per_query, bias)
    self.key = Linear(k, (width,), per_key, bias)
    self.value = Linear(v, (width,), per_key, bias)
    self.output = Linear(o, per_query, (width,), bias if output_bias is None else output_bias)
    self.scale = scale

  def __call__(
    self,
    x_BTD: jax.Array,
    mask: jax.Array,
    dropout_rate: float = 0.0,
    noise: Noise | None = None,
    *,
    read: KeyValues | KVStore | None = None,
    score_bias: jax.Array | None = None,
    rotation: Rotation | None = None,
    causal: bool = False,
    window: int | None = None,
    groups: Groups | None = None,
    kind: AttentionKind = "auto",
  ) -> jax.Array:
    """`[B, T, D] -> [B, T, D]`.

    mask: bool, broadcast to `[B, N, T, S]`, True = may attend. read: the keys and values to attend
    to; None is those of x. score_bias: float32, broadcast to `[B, N, T, S]`, added to the scores.
    rotation: of the queries, and of the keys of x. causal: promises for self-attention that the
    mask is False wherever the source follows the target; window: promises that it is also False
    where source and target are more than `window` columns apart. groups: the same mask without an
    array, together with causal and window; None if there is no such form.
    """
    q_BTNH = rotate(self.query(x_BTD), rotation)
    keys, values = read or self.key_values(x_BTD, rotation)
    if seen := active():
      seen.attention.append(attention_weights(q_BTNH, keys, mask, self.scale, score_bias))
    form = {"causal": causal, "window": window}
    kind = chosen_kind(
      kind, q_BTNH, keys, groups, noise if dropout_rate else None, score_bias, **form
    )
    if kind == "pallas":
      from plm_jax.models.fused_attention import fused_attention

      seed = None if noise is None else noise.seed
      bias_NTS = None if score_bias is None else score_bias[0]
      options = form | {"scale": self.scale, "rate": dropout_rate, "seed": seed}
      o_BTNH = fused_attention(q_BTNH, keys, values, groups, **options, bias_NTS=bias_NTS)
      return self.output(o_BTNH)
    if kind == "cudnn":
      return self.output(attend_by_cudnn(q_BTNH, keys, values, self.scale))
    inputs = q_BTNH, keys, values, mask, dropout_rate, noise, self.scale, score_bias
    blocks = kind == "blocks" and causal
    return self.output(attend_causally(*inputs, window=window) if blocks else attend(*inputs))

  def key_values(self, x_BSD: jax.Array, rotation: Rotation | None = None) -> KeyValues:
    """The keys and values of the positions of x."""
    return KeyValues(rotate(self.key(x_BSD), rotation), self.value(x_BSD))


def chosen_kind(
  kind: AttentionKind,
  q_BTNH: jax.Array,
  keys: jax.Array,
  groups: Groups | None,
  noise: Noise | None,
  score_bias: jax.Array | None,
  *,
  causal: bool,
  window: int | None,
) -> AttentionKind:
  """`kind`, or for `auto` the fastest kind that fits these inputs. noise: None without dropout.
  Errors: `UserError` if a kernel is asked for that does not fit."""

  def misfit(kernel: AttentionKind) -> str | None:
    """The reason why a kernel does not fit."""
    width = q_BTNH.shape[-1]
    on_tpu = jax.default_backend() == "tpu"
    if score_bias is not None and not (kernel == "pallas" and on_tpu):
      return "the scores have a bias (relative positions)"
    if groups is None or keys.ndim == 3:
      return "the mask has no simple form (a visible prefix, or windows in scanned layers)"
    if width < 16 or width & (width - 1):
      return f"heads are {width} wide, and kernels take powers of 2 from 16"
    if noise is not None and noise.generator != "hash":
      return f"compute.dropout is {noise.generator}, and kernels draw the hash"
    if kernel == "pallas":
      if not splits_rows(len(q_BTNH)):
        return "the devices do not divide the rows"
      has = score_bias is not None, noise is not None
      return _misfit_on_tpu(q_BTNH, keys, *has) if on_tpu else None
    if not causal or any(x is not None for x in groups) or noise is not None or window is not None:
      return "it takes causal rows without documents, padding, windows and dropout"
    if jax.sharding.get_abstract_mesh().size > 1:
      return "it runs on one device only"
    if not has_tensor_cores(q_BTNH.dtype):
      return "it needs an NVIDIA GPU and bfloat16"
    return _refusal_of_cudnn(q_BTNH, keys)

  if kind in ("pallas", "cudnn") and (reason := misfit(kind)):
    raise UserError(
      f"compute.attention={kind} does not fit here: {reason}; set compute.attention=auto"
    )
  if kind != "auto":
    return kind
  on_tpu = jax.default_backend() == "tpu" and q_BTNH.dtype == jnp.bfloat16
  if not on_tpu and not has_tensor_cores(q_BTNH.dtype):
    return "blocks"
  kernels: tuple[AttentionKind, ...] = ("pallas",) if on_tpu else ("cudnn", "pallas")
  chosen = next((kernel for kernel in kernels if not misfit(kernel)), "plain")
  why = f" ({misfit('pallas')})" if chosen == "plain" else ""
  say_once(f"attention: {chosen}{why}")
  return chosen


def _misfit_on_tpu(q_BTNH: jax.Array, k_BSKH: jax.Array, biased: bool, dropped: bool) -> str | None:
  """The reason why the kernels of TPUs do not take these shapes."""
  from plm_jax.models.tpu_attention import misfit

  heads = q_BTNH.shape[2] // heads_are_split_by(k_BSKH.shape[2])
  positions = max(q_BTNH.shape[1], k_BSKH.shape[1])
  return misfit(heads, q_BTNH.shape[3], positions, biased, dropped)


def attend_by_cudnn(q_BTNH, k_BTKH, v_BTKH, scale: float | None) -> jax.Array:
  """Causal attention of whole rows without dropout, by NVIDIA's kernel."""
  return jax.nn.dot_product_attention(
    q_BTNH, k_BTKH, v_BTKH, scale=scale, is_causal=True, implementation="cudnn"
  )


def _refusal_of_cudnn(q_BTNH: jax.Array, k_BTKH: jax.Array) -> str | None:
  """The reason why cuDNN is missing or does not take these shapes."""
  q, k = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BTNH, k_BTKH))
  try:
    jax.eval_shape(lambda q, k: attend_by_cudnn(q, k, k, None), q, k)
  except (RuntimeError, NotImplementedError, ValueError) as error:
    return str(error)
  return None


def has_tensor_cores(dtype) -> bool:
  """Whether a kernel for NVIDIA GPUs can run here: bfloat16 or float16, on an A100 or later."""
  if jax.default_backend() != "gpu" or dtype == jnp.float32:
    return False
  capability = getattr(jax.devices()[0], "compute_capability", "")  # "9.0"; AMD's are "gfx90a"
  return capability[:1].isdigit() and float(capability) >= 8


def attend(
  q_BTNH: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  mask,
  dropout_rate: float,
  noise: Noise | None,
  scale: float | None = None,
  score_bias: jax.Array | None = None,
  part: Part | None = None,
) -> jax.Array:
  """Attention itself, `[B, T, N, H]`: scores and softmax in float32, dropout on the weights. With
  fewer key than query heads, query head n reads key head `n * K // N`.

  keys, values: `[B, S, K, H]`, or `[B K, S, H]` from a `KVStore`. part: the place of the weights in
  a larger array `[B, N, T, S]`, which determines their dropout mask."""
  weights_BNTS = attention_weights(q_BTNH, keys, mask, scale, score_bias)
  weights_BNTS = dropout(weights_BNTS.astype(values.dtype), dropout_rate, noise, part)
  return _weighted(weights_BNTS, values)


def attention_weights(
  q_BTNH: jax.Array,
  keys: jax.Array,
  mask: jax.Array,
  scale: float | None = None,
  score_bias: jax.Array | None = None,
) -> jax.Array:
  """float32 `[B, N, T, S]`: the softmax over the sources, before dropout."""
  scale = q_BTNH.shape[-1] ** -0.5 if scale is None else scale
  scores_BNTS = _scores(q_BTNH * scale, keys)
  if score_bias is not None:
    scores_BNTS += score_bias
  return jax.nn.softmax(jnp.where(mask, scores_BNTS, MASKED), axis=-1)


def attend_causally(
  q_BTNH, k_BTKH, v_BTKH, mask, dropout_rate, noise, scale=None, score_bias=None, window=None
) -> jax.Array:
  """`attend` of a row to itself, by a mask that is False wherever the source follows the target or
  is more than `window` columns before it.

  On a CPU the queries are split into blocks. A block leaves out the sources after all of its
  queries (nearly half of the products) and those before all of their windows. Dropout is the same.
  """
  (B, T, N, _), width = q_BTNH.shape, max(BLOCK, -(-q_BTNH.shape[1] // MOST_BLOCKS))
  if jax.default_backend() != "cpu" or width >= T:
    return attend(q_BTNH, k_BTKH, v_BTKH, mask, dropout_rate, noise, scale, score_bias)
  mask = jnp.broadcast_to(mask, (*mask.shape[:2], T, T))

  def block(first: int) -> jax.Array:
    end, begin = min(first + width, T), 0 if window is None else max(first - window, 0)
    targets, sources = slice(first, end), slice(begin, end)
    return attend(
      q_BTNH[:, targets],
      k_BTKH[:, sources],
      v_BTKH[:, sources],
      mask[:, :, targets, sources],
      dropout_rate,
      noise,
      scale,
      None if score_bias is None else score_bias[:, :, targets, sources],
      Part((B, N, T, T), (0, 0, first, begin)),
    )

  return jnp.concatenate([block(first) for first in range(0, T, width)], axis=1)


def _scores(q_BTNH: jax.Array, keys: jax.Array) -> jax.Array:
  (B, T, N, H), S = q_BTNH.shape, keys.shape[1]
  if keys.ndim == 3:
    rows_RMH = q_BTNH.swapaxes(1, 2).reshape(keys.shape[0], -1, H)  # M = N / K T
    return einsum_float32("RMH,RSH->RMS", rows_RMH, keys).reshape(B, N, T, S)
  K = keys.shape[2]
  if K == N:
    return einsum_float32("BTNH,BSNH->BNTS", q_BTNH, keys)
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
  return einsum_float32("BTKGH,BSKH->BKGTS", q_BTKGH, keys).reshape(B, N, T, S)


def _weighted(weights_BNTS: jax.Array, values: jax.Array) -> jax.Array:
  (B, N, T, S), H = weights_BNTS.shape, values.shape[-1]
  if values.ndim == 3:
    rows_RMS = weights_BNTS.reshape(values.shape[0], -1, S)
    return jnp.einsum("RMS,RSH->RMH", rows_RMS, values).reshape(B, N, T, H).swapaxes(1, 2)
  K = values.shape[2]
  if K == N:
    return jnp.einsum("BNTS,BSNH->BTNH", weights_BNTS, values)
  weights_BKGTS = weights_BNTS.reshape(B, K, N // K, T, S)
  return jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, values).reshape(B, T, N, H)


def real_tokens(batch: dict) -> jax.Array:
  """bool `[B, T]`: False at padding, by the batch's `attention_mask` or else its `length`."""
  if "attention_mask" in batch:
    return batch["attention_mask"].astype(bool)
  return jnp.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]


def padding_mask(length_B: jax.Array, positions: int) -> jax.Array:
  """bool `[B, 1, 1, S]`: True at the first `length_B` positions of each row."""
  return (jnp.arange(positions) < length_B[:, None])[:, None, None, :]


def causal_mask(positions: int) -> jax.Array:
  """bool `[1, 1, T, S]`: True where the source is not after the target."""
  return jnp.tril(jnp.ones((positions, positions), bool))[None, None]


def window_mask(window: int, targets: int, sources: int, at: int | jax.Array = 0) -> jax.Array:
  """bool `[1, 1, T, S]`: True where source and target are at most `window` columns apart. at: the
  column of the first target."""
  distance_TS = jnp.arange(sources) - (at + jnp.arange(targets))[:, None]
  return (jnp.abs(distance_TS) <= window)[None, None]


def document_mask(document_ids_BT: jax.Array) -> jax.Array:
  """bool `[B, 1, T, S]`: True where source and target are of the same document."""
  return (document_ids_BT[:, :, None] == document_ids_BT[:, None, :])[:, None]
