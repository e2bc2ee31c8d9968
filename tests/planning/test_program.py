"""The costs of a compiled program are read from its text, with loops multiplied out."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from plm_jax.experiment_flags import chosen_experiment
from plm_jax.planning import arithmetic
from plm_jax.planning.choosing import Placement
from plm_jax.planning.collectives import Collectives
from plm_jax.planning.devices import target_of
from plm_jax.planning.program_costs import costs_of
from plm_jax.planning.program_text import parsed, runs_of_loop
from plm_jax.train.example_batch import example_batch
from plm_jax.train.loop import compile_experiment

CPU = target_of("cpu:8").device


def text_of(function, *shapes) -> str:
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(function).lower(*arguments).compile().as_text()


def test_products_in_a_loop_count_as_often_as_it_runs():
  def loop(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  few, many = (costs_of(parsed(text_of(loop, (64, 32), (n, 32, 32))), CPU, 1) for n in (7, 70))
  assert few.operations == 7 * 2 * 64 * 32 * 32 and many.operations == 10 * few.operations
  assert few.traffic >= 7 * 4 * (32 * 32 + 64 * 32)
  assert many.traffic < 11 * few.traffic  # every run reads its slice of the kernels, not all


CONVOLUTION = """
HloModule products

ENTRY %main (a: bf16[8,64,32], b: bf16[8,32,16]) -> bf16[8,64,16] {
  %a = bf16[8,64,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[8,32,16]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = bf16[8,64,16]{2,1,0:T(8,128)(2,1)} convolution(%a, %b), window={size=8 stride=7 \
lhs_dilate=8}, dim_labels=0bf_0io->0bf
}
"""


def test_a_batched_product_written_as_a_convolution_counts_each_pair_once():
  costs = costs_of(parsed(CONVOLUTION), target_of("v5e-1").device, 1)
  assert costs.operations == 8 * 2 * 64 * 32 * 16
  assert costs.traffic == 2 * 8 * (64 * 32 + 64 * 16)  # b is in the memory of the core
  assert costs.seconds == pytest.approx(costs.traffic / 819e9)


CUSTOM = """
HloModule custom

ENTRY %main (a: bf16[8,64]) -> bf16[8,64] {
  %a = bf16[8,64]{1,0} parameter(0)
  %b = bf16[9,8,64]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %s = bf16[8,64]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="splash_mha_fwd"}
  ROOT %c = bf16[8,64]{1,0} custom-call(%s), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"12345"}}}
}
"""


def test_a_kernel_of_ours_costs_what_it_says_and_a_place_in_memory_costs_nothing():
  """The other kernel is JAX's, whose attributes have line breaks, and which says no operations."""
  costs = costs_of(parsed(CUSTOM), target_of("v5e-1").device, 1)
  assert costs.operations == 12345 and costs.silent == 1
  assert costs.traffic == 2 * 2 * 2 * 8 * 64


CHOSEN = """
HloModule chosen

%inside (a: f32[64,1024], b: f32[1000], i: s32[64,2]) -> f32[64,1,1] {
  %a = f32[64,1024]{1,0} parameter(0)
  %cut = f32[64,1000]{1,0} slice(%a), slice={[0:64], [0:1000]}
  %b = f32[1000]{0} parameter(1)
  %wide = f32[64,1000]{1,0} broadcast(%b), dimensions={1}
  %sum = f32[64,1000]{1,0} add(%cut, %wide)
  %i = s32[64,2]{1,0} parameter(2)
  ROOT %g = f32[64,1,1]{2,1,0} gather(%sum, %i), offset_dims={1,2}, slice_sizes={1,1}
}

ENTRY %main (a: f32[64,1024], b: f32[1000], i: s32[64,2]) -> f32[64,1,1] {
  %a = f32[64,1024]{1,0} parameter(0)
  %b = f32[1000]{0} parameter(1)
  %i = s32[64,2]{1,0} parameter(2)
  ROOT %f = f32[64,1,1]{2,1,0} fusion(%a, %b, %i), kind=kLoop, calls=%inside
}
"""


def test_a_kernel_that_chooses_entries_reads_no_others():
  """The logits of the targets: of a fusion's inputs only what its gather asks for."""
  costs = costs_of(parsed(CHOSEN), target_of("h100x1").device, 1)
  assert costs.traffic == 64 * 4 + 1000 * 4 + 64 * 2 * 4 + 64 * 4
  whole = CHOSEN.replace(
    "ROOT %g = f32[64,1,1]{2,1,0} gather(%sum, %i)", "ROOT %g = f32[64,1000]{1,0} exponential(%sum)"
  )
  assert costs_of(parsed(whole), target_of("h100x1").device, 1).traffic > 64 * 1000 * 4


LOOP = """
HloModule loop

%condition (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(16)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (q: (s32[], f32[4])) -> (s32[], f32[4]) {
  %q = (s32[], f32[4]{0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%j, %two)
  %x = f32[4]{0} get-tuple-element(%q), index=1
  %sum = f32[4]{0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %r = (s32[], f32[4]{0}) tuple(%next, %sum)
}

ENTRY %main (a: (s32[], f32[4])) -> (s32[], f32[4]) {
  %a = (s32[], f32[4]{0}) parameter(0)
  ROOT %w = (s32[], f32[4]{0}) while(%a), condition=%condition, body=%body
}
"""


def test_a_loop_without_a_note_is_counted_by_its_condition_and_its_stride():
  program = parsed(LOOP)
  assert runs_of_loop(program.computations["main"].order[-1], program) == 8
  collectives = costs_of(program, CPU, 8).collectives
  assert collectives.runs == {"all-reduce": 8} and collectives.size == {"all-reduce": 8 * 16}
  assert collectives.sent == 8 * 16 * 2 * 3 / 4


def test_a_ring_sends_all_but_its_own_part():
  sent = Collectives()
  sent.add("all-gather", 3, 100, 4)
  sent.add("all-reduce", 1, 100, 4)
  sent.add("reduce-scatter", 1, 100, 1)
  assert sent.sent == 3 * 75 + 150 and sent.runs == {"all-gather": 3, "all-reduce": 1}


SIZES = ("model.layers=2", "model.width=64", "model.heads=2", "data.length=64", "global_batch=16")


@pytest.fixture(scope="module")
def bert():
  """A small BERT on eight simulated devices, and its program."""
  mesh = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "compute.layers=unroll")
  settings = [*SIZES, *mesh, "compute.micro_batches=1"]
  experiment = chosen_experiment(None, "experiments/bert.py:tiny", "smoke", settings, None)[0]
  program = compile_experiment(experiment, example_batch(experiment), jax.devices()[:8])
  return experiment, program.step.func


@pytest.mark.slow
def test_the_formula_agrees_with_the_compiler(bert):
  """Within 10%: XLA's count has the operations between products, and what devices repeat."""
  experiment, step = bert
  formula = arithmetic.model_operations(experiment)
  read = costs_of(parsed(step.as_text()), CPU, 8)
  assert formula == pytest.approx(8 * read.operations, rel=0.1)
  cost = step.cost_analysis()
  assert formula == pytest.approx(8 * cost["flops"], rel=0.15)


def test_the_formula_is_six_operations_a_weight_and_token_and_twelve_a_pair():
  settings = [*SIZES, "model.vocab_size=512", "data.tokenizer.vocab_size=512"]
  experiment = chosen_experiment(None, "experiments/gpt.py:tiny", "smoke", settings, None)[0]
  L, D, T, B, V = 2, 64, 64, 16, experiment.model.vocab_size
  weights = L * 12 * D * D + V * D
  expected = 6 * weights * B * T + 12 * L * D * T * B * T
  assert arithmetic.model_operations(experiment) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_collectives_of_the_formulas_are_those_of_the_program(bert):
  experiment, step = bert
  placement = Placement(experiment, target_of("cpu:8"))
  predicted = arithmetic.collectives(experiment, placement.state, placement.mesh, 1)
  read = costs_of(parsed(step.as_text()), CPU, 8).collectives
  assert {"all-gather", "all-reduce"} <= read.runs.keys()
  assert 0.3 < predicted.sent / read.sent < 3


@pytest.mark.slow
def test_a_step_is_compiled_for_a_tpu_that_is_not_there():
  pytest.importorskip("libtpu")
  settings = [f"--set={setting}" for setting in (*SIZES, "mesh.fsdp=4", "mesh.data=1")]
  words = ["--experiment=experiments/gpt.py:tiny", "--budget=smoke", "--devices=v5e-4", "--json"]
  # libtpu aborts at flags that it does not know, such as those of tests/conftest.py.
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  done = subprocess.run(
    [sys.executable, "-m", "plm_jax.plan", *words, *settings, "--by=compiler"],
    capture_output=True, text=True, check=True, env=environment,
  )  # fmt: skip
  document = json.loads(done.stdout)
  assert document["by"] == "compiler" and document["memory"]["fits"]
  speed = document["speed"]
  assert 4 * speed["compiler_operations"] == pytest.approx(speed["operations"], rel=0.1)
  assert speed["collectives"]["sent"] > 0 and 0 < speed["share"] < 1
