"""Decoders go through the one pipeline, loop and step, and learn what there is to learn."""

import dataclasses

import jax
import numpy as np
import pytest

from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.errors import UserError
from plm_jax.models import attention
from plm_jax.models.gpt import Gpt2
from plm_jax.models.llama import Llama
from plm_jax.objectives.clm import CLM
from plm_jax.sharding import MeshShape, parameter_shardings
from tests import toy_run
from tests.toy_language import entropy_rate, unigram_entropy
from tests.toy_run import LANGUAGE, TOY, WORDS

SIZES = {"layers": 2, "width": 16, "heads": 4, "positions": 32}
GPT = dataclasses.replace(
  TOY,
  model=Gpt2(**SIZES),
  objectives=(CLM(),),
  data=dataclasses.replace(TOY.data, length=30, segments=PackedDocuments()),
)
LLAMA = dataclasses.replace(
  GPT,
  model=Llama(kv_heads=2, **SIZES),
  data=dataclasses.replace(GPT.data, segments=PackedDocuments(separate=False)),
)


def losses(records):
  return np.array([record["clm/loss"] for record in records])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """The metrics of a run on one device that nothing interrupts."""
  folder = tmp_path_factory.mktemp("alone")
  return {name: toy_run.run(folder / name, e)[1] for name, e in (("gpt", GPT), ("llama", LLAMA))}


@pytest.mark.slow
def test_devices_micro_batches_and_the_layer_loop_do_not_change_the_numbers(
  alone, tmp_path, monkeypatch
):
  """Of a model without dropout, which differs from micro-batch to micro-batch; nor does attention
  in blocks of queries."""
  monkeypatch.setattr(attention, "BLOCK", 8)
  spread = dataclasses.replace(
    LLAMA,
    mesh=MeshShape(data=2, fsdp=2, tensor=2),
    compute=dataclasses.replace(LLAMA.compute, micro_batches=2, layers="scan"),
  )
  _, records = toy_run.run(tmp_path / "run", spread)
  np.testing.assert_allclose(losses(records), losses(alone["llama"]), rtol=2e-4)
  assert losses(records)[-1] < losses(records)[0] - 0.1


def test_every_parameter_has_its_place_on_a_mesh():
  mesh = MeshShape(data=2, fsdp=2, tensor=2).build()
  biased = Llama(
    **SIZES, vocab_size=64, attention_bias=True, feed_forward_bias=True, position="learned"
  )
  for model in (Gpt2(vocab_size=64, **SIZES), biased):
    shapes = jax.eval_shape(lambda key: model.init(key, {"lm": 0, "classes": 3}), jax.random.key(0))  # noqa: B023
    shardings = parameter_shardings(shapes, mesh)
    assert "tensor" in str(jax.tree.leaves(shardings.token.table))


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(alone, tmp_path):
  class Ends:
    def __init__(self, stream):
      self.stream, self.left, self.waited = stream, 5, 0.0

    def __next__(self):
      if not self.left:
        raise KeyboardInterrupt
      self.left -= 1
      return next(self.stream)

    def close(self):
      self.stream.close()

  data = toy_run.data(GPT)
  with pytest.raises(KeyboardInterrupt):
    toy_run.run(
      tmp_path / "run", GPT, data._replace(training=lambda start: Ends(data.training(start)))
    )
  _, records = toy_run.run(tmp_path / "run", GPT)
  assert records == alone["gpt"]


@pytest.mark.slow
def test_bfloat16_trains_too(tmp_path):
  low = dataclasses.replace(
    LLAMA, steps=6, compute=dataclasses.replace(LLAMA.compute, dtype="bfloat16")
  )
  _, records = toy_run.run(tmp_path / "run", low)
  assert losses(records)[-1] < losses(records)[0] - 0.1


def test_an_encoder_that_sees_the_next_token_does_not_predict_it():
  bidirectional = dataclasses.replace(TOY, objectives=(CLM(),)).resolve(64)
  with pytest.raises(UserError, match="attention=causal"):
    jax.eval_shape(bidirectional.init_parameters, jax.random.key(0))


@pytest.mark.slow
def test_a_decoder_comes_within_0_05_nats_of_the_entropy_rate(tmp_path):
  """A document has 120 words, with its ends two rows of 61. The first is "<s> 60 words", the second
  "60 words </s>": of 120 predictions, the first is of a word after nothing, 118 follow a word, and
  </s> is certain."""
  learner = dataclasses.replace(
    GPT,
    model=Gpt2(
      **{"layers": 2, "width": 32, "heads": 2, "positions": 61, "initializer_range": 0.1},
      dropout=0.0,
      attention_dropout=0.0,
    ),
    data=dataclasses.replace(GPT.data, length=61),
    optim=dataclasses.replace(TOY.optim, peak=3e-3, warmup=60, b2=0.98),
    global_batch=32,
    steps=500,
    schedule=dataclasses.replace(TOY.schedule, log=100, evaluate=0, save=500, evaluation_rows=512),
  )
  best = (118 * entropy_rate(LANGUAGE) + unigram_entropy(LANGUAGE)) / 120
  _, records = toy_run.run(tmp_path / "run", learner, None, 2000)
  assert best - 0.02 < records[-1]["clm/loss"] < best + 0.05
  assert best < unigram_entropy(LANGUAGE) - 0.5 and WORDS == 12
