"""The settings that encoders, decoders and encoder-decoders share, with their checks."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

import jax

from plm_jax.errors import UserError
from plm_jax.models.activations import Activation
from plm_jax.models.initializers import Initializer
from plm_jax.models.model import SingleModel, refuse_below, refuse_rates
from plm_jax.models.positions import RopeScaling, Rotation, rotation

Position = Literal["learned", "sinusoidal", "relative", "rotary"]
Norm = Literal["layer", "unbiased", "rms"]
NormAt = Literal["pre", "post"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(SingleModel):
  """The sizes and switches of a Transformer layer and of a stack of layers.

  kv_heads: key and value heads, each read by heads / kv_heads query heads; None is heads.
  head_width: None is width / heads. hidden: feed-forward width; None is 4 * width.
  vocab_size: None takes the tokenizer's.
  positions: longest row. position: `learned` adds a table to the tokens, `sinusoidal` sines and
    cosines; `relative` adds a learned bias of the distance to the scores (T5); `rotary` turns
    queries and keys by angles of base rope_theta. Encoders and decoders have learned and rotary
    positions, encoder-decoders all but rotary ones.
  first_position: id of a row's first position; the table has that many extra rows. If it is above
    0, padding of an encoder has the id before it (RoBERTa: 2, and 1 for padding).
  rope_scaling: stretches the angles to longer rows. local_rope_theta: base of the layers with a
    window, which rope_scaling does not change (ModernBERT, Gemma 3); None is the same angles.
  window: tokens that a layer sees to each side, or to the left if attention is causal; None is all.
    global_every: every n-th layer ignores the window, beginning with layer 0 (ModernBERT: 3;
    alternating layers: 2); 0 is no layer.
  norm: LayerNorm, LayerNorm without bias, or RMSNorm. norm_at: `pre` normalises the input of each
    sublayer, and the last state; `post` normalises each residual sum.
  gated: feed-forward `activation(x W_gate) * (x W_up)` instead of `activation(x W_up)`.
  attention_bias, feed_forward_bias: whether their projections have biases. output_bias: whether
    the last projection of attention has one; None is attention_bias (Qwen2: False).
  attention_scale: factor of the scores; None is 1 / sqrt(head width).
  tied: the token table also predicts tokens; otherwise the output has a separate table.
  dropout: of embeddings and sublayers. hidden_dropout: within the feed-forward.
    classifier_dropout: before the head `classes`; None is `dropout`.
  initializer: of kernels and tables. `truncated_normal` (cut at two sigma, BERT's code) and
    `normal` have the standard deviation initializer_range; the scale of `t5` and `xavier` depends
    on the kernel's shape.
  """

  POSITIONS: ClassVar[tuple[Position, ...]] = ("learned", "rotary")

  layers: int = 12
  width: int = 768
  heads: int = 12
  kv_heads: int | None = None
  head_width: int | None = None
  hidden: int | None = None
  vocab_size: int | None = None
  positions: int = 1024
  position: Position = "learned"
  first_position: int = 0
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  local_rope_theta: float | None = None
  window: int | None = None
  global_every: int = 0
  norm: Norm = "layer"
  norm_at: NormAt = "post"
  norm_eps: float = 1e-5
  activation: Activation = "gelu_tanh"
  gated: bool = False
  attention_bias: bool = True
  feed_forward_bias: bool = True
  output_bias: bool | None = None
  attention_scale: float | None = None
  tied: bool = True
  dropout: float = 0.1
  attention_dropout: float = 0.1
  hidden_dropout: float = 0.0
  classifier_dropout: float | None = None
  initializer: Initializer = "normal"
  initializer_range: float = 0.02

  def __post_init__(self):
    refuse_below(self, 1, "layers", "width", "heads", "positions", "window")
    refuse_below(self, 1, "kv_heads", "head_width", "hidden", "vocab_size")
    refuse_below(self, 0, "first_position", "global_every")
    self.refuse_heads("heads")
    self._refuse_positions()
    if self.attention_scale is not None and not 0 < self.attention_scale < math.inf:
      raise UserError(f"model.attention_scale={self.attention_scale} must be above 0, and finite")
    if self.global_every and self.window is None:
      raise UserError(f"model.global_every={self.global_every} needs model.window")
    refuse_rates(self, "dropout", "attention_dropout", "hidden_dropout", "classifier_dropout")
    if not (0 < self.norm_eps < 1 and 0 < self.initializer_range < math.inf):
      raise UserError(
        f"model.norm_eps={self.norm_eps} must be above 0 and below 1, and model.initializer_range="
        f"{self.initializer_range} above 0 and finite"
      )

  def refuse_heads(self, field: str) -> None:
    """Errors: `UserError` if this number of query heads does not fit the width or the key heads."""
    heads = getattr(self, field)
    if self.head_width is None and self.width % heads:
      raise UserError(
        f"model.width={self.width} is not a multiple of model.{field}={heads}; change one of them, "
        "or set model.head_width"
      )
    if heads % (self.kv_heads or heads):
      raise UserError(
        f"model.kv_heads={self.kv_heads} does not divide model.{field}={heads}; every key head "
        "is read by the same number of query heads"
      )

  def _refuse_positions(self) -> None:
    if self.position not in self.POSITIONS:
      raise UserError(
        f"{type(self).__name__} has no model.position={self.position}; it has "
        f"{', '.join(self.POSITIONS)}"
      )
    rotary = self.position == "rotary"
    if rotary and self.width_of_heads % 2:
      raise UserError(
        f"rotary positions need heads of even width, not {self.width_of_heads}; change "
        "model.head_width"
      )
    if self.rope_scaling is not None and not rotary:
      raise UserError("model.rope_scaling needs model.position=rotary")
    if self.local_rope_theta is not None and (not rotary or self.window is None):
      raise UserError(
        f"model.local_rope_theta={self.local_rope_theta} needs model.position=rotary and "
        "model.window"
      )
    for name in ("rope_theta", "local_rope_theta"):
      theta = getattr(self, name)
      if theta is not None and not 1 < theta < math.inf:
        raise UserError(f"model.{name}={theta} must be above 1, and finite")

  @property
  def key_heads(self) -> int:
    return self.kv_heads or self.heads

  @property
  def width_of_heads(self) -> int:
    return self.head_width or self.width // self.heads

  @property
  def width_of_feed_forward(self) -> int:
    return self.hidden or 4 * self.width

  def rotation(self, position_ids: jax.Array) -> Rotation | None:
    """The angles of int `[T]` or `[B, T]` positions; None without rotary positions."""
    if self.position != "rotary":
      return None
    return rotation(position_ids, self.width_of_heads, self.rope_theta, self.rope_scaling)

  def local_rotation(self, position_ids: jax.Array) -> Rotation | None:
    """The angles of the layers with a window; None if all layers have the same angles."""
    if self.local_rope_theta is None:
      return None
    return rotation(position_ids, self.width_of_heads, self.local_rope_theta)
