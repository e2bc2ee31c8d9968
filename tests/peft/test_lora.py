"""LoRA, rsLoRA and DoRA on every family: closed forms."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.models.dropout import Noise
from plm_jax.peft.adapted import adapted
from plm_jax.peft.bottleneck import Bottleneck
from plm_jax.peft.ia3 import Ia3
from plm_jax.peft.lora import Lora
from plm_jax.peft.prefix import Prefix
from plm_jax.peft.prompt import Prompt
from plm_jax.runs import RunInfo
from plm_jax.train.workdir import FORMAT
from tests.peft.models import COMPUTE, MODELS, SOME_SLOW, base, moved, states


@pytest.mark.parametrize("name", SOME_SLOW)
@pytest.mark.parametrize("dora", [False, True])
def test_lora_begins_at_the_base(name, dora):
  model = adapted(Lora(dora=dora), base(name), jax.random.key(1), ())
  before, after = states(base(name)), states(model.applied())
  if dora:  # its division rounds
    np.testing.assert_allclose(before, after, atol=1e-5)
  else:
    np.testing.assert_array_equal(before, after)


@pytest.mark.slow
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
@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
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


@pytest.mark.parametrize(
  ("options", "sentence"),
  [
    ({"rank": 0}, "peft.rank=0 must be at least 1"),
    ({"rank": 10**7}, "peft.rank=10000000 is more than 8, the highest rank of any kernel"),
    ({"targets": ()}, "peft.targets is empty, .* name some of blocks/attention/ke"),
    ({"dropout": 1.0}, "peft.dropout=1.0 must be at least 0 and below 1"),
    ({"targets": ("sauce",)}, "sauce fits no linear map of the model; it has blocks/attention/ke"),
    ({"train": ("sauce/*",)}, r"peft.train=sauce/\* fits no parameter; the model has blocks/at"),
  ],
)
def test_a_mistake_is_a_sentence(options, sentence):
  with pytest.raises(UserError, match=sentence):
    adapted(Lora(**options), base("bert"), jax.random.key(1), ())


@pytest.mark.parametrize(
  ("make", "sentence"),
  [
    (lambda: Bottleneck(width=10**7), "peft.width=10000000 is more than 1,048,576"),
    (lambda: Prefix(length=10**7), "peft.length=10000000 is more than 1,048,576"),
    (lambda: Prefix(hidden=10**7), "peft.hidden=10000000 is more than 1,048,576"),
    (lambda: Prompt(length=10**7), "peft.length=10000000 is more than 1,048,576"),
    (lambda: Bottleneck(targets=()), "peft.targets is empty"),
    (lambda: Prefix(targets=()), "peft.targets is empty"),
    (lambda: Ia3(outputs=(), inputs=()), "peft.outputs and peft.inputs are both empty"),
  ],
)
def test_sizes_without_bound_and_methods_without_targets_are_refused(make, sentence):
  with pytest.raises(UserError, match=sentence):
    adapted(make(), base("bert"), jax.random.key(1), ())


@pytest.mark.parametrize("entry", ["x", 7, None, [], {}, {"from": 3}, {"from": None}])
def test_a_damaged_base_is_a_sentence_that_names_the_file(tmp_path, entry):
  document = {"format": FORMAT, "experiment": {}, "base": entry}
  (tmp_path / "config.json").write_text(json.dumps(document))
  with pytest.raises(UserError, match=r'config.json has a damaged entry "base"'):
    RunInfo.read(tmp_path)
