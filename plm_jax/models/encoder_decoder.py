"""The Transformer encoder-decoder, of which Vaswani's Transformer, T5, BART and mBART are settings.

Sources: Vaswani et al. 2017; google-research/text-to-text-transfer-transformer (e081111) and
google-research/mesh for T5; fairseq (3d262bb) models/bart/model.py. Every switch is a field of
`EncoderDecoder`; `vaswani.py`, `t5.py` and `bart.py` say which values are theirs.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.activations import Activation
from plm_jax.models.attention import causal_mask, padding_mask
from plm_jax.models.cache import Cache, KVStore, LayerCache, empty_cache
from plm_jax.models.compute import Compute
from plm_jax.models.config import Position, TransformerConfig
from plm_jax.models.decoding_layout import Output, decoding_layout
from plm_jax.models.dropout import Noise
from plm_jax.models.heads import LM_HEADS, refuse_unknown
from plm_jax.models.initializers import initialised
from plm_jax.models.layer_loop import extend_blocks
from plm_jax.models.model import refuse_below
from plm_jax.models.seq2seq import Seq2SeqModel
from plm_jax.models.stack import Stack
from plm_jax.models.transformer import AttentionContext, streams

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab


Arrangement = Literal["two_stacks", "shared", "prefix", "causal", "encoder"]
Frame = Literal["t5", "bart", "plain"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoder(TransformerConfig):
  """The sizes and switches of an encoder-decoder; `init` makes its parameters.

  decoder_layers, decoder_heads, decoder_hidden: None is as in the encoder, whose sizes are layers,
    heads and hidden.
  relative_buckets: of relative positions; the last of them begins before relative_distance (T5).
  embedding_norm: after positions were added (BART). embedding_scale: tokens times sqrt(width).
  logit_scale: logits are divided by sqrt(width) (T5 1.0).
  final_dropout: `dropout` also after the last norm (T5).
  arrangement: `shared` gives encoder and decoder one set of layers, beside which the decoder has
    its cross-attention; `prefix` and `causal` are a single stack of `layers` that reads source and
    target in one row, and sees all of the source, or nothing that follows (T5's Table 2);
    `encoder`, for import alone, is the encoder without a decoder (transformers' T5EncoderModel).
  frame: how texts begin and end. `t5` is "text </s>", and the decoder begins with the token of
    padding; `bart` "<s> text </s>", and the decoder begins with </s>, then <s>; `plain` the same,
    and the decoder begins with <s>.
  """

  POSITIONS = ("learned", "sinusoidal", "relative")

  layers: int = 6
  decoder_layers: int | None = None
  width: int = 512
  heads: int = 8
  decoder_heads: int | None = None
  decoder_hidden: int | None = None
  position: Position = "sinusoidal"
  relative_buckets: int = 32
  relative_distance: int = 128
  embedding_norm: bool = False
  embedding_scale: bool = False
  activation: Activation = "relu"
  logit_scale: bool = False
  final_dropout: bool = False
  arrangement: Arrangement = "two_stacks"
  frame: Frame = "plain"

  def __post_init__(self):
    super().__post_init__()
    refuse_below(self, 1, "decoder_layers", "decoder_heads", "decoder_hidden", "relative_distance")
    if self.decoder_heads is not None:
      self.refuse_heads("decoder_heads")
    if self.relative_buckets < 4 or self.relative_buckets > 2 * self.relative_distance:
      raise UserError(
        f"model.relative_buckets={self.relative_buckets} must be at least 4 and at most twice "
        f"model.relative_distance={self.relative_distance}"
      )
    alike = {None, self.layers} >= {self.decoder_layers} and (
      {None, self.heads} >= {self.decoder_heads} and {None, self.hidden} >= {self.decoder_hidden}
    )
    if self.arrangement != "two_stacks" and not alike:
      raise UserError(
        f"model.arrangement={self.arrangement} has one set of layers; leave model.decoder_layers, "
        ".decoder_heads and .decoder_hidden at none"
      )
    if self.arrangement in ("prefix", "causal") and self.position == "learned":
      raise UserError(
        f"model.arrangement={self.arrangement} reads source and target in one row, which a table "
        "of positions may not reach to; set model.position=relative or sinusoidal"
      )

  @property
  def decoder_side(self) -> EncoderDecoder:
    """This with the decoder's sizes in place of the encoder's."""
    return dataclasses.replace(
      self,
      layers=self.decoder_layers or self.layers,
      heads=self.decoder_heads or self.heads,
      hidden=self.decoder_hidden or self.hidden,
      decoder_layers=None,
      decoder_heads=None,
      decoder_hidden=None,
    )

  def source_ids(self, ids: list[int], vocab: Vocab) -> list[int]:
    """The ids of a text with the special tokens that sources have."""
    return [*(() if self.frame == "t5" else vocab.begin), *ids, *vocab.end]

  def decoder_start(self, vocab: Vocab) -> list[int]:
    """What the decoder has read before the first token of a target."""
    starts = {"t5": [vocab.pad], "bart": [*vocab.end, *vocab.begin], "plain": vocab.begin}
    return starts[self.frame]

  @property
  def has_decoder(self) -> bool:
    return self.arrangement in ("two_stacks", "shared")

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """The special tokens around a source. Errors: `UserError` where the vocabulary lacks one."""
    source, t5 = self.source_ids([-1], vocab), self.frame == "t5"
    if len(source) < (2 if t5 else 3):
      needed = "the end" if t5 else "the begin and the end"
      raise UserError(
        f"rows of a model with model.frame={self.frame} need a tokenizer with tokens for {needed} "
        "of a text, and this one lacks them; take another tokenizer or train one"
      )
    at = source.index(-1)
    return source[:at], source[at + 1 :]

  def init(self, key: jax.Array, heads: dict[str, int]) -> Seq2SeqModel:
    """Random parameters, with the named heads: `lm` and `span` (0 as size), `classes` and
    `token_classes` (the number of labels)."""
    if self.vocab_size is None:
      raise ValueError("vocab_size is not resolved: Experiment.resolve fills it from the tokenizer")
    note = " (lm is for objectives that make a source and a target, as SpanCorruption does)"
    refuse_unknown(heads, LM_HEADS, "an encoder-decoder", note)
    if "lm" in heads and self.arrangement == "encoder":
      raise UserError("model.arrangement=encoder has no decoder, so that it predicts no tokens")
    kinds = {"prefix": JoinedModel, "causal": JoinedModel, "encoder": SourceModel}
    model = kinds.get(self.arrangement, EncoderDecoderModel)(self, key, heads)
    return initialised(model, key, self.initializer, self.initializer_range)


class SourceModel(Seq2SeqModel):
  """The parameters of the encoder of an encoder-decoder and its forward pass."""

  def __init__(self, config: EncoderDecoder, key: jax.Array, heads: dict[str, int]):
    super().__init__(config, key, heads)
    _, encoder, *_ = jax.random.split(key, 6)
    own = config.arrangement != "shared"
    self.encoder_stack = Stack(
      config, encoder, "encoder", cross=False, bidirectional=True, blocks=own
    )

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """The states `[B, S, D]` of the tokens `input_ids` int `[B, S]`, in
    `compute.activation_dtype`. `length` int `[B]`, or `attention_mask`, says which are real."""
    mask_BS = batch.get("attention_mask")
    return self.encode(batch["input_ids"], batch["length"], compute, noise, mask_BS)

  def encode(
    self, ids_BS, length_B, compute: Compute, noise: Noise | None = None, mask_BS=None
  ) -> jax.Array:
    """The encoder's states `[B, S, D]`. mask_BS: which tokens are real, where those are not the
    first `length_B` of a row."""
    encoder, S = self.encoder_stack, ids_BS.shape[1]
    context = encoder.context(over_sources(mask_BS, length_B, S), jnp.arange(S))
    x_BSD = self.token(ids_BS, compute.activation_dtype)
    blocks = without_cross(self.decoder_stack.blocks) if self.encoder_stack.blocks is None else None
    return encoder.run(x_BSD, jnp.arange(S), context, compute, noise, blocks)


class EncoderDecoderModel(SourceModel):
  """The parameters of an encoder-decoder and its forward pass."""

  def __init__(self, config: EncoderDecoder, key: jax.Array, heads: dict[str, int]):
    super().__init__(config, key, heads)
    _, _, decoder, *_ = jax.random.split(key, 6)
    self.decoder_stack = Stack(config, decoder, "decoder", cross=True, bidirectional=False)

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """The decoder's states `[B, T, D]` after the last norm, in `compute.activation_dtype`.

    batch: `input_ids` int `[B, S]` and `length` int `[B]`, the source; `decoder_input_ids` int
    `[B, T]`. Without the latter the decoder reads the source, moved by one behind its last token
    (fairseq's and transformers' BART, where a row is to be classified). `attention_mask` and
    `decoder_attention_mask` are 0 at padding that is elsewhere than at the end.
    """
    in_encoder, in_decoder = streams(noise, 2)
    mask_BS = batch.get("attention_mask")
    source_BSD = self.encode(batch["input_ids"], batch["length"], compute, in_encoder, mask_BS)
    ids_BT = decoder_ids(batch)
    T, positions = ids_BT.shape[1], jnp.arange(ids_BT.shape[1])
    decoder, mask = self.decoder_stack, causal_mask(T)
    if "decoder_attention_mask" in batch:
      mask &= over_sources(batch["decoder_attention_mask"])
    source_mask = over_sources(mask_BS, batch["length"], source_BSD.shape[1])
    context = decoder.context(
      mask, positions, source=source_BSD, source_mask=source_mask, causal=True
    )
    x_BTD = self.token(ids_BT, compute.activation_dtype)
    return decoder.run(x_BTD, positions, context, compute, in_decoder)

  def generator(self, compute: Compute, rows: int = 1) -> EncoderDecoderGenerator:
    return EncoderDecoderGenerator.of(self, compute, rows)


class JoinedModel(Seq2SeqModel):
  """A single stack that reads source and target in one row (Raffel et al. 2020, section 3.2.1)."""

  def __init__(self, config: EncoderDecoder, key: jax.Array, heads: dict[str, int]):
    super().__init__(config, key, heads)
    _, stack, *_ = jax.random.split(key, 6)
    # With a visible prefix sources may be after a target.
    self.stack = Stack(
      config, stack, "encoder", cross=False, bidirectional=config.arrangement == "prefix"
    )

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """The states `[B, T, D]` of the target's positions, or without a target of the source's."""
    ids, length_B = batch["input_ids"], batch["length"]
    S = ids.shape[1]
    if "decoder_input_ids" in batch:
      ids = jnp.concatenate([ids, batch["decoder_input_ids"]], axis=1)
      # The target follows the last token of its source, and padding follows both.
      column = jnp.arange(ids.shape[1])
      after = jnp.minimum(column - length_B[:, None] + S, ids.shape[1] - 1)
      ids = jnp.take_along_axis(ids, jnp.where(column < length_B[:, None], column, after), axis=1)
    both = ids.shape[1]
    mask = causal_mask(both)
    if self.config.arrangement == "prefix":
      mask = mask | padding_mask(length_B, both)
    causal = self.config.arrangement == "causal"
    context = self.stack.context(mask, jnp.arange(both), causal=causal)
    x = self.token(ids, compute.activation_dtype)
    hidden = self.stack.run(x, jnp.arange(both), context, compute, noise)
    if "decoder_input_ids" not in batch:
      return hidden
    at_BT = length_B[:, None] + jnp.arange(batch["decoder_input_ids"].shape[1])
    return jnp.take_along_axis(hidden, at_BT[..., None], axis=1)


def over_sources(mask_BS, length_B=None, positions: int = 0) -> jax.Array:
  """bool `[B, 1, 1, S]`: the mask, or without one the first `length_B` of so many positions."""
  if mask_BS is None:
    return padding_mask(length_B, positions)
  return mask_BS.astype(bool)[:, None, None, :]


def decoder_ids(batch: dict) -> jax.Array:
  """int `[B, T]`: what the decoder reads, by default the source behind its own last token."""
  if "decoder_input_ids" in batch:
    return batch["decoder_input_ids"]
  ids_BS = batch["input_ids"]
  last_B1 = jnp.take_along_axis(ids_BS, batch["length"][:, None] - 1, axis=1)
  return jnp.concatenate([last_B1, ids_BS[:, :-1]], axis=1)


def without_cross(blocks: nnx.Module) -> nnx.Module:
  """A decoder's stacked blocks as those of an encoder: the same arrays, no cross-attention."""
  leaves, treedef = jax.tree.flatten(blocks)
  blocks = jax.tree.unflatten(treedef, leaves)
  blocks.cross = blocks.cross_norm = None
  return blocks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderDecoderGenerator:
  """An encoder-decoder made ready for generation (plm_jax/decode/generator.py)."""

  model: EncoderDecoderModel
  blocks: Any
  output: Output
  compute: Compute = dataclasses.field(metadata={"static": True})

  @classmethod
  def of(cls, model: EncoderDecoderModel, compute: Compute, rows: int) -> EncoderDecoderGenerator:
    stack = model.decoder_stack.blocks, model.decoder_stack.layers
    return cls(model, *decoding_layout(*stack, model.output_table(), compute, rows), compute)

  def start(self, batch: dict, capacity: int) -> Cache:
    c, pad_B = self.model.decoder_stack.config, jnp.asarray(batch["pad"])
    length_B = jnp.asarray(batch["length"])
    source_BSD = self.model.encode(jnp.asarray(batch["input_ids"]), length_B, self.compute)
    sizes = (len(pad_B), capacity, c.key_heads, c.width_of_heads)
    empty = lambda: KVStore.empty(*sizes, self.compute.activation_dtype)  # noqa: E731
    read = lambda block: KVStore.of(block.cross.key_values(source_BSD))  # noqa: E731
    if isinstance(self.blocks, list):
      layers = [LayerCache(empty(), read(block)) for block in self.blocks]
    else:
      own = empty_cache(lambda: LayerCache(empty()), c.layers, self.compute)
      layers = LayerCache(own.own, jax.vmap(read)(self.blocks))
    mask = padding_mask(length_B, source_BSD.shape[1])
    return Cache(layers, pad_B, jnp.zeros((), jnp.int32), mask)

  def extend(self, ids_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    decoder, T = self.model.decoder_stack, ids_BT.shape[1]
    mask = cache.mask(T)
    bias = None if decoder.bias is None else decoder.bias.at(cache.at, T, mask.shape[-1])
    position_ids = cache.position_ids(T)
    context = AttentionContext.of(
      decoder.config,
      mask,
      position_ids,
      at=cache.at,
      score_bias=bias,
      source_mask=cache.source_mask,
    )
    x_BTD = self.model.token(ids_BT, self.compute.activation_dtype)
    x_BTD = decoder.embed(x_BTD, position_ids, None)
    x_BTD, layers = extend_blocks(
      self.blocks, decoder.layers, x_BTD, context, self.compute, cache.layers
    )
    x_BD = self.model.scaled(decoder.finish(x_BTD[:, -1], None))
    return self.output(x_BD), dataclasses.replace(cache, layers=layers, at=cache.at + T)
