"""Tiny models behind a server: a classifier, a tagger, a GPT, a BERT with its masked-LM head."""

import dataclasses

import jax
import pytest

from plm_jax.data.tokenizers import BytePairs
from plm_jax.models.gpt import Gpt2
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.runs import Run
from plm_jax.serving.app import create_app
from plm_jax.serving.guard import Guard
from plm_jax.serving.limits import Limits
from plm_jax.serving.metrics import Metrics
from plm_jax.serving.model import ServedModel
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.tag import Tag
from tests import toy_run

LIMITS = Limits(batch=4, slots=2, queue=16, texts=8, tokens=32, body=4096, timeout=60)


def run_of(config, objective, tokenizer=None, data=None):
  """A run in memory with random parameters."""
  trained = toy_run.prepared(tokenizer=tokenizer or toy_run.TOY.data.tokenizer).tokenizer
  experiment = dataclasses.replace(toy_run.TOY, model=config, objectives=(objective,))
  if data is not None:
    experiment = dataclasses.replace(experiment, data=data)
  experiment = experiment.resolve(trained.vocab.size)
  params = jax.jit(experiment.init_parameters)(jax.random.key(0))
  return Run(experiment=experiment, params=params, tokenizer=trained)


BERT = dataclasses.replace(toy_run.TOY.model, layers=2)


def fine_tuned(task):
  return run_of(BERT, task.objective(), data=task)


def classifier():
  return fine_tuned(Classify(labels=("good", "bad", "neither"), length=16))


def gpt():
  config = Gpt2(layers=1, width=16, heads=2, positions=64, initializer_range=0.6)
  return run_of(config, CLM(), BytePairs(vocab_size=300))


MAKERS = {
  "classifier": classifier,
  "tagger": lambda: fine_tuned(Tag(tags=("O", "S-PER"), scheme="IOBES", length=16)),
  "bert": lambda: run_of(BERT, MLM()),
  "gpt": gpt,
}


class Server:
  """The application of some models, with what it counts. `client()` speaks to it."""

  def __init__(self, names, limits=LIMITS, key=None, start=True):
    self.metrics, self.limits = Metrics(), limits
    self.models = [ServedModel(name, MAKERS[name](), limits, self.metrics) for name in names]
    for model in self.models:
      model.warm_up(lambda: None)
      if start:
        model.start()
    self.app = Guard(create_app(self.models, limits, self.metrics), limits, self.metrics, key)


@pytest.fixture(scope="module")
def server():
  made = Server(["classifier", "tagger", "bert", "gpt"])
  yield made
  for model in made.models:
    model.close()
