"""Facts that popular explanations get wrong and that no other test asserts.

docs/misconceptions.md lists all of them with their tests.
"""

import dataclasses
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import bert, gpt, roberta, t5
from plm_jax.errors import UserError
from plm_jax.experiment import Tuning
from plm_jax.models import albert
from plm_jax.models.albert import Albert
from plm_jax.models.bart import Bart, MBart
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.distilbert import DistilBert
from plm_jax.models.gpt import Gpt1, Gpt2
from plm_jax.models.layers import LayerNorm
from plm_jax.models.llama import Llama
from plm_jax.models.parameters import named
from plm_jax.models.roberta import Roberta
from plm_jax.models.t5 import T5, T5v11
from plm_jax.models.vaswani import Transformer

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(0)
FLOAT32 = Compute(dtype="float32", layers="unroll")
TOY = {"vocab_size": 30, "layers": 2, "width": 16, "heads": 2}


def shapes(config, **heads):
  """Path -> shape of the parameters; nothing is computed."""
  tree = jax.eval_shape(lambda key: config.init(key, heads), KEY)
  return {path: array.shape for path, array in named(tree)}


def count(config):
  return sum(math.prod(shape) for shape in shapes(config).values())


def has(config, part):
  return any(part in path for path in shapes(config))


def row(ids):
  """A batch of one row of one segment."""
  ids_BT = np.array([ids], np.int32)
  length_B = np.array([len(ids_BT[0])], np.int32)
  return {"input_ids": ids_BT, "segment_ids": np.zeros_like(ids_BT), "length": length_B}


def work(config):
  """Floating-point operations of the states of one row, as XLA counts them; nothing is compiled."""
  params = jax.eval_shape(lambda key: config.init(key, {}), KEY)
  forward = jax.jit(lambda params, batch: params(batch, FLOAT32))
  return forward.lower(params, row(range(8))).cost_analysis()["flops"]


def test_albert_shares_parameters_and_saves_no_work():
  small, deep = (Albert(**TOY | {"layers": layers}) for layers in (2, 6))
  assert count(small) == count(deep)
  separate = dataclasses.replace(deep, sharing="none")
  assert count(separate) > count(deep)
  assert work(deep) == pytest.approx(work(separate), rel=0.01)
  assert work(deep) > 2 * work(small)


def test_albert_xxlarge_has_fewer_parameters_than_bert_large_and_more_work():
  large = Bert(layers=24, width=1024, heads=16, vocab_size=30_000)
  xxlarge = dataclasses.replace(albert.XXLARGE, vocab_size=30_000)
  assert count(xxlarge) < count(large)
  assert work(xxlarge) > 7 * work(large)


def test_bert_grows_linearly_with_its_longest_row():
  counts = [count(Bert(**TOY, positions=positions)) for positions in (64, 128, 256)]
  assert np.diff(counts).tolist() == [64 * 16, 128 * 16]


def test_bert_learns_its_positions_and_the_transformer_computes_them():
  assert shapes(Bert(**TOY))["embed/position/table"] == (512, 16)
  assert not has(Transformer(**TOY), "position")


def test_t5_has_no_position_of_a_token_and_shares_its_biases_by_distance():
  paths = [path for path in shapes(T5(**TOY)) if "position" in path or "relative" in path]
  assert not [path for path in paths if "position/table" in path]
  biases = [path for path in shapes(T5(**TOY)) if "bias" in path]
  assert len(biases) == 2  # one table for all layers of each side; no other biases
  assert shapes(T5(**TOY)).keys() == shapes(T5(**TOY | {"layers": 5})).keys()


def test_only_gpt_2_and_its_successors_end_with_a_norm():
  last = [kind.__name__ for kind in (Gpt1, Bert, Gpt2, Llama) if "norm/gain" in shapes(kind(**TOY))]
  assert last == ["Gpt2", "Llama"]


def test_gates_came_with_t5_1_1_and_llama():
  assert has(T5v11(**TOY), "gate") and has(Llama(**TOY), "gate")
  assert not any(has(kind(**TOY), "gate") for kind in (Transformer, T5, Bart, Bert, Gpt2))


def test_bart_does_not_scale_its_embeddings_and_mbart_and_the_transformer_do():
  assert not Bart().embedding_scale
  assert MBart().embedding_scale and Transformer().embedding_scale


def test_distilbert_has_no_segments_and_roberta_tells_none_apart():
  assert not has(DistilBert(**TOY), "segment")
  assert shapes(Roberta(**TOY))["embed/segment/table"][0] == 1


def test_bert_writes_no_text_and_reads_no_other_text():
  assert not has(Bert(**TOY), "cross") and has(T5(**TOY), "cross")
  with pytest.raises(UserError, match="lm"):
    shapes(Bert(**TOY), lm=0)


def test_gpt_was_not_trained_on_sentence_pairs():
  assert [objective.name for objective in gpt.base().objectives] == ["clm"]
  with pytest.raises(UserError, match="nsp"):
    shapes(Gpt1(**TOY), nsp=2)


def test_roberta_reads_rows_as_long_as_bert_s():
  assert roberta.base().data.length == bert.base().data.length == 512


def test_fine_tuning_trains_all_layers_by_default():
  assert Tuning().freeze == ()


def test_without_positions_states_move_with_their_tokens():
  """They are the same rows in another order, and only their mean is the same."""
  params = Bert(**TOY).init(KEY, {})
  ids, order = np.array([7, 3, 9, 4, 8]), [3, 0, 4, 1, 2]
  nowhere = {"position_ids": np.zeros((1, 5), np.int32)}
  states = jax.jit(lambda batch: params(batch, FLOAT32))
  before_BTD, after_BTD = states(row(ids) | nowhere), states(row(ids[order]) | nowhere)
  np.testing.assert_allclose(after_BTD, before_BTD[:, order], atol=1e-5)
  assert np.abs(after_BTD - before_BTD).max() > 0.1
  np.testing.assert_allclose(after_BTD.mean(1), before_BTD.mean(1), atol=1e-5)
  assert np.abs(states(row(ids[order])) - states(row(ids))[:, order]).max() > 0.01


def test_a_gpt_reads_its_whole_prompt_at_every_step():
  params = Gpt2(**TOY, dropout=0.0).init(KEY, {})
  states = jax.jit(lambda batch: params(batch, FLOAT32))
  last_BD, other_BD = states(row([1, *range(12)]))[:, -1], states(row([29, *range(12)]))[:, -1]
  assert np.abs(last_BD - other_BD).max() > 1e-4


def test_a_layer_norm_s_gain_and_bias_decide_mean_and_variance():
  norm = LayerNorm(8, 1e-5)
  x_BD = jax.random.normal(KEY, (3, 8))
  np.testing.assert_allclose(norm(x_BD).mean(1), 0, atol=1e-6)
  norm.gain, norm.bias = norm.gain * 3, norm.bias + 2
  np.testing.assert_allclose(norm(x_BD).mean(1), 2, atol=1e-5)
  np.testing.assert_allclose(norm(x_BD).std(1), 3, rtol=1e-3)


def test_t5_1_1_is_not_t5_with_more_training():
  old, new = t5.base(), t5.v11_base()
  assert (old.model.tied, new.model.tied) == (True, False)
  assert (old.model.dropout, new.model.dropout) == (0.1, 0.0)


def test_every_test_and_file_that_the_page_names_exists():
  text = (ROOT / "docs" / "misconceptions.md").read_text()
  named_tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
  assert len(named_tests) > 15
  for file, name in named_tests:
    assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"
