"""Every arm is measured on the same sets, and what is measured is what its name says."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.ablate import evaluate
from plm_jax.ablate.evaluate import Scores, Trained
from plm_jax.data.segments import SegmentPair
from plm_jax.errors import UserError
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.sop import SOP
from plm_jax.train.start import Source
from tests.toy_run import TOY, prepared, text

ARMS = {
  "base": TOY,
  "alone": dataclasses.replace(TOY, objectives=(MLM(mask=0.0, same=0.0, random=1.0),)),
  "static": dataclasses.replace(
    TOY, objectives=(MLM(masking="static", unit="whole_word"),), seed=7
  ),
  "sop": dataclasses.replace(
    TOY,
    objectives=(MLM(), SOP()),
    data=dataclasses.replace(TOY.data, segments=SegmentPair(next="swapped")),
  ),
  "causal": dataclasses.replace(
    TOY, model=dataclasses.replace(TOY.model, attention="causal"), objectives=(CLM(),)
  ),
}


A, B, C = sorted(set(text().read_text().split()))[:3]  # words of the toy language


@functools.cache
def trained(arm: str) -> Trained:
  """An arm with random parameters."""
  ready = prepared()
  experiment = ARMS[arm].resolve(ready.tokenizer.vocab.size)
  experiment = dataclasses.replace(
    experiment, data=dataclasses.replace(experiment.data, source=str(text()))
  )
  source = Source(text().parent, {}, experiment, ready.tokenizer)
  params = jax.jit(experiment.init_parameters)(jax.random.key(experiment.seed))
  return Trained(source, params, 0, ready)


@functools.cache
def scores(arm: str) -> Scores:
  found = Scores.of(trained(arm))
  evaluate.held_out(trained(arm), found)
  evaluate.pairs(trained(arm), found)
  return found


@pytest.mark.parametrize("arm", ["alone", "static", "sop"])
def test_arms_of_other_objectives_seeds_and_masks_are_measured_on_the_same_sets(arm):
  common = scores("base").sets.keys() & scores(arm).sets.keys()
  assert {"mlm", "pseudo"} <= common
  assert {k: scores(arm).sets[k] for k in common} == {k: scores("base").sets[k] for k in common}


def test_another_tokenizer_or_row_length_is_another_set():
  base = trained("base")
  shorter = dataclasses.replace(
    base.source.experiment, data=dataclasses.replace(base.source.experiment.data, length=20)
  )
  other = base._replace(source=base.source._replace(experiment=shorter))
  assert evaluate.fingerprint(evaluate.rows(other, (MLM(),))) != scores("base").sets["mlm"]


def test_a_left_to_right_model_has_no_masked_metric_and_the_others_no_causal_one():
  assert not [m for m in scores("causal").metrics if m.startswith(("mlm", "pseudo"))]
  assert {"clm_loss", "clm_perplexity", "clm_accuracy"} == set(scores("causal").metrics)
  assert not [m for m in scores("base").metrics if m.startswith("clm")]
  assert "left-to-right" in scores("causal").notes[0]


def test_both_pair_tasks_are_measured_by_whichever_head_there_is():
  for arm in ("base", "sop"):
    assert {"nsp_accuracy", "sop_accuracy"} <= scores(arm).metrics.keys()
  assert "nsp_accuracy" not in scores("alone").metrics


def test_pairs_are_half_and_half_and_swapped_ones_hold_the_same_segments():
  base = trained("base")
  random, swapped = evaluate.random_pairs(base), evaluate.swapped_pairs(base)
  for spans in (random, swapped):
    assert spans["label"].mean() == 0.5
    assert (np.minimum(spans["a_length"], spans["b_length"]) > 0).all()
  in_order = swapped["a_start"] < swapped["b_start"]
  np.testing.assert_array_equal(in_order, swapped["label"] == 0)
  first, second = np.sort([swapped["a_start"], swapped["b_start"]], axis=0)
  first_length = np.where(in_order, swapped["a_length"], swapped["b_length"])
  assert (first + first_length <= second).all()
  assert (second - first - first_length).max() <= 12  # at most what truncation took


def with_pair_head(arm: str, bias):
  """An arm whose pair head says what `bias` float32 [2] says, whatever the row."""
  model = jax.tree.map(lambda x: x, trained(arm).params)
  head = model.nsp if model.nsp is not None else model.sop
  head.kernel[...] = jnp.zeros_like(head.kernel[...])
  head.bias[...] = jnp.asarray(bias, jnp.float32)
  return trained(arm)._replace(params=model)


@pytest.mark.parametrize("arm", ["base", "sop"])
@pytest.mark.parametrize("bias", [(1, 0), (0, 1)])
def test_a_head_that_always_says_the_same_scores_the_majority_on_both_sets(arm, bias):
  found = Scores.of(trained(arm))
  evaluate.pairs(with_pair_head(arm, bias), found)
  assert found.metrics["nsp_accuracy"] == found.metrics["nsp_majority"] == 0.5
  assert found.metrics["sop_accuracy"] == found.metrics["sop_majority"] == 0.5


def test_the_perplexity_of_equal_scores_is_the_size_of_the_vocabulary():
  base = trained("base")
  model = jax.tree.map(jnp.zeros_like, base.params)
  found = Scores.of(base)
  evaluate.held_out(base._replace(params=model), found)
  size = base.vocab.size
  assert found.metrics["mlm_perplexity"] == pytest.approx(size, rel=1e-4)
  assert found.metrics["pseudo_perplexity"] == pytest.approx(size, rel=1e-4)
  assert found.metrics["mlm_loss"] == pytest.approx(math.log(size), rel=1e-4)


def test_pseudo_log_likelihood_masks_one_token_at_a_time():
  """Against the definition: a forward pass of one row for each token."""
  base = trained("base")
  part = evaluate.framed(base, [f"{A} {B}", f"{C} {A} {B}"])
  found = evaluate.pseudo_log_likelihood(base.params, part, base)

  @jax.jit
  def log_p(params, batch, position):
    states = params(batch, base.compute)[0, position]
    return jax.nn.log_softmax(params.token_logits(states))

  for row, sentence in enumerate((f"{A} {B}", f"{C} {A} {B}")):
    ids = np.array([base.vocab.cls, *base.source.tokenizer.encode(sentence), base.vocab.sep])
    total = 0.0
    for position in range(1, len(ids) - 1):
      masked = ids.copy()
      masked[position] = base.vocab.mask
      batch = {
        "input_ids": masked[None],
        "segment_ids": np.zeros_like(masked)[None],
        "length": np.array([len(ids)]),
      }
      total += float(log_p(base.params, batch, position)[ids[position]])
    assert found[row] == pytest.approx(total, abs=1e-4)


def test_the_likelihood_of_a_left_to_right_model_is_that_of_its_own_loss():
  causal = trained("causal")
  part = evaluate.framed(causal, [f"{A} {B} {C}", f"{B} {A}"])
  found = evaluate.left_to_right(causal.params, part, causal)

  @jax.jit
  def loss_of(params, batch):
    return CLM().loss(params, params(batch, causal.compute), batch, None)["loss"][0]

  for row in range(2):
    length = part["length"][row] - 1  # the end is not counted
    batch = {
      "input_ids": part["input_ids"][row : row + 1, :length],
      "segment_ids": part["segment_ids"][row : row + 1, :length],
      "length": np.array([length]),
      "row_weight": np.ones(1, np.float32),
    }
    batch = CLM().corrupt(batch, None, causal.vocab)
    assert found[row] == pytest.approx(-float(loss_of(causal.params, batch)), abs=1e-4)


def blimp_file(folder, pairs):
  lines = [json.dumps({"sentence_good": good, "sentence_bad": bad}) for good, bad in pairs]
  (folder / "order.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("arm", ["base", "causal"])
def test_blimp_is_the_share_of_pairs_whose_first_sentence_is_likelier(arm, tmp_path):
  some = trained(arm)
  pairs = [(f"{A} {B}", f"{B} {A}"), (f"{B} {A}", f"{A} {B}"), (A, A)]
  blimp_file(tmp_path, pairs)
  found = Scores.of(some)
  evaluate.blimp(some, tmp_path, None, found)
  # A pair and its opposite give one right answer between them, and a tie half a one.
  assert found.metrics["blimp"] == found.metrics["blimp/order"] == 0.5
  assert found.counts["blimp"] == 3
  blimp_file(tmp_path, pairs[:1])
  one = Scores.of(some)
  evaluate.blimp(some, tmp_path, None, one)
  score = evaluate.left_to_right if arm == "causal" else evaluate.pseudo_log_likelihood
  good, bad = score(some.params, evaluate.framed(some, list(pairs[0])), some)
  assert one.metrics["blimp"] == float(good > bad)


def test_sentences_that_are_too_long_for_the_model_are_left_out_and_counted(tmp_path):
  base = trained("base")
  blimp_file(tmp_path, [(f"{A} {B}", f"{B} {A}"), (f"{A} " * 40, A)])
  found = Scores.of(base)
  evaluate.blimp(base, tmp_path, None, found)
  assert found.counts["blimp"] == 1
  assert found.notes == ["1 BLiMP pairs are longer than its rows and were left out"]


def test_files_of_another_kind_are_refused_with_their_line(tmp_path):
  (tmp_path / "x.jsonl").write_text('{"sentence_good": "a", "sentence_bad": "b"}\n{"good": 1}\n')
  with pytest.raises(UserError, match="line 2: expected an object with sentence_good"):
    evaluate.read_minimal_pairs(tmp_path / "x.jsonl")
  with pytest.raises(UserError, match="no folder with"):
    evaluate.blimp(trained("base"), tmp_path / "none", None, Scores.of(trained("base")))


def test_the_published_pairs_are_read(shared_data):
  folder = shared_data("blimp")
  read = {file.stem: evaluate.read_minimal_pairs(file) for file in folder.glob("*.jsonl")}
  assert {len(pairs) for pairs in read.values()} == {1000}
  assert read["anaphor_gender_agreement"][0] == (
    "Katherine can't help herself.",
    "Katherine can't help himself.",
  )


@pytest.mark.slow
def test_fine_tuning_is_that_of_the_command_with_the_seed_of_the_run(source, table, tmp_path):
  settings = (f"data.source={table}", "data.length=10", "data.least=2", "data.held_out=0.2")
  settings += ("data.dev_share=0.2", "mesh.data=8")
  seeded = dataclasses.replace(source.experiment, seed=5)
  run = Trained(source._replace(experiment=seeded), None, 1, None)
  found = Scores({}, {}, {}, {}, [])
  evaluate.finetune(run, [60], tmp_path, found, settings)
  assert found.metrics.keys() == {
    "finetune_60_accuracy",
    "finetune_60_macro_f1",
  }
  cell = json.loads((source.path / "finetune/pretrained-60-5/scores.json").read_text())
  assert cell["test"]["accuracy"] == found.metrics["finetune_60_accuracy"]
  assert found.counts["finetune_60_accuracy"] > 10
