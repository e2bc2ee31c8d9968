"""Prefix-Tuning: Optimizing Continuous Prompts for Generation (Li and Liang 2021,
arXiv:2101.00190).

Every attention also reads P trained keys and values, as of P tokens before the text (section 4).
With `hidden` they are computed from a smaller table by a layer of that width and tanh (section 4.3,
reparametrisation), which training needs less care with and which is left out afterwards.

Sources: the paper; huggingface/peft prefix_tuning/model.py. As there, the prefix takes the first
positions: the text's positions begin at P.
Deviation: layers that share their parameters (ALBERT) share the prefix too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.attention import Attention
from plm_jax.models.cache import KeyValues
from plm_jax.models.dropout import Noise
from plm_jax.models.layers import Embedding, truncated_normal
from plm_jax.models.model import Parameters
from plm_jax.models.parameters import Role
from plm_jax.models.positions import rotate
from plm_jax.models.relative import RelativeBias
from plm_jax.peft import adapted
from plm_jax.peft.adapted import Added, Peft

TABLE = "prefix"  # the place of the parameters that all attentions share


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix(Peft):
  """Prefix tuning (Li and Liang 2021): trained keys and values before the text.

  length: P. hidden: width of the layer of the reparametrisation; none trains keys and values
  themselves. targets: path patterns of attentions.
  """

  length: int = 16
  hidden: int | None = None
  targets: tuple[str, ...] = ("attention",)

  def __post_init__(self):
    adapted.check_sizes(1, length=self.length, hidden=self.hidden)

  @property
  def columns(self) -> int:
    return self.length

  def init(self, key: jax.Array, base: Parameters) -> Added:
    added, width = {}, 0
    for path, (layers, attention) in _targets(base, self.targets).items():
      heads = attention.key.kernel.shape[-2:]
      width = attention.query.kernel.shape[len(layers)]
      of_path = jax.random.fold_in(key, adapted.number_of(path))
      if self.hidden is None:
        shape = (2, *layers, self.length, math.prod(heads))
        keys, values = truncated_normal(of_path, shape)
        added[path] = {"prefix_keys": keys, "prefix_values": values}
      else:
        outputs = 2 * math.prod(heads)
        kernel = truncated_normal(of_path, (*layers, self.hidden, outputs))
        bias = jnp.zeros((*layers, outputs))
        added[path] = {"prefix_down": kernel, "prefix_down_bias": bias}
    if self.hidden is not None:
      table, up = jax.random.split(key)
      added[TABLE] = {
        "prefix_table": truncated_normal(table, (self.length, width)),
        "prefix_up": truncated_normal(up, (width, self.hidden)),
        "prefix_up_bias": jnp.zeros(self.hidden),
      }
    return added

  def key_values(self, added: Added) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Path -> keys and values `[*layers, P, heads * width of heads]`."""
    if TABLE not in added:
      return {path: (each["prefix_keys"], each["prefix_values"]) for path, each in added.items()}
    shared = added[TABLE]
    inner = jnp.tanh(shared["prefix_table"] @ shared["prefix_up"] + shared["prefix_up_bias"])
    pairs = {}
    for path, each in added.items():
      if path != TABLE:
        both = inner @ each["prefix_down"] + each["prefix_down_bias"][..., None, :]
        keys, values = jnp.split(both, 2, axis=-1)
        pairs[path] = keys, values
    return pairs

  def apply(self, base: Parameters, added: Added, noise: Noise | None = None) -> Parameters:
    pairs = self.key_values(added)
    before = base.encoder().config.rotation(jnp.full((1, self.length), -self.length))

    def attention(path: str, module: Attention) -> nnx.Module:
      if path not in pairs:
        return module
      heads = module.key.kernel.shape[-2:]
      keys, values = (x.reshape(*x.shape[:-1], *heads) for x in pairs[path])
      return PrefixedAttention(module, rotate(keys, before), values)

    model = adapted.replaced(base, Attention, attention)
    # The stacks whose own attention has a prefix: "decoder_stack/" of "decoder_stack/blocks/...".
    stacks = {path.partition("blocks/")[0] for path in pairs if path.endswith("attention")}

    def position(path: str, module: Embedding) -> nnx.Module:
      stack = path.removesuffix("position").removesuffix("embed/")
      is_shifted = path.endswith("position") and stack in stacks
      return ShiftedEmbedding(module, self.length) if is_shifted else module

    def bias(path: str, module: RelativeBias) -> nnx.Module:
      is_shifted = path.removesuffix("bias") in stacks
      return ShiftedBias(module, self.length) if is_shifted else module

    model = adapted.replaced(model, Embedding, position)
    return adapted.replaced(model, RelativeBias, bias)


def _targets(base: Parameters, patterns: tuple[str, ...]) -> dict[str, tuple[tuple, Attention]]:
  """Path -> leading axes of layers, and module, of the attentions that fit a pattern."""
  attentions, chosen = adapted.modules(base, Attention), {}
  adapted.check_not_empty(patterns, attentions)
  for pattern in patterns:
    fitting = {p: module for p, module in attentions.items() if adapted.fits(p, pattern)}
    if not fitting:
      known = ", ".join(attentions) or "none: prefix tuning is for Transformers"
      raise UserError(f"peft.targets: {pattern} fits no attention of the model; it has {known}")
    chosen |= fitting
  return {path: (module.query.kernel.shape[:-3], module) for path, module in chosen.items()}


class PrefixedAttention(nnx.Module):
  """Attention that also reads a prefix, which every target sees."""

  ROLES: ClassVar[dict[str, Role]] = adapted.ROLES
  key_values = Attention.key_values
  attend = Attention.__call__

  def __init__(self, attention: Attention, keys: jax.Array, values: jax.Array):
    self.query, self.key = attention.query, attention.key
    self.value, self.output = attention.value, attention.output
    self.scale = attention.scale
    self.read_keys, self.read_values = nnx.Param(keys), nnx.Param(values)

  def __call__(
    self,
    x_BTD,
    mask,
    dropout_rate=0.0,
    noise=None,
    *,
    read=None,
    score_bias=None,
    rotation=None,
    causal=False,
    window=None,
    groups=None,
    kind="auto",
  ) -> jax.Array:
    """As `Attention`; the mask has a form that the kernels do not know."""
    del causal, window, groups, kind
    read = read or self.key_values(x_BTD, rotation)
    extended = self._with_prefix(read, len(x_BTD))
    before = [(0, 0)] * 3 + [(extended[0].shape[1] - read[0].shape[1], 0)]
    mask = jnp.pad(mask, before, constant_values=True)
    if score_bias is not None and score_bias.shape[-1] < mask.shape[-1]:
      score_bias = jnp.pad(score_bias, before)
    return self.attend(
      x_BTD,
      mask,
      dropout_rate,
      noise,
      read=extended,
      score_bias=score_bias,
      rotation=rotation,
      kind="plain",
    )

  def _with_prefix(self, read, rows: int):
    """The keys and values that are read, `[B, S, K, H]` or those of a `KVStore`."""
    prefix = KeyValues(
      *(jnp.broadcast_to(x[...], (rows, *x.shape)) for x in (self.read_keys, self.read_values))
    )
    if read[0].ndim == 3:
      prefix = type(read).from_key_values(prefix)
    pairs = zip(prefix, read, strict=True)
    return type(read)(*(jnp.concatenate([p.astype(x.dtype), x], axis=1) for p, x in pairs))


class ShiftedEmbedding(nnx.Module):
  """A table of positions, read `shift` rows further on."""

  look_up = Embedding.__call__

  def __init__(self, embedding: Embedding, shift: int):
    self.table, self.shift = embedding.table, shift

  def __call__(self, ids: jax.Array, dtype) -> jax.Array:
    return self.look_up(ids + self.shift, dtype)


class ShiftedBias(nnx.Module):
  """Relative positions with `shift` further sources before position 0."""

  def __init__(self, bias: RelativeBias, shift: int):
    self.bias, self.shift = bias, shift

  def __call__(self, targets: int, sources: int) -> jax.Array:
    return self.bias.at(jnp.asarray(self.shift), targets, self.shift + sources)

  def at(self, begin: jax.Array, targets: int, sources: int) -> jax.Array:
    return self.bias.at(begin + self.shift, targets, self.shift + sources)
