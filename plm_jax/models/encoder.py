"""The Transformer encoder with its heads, of which BERT and its successors are settings.

Sources: google-research/bert modeling.py; google-research/albert modeling.py (factorised embedding,
sharing); fairseq roberta (positions). Every switch is a field of `Encoder`, never a constant; a
paper's file (`bert.py`, `roberta.py`, `albert.py`, ...) says which values are its own.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.activations import Activation, activate
from plm_jax.models.attention import causal_mask
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.embeddings import Embeddings
from plm_jax.models.heads import MaskedLMHead, ReplacedHead, TokenHeads
from plm_jax.models.layers import STDDEV, Linear, normal_kernels, scaled_kernels
from plm_jax.models.model import refuse_below
from plm_jax.models.recurrent import BiLSTM
from plm_jax.models.transformer import (
  AttentionContext,
  PostNormBlock,
  Sharing,
  run_blocks,
  shared,
  stack,
  streams,
)

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab

Classifier = Literal["pooler", "dropout_pooler", "mean", "bilstm"]
Initializer = Literal["truncated_normal", "normal"]
HEADS = ("mlm", "nsp", "sop", "rtd", "classes", "token_classes", "span", "pooler")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
  """The sizes and switches of an encoder; `init` makes its parameters.

  hidden: feed-forward width; None is 4 * width.
  embedding: width E of the tables, mapped to `width` after their norm, and back under the masked-LM
    head (ALBERT, section 3.1); None is `width` without a mapping.
  vocab_size: None takes the tokenizer's.
  positions: longest row. first_position: id of a row's first position; above 0 padding has the id
    before it (RoBERTa: 2, and 1 for padding), and the table has so many rows more.
  segments: rows of the segment table; 0 is no segments.
  sharing: which parameters the layers have in common, in `groups` of consecutive layers (ALBERT).
  inner_layers: where all is shared, how many different layers run one after the other in the place
    of each (google-research/albert, `inner_group_num`).
  attention: `causal` is the left-to-right model of BERT's Table 5. It is pooled at its last token,
    the only one that sees all.
  classifier: what stands under the classes. `pooler` is the paper's, which only next-sentence
    prediction trains; `dropout_pooler` is fairseq's for RoBERTa, with dropout before the pooler
    too; `mean` is the mean of the real tokens' states; `bilstm` is a randomly
    initialised BiLSTM (BERT's Table 5, "+ BiLSTM"). The last two belong to that head alone.
  pooler_activation: DistilBERT's, under its classes alone, is `relu`, ELECTRA's there `gelu_erf`.
  head_activation: of the masked-LM head; None is that of the layers.
  tied: whether that head predicts by the table of tokens or by one of its own.
  classifier_dropout: under classes; None is as elsewhere.
  initializer: of kernels and tables, with standard deviation initializer_range: cut at two sigma
    (BERT's code) or not (fairseq).
  """

  layers: int = 12
  width: int = 768
  heads: int = 12
  hidden: int | None = None
  embedding: int | None = None
  vocab_size: int | None = None
  positions: int = 512
  first_position: int = 0
  segments: int = 2
  sharing: Sharing = "none"
  groups: int = 1
  inner_layers: int = 1
  activation: Activation = "gelu_tanh"
  attention: Literal["bidirectional", "causal"] = "bidirectional"
  classifier: Classifier = "pooler"
  dropout: float = 0.1
  attention_dropout: float = 0.1
  pooler_activation: Literal["tanh", "relu", "gelu_erf"] = "tanh"
  head_activation: Activation | None = None
  tied: bool = True
  classifier_dropout: float | None = None
  norm_eps: float = 1e-12
  initializer: Initializer = "truncated_normal"
  initializer_range: float = 0.02

  def __post_init__(self):
    refuse_below(self, 1, "layers", "width", "heads", "positions", "groups", "inner_layers")
    refuse_below(self, 1, "hidden", "embedding", "vocab_size")
    refuse_below(self, 0, "segments", "first_position")
    if self.layers < self.groups or (self.groups > 1 and self.sharing == "none"):
      raise UserError(
        f"model.groups={self.groups} needs model.sharing, and cannot be more than model.layers="
        f"{self.layers}"
      )
    if self.inner_layers > 1 and self.sharing != "all":
      raise UserError(f"model.inner_layers={self.inner_layers} needs model.sharing=all")
    if self.width % self.heads:
      raise UserError(
        f"model.width={self.width} is not a multiple of model.heads={self.heads}; every head gets "
        "width / heads dimensions"
      )
    for name in ("dropout", "attention_dropout", "classifier_dropout"):
      if not 0 <= (getattr(self, name) or 0.0) < 1:
        raise UserError(f"model.{name}={getattr(self, name)} must be at least 0 and below 1")
    if not (0 < self.norm_eps < 1 and 0 < self.initializer_range < math.inf):
      raise UserError(
        f"model.norm_eps={self.norm_eps} must be above 0 and below 1, and model.initializer_range="
        f"{self.initializer_range} above 0 and finite"
      )

  @property
  def encoder(self) -> Encoder:
    return self

  @property
  def encoder_path(self) -> str:
    return ""

  @property
  def frozen(self) -> tuple[str, ...]:
    return ()

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """[CLS] and [SEP]. Errors: `UserError` where the vocabulary lacks one of them."""
    begin, end = vocab.frame(padding=False)
    return [begin], [end]

  def init(self, key: jax.Array, heads: dict[str, int]) -> EncoderModel:
    """Random parameters, with the named heads: `mlm`, `nsp`, `sop`, `rtd` and `span` (0 as size),
    `classes` and `token_classes` (the number of labels). The pooler exists where a head needs it or
    it is named.
    """
    if self.vocab_size is None:
      raise ValueError("vocab_size is not resolved: Experiment.resolve fills it from the tokenizer")
    if "lm" in heads:  # a left-to-right encoder predicts by the head that a masked one has
      if self.attention != "causal":
        raise UserError(
          "clm predicts the next token, which model.attention=bidirectional lets the model see; "
          "set model.attention=causal or train a decoder"
        )
      heads = {"mlm" if name == "lm" else name: size for name, size in heads.items()}
    unknown = sorted(set(heads) - set(HEADS))
    if unknown:
      raise UserError(f"an encoder has no head {unknown[0]!r}; it has {', '.join(HEADS)}")
    model = EncoderModel(self, key, heads)
    if self.initializer == "normal":
      return normal_kernels(model, key, self.initializer_range)
    return scaled_kernels(model, self.initializer_range / STDDEV)


class EncoderModel(TokenHeads):
  """The parameters of an encoder and its forward pass."""

  def __init__(self, config: Encoder, key: jax.Array, heads: dict[str, int]):
    embed, blocks, pooler, mlm, nsp, classes, bilstm, sop = jax.random.split(key, 8)
    c = config
    self.config = config
    self.embed = Embeddings(
      embed,
      vocab_size=c.vocab_size,
      positions=c.positions,
      first_position=c.first_position,
      segments=c.segments,
      width=c.width,
      embedding=c.embedding,
      eps=c.norm_eps,
      dropout=c.dropout,
    )
    self.blocks = _blocks(c, blocks)
    reads = "classes" in heads and c.classifier == "bilstm"
    pooled = {"nsp", "sop", "pooler"} & set(heads) or (
      "classes" in heads and c.classifier in ("pooler", "dropout_pooler")
    )
    self.pooler = Linear(pooler, (c.width,), (c.width,)) if pooled else None
    self.mlm = (
      MaskedLMHead(
        mlm,
        c.width,
        c.embedding or c.width,
        c.vocab_size,
        c.head_activation or c.activation,
        c.norm_eps,
        c.tied,
      )
      if "mlm" in heads
      else None
    )
    self.nsp = Linear(nsp, (c.width,), (2,)) if "nsp" in heads else None
    self.sop = Linear(sop, (c.width,), (2,)) if "sop" in heads else None
    self.classes = Linear(classes, (c.width,), (heads["classes"],)) if "classes" in heads else None
    self.bilstm = BiLSTM(bilstm, c.width) if reads else None
    rtd = jax.random.fold_in(key, 8)
    self.rtd = ReplacedHead(rtd, c.width, c.activation) if "rtd" in heads else None
    self.make_token_heads(key, c.width, heads)

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """Hidden states `[B, T, D]` of the last layer, in `compute.activation_dtype`.

    batch: `input_ids` and `segment_ids` int `[B, T]`, `length` int `[B]`; where real tokens are not
    the first of a row, `attention_mask` `[B, T]` says which are. Without noise there is no dropout.
    """
    if "document_ids" in batch:
      raise UserError(
        "an encoder does not tell the documents of a row apart, which data.segments.separate=true "
        "asks of it; set data.segments.separate=false or train a decoder"
      )
    in_embed, in_blocks = streams(noise, 2)
    ids_BT = batch["input_ids"]
    mask = real_tokens(batch)[:, None, None, :]
    causal = self.config.attention == "causal"
    seen = AttentionContext(mask & causal_mask(ids_BT.shape[1]) if causal else mask, causal=causal)
    x_BTD = self.embed(batch, compute.activation_dtype, in_embed)
    return run_blocks(self.blocks, self.config.layers, x_BTD, seen, compute, in_blocks)

  def encoder(self) -> EncoderModel:
    return self

  def masked_lm(self) -> EncoderModel | None:
    return self if self.mlm is not None and self.config.attention == "bidirectional" else None

  def pool(self, hidden_BTD: jax.Array, batch: dict, noise: Noise | None = None) -> jax.Array:
    """`[B, D]`: dense and `pooler_activation` on the state of [CLS], or of the last token where
    attention is causal; trained only through a head on top of it. With noise the state is dropped
    out first."""
    causal = self.config.attention == "causal"
    at_B = batch["length"] - 1 if causal else jnp.zeros_like(batch["length"])
    state_BD = jnp.take_along_axis(hidden_BTD, at_B[:, None, None], axis=1)[:, 0]
    pooled_BD = self.pooler(dropout(state_BD, self.config.dropout, noise))
    return activate(pooled_BD, self.config.pooler_activation)

  def token_logits(self, hidden: jax.Array) -> jax.Array:
    """`[..., D] -> float32 [..., V]` by the masked-LM head."""
    return self.mlm(hidden, self.embed.token.table[...])

  def token_logits_at(self, hidden_BTD: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """float32 `[B, P, V]` at the given positions only."""
    return self.token_logits(jnp.take_along_axis(hidden_BTD, positions_BP[..., None], axis=1))

  def next_sentence_logits(self, hidden_BTD: jax.Array, batch: dict) -> jax.Array:
    """float32 `[B, 2]`; index 0 = B follows A, 1 = B is random."""
    return self.nsp(self.pool(hidden_BTD, batch)).astype(jnp.float32)

  def sentence_order_logits(self, hidden_BTD: jax.Array, batch: dict) -> jax.Array:
    """float32 `[B, 2]`; index 0 = B follows A, 1 = A and B are swapped."""
    return self.sop(self.pool(hidden_BTD, batch)).astype(jnp.float32)

  def class_logits(self, hidden_BTD: jax.Array, batch: dict, noise: Noise | None) -> jax.Array:
    """float32 `[B, classes]` from the pooled state (google-research/bert, run_classifier.py;
    fairseq, `RobertaClassificationHead`: dropout, dense, tanh, dropout, linear)."""
    if self.bilstm is not None:
      pooled_BD = self.bilstm.last(hidden_BTD, batch["length"])
    elif self.config.classifier == "mean":
      pooled_BD = mean_of_tokens(hidden_BTD, real_tokens(batch))
    elif self.config.classifier == "dropout_pooler":
      before, noise = streams(noise, 2)
      pooled_BD = self.pool(hidden_BTD, batch, before)
    else:
      pooled_BD = self.pool(hidden_BTD, batch)
    pooled_BD = dropout(pooled_BD, self.classifier_dropout, noise)
    return self.classes(pooled_BD).astype(jnp.float32)

  def replaced_logits(self, hidden_BTD: jax.Array) -> jax.Array:
    """float32 `[B, T]`: above 0, the token is taken for replaced (ELECTRA)."""
    return self.rtd(hidden_BTD)


class InnerBlocks(nnx.Module):
  """Different layers that run one after the other where a shared one would."""

  def __init__(self, key: jax.Array, count: int, make):
    self.inner = stack(key, count, make)
    self.count = count

  def __call__(
    self, x_BTD: jax.Array, seen: AttentionContext, noise: Noise | None, cache: None = None
  ):
    x_BTD = run_blocks(self.inner, self.count, x_BTD, seen, Compute(layers="unroll"), noise)
    return x_BTD, cache


def _blocks(c: Encoder, key: jax.Array) -> nnx.Module:
  def block(key):
    return PostNormBlock(
      key,
      width=c.width,
      heads=c.heads,
      hidden=c.hidden or 4 * c.width,
      activation=c.activation,
      eps=c.norm_eps,
      dropout=c.dropout,
      attention_dropout=c.attention_dropout,
    )

  if c.inner_layers > 1:
    return stack(key, c.layers, lambda key: InnerBlocks(key, c.inner_layers, block), c.groups)
  # Of 12 layers of the size of ALBERT-xxlarge, 11 would be drawn to be thrown away.
  layers = stack(key, c.layers, block, first=c.groups if c.sharing == "all" else None)
  return shared(layers, c.sharing, c.groups)


def real_tokens(batch: dict) -> jax.Array:
  """bool `[B, T]`: what is no padding, by `attention_mask` or else by `length`."""
  if "attention_mask" in batch:
    return batch["attention_mask"].astype(bool)
  return jnp.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]


def mean_of_tokens(hidden_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
  """`[B, D]`: the mean over the real tokens, summed in float32."""
  sum_BD = jnp.where(real_BT[..., None], hidden_BTD, 0).sum(axis=1, dtype=jnp.float32)
  count_B = jnp.maximum(real_BT.sum(axis=1), 1)
  return (sum_BD / count_B[:, None]).astype(hidden_BTD.dtype)
