"""The Transformer decoder with its heads; GPT and LLaMA are settings of it.

Sources: openai/finetune-transformer-lm train.py (GPT-1: norm after each sum, none at the end);
openai/gpt-2 src/model.py (norm before each sublayer and at the end); Touvron et al. 2023 and
transformers, modeling_llama.py (RMSNorm, rotary positions, gated feed-forward, no biases). Every
switch is a field of `Decoder`; `gpt.py` and `llama.py` have their values.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.attention import causal_mask, document_mask
from plm_jax.models.cache import AttentionCache, KVStore, LayerCache, empty_cache
from plm_jax.models.compute import Compute
from plm_jax.models.config import NormAt, TransformerConfig
from plm_jax.models.decoding_layout import Output, decoding_layout
from plm_jax.models.dropout import Noise, dropout, streams
from plm_jax.models.groups import Groups
from plm_jax.models.heads import DECODER_HEADS, LanguageModel, check_heads
from plm_jax.models.initializers import initialised
from plm_jax.models.layer_loop import extend_blocks, run_blocks, stack
from plm_jax.models.layers import NORMS, Embedding
from plm_jax.models.parameters import map_roles
from plm_jax.models.positions import document_positions
from plm_jax.models.transformer import AttentionContext, make_block
from plm_jax.placement import split_rows

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder(TransformerConfig):
  """The sizes and switches of a decoder; `init` makes its parameters. The defaults are GPT-2's.

  inverse_layer_scale: for import only; scores of layer l, counted from 1, are divided by l
    (transformers' scale_attn_by_inverse_layer_idx).
  residual_init: initial projections onto the residual stream are multiplied by 1 / sqrt(2 layers)
    (GPT-2, section 2.3; its released code does not).
  """

  packs: ClassVar[bool] = True  # documents of a row do not see each other

  norm_at: NormAt = "pre"
  inverse_layer_scale: bool = False
  residual_init: bool = False

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """The tokens for begin and end that the vocabulary has (GPT-1's has neither): the classes read
    the last token, whatever it is."""
    return vocab.begin, vocab.end

  def init(self, key: jax.Array, heads: dict[str, int]) -> DecoderModel:
    """Random parameters with the named heads: `lm` and `span` (size 0), `classes` and
    `token_classes` (number of labels)."""
    check_heads(self, heads, DECODER_HEADS, "a decoder", " (lm is for the objective CLM)")
    model = DecoderModel(self, key, heads)
    model = initialised(model, key, self.initializer, self.initializer_range)
    return with_small_residuals(model, self.layers) if self.residual_init else model


class DecoderModel(LanguageModel):
  """The parameters of a decoder and its forward pass."""

  HEADS = DECODER_HEADS

  def __init__(self, config: Decoder, key: jax.Array, heads: dict[str, int]):
    tokens, positions, blocks, lm, classes = jax.random.split(key, 5)
    c = config
    self.config = config
    self.token = Embedding(tokens, c.vocab_size, c.width)
    rows, learned = c.positions + c.first_position, c.position == "learned"
    self.position = Embedding(positions, rows, c.width) if learned else None
    self.blocks = stack(blocks, c.layers, partial(make_block, config=c))
    self.norm = NORMS[c.norm](c.width, c.norm_eps) if c.norm_at == "pre" else None
    self.make_heads(key, {"lm": lm, "classes": classes}, heads)

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """Hidden states `[B, T, D]` after the last norm, in `compute.activation_dtype`.

    batch: `input_ids` int `[B, T]`, padded on the right. Optional: with `document_ids` int `[B, T]`
    a token sees its own document only, whose positions begin at 0; `position_ids` int `[B, T]`
    replaces the positions; `attention_mask` `[B, T]` is 0 at padding elsewhere.
    """
    in_embed, in_blocks = streams(noise, 2)
    ids_BT = batch["input_ids"]
    mask, groups = causal_mask(ids_BT.shape[1]), Groups()
    position_ids = jnp.arange(ids_BT.shape[1])[None]
    if "document_ids" in batch:
      documents_BT = batch["document_ids"]
      mask &= document_mask(documents_BT)
      groups = Groups(documents_BT, documents_BT)
      position_ids = document_positions(documents_BT)
    if "attention_mask" in batch:
      real_BT = batch["attention_mask"].astype(bool)
      mask &= real_BT[:, None, None, :]
      groups = groups.hiding(real_BT)
    position_ids = batch.get("position_ids", position_ids)
    x_BTD = self.embed(ids_BT, position_ids, compute.activation_dtype, in_embed)
    form = {"causal": True, "groups": groups}
    context = AttentionContext.from_config(self.config, mask, position_ids, **form)
    blocks = self.scaled_blocks()
    return self.normed(run_blocks(blocks, self.config.layers, x_BTD, context, compute, in_blocks))

  def embed(self, ids_BT, position_ids, dtype, noise: Noise | None) -> jax.Array:
    """`dropout(token + position)`; without learned positions `dropout(token)`."""
    x_BTD = split_rows(self.token(ids_BT, dtype))
    if self.position is not None:
      x_BTD += self.position(position_ids + self.config.first_position, dtype)
    return dropout(x_BTD, self.config.dropout, noise)

  def scaled_blocks(self) -> nnx.Module:
    """The blocks; with `inverse_layer_scale` the queries of layer l are divided by l."""
    if not self.config.inverse_layer_scale:
      return self.blocks
    layer = jnp.arange(1, self.config.layers + 1)

    def scaled(path, role, leaf):
      return leaf / layer.reshape(-1, *[1] * (leaf.ndim - 1)) if role.query else leaf

    return map_roles(scaled, self.blocks)

  def normed(self, x: jax.Array) -> jax.Array:
    return x if self.norm is None else self.norm(x)

  def generator(self, compute: Compute, rows: int = 1) -> DecoderGenerator:
    stack = self.scaled_blocks(), self.config.layers
    layout = decoding_layout(*stack, self.output_table(), compute, rows)
    return DecoderGenerator(self, *layout, compute)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderGenerator:
  """A decoder made ready for generation (plm_jax/decode/generator.py)."""

  model: DecoderModel
  blocks: Any
  output: Output
  compute: Compute = dataclasses.field(metadata={"static": True})

  def start(self, batch: dict, capacity: int) -> AttentionCache:
    c, pad_B = self.model.config, jnp.asarray(batch["pad"])
    sizes = (pad_B.shape[0], capacity, c.key_heads, c.width_of_heads)
    dtype = self.compute.activation_dtype
    layers = empty_cache(lambda: LayerCache(KVStore.empty(*sizes, dtype)), c.layers, self.compute)
    return AttentionCache(layers, pad_B, jnp.zeros((), jnp.int32))

  def extend(self, ids_BT: jax.Array, cache: AttentionCache) -> tuple[jax.Array, AttentionCache]:
    targets = ids_BT.shape[1]
    position_ids = cache.position_ids(targets)
    x_BTD = self.model.embed(ids_BT, position_ids, self.compute.activation_dtype, None)
    c = self.model.config
    context = AttentionContext.from_config(c, cache.mask(targets), position_ids, at=cache.at)
    x_BTD, layers = extend_blocks(self.blocks, c.layers, x_BTD, context, self.compute, cache.layers)
    x_BD = self.model.normed(x_BTD[:, -1])
    return self.output(x_BD), dataclasses.replace(cache, layers=layers, at=cache.at + targets)


def with_small_residuals(model: DecoderModel, layers: int) -> DecoderModel:
  """The model with the kernels that write to the residual stream divided by sqrt(2 layers)."""

  def scaled(path, role, leaf):
    is_projection = role.residual and role.kind == "kernel"
    return leaf * (2 * layers) ** -0.5 if is_projection else leaf

  return map_roles(scaled, model)
