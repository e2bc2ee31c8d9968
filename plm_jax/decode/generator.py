"""The protocol of a model that is ready for generation.

    generator = jax.jit(lambda model: model.generator(compute, rows))(model)   # once: a pytree
    cache = generator.start({"pad": pad_B}, capacity)
    logits_BV, cache = generator.extend(prompt_BT, cache)          # T > 1: the prompt
    logits_BV, cache = generator.extend(token_B[:, None], cache)   # T = 1: one token more
    cache = cache.take(rows)                                       # beams

Prompts are padded on the left: all rows then write the same column, the last column is a real token
of every row, and a step costs one slice update instead of a scatter. Padding changes no number.
"""

from __future__ import annotations

from typing import Protocol

import jax


class Cache(Protocol):
  """What a model keeps of the tokens that it has read: keys and values, or a recurrent state. A
  pytree; a step takes one and returns the next."""

  def take(
    self,
    rows: jax.Array | None = None,
    *,
    same_prompts: bool = False,
    capacity: int | None = None,
  ) -> Cache:
    """The given rows, int `[R]`, some of them perhaps more than once; None is all of them.

    same_prompts: every row is taken from the same prompt, as beams are, R being the number of rows.
    capacity: the new number of columns, at least the old one. A cache that has none ignores it.
    """


class Generator(Protocol):
  """A model made ready for generation by its `generator(compute, rows)`: layers taken apart,
  kernels in the dtype of the activations and lying as so many rows read them fastest, once and not
  for every token. A pytree, for use under jit."""

  def start(self, batch: dict, capacity: int) -> Cache:
    """A cache with room for `capacity` tokens, and none in it.

    batch: `pad` int `[B]`, the padding columns on the left of every row's prompt. Encoder-decoders
    also take the source, `input_ids` int `[B, S]` padded on the right and `length` int `[B]`: they
    encode it here, and keep every layer's keys and values of it.
    """

  def extend(self, ids_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Reads T tokens: float32 logits `[B, V]` of the token after the last of them, and the cache
    with them. Encoder-decoders read the decoder's tokens, the first of which is its start token."""
