"""The Transformer encoder with its heads; BERT and its successors are settings of it.

Sources: google-research/bert modeling.py; google-research/albert modeling.py (factorised embedding,
sharing); fairseq roberta (positions). Every switch is a field of `Encoder`; the file of a paper
(`bert.py`, `roberta.py`, `albert.py`, ...) has its values.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.activations import Activation, activate
from plm_jax.models.attention import causal_mask, document_mask, real_tokens
from plm_jax.models.compute import Compute
from plm_jax.models.config import TransformerConfig
from plm_jax.models.dropout import Noise, dropout, streams
from plm_jax.models.embeddings import Embeddings, position_ids
from plm_jax.models.groups import Groups, real_sources
from plm_jax.models.heads import ENCODER_HEADS, HeadedModel, PairHead, check_heads, state_at
from plm_jax.models.initializers import Initializer, initialised
from plm_jax.models.layer_loop import Sharing, run_blocks, shared, stack
from plm_jax.models.layers import NORMS
from plm_jax.models.model import refuse_below
from plm_jax.models.recurrent import BiLSTM
from plm_jax.models.transformer import AttentionContext, make_block

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab

Classifier = Literal["pooler", "dropout_pooler", "mean", "bilstm"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder(TransformerConfig):
  """The sizes and switches of an encoder; `init` makes its parameters.

  embedding: width E of the tables, mapped to `width` after their norm, and back in the masked-LM
    head (ALBERT, section 3.1); None is `width` without a mapping.
  segments: rows of the segment table; 0 is no segments.
  sharing: parameters that the layers share, in `groups` of consecutive layers (ALBERT).
  inner_layers: for import only; with sharing=all, the number of different layers that replace each
    layer, one after the other (google-research/albert, `inner_group_num`).
  attention: `causal` is the left-to-right model of BERT's Table 5. Its pooler reads the last token,
    the only one that sees all.
  classifier: the layers before the classes. `pooler` is the paper's, which only next-sentence
    prediction trains; `dropout_pooler` is fairseq's for RoBERTa, with dropout before the pooler
    too; `mean` is the mean of the real tokens' states; `bilstm` is a randomly initialised BiLSTM
    (BERT's Table 5, "+ BiLSTM"), which classes of tokens and answers read too.
  pooler_activation: for `classes`, DistilBERT has `relu` and ELECTRA `gelu_erf`.
  head_activation: of the masked-LM head; None is that of the layers. head_bias: whether its dense
    layer has a bias.
  first_norm: whether the attention of the first layer reads a normalised state too, with
    norm_at=pre; the embeddings are normalised already (ModernBERT: False).
  """

  reads_pairs: ClassVar[bool] = True
  packs: ClassVar[bool] = True  # documents of a row do not see each other

  positions: int = 512
  norm_eps: float = 1e-12
  initializer: Initializer = "truncated_normal"
  embedding: int | None = None
  segments: int = 2
  sharing: Sharing = "none"
  groups: int = 1
  inner_layers: int = 1
  attention: Literal["bidirectional", "causal"] = "bidirectional"
  classifier: Classifier = "pooler"
  pooler_activation: Literal["tanh", "relu", "gelu_erf"] = "tanh"
  head_activation: Activation | None = None
  head_bias: bool = True
  first_norm: bool = True

  def __post_init__(self):
    super().__post_init__()
    refuse_below(self, 1, "groups", "inner_layers", "embedding")
    refuse_below(self, 0, "segments")
    if self.layers < self.groups or (self.groups > 1 and self.sharing == "none"):
      raise UserError(
        f"model.groups={self.groups} needs model.sharing, and must be at most model.layers="
        f"{self.layers}"
      )
    if not self.first_norm and self.norm_at == "post":
      raise UserError("model.first_norm=false needs model.norm_at=pre")
    if self.inner_layers > 1 and self.sharing != "all":
      raise UserError(f"model.inner_layers={self.inner_layers} needs model.sharing=all")

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """[CLS] and [SEP]. Errors: `UserError` if the vocabulary lacks one of them."""
    begin, end = vocab.frame(padding=False)
    return [begin], [end]

  def init(self, key: jax.Array, heads: dict[str, int]) -> EncoderModel:
    """Random parameters with the named heads: `mlm`, `nsp`, `sop`, `rtd` and `span` (size 0),
    `classes` and `token_classes` (number of labels). There is a pooler if a head needs it or it is
    named."""
    if "lm" in heads:  # a left-to-right encoder predicts by the masked-LM head
      if self.attention != "causal":
        raise UserError(
          "with model.attention=bidirectional the model sees the next token, which clm predicts; "
          "set model.attention=causal or train a decoder"
        )
      heads = {"mlm" if name == "lm" else name: size for name, size in heads.items()}
    check_heads(self, heads, ENCODER_HEADS, "an encoder")
    model = EncoderModel(self, key, heads)
    return initialised(model, key, self.initializer, self.initializer_range)


class EncoderModel(HeadedModel):
  """The parameters of an encoder and its forward pass."""

  HEADS = ENCODER_HEADS

  def __init__(self, config: Encoder, key: jax.Array, heads: dict[str, int]):
    names = ("embed", "blocks", "pooler", "mlm", "nsp", "classes", "bilstm", "sop")
    keys = dict(zip(names, jax.random.split(key, 8), strict=True))
    c = config
    self.config = config
    self.embed = Embeddings(keys["embed"], c)
    self.blocks = _blocks(c, keys["blocks"])
    self.norm = NORMS[c.norm](c.width, c.norm_eps) if c.norm_at == "pre" else None
    reads_pooled = any(ENCODER_HEADS[name] is PairHead for name in heads)
    if reads_pooled or ("classes" in heads and c.classifier in ("pooler", "dropout_pooler")):
      heads = heads | {"pooler": 0}
    self.make_heads(key, keys, heads)
    reads_states = not {"classes", "token_classes", "span"}.isdisjoint(heads)
    has_bilstm = c.classifier == "bilstm" and reads_states
    self.bilstm = BiLSTM(keys["bilstm"], c.width) if has_bilstm else None

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """Hidden states `[B, T, D]` of the last layer, in `compute.activation_dtype`.

    batch: `input_ids` and `segment_ids` int `[B, T]`, `length` int `[B]`; optional `attention_mask`
    `[B, T]` for padding that is not at the end of a row. With `document_ids` int `[B, T]` a token
    sees its own document only, whose positions begin anew. Without noise there is no dropout.
    """
    in_embed, in_blocks = streams(noise, 2)
    c, real_BT, columns = self.config, real_tokens(batch), batch["input_ids"].shape[1]
    mask, causal = real_BT[:, None, None, :], c.attention == "causal"
    groups = real_sources(columns, real_BT)
    if causal:
      mask &= causal_mask(columns)
    if "document_ids" in batch:
      documents_BT = batch["document_ids"]
      mask &= document_mask(documents_BT)
      groups = Groups(documents_BT, documents_BT).hiding(real_BT)
    positions = position_ids(batch, c.first_position)
    options = {"causal": causal, "groups": groups, "bare": not c.first_norm}
    context = AttentionContext.from_config(c, mask, positions, **options)
    x_BTD = self.embed(batch, compute.activation_dtype, in_embed)
    x_BTD = run_blocks(self.blocks, c.layers, x_BTD, context, compute, in_blocks)
    return x_BTD if self.norm is None else self.norm(x_BTD)

  def masked_lm(self) -> EncoderModel | None:
    return self if self.mlm is not None and self.config.attention == "bidirectional" else None

  def pool(self, hidden_BTD: jax.Array, batch: dict, noise: Noise | None = None) -> jax.Array:
    """`[B, D]`: dense and `pooler_activation` on the state of [CLS], or of the last token if
    attention is causal. With noise there is dropout on the state first."""
    causal = self.config.attention == "causal"
    position_B = batch["length"] - 1 if causal else jnp.zeros_like(batch["length"])
    state_BD = dropout(state_at(hidden_BTD, position_B), self.config.dropout, noise)
    pooled_BD = self.pooler(state_BD)
    return activate(pooled_BD, self.config.pooler_activation)

  def token_logits(self, hidden: jax.Array) -> jax.Array:
    """`[..., D] -> float32 [..., V]` by the masked-LM head."""
    return self.mlm(hidden, self.embed.token.table[...])

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

  def token_class_logits(
    self, hidden_BTD: jax.Array, batch: dict, noise: Noise | None
  ) -> jax.Array:
    return super().token_class_logits(self._read_again(hidden_BTD, batch), batch, noise)

  def span_logits(self, hidden_BTD: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
    return super().span_logits(self._read_again(hidden_BTD, batch), batch)

  def _read_again(self, hidden_BTD: jax.Array, batch: dict) -> jax.Array:
    """By the BiLSTM, if there is one."""
    return hidden_BTD if self.bilstm is None else self.bilstm(hidden_BTD, real_tokens(batch))

  def replaced_logits(self, hidden_BTD: jax.Array) -> jax.Array:
    """float32 `[B, T]`: above 0, the model takes the token for a replaced one (ELECTRA)."""
    return self.rtd(hidden_BTD)


class InnerBlocks(nnx.Module):
  """Several different layers in place of one shared layer (`Encoder.inner_layers`)."""

  def __init__(self, key: jax.Array, count: int, make):
    self.inner = stack(key, count, make)
    self.count = count

  def __call__(
    self, x_BTD: jax.Array, context: AttentionContext, noise: Noise | None, cache: None = None
  ):
    x_BTD = run_blocks(
      self.inner,
      self.count,
      x_BTD,
      context,
      Compute(layers="unroll", attention=context.kind),
      noise,
    )
    return x_BTD, cache


def _blocks(c: Encoder, key: jax.Array) -> nnx.Module:
  block = partial(make_block, config=c)
  if c.inner_layers > 1:
    return stack(key, c.layers, lambda key: InnerBlocks(key, c.inner_layers, block), c.groups)
  # Without `first`, 11 of the 12 layers of ALBERT-xxlarge would be drawn and thrown away.
  layers = stack(key, c.layers, block, first=c.groups if c.sharing == "all" else None)
  return shared(layers, c.sharing, c.groups)


def mean_of_tokens(hidden_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
  """`[B, D]`: the mean over the real tokens, summed in float32."""
  sum_BD = jnp.where(real_BT[..., None], hidden_BTD, 0).sum(axis=1, dtype=jnp.float32)
  count_B = jnp.maximum(real_BT.sum(axis=1), 1)
  return (sum_BD / count_B[:, None]).astype(hidden_BTD.dtype)
