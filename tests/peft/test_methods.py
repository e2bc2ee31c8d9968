"""All methods: where they begin, what they train, and that layers, generation and merging agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.models.parameters import named, with_roles
from plm_jax.peft.adapted import adapted
from plm_jax.peft.bitfit import BitFit
from plm_jax.peft.bottleneck import PFEIFFER, Bottleneck
from plm_jax.peft.ia3 import Ia3
from plm_jax.peft.lora import Lora
from plm_jax.peft.methods import METHODS
from plm_jax.peft.prefix import Prefix
from plm_jax.peft.prompt import Prompt
from tests.peft.models import BATCH, COMPUTE, MODELS, SOME_SLOW, base, moved, states

SMALL = {
  "lora": Lora(rank=2),
  "dora": Lora(rank=2, dora=True),
  "houlsby": Bottleneck(width=3),
  "pfeiffer": dataclasses.replace(PFEIFFER, width=3),
  "prefix": Prefix(length=3),
  "deep prefix": Prefix(length=3, hidden=5),
  "prompt": Prompt(length=3),
  "ia3": Ia3(),
}
FAST = [("bert", method) for method in ("lora", "houlsby", "deep prefix", "prompt")]
PAIRS = FAST + [
  pytest.param(name, method, marks=pytest.mark.slow)
  for name in MODELS
  for method in (SMALL if name == "bert" else ("lora", "houlsby", "prefix", "prompt"))
  if (name, method) not in FAST
]


def begun(name, peft):
  return adapted(peft, base(name), jax.random.key(1), ())


@pytest.mark.parametrize("name", SOME_SLOW)
@pytest.mark.parametrize("peft", [Ia3(), Prompt(length=0)], ids=["ia3", "prompt"])
def test_gains_of_one_and_an_empty_prompt_are_the_base(name, peft):
  np.testing.assert_array_equal(states(begun(name, peft).applied()), states(base(name)))


def test_small_adapters_begin_near_the_base():
  model = begun("bert", SMALL["houlsby"])
  np.testing.assert_allclose(states(model.applied()), states(base("bert")), atol=1e-4)


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_only_added_and_trained_parameters_have_a_gradient_and_all_of_them(name, method):
  model = begun(name, SMALL[method])
  model = dataclasses.replace(model, added=moved(model.added))

  def loss(model):
    return jnp.square(model.applied()(BATCH, COMPUTE, None)).sum()

  grads = dict(named(jax.jit(jax.grad(loss))(model)))
  dead = [path for path, g in grads.items() if not path.startswith("base/") and not g.any()]
  assert not dead
  with_roles(model), with_roles(model.applied())  # every parameter has a row
  assert not np.allclose(states(model.applied()), states(base(name)), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("name", ["albert", "t5", "llama"])
def test_scanned_and_unrolled_layers_agree(name, method):
  model = begun(name, SMALL[method])
  applied = SMALL[method].apply(base(name), moved(model.added))
  scan, unroll = (
    states(applied, dataclasses.replace(COMPUTE, layers=layers)) for layers in ("scan", "unroll")
  )
  np.testing.assert_allclose(scan, unroll, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_merged_ia3_computes_as_the_unmerged(name):
  added = moved(begun(name, Ia3()).added)
  merged = Ia3().merged(base(name), added)
  assert jax.tree.structure(merged) == jax.tree.structure(base(name))
  np.testing.assert_allclose(states(merged), states(Ia3().apply(base(name), added)), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "houlsby", "prefix", "prompt"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_generation_computes_as_the_forward_pass(name, method):
  """Rows of several lengths: the padding is on the left in generation."""
  model = SMALL[method].apply(base(name), moved(begun(name, SMALL[method]).added))
  has_source = hasattr(MODELS[name], "source_ids")
  lengths, pad = np.array([6, 4]), np.array([0, 2])
  ids = np.array([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 0, 0]])
  if has_source:
    batch = {"input_ids": ids, "length": lengths, "decoder_input_ids": np.full((2, 1), 3)}
    start, prompt = (
      {"pad": np.zeros(2, int), "input_ids": ids, "length": lengths},
      np.full((2, 1), 3),
    )
    last = np.zeros(2, int)
  else:
    batch, last = {"input_ids": ids, "length": lengths}, lengths - 1
    start, prompt = {"pad": pad}, np.stack([np.roll(row, by) for row, by in zip(ids, pad)])
  hidden = states(model, batch=batch)
  wanted = model.token_logits(hidden[np.arange(2), last])

  def generated(model):
    generator = model.generator(COMPUTE, 2)
    logits, cache = generator.extend(jnp.asarray(prompt), generator.start(start, 12))
    return logits, generator.extend(jnp.full((2, 1), 9), cache.take(jnp.array([1, 0])))[0]

  first, second = jax.jit(generated)(model)
  np.testing.assert_allclose(first, wanted, atol=2e-5)
  batch = dict(batch)
  if has_source:
    batch["decoder_input_ids"] = np.array([[3, 9], [3, 9]])
    last = np.ones(2, int)
  else:
    batch["input_ids"] = np.pad(ids, ((0, 0), (0, 1)))
    batch["input_ids"][np.arange(2), lengths] = 9
    batch["length"], last = lengths + 1, lengths
  hidden = states(model, batch=batch)
  np.testing.assert_allclose(
    second[::-1], model.token_logits(hidden[np.arange(2), last]), atol=2e-5
  )


def test_bitfit_trains_every_bias_and_nothing_else():
  model = begun("bert", BitFit())
  trained = {path.split("/")[-1] for path, _ in named(model.trained)}
  frozen = {path.split("/")[-1] for path, _ in named(model.base)}
  assert trained == {"bias"} and frozen == {"kernel", "table", "gain"}
  with pytest.raises(UserError, match="it has no biases"):
    begun("llama", BitFit())


@pytest.mark.parametrize(
  ("options", "sentence"),
  [
    (lambda: Prefix(length=0), "peft.length=0"),
    (lambda: Bottleneck(width=0), "peft.width=0"),
    (lambda: Prompt(length=-1), "peft.length=-1"),
    (lambda: begun("bert", Prefix(targets=("cross",))), "cross fits no attention of the model; it"),
    (lambda: begun("bert", Ia3(inputs=("value",))), "both fit blocks/attention/value"),
  ],
)
def test_a_mistake_is_a_sentence(options, sentence):
  with pytest.raises(UserError, match=sentence):
    options()


def test_every_method_has_a_default():
  assert {type(peft) for peft in METHODS.values()} == {*map(type, SMALL.values()), BitFit}
