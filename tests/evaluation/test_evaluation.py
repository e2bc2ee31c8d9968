"""Every arm is measured on the same sets, and what is measured is what its name says."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.data.segments import SegmentPair
from plm_jax.errors import UserError
from plm_jax.evaluation import minimal_pairs
from plm_jax.evaluation.held_out import held_out, held_out_rows
from plm_jax.evaluation.minimal_pairs import blimp, framed, read_minimal_pairs
from plm_jax.evaluation.pair_accuracy import pair_accuracies, random_pairs, swapped_pairs
from plm_jax.evaluation.scores import Scores, fingerprint
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.sop import SOP
from plm_jax.runs import Run
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
def trained(arm: str) -> Run:
  """An arm with random parameters."""
  ready = prepared()
  experiment = ARMS[arm].resolve(ready.tokenizer.vocab.size)
  experiment = dataclasses.replace(
    experiment, data=dataclasses.replace(experiment.data, source=str(text()))
  )
  params = jax.jit(experiment.init_parameters)(jax.random.key(experiment.seed))
  return Run(experiment=experiment, params=params, tokenizer=ready.tokenizer)


@functools.cache
def scores(arm: str) -> Scores:
  found = Scores.of(trained(arm))
  held_out(trained(arm), prepared(), found)
  pair_accuracies(trained(arm), prepared(), found)
  return found


@pytest.mark.slow
@pytest.mark.parametrize(
  "arm", ["alone", *(pytest.param(arm, marks=pytest.mark.slow) for arm in ("static", "sop"))]
)
def test_arms_of_other_objectives_seeds_and_masks_are_measured_on_the_same_sets(arm):
  common = scores("base").sets.keys() & scores(arm).sets.keys()
  assert {"mlm", "pseudo"} <= common
  assert {k: scores(arm).sets[k] for k in common} == {k: scores("base").sets[k] for k in common}


def test_another_tokenizer_or_row_length_is_another_set():
  base = trained("base")
  shorter = dataclasses.replace(base.experiment.data, length=20)
  other = dataclasses.replace(base, experiment=dataclasses.replace(base.experiment, data=shorter))
  rows = held_out_rows(other, prepared(), (MLM(),))
  assert fingerprint(rows) != scores("base").sets["mlm"]


def test_a_left_to_right_model_has_no_masked_metric_and_the_others_no_causal_one():
  assert not [m for m in scores("causal").metrics if m.startswith(("mlm", "pseudo"))]
  metrics = scores("causal").metrics
  assert {"clm_loss", "clm_perplexity", "clm_accuracy", "clm_bits_per_byte"} == set(metrics)
  assert not [m for m in scores("base").metrics if m.startswith("clm")]
  assert "left-to-right" in scores("causal").notes[0]


def test_both_pair_tasks_are_measured_by_whichever_head_there_is():
  for arm in ("base", "sop"):
    assert {"nsp_accuracy", "sop_accuracy"} <= scores(arm).metrics.keys()
  assert "nsp_accuracy" not in scores("alone").metrics


def test_pairs_are_half_and_half_and_swapped_ones_hold_the_same_segments():
  base = trained("base")
  random, swapped = random_pairs(base, prepared()), swapped_pairs(base, prepared())
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
  return dataclasses.replace(trained(arm), params=model)


@pytest.mark.parametrize("arm", ["base", "sop"])
@pytest.mark.parametrize("bias", [(1, 0), (0, 1)])
def test_a_head_that_always_says_the_same_scores_the_majority_on_both_sets(arm, bias):
  found = Scores.of(trained(arm))
  pair_accuracies(with_pair_head(arm, bias), prepared(), found)
  assert found.metrics["nsp_accuracy"] == found.metrics["nsp_majority"] == 0.5
  assert found.metrics["sop_accuracy"] == found.metrics["sop_majority"] == 0.5


def test_the_perplexity_of_equal_scores_is_the_size_of_the_vocabulary():
  base = trained("base")
  model = jax.tree.map(jnp.zeros_like, base.params)
  found = Scores.of(base)
  held_out(dataclasses.replace(base, params=model), prepared(), found)
  size = base.tokenizer.vocab.size
  assert found.metrics["mlm_perplexity"] == pytest.approx(size, rel=1e-4)
  assert found.metrics["pseudo_perplexity"] == pytest.approx(size, rel=1e-4)
  assert found.metrics["mlm_loss"] == pytest.approx(math.log(size), rel=1e-4)


def test_pseudo_log_likelihood_masks_one_token_at_a_time():
  """Against the definition: a forward pass of one row for each token."""
  base = trained("base")
  vocab = base.tokenizer.vocab
  found = minimal_pairs.pseudo_log_likelihood(base, framed(base, [f"{A} {B}", f"{C} {A} {B}"]))
  for row, sentence in enumerate((f"{A} {B}", f"{C} {A} {B}")):
    ids = np.array([vocab.cls, *base.tokenizer.encode(sentence), vocab.sep])
    total = 0.0
    for position in range(1, len(ids) - 1):
      masked = ids.copy()
      masked[position] = vocab.mask
      batch = {
        "input_ids": masked[None],
        "segment_ids": np.zeros_like(masked)[None],
        "length": np.array([len(ids)]),
      }
      logits = base.params.token_logits(base.params(batch, base.compute)[0, position])
      total += float(jax.nn.log_softmax(logits)[ids[position]])
    assert found[row] == pytest.approx(total, abs=1e-4)


def test_the_likelihood_of_a_left_to_right_model_is_that_of_its_own_loss():
  causal = trained("causal")
  part = framed(causal, [f"{A} {B} {C}", f"{B} {A}"])
  found = minimal_pairs.log_likelihood(causal, part)
  for row in range(2):
    length = part["length"][row] - 1  # the end is not counted
    batch = {
      "input_ids": part["input_ids"][row : row + 1, :length],
      "segment_ids": part["segment_ids"][row : row + 1, :length],
      "length": np.array([length]),
      "row_weight": np.ones(1, np.float32),
    }
    batch = CLM().corrupt(batch, None, causal.tokenizer.vocab)
    loss, _ = CLM().loss(causal.params, causal.params(batch, causal.compute), batch, None)["loss"]
    assert found[row] == pytest.approx(-float(loss), abs=1e-4)


def blimp_file(folder, pairs):
  lines = [json.dumps({"sentence_good": good, "sentence_bad": bad}) for good, bad in pairs]
  (folder / "order.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("arm", ["base", "causal"])
def test_blimp_is_the_share_of_pairs_whose_first_sentence_is_likelier(arm, tmp_path):
  some = trained(arm)
  pairs = [(f"{A} {B}", f"{B} {A}"), (f"{B} {A}", f"{A} {B}"), (A, A)]
  blimp_file(tmp_path, pairs)
  found = Scores.of(some)
  blimp(some, tmp_path, None, found)
  # A pair and its opposite give one right answer between them, and a tie half a one.
  assert found.metrics["blimp"] == found.metrics["blimp/order"] == 0.5
  assert found.counts["blimp"] == 3
  blimp_file(tmp_path, pairs[:1])
  one = Scores.of(some)
  blimp(some, tmp_path, None, one)
  name = "log_likelihood" if arm == "causal" else "pseudo_log_likelihood"
  good, bad = getattr(minimal_pairs, name)(some, framed(some, list(pairs[0])))
  assert one.metrics["blimp"] == float(good > bad)


def test_sentences_that_are_too_long_for_the_model_are_left_out_and_counted(tmp_path):
  base = trained("base")
  blimp_file(tmp_path, [(f"{A} {B}", f"{B} {A}"), (f"{A} " * 40, A)])
  found = Scores.of(base)
  blimp(base, tmp_path, None, found)
  assert found.counts["blimp"] == 1
  assert found.notes == ["1 BLiMP pairs are longer than its rows and were left out"]
  blimp_file(tmp_path, [(f"{A} {B}", f"{B} {A}")])
  alone = Scores.of(base)
  blimp(base, tmp_path, None, alone)
  assert alone.sets == found.sets  # of the texts that were measured
  blimp_file(tmp_path, [(f"{A} {B}", f"{B} {B}")])
  other = Scores.of(base)
  blimp(base, tmp_path, None, other)
  assert other.sets != found.sets


def test_files_of_another_kind_are_refused_with_their_line(tmp_path):
  (tmp_path / "x.jsonl").write_text('{"sentence_good": "a", "sentence_bad": "b"}\n{"good": 1}\n')
  with pytest.raises(UserError, match="line 2: expected an object with sentence_good"):
    read_minimal_pairs(tmp_path / "x.jsonl")
  with pytest.raises(UserError, match="not a folder with"):
    blimp(trained("base"), tmp_path / "none", None, Scores.of(trained("base")))


def test_the_published_pairs_are_read(shared_data):
  folder = shared_data("blimp")
  read = {file.stem: read_minimal_pairs(file) for file in folder.glob("*.jsonl")}
  assert {len(pairs) for pairs in read.values()} == {1000}
  assert read["anaphor_gender_agreement"][0] == (
    "Katherine can't help herself.",
    "Katherine can't help himself.",
  )
