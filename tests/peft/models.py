"""Tiny models of every family, and a batch for them."""

import functools

import jax
import numpy as np
import pytest

from plm_jax.models.albert import Albert
from plm_jax.models.bart import Bart
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.gpt import Gpt2
from plm_jax.models.llama import Llama
from plm_jax.models.roberta import Roberta
from plm_jax.models.t5 import T5

SIZES = {"layers": 2, "width": 8, "heads": 2, "positions": 24, "vocab_size": 20}
MODELS = {
  "bert": Bert(**SIZES),
  "roberta": Roberta(**SIZES),
  "albert": Albert(**SIZES, embedding=4),
  "gpt2": Gpt2(**SIZES),
  "llama": Llama(**SIZES, hidden=16),
  "t5": T5(**SIZES, hidden=16),
  "bart": Bart(**SIZES),
}
SOME_SLOW = [n if n in ("bert", "t5") else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
COMPUTE = Compute(dtype="float32")
BATCH = {
  "input_ids": np.arange(12).reshape(2, 6) + 3,
  "segment_ids": np.zeros((2, 6), int),
  "length": np.array([6, 4]),
}


@functools.cache
def base(name: str):
  head = "mlm" if isinstance(MODELS[name], Bert | Roberta | Albert) else "lm"
  return jax.jit(lambda key: MODELS[name].init(key, {head: 0}))(jax.random.key(0))


def moved(tree, scale=0.3):
  """A tree with a random number added to every leaf."""
  leaves, treedef = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(7), len(leaves))
  return treedef.unflatten(
    [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  )


def states(model, compute=COMPUTE, noise=None, batch=None):
  batch = BATCH if batch is None else batch
  return jax.jit(lambda model: model(batch, compute, noise))(model)
