"""The protocol of a model that is prepared for generation.

    generator = jax.jit(lambda model: model.generator(compute, rows))(model)   # once: a pytree
    cache = generator.start({"pad": pad_B}, capacity)
    logits_BV, cache = generator.extend(prompt_BT, cache)          # T > 1: the prompt
    logits_BV, cache = generator.extend(token_B[:, None], cache)   # T = 1: the next token
    cache = cache.take(rows)                                       # beams

Prompts are padded on the left: all rows then write the same column, the last column is a real token
of every row, and a step costs one slice update, not a scatter. Padding changes no result.
"""

from typing import Protocol, Self

import jax


class Cache(Protocol):
  """The state of a model after the tokens it has read: keys and values, or a recurrent state. A
  pytree; a step takes a cache and returns the next one."""

  def take(
    self,
    rows: jax.Array | None = None,
    *,
    same_prompts: bool = False,
    capacity: int | None = None,
  ) -> Self:
    """The cache of `rows`, int `[R]`, possibly repeated; None is all rows.

    same_prompts: every row stays with its prompt, as in beam search; R is then the number of rows.
    capacity: the new number of columns, at least the old one. A cache without columns ignores it.
    """


class Generator(Protocol):
  """A model prepared by its `generator(compute, rows)`, once for all tokens: layers are unstacked,
  kernels have the activations' dtype and the fastest layout for `rows` rows. A pytree."""

  def start(self, batch: dict, capacity: int) -> Cache:
    """An empty cache with room for `capacity` tokens.

    batch: `pad` int `[B]`, the padding columns on the left of every row's prompt. Encoder-decoders
    also take the source, `input_ids` int `[B, S]` padded on the right and `length` int `[B]`: they
    encode it here and keep its keys and values of every layer.
    """

  def extend(self, ids_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Reads T tokens and returns float32 logits `[B, V]` of the next token, and the new cache.
    Encoder-decoders read the decoder's tokens, beginning with its start token."""
