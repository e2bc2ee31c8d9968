"""ELECTRA: Pre-training Text Encoders as Discriminators (Clark et al. 2020, arXiv:2003.10555).

A small masked language model, the generator, fills the masked positions by sampling. The
discriminator finds the replaced tokens, and is fine-tuned later. The two share their tables.

Sources: the paper, section 2 and appendix A; google-research/electra (8a46635) run_pretraining.py,
model/modeling.py, pretrain/pretrain_helpers.py.
Deviation: a position that was drawn twice is sampled once; the original takes the rounded mean of
the two sampled ids, which is an arbitrary token.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.activations import Activation
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise, mix, streams
from plm_jax.models.embeddings import Embeddings
from plm_jax.models.encoder import Encoder, EncoderModel
from plm_jax.models.heads import ReplacedHead
from plm_jax.models.layers import STDDEV, Linear, scaled_kernels


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElectraEncoder(Encoder):
  """A single discriminator or generator, as published and fine-tuned."""

  activation: Activation = "gelu_erf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Electra(Encoder):
  """ELECTRA; the encoder's fields are the discriminator's, and the defaults are ELECTRA-base.

  generator_width: the generator's width as a share of `width`; its feed-forward is 4 times as wide
    and its heads are 64 wide. generator_layers: its layers as a share of `layers`.
  """

  activation: Activation = "gelu_erf"
  generator_width: float = 1 / 3
  generator_layers: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    if not (0 < self.generator_width <= 1 and 0 < self.generator_layers <= 1):
      raise UserError(
        f"model.generator_width={self.generator_width} and model.generator_layers="
        f"{self.generator_layers} must be above 0 and at most 1: shares of the discriminator's"
      )
    width, heads = self.generator_size
    if width % heads:
      raise UserError(
        f"model.generator_width={self.generator_width} of {self.width} makes a generator of width "
        f"{width}, which its {heads} heads (one per 64 dimensions) do not divide; change it"
      )

  @property
  def generator_size(self) -> tuple[int, int]:
    """Width and heads of the generator (run_pretraining.py, `get_generator_config`)."""
    width = max(1, round(self.width * self.generator_width))
    return width, max(1, width // 64)

  @property
  def encoder(self) -> ElectraEncoder:
    """The discriminator as a separate encoder."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Encoder)}
    return _unprojected(ElectraEncoder(**values))

  @property
  def encoder_path(self) -> str:
    return "discriminator/"

  @property
  def generator(self) -> ElectraEncoder:
    """The generator as a separate encoder, with tables as wide as the discriminator's."""
    width, heads = self.generator_size
    return _unprojected(
      dataclasses.replace(
        self.encoder,
        layers=max(1, round(self.layers * self.generator_layers)),
        width=width,
        heads=heads,
        kv_heads=None,
        head_width=None,
        hidden=4 * width,
        embedding=self.embedding or self.width,
      )
    )

  def init(self, key: jax.Array, heads: dict[str, int]) -> ElectraModel:
    """Random parameters with the heads `rtd`, `tokens` or `copy` on the discriminator; the
    generator always has `mlm`."""
    unknown = set(heads) - {"mlm", "rtd", "tokens", "copy"}
    if unknown:
      raise UserError(
        f"ELECTRA has no head {sorted(unknown)[0]!r}; it has mlm (the generator's), and rtd, "
        "tokens and copy (the discriminator's)"
      )
    if not {"rtd", "tokens"} & set(heads):
      raise UserError(
        "nothing trains ELECTRA's discriminator; add RTD or ReplacedMLM to the objectives, beside "
        "GeneratorMLM"
      )
    return ElectraModel(self, key, heads)


SMALL = Electra(width=256, heads=4, embedding=128, generator_width=1 / 4)
BASE = Electra()
LARGE = Electra(layers=24, width=1024, heads=16, generator_width=1 / 4)


def _unprojected(config: ElectraEncoder) -> ElectraEncoder:
  """No mapping if the tables are as wide as the layers (modeling.py, `embeddings_project`)."""
  is_square = config.embedding == config.width
  return dataclasses.replace(config, embedding=None) if is_square else config


class Passes(NamedTuple):
  """The result of a forward pass of both models."""

  generator_BPV: jax.Array  # float32, logits at the batch's `mlm_positions`
  corrupted_BT: jax.Array  # int32, the discriminator's input: samples at these positions
  hidden_BTD: jax.Array  # the discriminator's last states


class ElectraModel(nnx.Module):
  """Generator and discriminator with shared tables, and their joint forward pass."""

  def __init__(self, config: Electra, key: jax.Array, heads: dict[str, int]):
    generator, discriminator, rtd, copy = jax.random.split(key, 4)
    c = config.encoder
    self.config = config
    tokens = {"mlm": 0} if "tokens" in heads else {}
    self.discriminator = c.init(discriminator, tokens)
    self.generator = GeneratorLayers(config.generator.init(generator, {"mlm": 0}))
    made = {"rtd": ReplacedHead(rtd, c), "copying": Linear(copy, (c.width,), (1,))}
    made = scaled_kernels(made, c.initializer_range / STDDEV)
    self.rtd = made["rtd"] if "rtd" in heads else None
    self.copying = made["copying"] if "copy" in heads else None

  def encoder(self) -> EncoderModel:
    return self.discriminator

  def masked_lm(self) -> EncoderModel:
    """The generator with the discriminator's tables: the same arrays, whose gradients add up."""
    tables = _Tables(self.discriminator.embed, self.generator.project)
    return _Assembled(self.config.generator, tables, self.generator)

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> Passes:
    """batch: an encoder's with [MASK] in it, `mlm_positions` int and `mlm_weights` `[B, P]`, and
    `sample_seeds` uint32 `[B, P]`, the seeds of the samples."""
    in_generator, in_discriminator = streams(noise, 2)
    generator = self.masked_lm()
    hidden_BTD = generator(batch, compute, in_generator)
    logits_BPV = generator.token_logits_at(hidden_BTD, batch["mlm_positions"])
    samples_BP = sample_tokens(logits_BPV, batch["sample_seeds"])
    corrupted_BT = put(batch["input_ids"], batch, samples_BP)
    filled = batch | {"input_ids": corrupted_BT}
    return Passes(logits_BPV, corrupted_BT, self.discriminator(filled, compute, in_discriminator))

  def token_logits_at(self, passes: Passes, positions_BP: jax.Array) -> jax.Array:
    """The generator's float32 `[B, P, V]`; the positions must be the batch's `mlm_positions`."""
    del positions_BP
    return passes.generator_BPV

  def replaced_logits(self, passes: Passes) -> jax.Array:
    """float32 `[B, T]`: above 0, the discriminator takes the token for replaced."""
    return self.rtd(passes.hidden_BTD)

  def copy_logits(self, passes: Passes) -> jax.Array:
    """float32 `[B, T]`: logits of keeping the input token (efficiency analysis)."""
    return self.copying(passes.hidden_BTD)[..., 0].astype(jnp.float32)


class GeneratorLayers(nnx.Module):
  """The parameters that the generator does not share: all but tables and their norm."""

  def __init__(self, model: EncoderModel):
    self.project, self.blocks, self.norm = model.embed.project, model.blocks, model.norm
    self.mlm = model.mlm


class _Tables(Embeddings):
  """Another model's tables and norm with a separate mapping."""

  def __init__(self, tables: Embeddings, project: Linear | None):
    self.token, self.position, self.segment = tables.token, tables.position, tables.segment
    self.norm, self.project = tables.norm, project
    self.first_position, self.dropout = tables.first_position, tables.dropout


class _Assembled(EncoderModel):
  """An encoder made of existing parts, with only the masked-LM head."""

  def __init__(self, config: Encoder, embed: Embeddings, own: GeneratorLayers):
    self.config, self.embed, self.blocks, self.norm = config, embed, own.blocks, own.norm
    self.set_heads({"mlm": own.mlm})


def sample_tokens(logits_BPV: jax.Array, seeds_BP: jax.Array) -> jax.Array:
  """int32 `[B, P]` drawn from `softmax(logits)` by the Gumbel trick, without a gradient.

  The noise is a hash of (seed, token), independent of device, micro-batch and other rows.
  """
  counter = jax.lax.broadcasted_iota(jnp.uint32, logits_BPV.shape, logits_BPV.ndim - 1)
  seeds = seeds_BP[..., None]
  bits = mix(mix(counter ^ seeds) + seeds)
  # The half keeps the 23 bits from 0 and 1 in float32, where the logarithms are not finite.
  uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
  gumbel = -jnp.log(-jnp.log(uniform))
  return jnp.argmax(jax.lax.stop_gradient(logits_BPV) + gumbel, axis=-1).astype(jnp.int32)


def put(ids_BT: jax.Array, batch: dict, tokens_BP: jax.Array) -> jax.Array:
  """`ids_BT` with `tokens_BP` at the batch's `mlm_positions`, except at slots of weight 0."""
  rows, columns = ids_BT.shape
  at_BP = jnp.where(batch["mlm_weights"] > 0, batch["mlm_positions"], columns)
  ids_BT = jnp.asarray(ids_BT)
  return ids_BT.at[jnp.arange(rows)[:, None], at_BP].set(tokens_BP, mode="drop")
