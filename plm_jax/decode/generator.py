"""The protocol of a model that is ready for generation.

    generator = jax.jit(lambda model: model.generator(compute, rows))(model)   # once: a pytree
    cache = generator.start({"pad": pad_B}, capacity)
    logits_BV, cache = generator.extend(prompt_BT, cache)          # T > 1: the prompt
    logits_BV, cache = generator.extend(token_B[:, None], cache)   # T = 1: one token more

Prompts are padded on the left: all rows then write the same column, the last column is a real token
of every row, and a step costs one slice update instead of a scatter. Positions and masks know the
padding (`Cache.position_ids`, `Cache.mask`), so that it changes no number.
"""

from __future__ import annotations

from typing import Protocol

import jax

from plm_jax.models.cache import Cache


class Generator(Protocol):
  """A model made ready for generation by its `generator(compute, rows)`: layers taken apart,
  kernels in the dtype of the activations and lying as so many rows read them fastest, once and not
  for every token. A pytree, for use under jit."""

  def start(self, batch: dict, capacity: int) -> Cache:
    """A cache of `capacity` columns with nothing written.

    batch: `pad` int `[B]`, the padding columns on the left of every row's prompt. Encoder-decoders
    also take the source, `input_ids` int `[B, S]` padded on the right and `length` int `[B]`: they
    encode it here, and keep every layer's keys and values of it.
    """

  def extend(self, ids_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Reads T tokens: float32 logits `[B, V]` of the token after the last of them, and the cache
    with them. Encoder-decoders read the decoder's tokens, the first of which is its start token."""
