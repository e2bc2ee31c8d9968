"""Sizes beyond any machine are refused before anything is allocated."""

import dataclasses

import jax
import pytest

from plm_jax import overrides
from plm_jax.data.pipeline import iterate
from plm_jax.errors import UserError
from plm_jax.sharding import MeshShape
from plm_jax.sizes import check_state
from plm_jax.train import memory
from tests import toy_run
from tests.toy_run import TOY


@pytest.mark.parametrize(
  "setting",
  [
    "model.width=1e9", "model.layers=1e6", "model.vocab_size=1e12", "model.positions=1e9",
    "data.tokenizer.vocab_size=1e12", "data.workers=1e6", "data.passes=1e12",
  ],
)  # fmt: skip
def test_a_size_beyond_any_machine_is_refused_with_its_field(setting):
  field = setting.partition("=")[0]
  with pytest.raises(UserError, match=rf"{field}=.* is beyond any machine; expected at most"):
    overrides.apply(TOY, [setting])


def test_a_batch_beyond_any_machine_is_refused():
  with pytest.raises(UserError, match="are 21,600,000,000 tokens in a batch"):
    dataclasses.replace(TOY, global_batch=800_000_000)


def test_parameters_are_counted_before_they_are_made():
  with pytest.raises(UserError, match="take 16 TiB; expected at most 16 TiB"):
    check_state([jax.ShapeDtypeStruct((1 << 40, 4), "float32"), jax.ShapeDtypeStruct((), "int32")])


def test_a_step_that_the_machine_cannot_hold_is_refused(monkeypatch):
  mesh = MeshShape(data=2).build(jax.devices()[:2])
  monkeypatch.setattr(memory, "machine_memory", lambda: 2**30)
  memory.check_fits(2**29, mesh)  # each of two simulated devices
  with pytest.raises(UserError, match=r"needs 1\.2 GiB and this machine has 1\.0 GiB"):
    memory.check_fits(2**29 + 2**27, mesh)


def test_more_workers_than_the_machine_can_run_are_refused():
  with pytest.raises(UserError, match=r"data\.workers=1000 was given; this machine can run"):
    iterate(toy_run.batches()[0], 0, 1, workers=1000)
