"""A table of toy sentences whose label is told by one word, and a checkpoint of a toy model."""

import json

import jax
import numpy as np
import pytest

from plm_jax.data.documents import Document
from plm_jax.data.pipeline import Corpus, iterate
from plm_jax.data.tokenizers import WordPiece
from plm_jax.experiment import Experiment, Intervals
from plm_jax.models.bert import Bert
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.nsp import NSP
from plm_jax.optim.adamw import AdamW
from plm_jax.runs import RunInfo
from plm_jax.sharding import MeshShape
from plm_jax.tasks import finetuning
from plm_jax.tasks.examples import Example, Examples
from plm_jax.train.checkpoint import Checkpoints
from plm_jax.train.state import create_state
from plm_jax.train.workdir import Workdir

WORDS = "the small old river house tree stone light wind road bird field".split()  # noqa: SIM905
TELLING = {"animal": ("cat", "dog"), "colour": ("red", "blue"), "number": ("one", "two")}


def toy_sentence(number: int, label: str) -> str:
  """Sentences that all differ: six words by the digits of `number`, and one that tells."""
  words = [WORDS[number // 12**k % 12] for k in range(4)]
  words.insert(number % 4, TELLING[label][number % 2])
  return " ".join(words)


@pytest.fixture(scope="session")
def documents():
  """120 documents of two sentences."""
  labels = sorted(TELLING)
  return [
    Document(
      f"toy.{d}",
      tuple(toy_sentence(83 * (2 * d + s) + 5, labels[d % 3]) for s in range(2)),
      labels[d % 3],
    )
    for d in range(120)
  ]


@pytest.fixture(scope="session")
def tokenizer(documents):
  words = [*WORDS, *(word for pair in TELLING.values() for word in pair)]
  return WordPiece(vocab_size=120).train(iter(words * 20))


@pytest.fixture(scope="session")
def table(documents, tmp_path_factory):
  """The same sentences as rows of a file."""
  path = tmp_path_factory.mktemp("table") / "toy.jsonl"
  rows = [{"text": text, "label": d.label} for d in documents for text in d.sentences]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture(scope="session")
def source(tokenizer, tmp_path_factory):
  """A "pretraining" run whose parameters are those it was born with."""
  experiment = Experiment(
    model=Bert(layers=1, width=16, heads=2, positions=16, dropout=0.1),
    objectives=(MLM(), NSP()),
    data=Corpus(length=16, tokenizer=WordPiece(vocab_size=120), held_out=0.2),
    optim=AdamW(peak=1e-2, warmup=1),
    global_batch=8,
    steps=1,
  ).resolve(tokenizer.vocab.size)
  key = jax.random.key(7)
  transform = experiment.optim.transform(1)
  state = jax.jit(
    lambda key: create_state(experiment.init_parameters(key), transform, key, ["loss"])
  )(key)
  path = tmp_path_factory.mktemp("runs") / "toy"
  with Workdir(path) as workdir, Checkpoints(workdir / "checkpoints") as checkpoints:
    text = {"source": {"given": "tfds:toy", "fingerprint": "abc"}}
    workdir.write_config(experiment, {"reference": "toy.py:toy", "initial": None, "text": text})
    tokenizer.save(workdir / "tokenizer")
    checkpoints.save(1, state, {"step": 1})
  return RunInfo.read(path)


@pytest.fixture(scope="session")
def recipe():
  def make(source, task, examples):
    return Experiment(
      model=source.config,
      objectives=(task.objective(),),
      data=task,
      optim=AdamW(peak=1e-2, warmup=2),
      global_batch=16,
      steps=12,
      schedule=Intervals(log=4, save=4, keep=2),
      mesh=MeshShape(),
    )

  return make


def examples_of(ids, labels=None):
  """Examples of one text each, with these tokens."""
  labels = np.zeros(len(ids), np.int32) if labels is None else np.asarray(labels, np.int32)
  items = [Example(("x",), str(label), str(n), "d") for n, label in enumerate(labels)]
  return Examples(items, [(np.asarray(i, np.int32),) for i in ids], {"label": labels})


def check_a_killed_run_ends_alike(planned, finished, monkeypatch, arm="pretrained"):
  """The cell "ARM-60-0" of 12 steps is killed after step 9 and goes on: its scores and
  records are those of `finished`, which was not."""

  def dies(batches, start, stop, workers):
    return iterate(batches, start, 9, workers)

  again, name = planned._replace(path=planned.path / "killed"), f"{arm}-60-0"
  with monkeypatch.context() as patched:
    patched.setattr(finetuning, "iterate", dies)
    with pytest.raises(StopIteration):
      finetuning.model_cell(again, arm, 60, 0, "toy")
  assert not (again.path / name / "scores.json").exists()
  assert finetuning.model_cell(again, arm, 60, 0, "toy") == finished
  for file in ("metrics.jsonl", "scores.json"):
    assert (again.path / name / file).read_bytes() == (planned.path / name / file).read_bytes()
