"""Tiny runs on the toy language through the real pipeline, loop and step, shared by the tests.

A sentence has 12 words and a row room for two of them, so that nothing is ever truncated: with
`SegmentPair(next="none", short=0)` a row is "[CLS] A [SEP] B [SEP]", A and B one unbroken stretch.
"""

import contextlib
import dataclasses
import functools
import tempfile
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from plm_jax.data.pipeline import Batches, Corpus, iterate
from plm_jax.data.preparation import prepare
from plm_jax.data.segments import SegmentPair
from plm_jax.data.tokenizers import WordPiece
from plm_jax.experiment import Experiment, Intervals
from plm_jax.experiment_flags import vocab_size_of
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.nsp import NSP
from plm_jax.optim.adamw import AdamW
from plm_jax.sharding import MeshShape
from plm_jax.train.example_batch import example_batch
from plm_jax.train.loop import Data, compile_experiment, fit
from plm_jax.train.workdir import Workdir
from tests.toy_language import random_language, write_corpus

WORDS = 12
LANGUAGE = random_language(WORDS)
ONE_STRETCH = SegmentPair(next="none", short=0.0)

# log, evaluate and save do not divide each other: checkpoints fall into the midst of windows.
TOY = Experiment(
  model=Bert(layers=1, width=16, heads=2, positions=32),
  objectives=(MLM(), NSP()),
  data=Corpus(
    source="toy.txt", tokenizer=WordPiece(vocab_size=64), length=27, held_out=0.1, passes=2
  ),
  optim=AdamW(peak=1e-2, warmup=3),
  global_batch=8,
  steps=12,
  schedule=Intervals(log=2, evaluate=6, save=5, evaluation_rows=20),
  mesh=MeshShape(data=1),
  compute=Compute(dtype="float32"),
)


@functools.cache
def text(documents=60) -> Path:
  """A file of the toy language; one per session."""
  path = Path(tempfile.mkdtemp(prefix="toy_run_")) / "toy.txt"
  write_corpus(path, LANGUAGE, documents, sentences=10, words=12, seed=0)
  return path


@functools.cache
def prepared(documents=60, tokenizer=TOY.data.tokenizer, path=None):
  """The toy language, or the text at `path`."""
  path = path or text(documents)
  data = dataclasses.replace(TOY.data, source=str(path), tokenizer=tokenizer)
  return prepare(data, path.parent / "cache", progress=False)


# XLA's defaults, against tests/conftest.py: a step takes 5 s longer to compile and half the time.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if version("jaxlib") < "0.11":
  OPTIMISED["xla_cpu_use_fusion_emitters"] = True


def optimised():
  """A context in which compiled programs are optimised, for runs of hundreds of steps."""
  compiled = functools.partialmethod(jax.stages.Lowered.compile, OPTIMISED)
  return mock.patch.object(jax.stages.Lowered, "compile", compiled)


@functools.cache
def program(experiment=TOY):
  """The experiment compiled for as many devices as its mesh names."""
  mesh = experiment.mesh
  experiment = experiment.resolve(vocab_size_of(experiment))
  devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor]
  with optimised() if experiment.steps >= 300 else contextlib.nullcontext():
    return compile_experiment(experiment, example_batch(experiment), devices)


def batches(experiment=TOY, documents=60, path=None) -> tuple[Batches, Batches]:
  """The training and the held-out batches."""
  ready = prepared(documents, experiment.data.tokenizer, path)
  vocab = dataclasses.replace(ready.tokenizer.vocab, counts=np.asarray(ready.train.counts))
  return tuple(
    Batches(
      store,
      experiment.data,
      experiment.objectives,
      vocab,
      experiment.seed,
      experiment.global_batch,
    )
    for store in (ready.train, ready.valid)
  )


def data(experiment=TOY, documents=60, path=None) -> Data:
  train, valid = batches(experiment, documents, path)
  return Data(
    lambda start: iterate(train, start, experiment.steps),
    valid.evaluation(experiment.schedule.evaluation_rows),
  )


def run(folder, experiment=TOY, given: Data | None = None, documents=60):
  """(final state on the host, records) of a run in `folder`."""
  with Workdir(folder) as workdir:
    state, records = fit(
      program(experiment), given or data(experiment, documents), workdir, quiet=True
    )
  return jax.device_get(dataclasses.replace(state, key=jax.random.key_data(state.key))), records


def assert_equal(one, other):
  """Bit for bit."""
  jax.tree.map(np.testing.assert_array_equal, one, other)
