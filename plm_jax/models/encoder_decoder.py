"""The Transformer encoder-decoder; Vaswani's Transformer, T5, BART and mBART are settings of it.

Sources: Vaswani et al. 2017; google-research/text-to-text-transfer-transformer (e081111) and
google-research/mesh for T5; fairseq (3d262bb) models/bart/model.py. Every switch is a field of
`EncoderDecoder`; `vaswani.py`, `t5.py` and `bart.py` have their values.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.activations import Activation
from plm_jax.models.attention import causal_mask, padding_mask, real_tokens
from plm_jax.models.cache import AttentionCache, KVStore, LayerCache, empty_cache
from plm_jax.models.compute import Compute
from plm_jax.models.config import Position, TransformerConfig
from plm_jax.models.decoding_layout import Output, decoding_layout
from plm_jax.models.dropout import Noise, streams
from plm_jax.models.groups import Groups, real_sources
from plm_jax.models.heads import LM_HEADS, check_heads
from plm_jax.models.initializers import initialised
from plm_jax.models.layer_loop import extend_blocks
from plm_jax.models.model import refuse_below
from plm_jax.models.seq2seq import Seq2SeqModel
from plm_jax.models.stack import Stack
from plm_jax.models.transformer import AttentionContext

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
  embedding_norm: a norm after adding positions (BART). embedding_scale: tokens times sqrt(width).
  logit_scale: logits are divided by sqrt(width) (T5 1.0).
  final_dropout: `dropout` also after the last norm (T5).
  arrangement: `shared` gives encoder and decoder one set of layers, and the decoder cross-attention
    besides; `prefix` and `causal` are a single stack of `layers` that reads source and target in
    one row, with attention to all of the source or to earlier tokens only (T5's Table 2);
    `encoder`, for import only, is the encoder without a decoder (transformers' T5EncoderModel).
  frame: special tokens of a text. `t5` is "text </s>", and the decoder begins with the padding
    token; `bart` "<s> text </s>", and the decoder begins with </s>, then <s>; `plain` the same, and
    the decoder begins with <s>.
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
    pairs = ("layers", "decoder_layers"), ("heads", "decoder_heads"), ("hidden", "decoder_hidden")
    differs = any(getattr(self, b) not in (None, getattr(self, a)) for a, b in pairs)
    if self.arrangement != "two_stacks" and differs:
      raise UserError(
        f"model.arrangement={self.arrangement} has one set of layers; leave model.decoder_layers, "
        "model.decoder_heads and model.decoder_hidden at none"
      )
    if self.arrangement in ("prefix", "causal") and self.position == "learned":
      raise UserError(
        f"model.arrangement={self.arrangement} reads source and target in one row, which may be "
        "longer than a table of positions; set model.position=relative or sinusoidal"
      )

  @property
  def decoder_side(self) -> EncoderDecoder:
    """The config with the decoder's sizes in place of the encoder's."""
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
    """The ids of a text with the special tokens of a source."""
    return [*(() if self.frame == "t5" else vocab.begin), *ids, *vocab.end]

  def decoder_start(self, vocab: Vocab) -> list[int]:
    """The tokens that the decoder reads before the first token of a target."""
    starts = {"t5": [vocab.pad], "bart": [*vocab.end, *vocab.begin], "plain": vocab.begin}
    return starts[self.frame]

  @property
  def has_decoder(self) -> bool:
    return self.arrangement in ("two_stacks", "shared")

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """The special tokens around a source. Errors: `UserError` if the vocabulary lacks one."""
    source, t5 = self.source_ids([-1], vocab), self.frame == "t5"
    if len(source) < (2 if t5 else 3):
      needed = "the end" if t5 else "the begin and the end"
      raise UserError(
        f"model.frame={self.frame} needs a tokenizer with tokens for {needed} of a text, and this "
        "one lacks them; take another tokenizer or train one"
      )
    text = source.index(-1)
    return source[:text], source[text + 1 :]

  def separator(self, vocab: Vocab) -> list[int]:
    """BART's are RoBERTa's two, T5's is one."""
    return (2 if self.frame == "bart" else 1) * vocab.end

  def init(self, key: jax.Array, heads: dict[str, int]) -> Seq2SeqModel:
    """Random parameters with the named heads: `lm` and `span` (size 0), `classes` and
    `token_classes` (number of labels)."""
    note = " (lm is for objectives that make a source and a target, as SpanCorruption does)"
    check_heads(self, heads, LM_HEADS, "an encoder-decoder", note)
    if "lm" in heads and self.arrangement == "encoder":
      raise UserError("model.arrangement=encoder has no decoder, so it predicts no tokens")
    kinds = {"prefix": JoinedModel, "causal": JoinedModel, "encoder": SourceModel}
    model = kinds.get(self.arrangement, EncoderDecoderModel)(self, key, heads)
    return initialised(model, key, self.initializer, self.initializer_range)


class SourceModel(Seq2SeqModel):
  """The parameters of the encoder of an encoder-decoder and its forward pass."""

  def __init__(self, config: EncoderDecoder, key: jax.Array, heads: dict[str, int]):
    super().__init__(config, key, heads)
    _, encoder, *_ = jax.random.split(key, 6)
    blocks = config.arrangement != "shared"
    self.encoder_stack = Stack(
      config, encoder, "encoder", cross=False, bidirectional=True, blocks=blocks
    )

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """The states `[B, S, D]` of `input_ids` int `[B, S]`, in `compute.activation_dtype`. Padding is
    marked by `length` int `[B]`, or by `attention_mask` `[B, S]`."""
    return self.encode(batch, compute, noise)

  def encode(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """The encoder's states, as `SourceModel.__call__` returns them."""
    encoder, positions = self.encoder_stack, jnp.arange(batch["input_ids"].shape[1])
    groups = real_sources(positions.shape[0], real_tokens(batch))
    context = encoder.context(over_sources(batch), positions, groups=groups)
    x_BSD = self.token(batch["input_ids"], compute.activation_dtype)
    blocks = without_cross(self.decoder_stack.blocks) if encoder.blocks is None else None
    return encoder.run(x_BSD, positions, context, compute, noise, blocks)


class EncoderDecoderModel(SourceModel):
  """The parameters of an encoder-decoder and its forward pass."""

  def __init__(self, config: EncoderDecoder, key: jax.Array, heads: dict[str, int]):
    super().__init__(config, key, heads)
    _, _, decoder, *_ = jax.random.split(key, 6)
    self.decoder_stack = Stack(config, decoder, "decoder", cross=True, bidirectional=False)

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """The decoder's states `[B, T, D]` after the last norm, in `compute.activation_dtype`.

    batch: `input_ids` int `[B, S]` and `length` int `[B]`, the source; `decoder_input_ids` int
    `[B, T]`, by default the source's last token and then the source (fairseq's and transformers'
    BART for classification). Optional: `attention_mask` and `decoder_attention_mask`, 0 at padding
    elsewhere than at the end.
    """
    in_encoder, in_decoder = streams(noise, 2)
    source_BSD = self.encode(batch, compute, in_encoder)
    ids_BT = decoder_ids(batch)
    T, positions = ids_BT.shape[1], jnp.arange(ids_BT.shape[1])
    decoder, mask, groups = self.decoder_stack, causal_mask(T), Groups()
    if "decoder_attention_mask" in batch:
      real_BT = batch["decoder_attention_mask"].astype(bool)
      mask, groups = mask & real_BT[:, None, None, :], groups.hiding(real_BT)
    source = {
      "source": source_BSD,
      "source_mask": over_sources(batch),
      "source_groups": real_sources(T, real_tokens(batch)),
    }
    context = decoder.context(mask, positions, **source, causal=True, groups=groups)
    x_BTD = self.token(ids_BT, compute.activation_dtype)
    return decoder.run(x_BTD, positions, context, compute, in_decoder)

  def generator(self, compute: Compute, rows: int = 1) -> EncoderDecoderGenerator:
    stack = self.decoder_stack.blocks, self.decoder_stack.layers
    layout = decoding_layout(*stack, self.output_table(), compute, rows)
    return EncoderDecoderGenerator(self, *layout, compute)


class JoinedModel(Seq2SeqModel):
  """A single stack that reads source and target in one row (Raffel et al. 2020, section 3.2.1)."""

  def __init__(self, config: EncoderDecoder, key: jax.Array, heads: dict[str, int]):
    super().__init__(config, key, heads)
    _, stack, *_ = jax.random.split(key, 6)
    # In the visible prefix a source may be after its target.
    self.stack = Stack(
      config, stack, "encoder", cross=False, bidirectional=config.arrangement == "prefix"
    )

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """The states `[B, T, D]` of the target's positions, or of the source's without a target."""
    ids, length_B = batch["input_ids"], batch["length"]
    S = ids.shape[1]
    if "decoder_input_ids" in batch:
      ids = jnp.concatenate([ids, batch["decoder_input_ids"]], axis=1)
      # The target begins right after its source; padding comes last.
      column = jnp.arange(ids.shape[1])
      after = jnp.minimum(column - length_B[:, None] + S, ids.shape[1] - 1)
      ids = jnp.take_along_axis(ids, jnp.where(column < length_B[:, None], column, after), axis=1)
    positions = jnp.arange(ids.shape[1])
    mask = causal_mask(ids.shape[1])
    if self.config.arrangement == "prefix":
      mask = mask | padding_mask(length_B, ids.shape[1])
    causal = self.config.arrangement == "causal"
    groups = Groups() if causal else None
    context = self.stack.context(mask, positions, causal=causal, groups=groups)
    x = self.token(ids, compute.activation_dtype)
    hidden = self.stack.run(x, positions, context, compute, noise)
    if "decoder_input_ids" not in batch:
      return hidden
    at_BT = length_B[:, None] + jnp.arange(batch["decoder_input_ids"].shape[1])
    return jnp.take_along_axis(hidden, at_BT[..., None], axis=1)


def over_sources(batch: dict) -> jax.Array:
  """bool `[B, 1, 1, S]`: True at the real tokens of the source."""
  return real_tokens(batch)[:, None, None, :]


def decoder_ids(batch: dict) -> jax.Array:
  """int `[B, T]`: the decoder's input, by default the source's last token and then the source."""
  if "decoder_input_ids" in batch:
    return batch["decoder_input_ids"]
  ids_BS = batch["input_ids"]
  last_B1 = jnp.take_along_axis(ids_BS, batch["length"][:, None] - 1, axis=1)
  return jnp.concatenate([last_B1, ids_BS[:, :-1]], axis=1)


def without_cross(blocks: nnx.Module) -> nnx.Module:
  """A decoder's stacked blocks without cross-attention, for its encoder: the same arrays."""
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

  def start(self, batch: dict, capacity: int) -> AttentionCache:
    c, pad_B = self.model.decoder_stack.config, jnp.asarray(batch["pad"])
    source = {name: jnp.asarray(batch[name]) for name in ("input_ids", "length")}
    source_BSD = self.model.encode(source, self.compute)
    sizes = (pad_B.shape[0], capacity, c.key_heads, c.width_of_heads)
    empty = lambda: KVStore.empty(*sizes, self.compute.activation_dtype)  # noqa: E731
    read = lambda block: KVStore.from_key_values(block.cross.key_values(source_BSD))  # noqa: E731
    if isinstance(self.blocks, list):
      layers = [LayerCache(empty(), read(block)) for block in self.blocks]
    else:
      own = empty_cache(lambda: LayerCache(empty()), c.layers, self.compute)
      layers = LayerCache(own.own, jax.vmap(read)(self.blocks))
    return AttentionCache(layers, pad_B, jnp.zeros((), jnp.int32), over_sources(source))

  def extend(self, ids_BT: jax.Array, cache: AttentionCache) -> tuple[jax.Array, AttentionCache]:
    decoder, T = self.model.decoder_stack, ids_BT.shape[1]
    mask = cache.mask(T)
    bias = None if decoder.bias is None else decoder.bias.at(cache.at, T, mask.shape[-1])
    position_ids = cache.position_ids(T)
    context = AttentionContext.from_config(
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
