"""Everything that has parameters can be a run: saved, loaded, scored and continued."""

import dataclasses
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import bert
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import encode_prompts, write
from plm_jax.errors import UserError
from plm_jax.evaluation.held_out import held_out
from plm_jax.evaluation.perplexity import perplexity
from plm_jax.evaluation.scores import Scores, is_causal
from plm_jax.experiment_flags import chosen_experiment
from plm_jax.models.gpt import Gpt2
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.nsp import NSP
from plm_jax.runs import Run, RunInfo, initial_parameters
from plm_jax.train.loop import compile_experiment
from tests import toy_run
from tests.toy_run import TOY

GPT = dataclasses.replace(
  TOY,
  model=Gpt2(layers=1, width=16, heads=2, positions=32, dropout=0.0, attention_dropout=0.0),
  data=dataclasses.replace(TOY.data, length=30, segments=PackedDocuments()),
  objectives=(CLM(),),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bigram:
  """A counted model: log p(next token | token) in a table, and nothing that is trained."""

  vocab_size: int | None = None
  positions: int = 32
  encoder_path = ""
  frozen = ()

  @property
  def encoder(self):
    return self

  def init(self, key, heads):
    del key, heads
    return BigramModel(jnp.zeros((self.vocab_size, self.vocab_size)))


class BigramModel(nnx.Module):
  def __init__(self, log_p_VV):
    self.log_p = nnx.Param(log_p_VV)

  def __call__(self, batch, compute, noise=None):
    return jax.nn.one_hot(batch["input_ids"], len(self.log_p[...]))

  def encoder(self):
    return self

  def masked_lm(self):
    return None

  def token_logits(self, hidden):
    return hidden @ self.log_p[...]


def counted(store, size: int) -> BigramModel:
  """Add-one estimates from a text."""
  tokens = np.asarray(store.tokens)
  counts = np.ones((size, size))
  np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
  return BigramModel(jnp.asarray(np.log(counts / counts.sum(axis=1, keepdims=True)), jnp.float32))


@pytest.fixture(autouse=True)
def bigram_file(monkeypatch):
  """The model's file, plm_jax/models/bigram.py."""
  name = "plm_jax.models.bigram"
  monkeypatch.setattr(Bigram, "__module__", name)
  monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(Bigram=Bigram, __name__=name))


@pytest.fixture(scope="module")
def bigram():
  ready = toy_run.prepared()
  size = ready.tokenizer.vocab.size
  experiment = dataclasses.replace(TOY, model=Bigram(), objectives=(), steps=0).resolve(size)
  params = counted(ready.train, size)
  return Run(experiment=experiment, params=params, tokenizer=ready.tokenizer)


def random_run(experiment) -> Run:
  tokenizer = toy_run.prepared().tokenizer
  experiment = experiment.resolve(tokenizer.vocab.size)
  params = jax.jit(experiment.init_parameters)(jax.random.key(1))
  return Run(experiment=experiment, params=params, tokenizer=tokenizer, step=7)


def test_a_saved_run_is_loaded_with_its_step_and_every_number(tmp_path):
  run = random_run(GPT)
  run.save(tmp_path / "run")
  again = Run.load(tmp_path / "run")
  assert (again.experiment, again.step, again.path) == (run.experiment, 7, tmp_path / "run")
  assert again.tokenizer.fingerprint == run.tokenizer.fingerprint
  assert "jax" in again.document["versions"]
  toy_run.assert_equal(again.params, run.params)


def test_a_run_is_copied_with_what_its_directory_says_of_it(tmp_path):
  run = dataclasses.replace(
    random_run(GPT), document={"reference": "toy.py:base", "text": {"a": 1}}
  )
  run.save(tmp_path / "one")
  Run.load(tmp_path / "one").save(tmp_path / "two")
  one, two = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("one", "two"))
  assert one == two and one["text"] == {"a": 1}


def test_a_directory_that_holds_a_run_is_never_overwritten(tmp_path):
  run = random_run(GPT)
  run.save(tmp_path)
  with pytest.raises(UserError, match="already holds a run"):
    run.save(tmp_path)


def test_checkpoints_of_another_run_are_never_mixed_with_a_saved_one(tmp_path):
  run = random_run(GPT)
  dataclasses.replace(run, step=100).save(tmp_path)
  (tmp_path / "config.json").unlink()
  with pytest.raises(UserError, match="not empty and holds no run"):
    run.save(tmp_path)
  assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["100"]


def test_a_path_that_is_no_directory_is_a_sentence(tmp_path):
  (tmp_path / "file").write_text("")
  for path in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(UserError, match="cannot be written"):
      random_run(GPT).save(path)


def test_a_run_without_objectives_is_saved_loaded_and_generates(tmp_path):
  run = random_run(dataclasses.replace(GPT, objectives=(), steps=0))
  run.save(tmp_path / "run")
  again = Run.load(tmp_path / "run")
  model = again.params, again.config, again.tokenizer
  ((text,),) = write(
    *model, again.compute, encode_prompts(*model, ["w1"]), Rules(max_length=3, min_length=3)
  )
  assert len(text.ids) == 3 and is_causal(again)


def test_a_counted_model_is_saved_loaded_and_scored(bigram, tmp_path):
  bigram.save(tmp_path / "run")
  run = Run.load(tmp_path / "run")
  tokens = [run.tokenizer.vocab.cls, *run.tokenizer.encode("w1 w2 w3")]
  log_p = np.asarray(run.params.log_p[...])[tokens[:-1], tokens[1:]]
  found = perplexity(run, "w1 w2 w3")
  assert found["perplexity"] == pytest.approx(math.exp(-log_p.mean()), rel=1e-5)
  scores = Scores.of(run)
  held_out(run, toy_run.prepared(), scores)
  assert scores.metrics["clm_perplexity"] < run.tokenizer.vocab.size / 2  # it has counted something


def test_a_counted_model_is_not_trained(bigram):
  with pytest.raises(UserError, match="steps=0 with 0 objectives trains nothing"):
    compile_experiment(bigram.experiment, {})


def test_a_run_is_described_without_reading_its_parameters(bigram, tmp_path):
  bigram.save(tmp_path / "run")
  (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")
  assert RunInfo.read(tmp_path / "run").experiment == bigram.experiment
  with pytest.raises(UserError, match="no finished checkpoint"):
    Run.load(tmp_path / "run")


# A run that another one goes on from.

WHOLE = TOY.resolve(64)


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
  """The directory of a BERT with a next-sentence head alone, of the experiment `bert.py:tiny`."""
  folder = tmp_path_factory.mktemp("headless") / "run"
  ready = toy_run.prepared()
  experiment = dataclasses.replace(WHOLE, objectives=(NSP(),))
  params = WHOLE.model.init(jax.random.key(7), experiment.heads)
  document = {"reference": "experiments/bert.py:tiny"}
  run = Run(experiment=experiment, params=params, tokenizer=ready.tokenizer, document=document)
  run.save(folder)
  return folder


def continued(source, *settings, reference=None, published=False):
  """The experiment of `run_pretrain.py --from`, of a run or as if it were a published model."""
  if published:
    source = dataclasses.replace(source, document={**source.document, "public": {}})
  return chosen_experiment(reference, "", "small", list(settings), None, source)[0]


def test_a_run_goes_on_at_a_tenth_of_the_recipe_s_peak(headless, capsys):
  source, recipe = RunInfo.read(headless), bert.tiny().optim
  experiment = continued(source)
  assert experiment.optim == dataclasses.replace(recipe, peak=0.1 * recipe.peak)
  assert (
    "goes on with AdamW at optim.peak=0.00015, after a warmup of 120 steps"
    in capsys.readouterr().out
  )
  published = continued(source, "optim.warmup=7", published=True).optim
  assert (published.peak, published.warmup) == (5e-5, 7)


@pytest.mark.parametrize(
  ("settings", "reference", "peak"),
  [
    (["optim.peak=3e-3"], None, 3e-3),
    (["optim=Adafactor(peak=0.01)"], None, 0.01),
    ([], "experiments/bert.py:tiny", 1.5e-3),
    (["peft=Lora()"], None, 1.5e-3),
  ],
)
def test_the_user_s_rate_and_that_of_a_named_row_are_kept(
  headless, capsys, settings, reference, peak
):
  experiment = continued(RunInfo.read(headless), *settings, reference=reference)
  assert experiment.optim.peak == peak
  assert "goes on at" not in capsys.readouterr().out


def test_a_new_head_of_a_run_that_goes_on_is_noted_once(headless, capsys):
  fresh = types.SimpleNamespace(params=WHOLE.init_parameters(jax.random.key(1)))
  program = types.SimpleNamespace(experiment=WHOLE, create=lambda: fresh)
  params = initial_parameters(program, RunInfo.read(headless))
  notes = capsys.readouterr().out.splitlines()
  assert [note.split(" has no head ")[1].split(",")[0] for note in notes] == ["'mlm'"]
  np.testing.assert_array_equal(
    params.embed.token.table[...], Run.load(headless).params.embed.token.table[...]
  )
