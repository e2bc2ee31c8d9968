"""The memory of the compiled step: its split over a mesh, and batches that do not fit."""

import dataclasses
import importlib
from pathlib import Path

import jax
import pytest

from plm_jax.errors import UserError
from plm_jax.train import loop, memory
from plm_jax.train.example_batch import example_batch
from tests.train.test_step import TOY

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
XLA = (
  "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
  "required for HLO temporaries ({:.2f}G) exceeds available HBM (15.75G). HLO module: jit_step."
)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "gpt", "t5"])
def test_fsdp_splits_activations_as_data_does(monkeypatch, family):
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  benchmark = importlib.import_module("mesh_memory")
  experiment = benchmark.experiment_of(family)
  state_data, data = benchmark.kilobytes(experiment, (8, 1, 1))
  state_fsdp, fsdp = benchmark.kilobytes(experiment, (1, 8, 1))
  assert fsdp < 1.3 * data
  assert state_fsdp < state_data / 5


def compiled_parts(monkeypatch, fits, size=20.0, **fields):
  """The numbers of micro-batches that were compiled, where a faked compiler refuses all that are
  not in `fits`. size: GiB of a whole batch."""
  tried = []

  def compiled_in(parts, *_):
    tried.append(parts)
    if parts not in fits:
      raise jax.errors.JaxRuntimeError(XLA.format(size / parts))
    return lambda: f"program in {parts}"

  monkeypatch.setattr(memory, "compiled_in", compiled_in)
  monkeypatch.setattr(memory, "step_memory", lambda compiled: 1)
  experiment = dataclasses.replace(TOY, **fields)
  program = loop.compile_experiment(experiment, example_batch(experiment), jax.devices()[:1])
  assert program.step.func() == f"program in {tried[-1]}"
  return tried


def test_a_step_that_the_compiler_refuses_is_split_until_it_fits(monkeypatch):
  assert compiled_parts(monkeypatch, {4, 8, 16}) == [1, 2, 4]
  assert compiled_parts(monkeypatch, {3}, global_batch=3) == [1, 3]
  assert compiled_parts(monkeypatch, {8, 16}, size=120) == [1, 8]
  assert compiled_parts(monkeypatch, {16}, size=120) == [1, 8, 16]
  assert compiled_parts(monkeypatch, {16}, size=5_000) == [1, 16]


def test_the_compiler_s_sentence_says_how_many_times_a_step_is_too_large():
  assert memory.times_too_large(XLA.format(31.5)) == pytest.approx(2)
  used = "Ran out of memory in memory space hbm. Used 63.0M of 0.03G hbm. Exceeded by 30M."
  assert memory.times_too_large(used) == pytest.approx(63 / 1024 / 0.03)
  assert memory.times_too_large("out of memory") == 1


def test_a_row_that_does_not_fit_is_a_sentence(monkeypatch):
  with pytest.raises(UserError, match=r"even one row of data.length=16 .*\(15.75G\)\); split"):
    compiled_parts(monkeypatch, {})


def test_a_number_of_parts_that_does_not_fit_is_a_sentence(monkeypatch):
  compute = dataclasses.replace(TOY.compute, micro_batches=2)
  with pytest.raises(UserError, match=r"a micro-batch of 8 rows .*micro_batches=0, or above 2"):
    compiled_parts(monkeypatch, {4}, compute=compute)


def test_other_errors_of_the_compiler_are_not_hidden(monkeypatch):
  monkeypatch.setattr(memory, "compiled_in", lambda *_: (_ for _ in ()).throw(
    jax.errors.JaxRuntimeError("INTERNAL: a bug")))  # fmt: skip
  with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
    loop.compile_experiment(TOY, example_batch(TOY), jax.devices()[:1])


def test_a_reported_limit_splits_the_step_too(monkeypatch):
  class Device:
    def memory_stats(self):
      return {"bytes_limit": 100}

  sizes = {1: 400, 2: 200, 4: 100}
  monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
  monkeypatch.setattr(memory, "compiled_in", lambda parts, *_: lambda: parts)
  monkeypatch.setattr(memory, "step_memory", lambda compiled: sizes[compiled()])
  program = loop.compile_experiment(TOY, example_batch(TOY), jax.devices()[:1])
  assert (program.step.func(), program.memory) == (4, 100)
