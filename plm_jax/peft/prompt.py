"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning (Lester et al. 2021,
arXiv:2104.08691).

P trained vectors stand before the embedded tokens of the text (section 2): P rows beside the token
table, and P ids before each row of the batch. The states of the prompt are cut off, so that all
heads read the text's own states. An encoder-decoder has the prompt before its source.

Deviation: the initial vectors are those of P tokens at equal distances in the vocabulary (section
3.2 draws them from the 5,000 most common ones).
"""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.encoder_decoder import decoder_ids
from plm_jax.models.layers import Embedding, truncated_normal
from plm_jax.models.model import Parameters
from plm_jax.models.parameters import Role
from plm_jax.peft import adapted
from plm_jax.peft.adapted import Added, Peft


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt(Peft):
  """Prompt tuning (Lester et al. 2021): trained vectors before the embedded text.

  length: P. start: the initial vectors, those of tokens or random ones. reads: an encoder's classes
  are read from the first token of the `text`, or of the `prompt` (as huggingface/peft has it).
  """

  length: int = 16
  start: Literal["tokens", "random"] = "tokens"
  reads: Literal["text", "prompt"] = "text"

  def __post_init__(self):
    adapted.check_sizes(0, length=self.length)

  @property
  def columns(self) -> int:
    return self.length

  def init(self, key: jax.Array, base: Parameters) -> Added:
    path, token = _token(base)
    table = truncated_normal(key, (self.length, token.table.shape[1]))
    return {path: {"prompt_table": table}}

  def fitted(self, base: Parameters, added: Added) -> Added:
    path, token = _token(base)
    if self.start == "random":
      return added
    rows = jnp.arange(self.length) * len(token.table[...]) // max(self.length, 1)
    return {path: {"prompt_table": token.table[...][rows]}}

  def apply(self, base: Parameters, added: Added, noise: Noise | None = None) -> Parameters:
    ((path, arrays),) = added.items()
    if not len(arrays["prompt_table"]):
      return base

    def make(at: str, token: Embedding) -> nnx.Module:
      return PromptedTokens(token, arrays["prompt_table"]) if at == path else token

    model = as_class(adapted.replaced(base, Embedding, make), prompted_class(type(base)))
    model.prompt_length, model.prompt_reads = len(arrays["prompt_table"]), self.reads
    model.prompt_first = base.config.vocab_size
    return model


def _token(base: Parameters) -> tuple[str, Embedding]:
  """The path and the token table. Errors: `UserError` for composite models."""
  tables = {p: t for p, t in adapted.modules(base, Embedding).items() if p.endswith("token")}
  if len(tables) != 1 or base.encoder() is not base:
    raise UserError(
      "prompt tuning needs a single model with one token table; fine-tune its encoder"
    )
  return next(iter(tables.items()))


class PromptedTokens(nnx.Module):
  """A token table and a prompt, whose ids come after those of the vocabulary."""

  ROLES: ClassVar[dict[str, Role]] = adapted.ROLES
  look_up = Embedding.__call__

  def __init__(self, token: Embedding, prompt: jax.Array):
    self.table, self.prompt_table = token.table, nnx.Param(prompt)

  def __call__(self, ids: jax.Array, dtype) -> jax.Array:
    size, prompt = len(self.table[...]), self.prompt_table[...].astype(dtype)
    rows = prompt[jnp.clip(ids - size, 0, len(prompt) - 1)]
    return jnp.where(
      (ids >= size)[..., None], rows, self.look_up(jnp.minimum(ids, size - 1), dtype)
    )


class Prompted:
  """A model with a prompt before each row, mixed into the model's class."""

  config: Any  # of the model
  prompt_length: int
  prompt_first: int
  prompt_reads: str

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    batch = self._prompted(batch)
    hidden = self._plain()(batch, compute, noise)
    return hidden if "decoder_input_ids" in batch else self._text(hidden)

  def encode(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """The encoder's states, of an encoder-decoder."""
    return self._text(self._plain().encode(self._prompted(batch), compute, noise))

  def generator(self, compute: Compute, rows: int = 1) -> Any:
    kind = PromptedSource if self._has_decoder else PromptedRow
    return kind(self._plain().generator(compute, rows), self.prompt_length, self.prompt_first)

  @property
  def _has_decoder(self) -> bool:
    return getattr(self.config, "has_decoder", False)

  def _plain(self) -> Any:
    """The model without these methods, which knows the ids of the prompt."""
    return as_class(self, type(self).__mro__[2])

  def _text(self, hidden_BTD: jax.Array) -> jax.Array:
    """The states of the text."""
    text = hidden_BTD[:, self.prompt_length :]
    if self.prompt_reads == "text":
      return text
    return jnp.concatenate([hidden_BTD[:, :1], text[:, 1:]], axis=1)

  def _prompted(self, batch: dict) -> dict:
    """The batch with the ids of the prompt before each row."""
    if "document_ids" in batch:
      raise UserError(
        "a prompt before a row is none before each of its documents; set "
        "data.segments.separate=false"
      )
    new = with_prompt(batch, self.prompt_length, self.prompt_first)
    if self._has_decoder:
      new["decoder_input_ids"] = decoder_ids(batch)
    return new


def with_prompt(batch: dict, length: int, first: int) -> dict:
  """The batch with the ids from `first` on before each row; positions are counted anew."""
  ids = jnp.asarray(batch["input_ids"])
  prompt = jnp.broadcast_to(first + jnp.arange(length), (len(ids), length)).astype(ids.dtype)
  new = {name: x for name, x in batch.items() if name != "position_ids"}
  new |= {"input_ids": jnp.concatenate([prompt, ids], axis=1), "length": batch["length"] + length}
  for name, value in (("segment_ids", 0), ("attention_mask", 1)):
    if name in batch:
      new[name] = jnp.pad(batch[name], ((0, 0), (length, 0)), constant_values=value)
  return new


@functools.cache
def prompted_class(kind: type) -> type:
  """The class of a model with a prompt."""
  return types.new_class(f"Prompted{kind.__name__}", (Prompted, kind))


def as_class(model: Any, kind: type) -> Any:
  """A copy of a module, with the same attributes, of another class."""
  copy = object.__new__(kind)
  vars(copy).update(vars(jax.tree.map(lambda leaf: leaf, model)))
  return copy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptedSource:
  """A generator (plm_jax/decode/generator.py) with a prompt before each source."""

  generator: Any
  length: int = dataclasses.field(metadata={"static": True})
  first: int = dataclasses.field(metadata={"static": True})

  def start(self, batch: dict, capacity: int) -> Any:
    return self.generator.start(with_prompt(batch, self.length, self.first), capacity)

  def extend(self, ids_BT: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    return self.generator.extend(ids_BT, cache)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptedCache:
  """The cache of rows with a prompt. pad_B: the padding of rows whose prompt is not yet read."""

  cache: Any
  pad_B: jax.Array | None
  length: int = dataclasses.field(metadata={"static": True})

  def take(self, rows=None, *, same_prompts=False, capacity=None) -> PromptedCache:
    capacity = None if capacity is None else capacity + self.length
    taken = self.cache.take(rows, same_prompts=same_prompts, capacity=capacity)
    return dataclasses.replace(self, cache=taken)


class PromptedRow(PromptedSource):
  """A generator with a prompt between the padding and the text of each row."""

  def start(self, batch: dict, capacity: int) -> PromptedCache:
    inner = self.generator.start(batch, capacity + self.length)
    return PromptedCache(inner, jnp.asarray(batch["pad"]), self.length)

  def extend(self, ids_BT: jax.Array, cache: PromptedCache) -> tuple[jax.Array, PromptedCache]:
    if cache.pad_B is not None:
      column = jnp.arange(ids_BT.shape[1] + self.length) - cache.pad_B[:, None]
      moved_BT = jnp.pad(ids_BT, ((0, 0), (self.length, 0)))
      padded_BT = jnp.pad(ids_BT, ((0, 0), (0, self.length)))
      ids_BT = jnp.where(column < self.length, self.first + column, moved_BT)
      ids_BT = jnp.where(column < 0, padded_BT, ids_BT)
    logits_BV, inner = self.generator.extend(ids_BT, cache.cache)
    return logits_BV, PromptedCache(inner, None, self.length)
