"""A model that is counted has the command, the directory and the report of a trained one."""

import dataclasses
import json
import math
import sys
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.errors import UserError
from plm_jax.models.heads import HeadedModel
from plm_jax.models.model import SingleModel
from plm_jax.models.parameters import Role
from plm_jax.objectives.clm import CLM
from plm_jax.pretraining import pretrain
from plm_jax.runs import Run
from plm_jax.sharding import MeshShape
from plm_jax.train.workdir import Workdir, read_records
from tests import toy_run
from tests.toy_run import TOY


class FrequenciesModel(HeadedModel):
  HEADS: ClassVar = {"lm": None}
  ROLES: ClassVar = {"log_p": Role(("ngrams",), "table", "embedding")}

  def __init__(self, config):
    self.config = config
    self.log_p = nnx.Param(jnp.zeros((config.vocab_size,)))

  def __call__(self, batch, compute, noise=None):
    return batch["input_ids"][..., None]

  def token_logits(self, hidden):
    return jnp.broadcast_to(self.log_p[...], (*hidden.shape[:-1], self.config.vocab_size))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frequencies(SingleModel):
  """The add-one unigram model: the baseline of every report."""

  vocab_size: int | None = None
  positions: int = 64
  sizes: tuple[int, ...] = ()
  fails: bool = False

  def init(self, key, heads):
    return FrequenciesModel(self)

  def counted(self, corpus, store, tokenizer):
    if self.fails:
      raise UserError("there is nothing to count")
    counts = np.asarray(store.counts) + 1
    model = FrequenciesModel(self)
    model.log_p[...] = jnp.log(counts / counts.sum())
    return dataclasses.replace(self, sizes=(len(counts),)), model


@pytest.fixture(autouse=True)
def of_a_cell(monkeypatch):
  """The class is one of a notebook, which a stored configuration may name."""
  monkeypatch.setattr(Frequencies, "__module__", "__main__")
  monkeypatch.setattr(sys.modules["__main__"], "Frequencies", Frequencies, raising=False)


COUNTED = dataclasses.replace(
  TOY,
  model=Frequencies(),
  objectives=(CLM(),),
  steps=0,
  mesh=MeshShape(),  # eight devices
  data=dataclasses.replace(TOY.data, source=str(toy_run.text()), segments=PackedDocuments()),
)


def counted(folder, experiment=COUNTED):
  experiment = experiment.resolve(toy_run.prepared().tokenizer.vocab.size)
  record = {"name": "counted", "reference": None, "diff": []}
  with Workdir(folder) as workdir:
    workdir.check_same_experiment(experiment, record)
    pretrain(experiment, record, workdir, toy_run.text().parent / "cache")


def test_a_counted_run_reports_the_held_out_loss_and_loads(tmp_path, capsys):
  counted(tmp_path / "run")
  shown = capsys.readouterr().out
  assert "positions filled" in shown and "per step" not in shown
  (record,) = read_records(tmp_path / "run/metrics.jsonl")
  assert record["step"] == 0 and record["split"] == "valid"
  line = next(line for line in shown.splitlines() if "CLM loss (nats)" in line)
  ours, baseline = map(float, line.split()[3:5])
  assert ours == baseline == pytest.approx(record["clm/loss"], abs=1e-3)  # a mean on the host
  assert "counted" in shown and "before" not in shown and "curves" not in shown
  run = Run.load(tmp_path / "run")
  assert run.step == 0 and run.experiment.model.sizes == (run.tokenizer.vocab.size,)
  assert math.isclose(float(jnp.exp(run.params.log_p[...]).sum()), 1, rel_tol=1e-5)


def test_the_same_command_again_reads_what_was_counted(tmp_path, capsys):
  counted(tmp_path / "run")
  once = capsys.readouterr()
  assert "counted" in once.err
  counted(tmp_path / "run")
  again = capsys.readouterr()
  assert again.out == once.out and "counted" not in again.err
  other = dataclasses.replace(COUNTED, seed=1)
  with pytest.raises(UserError, match="holds another experiment: seed"):
    counted(tmp_path / "run", other)


def test_a_failed_count_can_be_repeated_in_the_same_directory(tmp_path):
  with pytest.raises(UserError, match="nothing to count"):
    counted(tmp_path / "run", dataclasses.replace(COUNTED, model=Frequencies(fails=True)))
  counted(tmp_path / "run")
  assert json.loads((tmp_path / "run/config.json").read_text())["experiment"]


def test_a_counted_model_takes_no_steps_and_needs_an_objective():
  with pytest.raises(UserError, match="neither trained nor fine-tuned; leave steps at 0"):
    dataclasses.replace(COUNTED, steps=5)
  COUNTED.check_trains()
  with pytest.raises(UserError, match="trains nothing"):
    dataclasses.replace(COUNTED, objectives=()).check_trains()
  assert jax.tree.leaves(COUNTED.resolve(7).init_parameters(jax.random.key(0)))[0].shape == (7,)
