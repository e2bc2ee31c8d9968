"""LoRA, rsLoRA and DoRA on every family: closed forms."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from plm_jax.models.albert import Albert
from plm_jax.models.bart import Bart
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.gpt import Gpt2
from plm_jax.models.llama import Llama
from plm_jax.models.roberta import Roberta
from plm_jax.models.t5 import T5
from plm_jax.peft.adapted import adapted
from plm_jax.peft.lora import Lora

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
COMPUTE = Compute(dtype="float32")
BATCH = {
  "input_ids": np.arange(12).reshape(2, 6) + 3,
  "segment_ids": np.zeros((2, 6), int),
  "length": np.array([6, 4]),
}


@functools.cache
def base(name: str):
  return MODELS[name].init(jax.random.key(0), {})


def moved(tree, scale=0.3):
  """A tree with a random number added to every leaf."""
  leaves, treedef = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(7), len(leaves))
  return treedef.unflatten(
    [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  )


def states(model, compute=COMPUTE, noise=None):
  return jax.jit(lambda model: model(BATCH, compute, noise))(model)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dora", [False, True])
def test_lora_begins_at_the_base(name, dora):
  model = adapted(Lora(dora=dora), base(name), jax.random.key(1), ())
  before, after = states(base(name)), states(model.applied())
  if dora:  # its division rounds
    np.testing.assert_allclose(before, after, atol=1e-5)
  else:
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("peft", [Lora(targets=("*",)), Lora(dora=True, rslora=True)], ids=str)
def test_a_merged_model_computes_as_the_unmerged(name, peft):
  model = adapted(peft, base(name), jax.random.key(1), ())
  added = moved(model.added)
  merged = peft.merged(base(name), added)
  assert jax.tree.structure(merged) == jax.tree.structure(base(name))
  one, two = states(peft.apply(base(name), added)), states(merged)
  assert not np.allclose(one, states(base(name)), atol=1e-3)
  np.testing.assert_allclose(one, two, atol=2e-5)
  if not peft.dora:
    again = peft.unmerged(merged, added)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again, base(name))


@pytest.mark.parametrize("name", ["bert", "albert", "t5"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_scanned_and_unrolled_layers_agree(name, dropout):
  peft = Lora(dropout=dropout)
  model = adapted(peft, base(name), jax.random.key(1), ())
  noise = Noise.create(jax.random.key(3), "hash")
  both = [
    states(
      peft.apply(base(name), moved(model.added), noise), dataclasses.replace(COMPUTE, layers=l)
    )
    for l in ("scan", "unroll")
  ]
  np.testing.assert_allclose(*both, atol=2e-5)
  if dropout:
    assert not np.allclose(both[0], states(peft.apply(base(name), moved(model.added))), atol=1e-3)
