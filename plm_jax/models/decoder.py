"""The Transformer decoder with its heads, of which GPT and LLaMA are settings.

Sources: openai/finetune-transformer-lm train.py (GPT-1: norm after each sum, none at the end);
openai/gpt-2 src/model.py (norm before each sublayer and at the end); Touvron et al. 2023 and
transformers, modeling_llama.py (RMSNorm, rotary positions, gated feed-forward, no biases). Every
switch is a field of `Decoder`; `gpt.py` and `llama.py` say which values are theirs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.attention import causal_mask, document_mask
from plm_jax.models.cache import Cache, KVStore, LayerCache, empty_cache
from plm_jax.models.compute import Compute
from plm_jax.models.decoding_layout import Output, decoding_layout
from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.heads import TokenHeads
from plm_jax.models.layers import (
  Embedding,
  LayerNorm,
  Linear,
  RMSNorm,
  normal_kernels,
  scores,
)
from plm_jax.models.model import refuse_below
from plm_jax.models.parameters import map_roles
from plm_jax.models.positions import RopeScaling, Rotation, document_positions, rotation
from plm_jax.models.transformer import (
  Activation,
  AttentionContext,
  PostNormBlock,
  PreNormBlock,
  run_blocks,
  stack,
  streams,
)

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
  """The sizes and switches of a decoder; `init` makes its parameters. The defaults are GPT-2's.

  hidden: feed-forward width; None is 4 * width.
  kv_heads: key and value heads, each read by heads / kv_heads query heads; None is heads.
  head_width: None is width / heads. vocab_size: None takes the tokenizer's.
  positions: longest row. position: `learned` adds a table to the tokens; `rotary` turns queries and
    keys by angles of base rope_theta, which rope_scaling stretches to longer rows.
  norm_at: `pre` normalises what each sublayer reads, and the last state; `post` each residual sum.
  gated: feed-forward `activation(x W_gate) * (x W_up)` instead of `activation(x W_up)`.
  attention_bias, feed_forward_bias: whether their projections have biases.
  tied: the token table is also the output's; else that is a table of its own.
  inverse_layer_scale: scores of layer l, counted from 1, are divided by l (transformers'
    scale_attn_by_inverse_layer_idx).
  classifier_dropout: under classes; None is as elsewhere.
  residual_init: the projections that end in the residual stream start at 1 / sqrt(2 layers) of the
    others (GPT-2, section 2.3; its released code does not).
  """

  layers: int = 12
  width: int = 768
  heads: int = 12
  kv_heads: int | None = None
  head_width: int | None = None
  hidden: int | None = None
  vocab_size: int | None = None
  positions: int = 1024
  position: Literal["learned", "rotary"] = "learned"
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  norm: Literal["layer", "rms"] = "layer"
  norm_at: Literal["pre", "post"] = "pre"
  norm_eps: float = 1e-5
  activation: Activation = "gelu_tanh"
  gated: bool = False
  attention_bias: bool = True
  feed_forward_bias: bool = True
  tied: bool = True
  inverse_layer_scale: bool = False
  dropout: float = 0.1
  attention_dropout: float = 0.1
  classifier_dropout: float | None = None
  initializer_range: float = 0.02
  residual_init: bool = False

  def __post_init__(self):
    refuse_below(self, 1, "layers", "width", "heads", "positions")
    refuse_below(self, 1, "kv_heads", "head_width", "hidden", "vocab_size")
    if self.head_width is None and self.width % self.heads:
      raise UserError(
        f"model.width={self.width} is not a multiple of model.heads={self.heads}; give "
        "model.head_width, or every head gets width / heads dimensions"
      )
    if self.heads % (self.kv_heads or self.heads):
      raise UserError(
        f"model.kv_heads={self.kv_heads} does not divide model.heads={self.heads}; every key head "
        "is read by the same number of query heads"
      )
    if self.position == "rotary" and self.width_of_heads % 2:
      raise UserError(
        f"rotary positions turn pairs, so that heads must have an even width, not "
        f"{self.width_of_heads}; change model.head_width"
      )
    if self.rope_scaling is not None and self.position != "rotary":
      raise UserError("model.rope_scaling is read with model.position=rotary only")
    for name in ("dropout", "attention_dropout", "classifier_dropout"):
      if not 0 <= (getattr(self, name) or 0.0) < 1:
        raise UserError(f"model.{name}={getattr(self, name)} must be at least 0 and below 1")
    if not (0 < self.norm_eps < 1 and 0 < self.initializer_range < math.inf):
      raise UserError(
        f"model.norm_eps={self.norm_eps} must be above 0 and below 1, and model.initializer_range="
        f"{self.initializer_range} above 0 and finite"
      )
    if not 1 < self.rope_theta < math.inf:
      raise UserError(f"model.rope_theta={self.rope_theta} must be above 1, and finite")

  @property
  def width_of_heads(self) -> int:
    return self.head_width or self.width // self.heads

  @property
  def width_of_feed_forward(self) -> int:
    return self.hidden or 4 * self.width

  @property
  def encoder(self) -> Decoder:
    return self

  @property
  def encoder_path(self) -> str:
    return ""

  @property
  def frozen(self) -> tuple[str, ...]:
    return ()

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """The tokens for begin and end, as far as the vocabulary has them (GPT-1's has neither): the
    classes are read at the last token, whatever it is."""
    return vocab.begin, vocab.end

  def init(self, key: jax.Array, heads: dict[str, int]) -> DecoderModel:
    """Random parameters, with the named heads: `lm` and `span` (0 as size), `classes` and
    `token_classes` (the number of labels)."""
    if self.vocab_size is None:
      raise ValueError("vocab_size is not resolved: Experiment.resolve fills it from the tokenizer")
    unknown = set(heads) - {"lm", "classes", "token_classes", "span"}
    if unknown:
      raise UserError(
        f"a decoder has no head {sorted(unknown)[0]!r}; it has lm (objective CLM), classes, "
        "token_classes and span"
      )
    model = normal_kernels(DecoderModel(self, key, heads), key, self.initializer_range)
    return with_small_residuals(model, self.layers) if self.residual_init else model


class DecoderModel(TokenHeads):
  """The parameters of a decoder and its forward pass."""

  def __init__(self, config: Decoder, key: jax.Array, heads: dict[str, int]):
    tokens, positions, blocks, lm, classes = jax.random.split(key, 5)
    c = config
    self.config = config
    self.token = Embedding(tokens, c.vocab_size, c.width)
    learned = c.position == "learned"
    self.position = Embedding(positions, c.positions, c.width) if learned else None
    block = PreNormBlock if c.norm_at == "pre" else PostNormBlock
    self.blocks = stack(
      blocks,
      c.layers,
      lambda key: block(
        key,
        width=c.width,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_width=c.head_width,
        hidden=c.width_of_feed_forward,
        activation=c.activation,
        gated=c.gated,
        norm=c.norm,
        eps=c.norm_eps,
        bias=c.attention_bias,
        feed_forward_bias=c.feed_forward_bias,
        dropout=c.dropout,
        attention_dropout=c.attention_dropout,
      ),
    )
    normed = LayerNorm if c.norm == "layer" else RMSNorm
    self.norm = normed(c.width, c.norm_eps) if c.norm_at == "pre" else None
    self.lm = Embedding(lm, c.vocab_size, c.width) if "lm" in heads and not c.tied else None
    labels = heads.get("classes")
    self.classes = Linear(classes, (c.width,), (labels,), bias=False) if labels else None
    self.make_token_heads(key, c.width, heads)

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """Hidden states `[B, T, D]` after the last norm, in `compute.activation_dtype`.

    batch: `input_ids` int `[B, T]`; rows are padded on the right. Where `document_ids` int `[B, T]`
    is given, a token sees its own document only, and its positions begin there. `position_ids` int
    `[B, T]` takes their place. `attention_mask` `[B, T]` is 0 where rows are padded otherwise.
    """
    in_embed, in_blocks = streams(noise, 2)
    ids_BT = batch["input_ids"]
    mask = causal_mask(ids_BT.shape[1])
    position_ids = jnp.arange(ids_BT.shape[1])[None]
    if "document_ids" in batch:
      mask &= document_mask(batch["document_ids"])
      position_ids = document_positions(batch["document_ids"])
    if "attention_mask" in batch:
      mask &= batch["attention_mask"].astype(bool)[:, None, None, :]
    position_ids = batch.get("position_ids", position_ids)
    x_BTD = self.embed(ids_BT, position_ids, compute.activation_dtype, in_embed)
    seen = AttentionContext(mask, rotation=self.rotation(position_ids), causal=True)
    blocks = self.scaled_blocks()
    return self.normed(run_blocks(blocks, self.config.layers, x_BTD, seen, compute, in_blocks))

  def embed(self, ids_BT, position_ids, dtype, noise: Noise | None) -> jax.Array:
    """`dropout(token + position)`, the latter where positions are learned."""
    x_BTD = self.token(ids_BT, dtype)
    if self.position is not None:
      x_BTD += self.position(position_ids, dtype)
    return dropout(x_BTD, self.config.dropout, noise)

  def rotation(self, position_ids: jax.Array) -> Rotation | None:
    c = self.config
    if c.position == "learned":
      return None
    return rotation(position_ids, c.width_of_heads, c.rope_theta, c.rope_scaling)

  def scaled_blocks(self) -> nnx.Module:
    """The blocks, the queries of layer l divided by l where scores are."""
    if not self.config.inverse_layer_scale:
      return self.blocks
    layer = jnp.arange(1, self.config.layers + 1)

    def scaled(path, role, leaf):
      return leaf / layer.reshape(-1, *[1] * (leaf.ndim - 1)) if role.query else leaf

    return map_roles(scaled, self.blocks)

  def normed(self, x: jax.Array) -> jax.Array:
    return x if self.norm is None else self.norm(x)

  def encoder(self) -> DecoderModel:
    return self

  def masked_lm(self) -> None:
    return None

  def output_table(self) -> jax.Array:
    """float32 `[V, D]`: the token table, or the output's own."""
    return (self.token if self.lm is None else self.lm).table[...]

  def token_logits(self, hidden: jax.Array) -> jax.Array:
    """`[..., D] -> float32 [..., V]`: the scores of the next token."""
    return scores(hidden, self.output_table())

  def token_logits_at(self, hidden_BTD: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """float32 `[B, P, V]` at the given positions only."""
    return self.token_logits(jnp.take_along_axis(hidden_BTD, positions_BP[..., None], axis=1))

  def class_logits(self, hidden_BTD: jax.Array, batch: dict, noise: Noise | None) -> jax.Array:
    """float32 `[B, classes]` from the state of a row's last token, the only one that has read all,
    without a bias (GPT-1, section 3.2; its code has one)."""
    last_B = batch["length"] - 1
    state_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
    return self.classes(dropout(state_BD, self.classifier_dropout, noise)).astype(jnp.float32)

  def generator(self, compute: Compute, rows: int = 1) -> DecoderGenerator:
    return DecoderGenerator.of(self, compute, rows)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderGenerator:
  """A decoder made ready for generation (plm_jax/decode/generator.py)."""

  model: DecoderModel
  blocks: Any
  output: Output
  compute: Compute = dataclasses.field(metadata={"static": True})

  @classmethod
  def of(cls, model: DecoderModel, compute: Compute, rows: int) -> DecoderGenerator:
    stack = model.scaled_blocks(), model.config.layers
    return cls(model, *decoding_layout(*stack, model.output_table(), compute, rows), compute)

  def start(self, batch: dict, capacity: int) -> Cache:
    c, pad_B = self.model.config, jnp.asarray(batch["pad"])
    sizes = (len(pad_B), capacity, c.kv_heads or c.heads, c.width_of_heads)
    dtype = self.compute.activation_dtype
    layers = empty_cache(lambda: LayerCache(KVStore.empty(*sizes, dtype)), c.layers, self.compute)
    return Cache(layers, pad_B, jnp.zeros((), jnp.int32))

  def extend(self, ids_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    targets = ids_BT.shape[1]
    position_ids = cache.position_ids(targets)
    x_BTD = self.model.embed(ids_BT, position_ids, self.compute.activation_dtype, None)
    seen = AttentionContext(
      cache.mask(targets), rotation=self.model.rotation(position_ids), at=cache.at
    )
    x_BTD, layers = run_blocks(
      self.blocks, self.model.config.layers, x_BTD, seen, self.compute, cache=cache.layers
    )
    x_BD = self.model.normed(x_BTD[:, -1])
    return self.output(x_BD), dataclasses.replace(cache, layers=layers, at=cache.at + targets)


def with_small_residuals(model: DecoderModel, layers: int) -> DecoderModel:
  """The model with the kernels that write to the residual stream divided by sqrt(2 layers)."""

  def scaled(path, role, leaf):
    ends = role.residual and role.kind == "kernel"
    return leaf * (2 * layers) ** -0.5 if ends else leaf

  return map_roles(scaled, model)
