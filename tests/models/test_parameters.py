"""Every parameter of every model has a row in the table, and every reader finds it."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from plm_jax.models.albert import Albert
from plm_jax.models.bart import Bart, MBart
from plm_jax.models.bert import Bert
from plm_jax.models.bilstm import BiLstm
from plm_jax.models.decoder import Decoder
from plm_jax.models.decoding_layout import in_dtype
from plm_jax.models.distilbert import DistilBert, Distilled
from plm_jax.models.electra import Electra
from plm_jax.models.elmo import Elmo
from plm_jax.models.glove import Glove
from plm_jax.models.gpt import Gpt1, Gpt2
from plm_jax.models.layers import Embedding, LayerNorm, Linear, normal_kernels, scaled_kernels
from plm_jax.models.llama import Llama
from plm_jax.models.lstm import Gru, Lstm, Rnn
from plm_jax.models.nnlm import Nnlm
from plm_jax.models.parameters import (
  ROLES,
  Role,
  head_patterns,
  path_name,
  role,
  roles_of,
  stacked_axes,
  with_roles,
)
from plm_jax.models.recurrent import LSTM
from plm_jax.models.roberta import Roberta
from plm_jax.models.t5 import T5, T5v11
from plm_jax.models.vaswani import Transformer
from plm_jax.models.word_vectors import WordVectors
from plm_jax.optim.adafactor import scale_by_factored_rms, scale_by_sizes
from plm_jax.optim.adamw import AdamW, is_decayed, layer_rates, scale_by_trust_ratio
from plm_jax.sharding import MeshShape, kept_whole, parameter_shardings

SIZES = {"vocab_size": 20, "layers": 2, "width": 12, "heads": 3}
ROWS = {**SIZES, "positions": 8}
FOUR = {**ROWS, "layers": 4}
TUNED = {"classes": 3, "token_classes": 5, "span": 0, "pair_classes": 3}
OF_ENCODER = {"mlm": 0, "nsp": 0, "sop": 0, "rtd": 0, **TUNED}
OF_DECODER = {"lm": 0, **TUNED}
STATIC = ("word2vec", "fasttext", "glove")
OF_WORDS = {"classes": 3, "token_classes": 5}
OF_ELMO = {"bilm": 0, "classes": 3, "token_classes": 5, "span": 0}
SMALL_ELMO = {"width": 6, "cell": 6, "character_width": 6, "filters": ((8, 6),), "longest": 8}
OF_ELECTRA = {"mlm": 0, "rtd": 0, "tokens": 0, "copy": 0}

FAMILIES = {
  "bert": (Bert(**ROWS), OF_ENCODER),
  "bert_bilstm": (Bert(**ROWS, classifier="bilstm"), OF_ENCODER),
  "bert_untied": (Bert(**ROWS, tied=False, embedding=6), OF_ENCODER),
  "roberta": (Roberta(**ROWS), OF_ENCODER),
  "word2vec": (WordVectors(vocab_size=20, width=12), OF_WORDS),
  "fasttext": (WordVectors(vocab_size=20, width=12, buckets=8), OF_WORDS),
  "glove": (Glove(vocab_size=20, width=12), OF_WORDS),
  "distilbert": (DistilBert(**ROWS), OF_ENCODER),
  "albert": (Albert(**ROWS, embedding=6), OF_ENCODER),
  "albert_groups": (Albert(**FOUR, embedding=6, groups=2), OF_ENCODER),
  "albert_attention": (Albert(**FOUR, sharing="attention", groups=2, embedding=6), OF_ENCODER),
  "albert_inner": (Albert(**FOUR, groups=2, inner_layers=3, embedding=6), OF_ENCODER),
  "electra": (Electra(**ROWS, embedding=6), OF_ELECTRA),
  "electra_shallow": (Electra(**FOUR, embedding=6, generator_layers=0.5), OF_ELECTRA),
  "distilled": (Distilled(**ROWS, teacher="runs/bert", teacher_model=Bert(**ROWS)), {"mlm": 0}),
  "gpt1": (Gpt1(**ROWS), OF_DECODER),
  "gpt2": (Gpt2(**ROWS), OF_DECODER),
  "gpt2_untied": (Gpt2(**ROWS, tied=False), OF_DECODER),
  "llama": (Llama(**ROWS, kv_heads=1), OF_DECODER),
  "t5": (T5(**SIZES, head_width=4), OF_DECODER),
  "t5v11": (T5v11(**SIZES, head_width=4), OF_DECODER),
  "t5v11_deep_decoder": (T5v11(**SIZES, head_width=4, decoder_layers=4), OF_DECODER),
  "t5_shared": (T5(**SIZES, head_width=4, arrangement="shared"), OF_DECODER),
  "t5_prefix": (T5(**SIZES, head_width=4, arrangement="prefix"), OF_DECODER),
  "t5_causal": (T5(**SIZES, head_width=4, arrangement="causal"), OF_DECODER),
  "t5_encoder": (T5(**SIZES, head_width=4, arrangement="encoder"), TUNED),
  "bart": (Bart(**ROWS), OF_DECODER),
  "mbart": (MBart(**ROWS), OF_DECODER),
  "lstm": (Lstm(layers=2, width=12, vocab_size=20), OF_DECODER),
  "gru": (Gru(layers=2, width=12, vocab_size=20), OF_DECODER),
  "rnn": (Rnn(layers=2, width=12, vocab_size=20), OF_DECODER),
  "elmo": (Elmo(**SMALL_ELMO, reader=6, vocab_size=20), OF_ELMO),
  "nnlm": (Nnlm(order=4, features=4, hidden=12, direct=False, vocab_size=20), OF_DECODER),
  "bilstm": (BiLstm(layers=2, width=12, embedding=6, vocab_size=20), TUNED),
  "vaswani": (Transformer(**ROWS), OF_DECODER),
  "vaswani_shared": (Transformer(**ROWS, arrangement="shared"), OF_DECODER),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def parameters(family):
  config, heads = FAMILIES[family]
  return jax.eval_shape(lambda key: config.init(key, heads), jax.random.key(0))


def zeros(params):
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)


# Which sizes an axis may have, in the families above.
OF_AXIS = {
  "vocab": {20},
  "width": {12, 6, 4},  # of the layers, of factorised tables, of ELECTRA's generator
  "norm": {12, 6, 4},
  "features": {12, 6, 36},  # of the vectors of two texts
  "heads": {3, 1},  # all, and LLaMA's of keys
  "head_width": {4},
  "feed_forward": {48, 16, 256, 1024, 2048},  # of ELECTRA's generator, LLaMA's least, T5's
  "positions": {8, 10, 32},  # BART's first two; T5's buckets
  "segments": {1, 2},
  "classes": {1, 2, 3, 5, 262},  # ELMo's characters
  "layers": {3, 1},  # the weights of a mix, and gamma
  "gates": {4, 3, 1},  # of LSTM, GRU and RNN
}


@every_family
def test_every_parameter_has_a_row_of_its_kind_whose_axes_have_its_sizes(family):
  for path, row, leaf in with_roles(parameters(family)):
    stacked = stacked_axes(path, row, leaf.ndim)
    inner = "inner" in path.split("/")
    assert stacked == ("blocks" in path.split("/")) + inner, path
    for axis, size in zip(row.axes, leaf.shape[stacked:], strict=True):
      assert size in OF_AXIS[axis], (path, axis)
    assert row.kind == path.split("/")[-1], path


def test_every_row_names_the_kind_that_its_path_ends_with():
  assert {path: row.kind for path, row in ROLES.items()} == {p: p.split("/")[-1] for p in ROLES}


# Layers that have no bias in any model.
UNREAD = {
  "bilstm/forward/recurrent/bias",
  "bilstm/backward/recurrent/bias",
  "feed_forward/gate/bias",
}


def test_every_row_is_that_of_a_parameter():
  read = {path for family in FAMILIES for path, _, _ in with_roles(parameters(family))}
  unread = {end for end in ROLES if not any(f"/{path}".endswith(f"/{end}") for path in read)}
  assert unread == UNREAD


@every_family
def test_a_row_contracts_the_axes_that_the_layer_contracts(family):
  is_layer = lambda node: isinstance(node, Linear | Embedding)  # noqa: E731
  layers = jax.tree_util.tree_leaves_with_path(parameters(family), is_leaf=is_layer)
  linear, roles = 0, roles_of(parameters(family))
  for key_path, layer in layers:
    place = jax.tree_util.keystr(key_path, simple=True, separator="/")
    if isinstance(layer, Linear):
      row, linear = role(f"{place}/kernel", roles), linear + 1
      assert (row.kind, row.inputs) == ("kernel", layer.axes), place
    elif isinstance(layer, Embedding):
      row = role(f"{place}/table", roles)
      assert (row.kind, row.inputs) == ("table", 1), place
  # Static vectors have two heads alone; the NNLM one layer and three heads.
  assert linear >= (2 if family in STATIC else 4 if family == "nnlm" else 5)


@every_family
def test_kernels_and_tables_are_decayed_and_factored_and_nothing_else_is(family):
  params = parameters(family)
  factored = jax.eval_shape(scale_by_factored_rms(0.8, 1).init, params)
  paths = {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(factored.v_row)}
  decayed = jax.tree.leaves(is_decayed(params))
  for (path, _, _), flag in zip(with_roles(params), decayed, strict=True):
    assert flag == (path in paths) == (path.split("/")[-1] in ("kernel", "table")), path


# --- layer_decay ---------------------------------------------------------------------------------

TWO = [1 / 8, 1 / 4]  # of two layers at a decay of 1/2
AT_END = dict.fromkeys(("classes", "token_classes", "span", "pair_classes", "pooler"), 1)
ENCODER = {"embed": 1 / 16, "blocks": TWO, "mlm": 1, "nsp": 1, "sop": 1, "rtd": 1, **AT_END}
SHARED = ENCODER | {"embed": 1 / 8, "blocks": [1 / 4]}  # one layer
DECODER = {"token": 1 / 16, "position": 1 / 16, "blocks": TWO, "norm": 1, **AT_END}
GPT = {path: rate for path, rate in DECODER.items() if path != "pooler"}
T5_STACK = {"bias/relative/table": 1 / 16, "blocks": TWO, "norm": 1}
BART_STACK = {"position": 1 / 16, "embed_norm": 1 / 16, "blocks": TWO}
TEACHER = {"embed": 1 / 16, "blocks": TWO, "mlm": 1}


def without(rates, *paths):
  return {path: rate for path, rate in rates.items() if path not in paths}


def under(place, rates):
  return {f"{place}_stack/{path}": rate for path, rate in rates.items()}


def two_stacks(stack):
  return {"token": 1 / 16, **under("encoder", stack), **under("decoder", stack), **AT_END}


RATES = {
  "bert": ENCODER,
  "bert_bilstm": ENCODER | {"bilstm": 1},
  "bert_untied": ENCODER,
  "roberta": ENCODER,
  "distilbert": ENCODER,
  "albert": SHARED,
  "albert_groups": ENCODER,
  "albert_attention": without(ENCODER, "blocks")
  | {
    "embed": 1 / 64,
    "blocks/attention": [1 / 16, 1 / 4],  # read last by layers 1 and 3 of 0..3
    "blocks/attention_norm": [1 / 16, 1 / 4],
    "blocks/feed_forward": [1 / 32, 1 / 16, 1 / 8, 1 / 4],
    "blocks/feed_forward_norm": [1 / 32, 1 / 16, 1 / 8, 1 / 4],
  },
  "albert_inner": ENCODER,
  "electra": {
    "discriminator/embed": 1 / 16,
    "discriminator/blocks": TWO,
    "discriminator/mlm": 1,
    "generator/project": 1 / 16,
    "generator/blocks": TWO,
    "generator/mlm": 1,
    "rtd": 1,
    "copying": 1,
  },
  "electra_shallow": {
    "discriminator/embed": 1 / 64,
    "discriminator/blocks": [1 / 32, 1 / 16, 1 / 8, 1 / 4],
    "discriminator/mlm": 1,
    "generator/project": 1 / 64,
    "generator/blocks": [1 / 32, 1 / 16],
    "generator/mlm": 1,
    "rtd": 1,
    "copying": 1,
  },
  "distilled": {
    f"{who}/{path}": rate for who in ("student", "teacher") for path, rate in TEACHER.items()
  },
  "gpt1": without(GPT, "norm"),
  "gpt2": GPT,
  "gpt2_untied": GPT | {"lm": 1},
  "llama": without(GPT, "position") | {"lm": 1},
  **dict.fromkeys(("lstm", "gru", "rnn"), without(GPT, "position", "norm", "pooler") | {"lm": 1}),
  "elmo": {
    **{"characters": 0, "tokens": 1 / 16},  # characters are whole numbers and not trained
    **{f"{side}/{n}": rate for side in ("forward", "backward") for n, rate in enumerate(TWO)},
    **{"mix": 1, "reader": 1, "bilm": 1, **without(AT_END, "pooler", "pair_classes")},
  },
  "nnlm": {"token": 1 / 8, "hidden": 1 / 4, "lm": 1, **without(AT_END, "pooler")},
  "t5": two_stacks(T5_STACK),
  "t5v11": two_stacks(T5_STACK) | {"lm": 1},
  "t5v11_deep_decoder": {
    "token": 1 / 64,
    **under("encoder", T5_STACK | {"bias/relative/table": 1 / 64, "blocks": [1 / 32, 1 / 16]}),
    **under("decoder", T5_STACK | {"bias/relative/table": 1 / 64}),
    "decoder_stack/blocks": [1 / 32, 1 / 16, 1 / 8, 1 / 4],
    "lm": 1,
    **AT_END,
  },
  "t5_shared": without(two_stacks(T5_STACK), "encoder_stack/blocks"),
  "t5_prefix": {"token": 1 / 16, **{f"stack/{p}": r for p, r in T5_STACK.items()}, **AT_END},
  "t5_causal": {"token": 1 / 16, **{f"stack/{p}": r for p, r in T5_STACK.items()}, **AT_END},
  "t5_encoder": {"token": 1 / 16, **under("encoder", T5_STACK), **AT_END},
  "bart": two_stacks(BART_STACK),
  "mbart": two_stacks(BART_STACK | {"norm": 1}),
  **{
    family: {"classes": 1, "token_classes": 1, **dict.fromkeys(tables, 1 / 4)} | more
    for family, tables, more in (
      ("word2vec", ("token",), {"output": 1}),
      ("fasttext", ("token", "subword"), {"output": 1}),
      ("glove", ("token", "context", "token_bias", "context_bias"), {}),
    )
  },
  "bilstm": {"token": 1 / 16, "layers/0": 1 / 8, "layers/1": 1 / 4, **without(AT_END, "pooler")},
  "vaswani": two_stacks({"blocks": TWO}),
  "vaswani_shared": without(two_stacks({"blocks": TWO}), "encoder_stack/blocks"),
}


@pytest.mark.slow
@every_family
def test_rates_double_from_the_embeddings_over_each_layer_and_are_one_at_the_heads(family):
  expected, met = RATES[family], set()
  for path, _, rates in with_roles(layer_rates(zeros(parameters(family)), 0.5)):
    (place,) = [p for p in expected if f"{path}/".startswith(f"{p}/")]
    np.testing.assert_allclose(rates.ravel(), expected[place], err_msg=path)
    met.add(place)
  assert met == set(expected)


# --- heads ---------------------------------------------------------------------------------------


def test_heads_come_and_go_and_a_final_norm_does_not():
  names = "lm mlm nsp sop rtd pooler copying bilstm classes token_classes span pair_classes"
  assert set(head_patterns()) == {f"{name}/*" for name in names.split()}


# --- a model that no other file knows ------------------------------------------------------------


class RecurrentModel(nnx.Module):
  """A model of layers in a list, whose parameters are named nowhere but here."""

  ROLES: ClassVar = {
    "input/kernel": Role(("width", "gates", "features"), "kernel", "layer"),
    "input/bias": Role(("gates", "features"), "bias", "layer"),
    "recurrent/kernel": Role(("features", "gates", "features"), "kernel", "layer"),
    "output/kernel": Role(("width", "vocab"), "kernel", "head"),
  }

  def __init__(self, key):
    self.token = Embedding(key, 20, 12)
    self.blocks = nnx.List([LSTM(jax.random.fold_in(key, layer), 12, 12) for layer in range(2)])
    self.norm = LayerNorm(12, 1e-5)
    self.output = Linear(key, (12,), (20,), bias=False)


def test_a_new_model_brings_its_rows_and_needs_no_edit_elsewhere():
  params = RecurrentModel(jax.random.key(0))
  rates = {path: rate for path, _, rate in with_roles(layer_rates(params, 0.5))}
  expected = {"token": 1 / 16, "blocks/0": 1 / 8, "blocks/1": 1 / 4, "norm": 1, "output": 1}
  for path, rate in rates.items():
    assert rate == next(r for place, r in expected.items() if path.startswith(place)), path
  state = {"params": params, "opt_state": jax.eval_shape(AdamW().transform(9).init, params)}
  shardings = parameter_shardings(state, MeshShape(data=1, fsdp=2, tensor=4).build())
  specs = {path_name(p): s.spec for p, s in jax.tree_util.tree_leaves_with_path(shardings)}
  for place in ("params", "opt_state/1/mu", "opt_state/1/nu"):
    assert specs[f"{place}/output/kernel"] == PartitionSpec("fsdp", "tensor")
  factored = scale_by_factored_rms(0.8, 1).init(params)
  assert factored.v_col.blocks[0].recurrent.kernel.shape == (4 * 12,)
  assert "output/*" in head_patterns(roles_of(params)) and "output/*" not in head_patterns()


def updated(transform):
  return lambda tree: transform.update(tree, transform.init(tree), tree)


READERS = {
  "shardings": lambda tree: parameter_shardings(tree, MeshShape().build()),
  "kept_whole": lambda tree: kept_whole(tree, MeshShape().build()),
  "layer_rates": lambda tree: layer_rates(tree, 0.5),
  "decay": is_decayed,
  "trust_ratio": updated(scale_by_trust_ratio()),
  "factored": updated(scale_by_factored_rms(0.8, 1)),
  "sizes": updated(scale_by_sizes(1.0)),
  "scaled_kernels": lambda tree: scaled_kernels(tree, 2.0),
  "normal_kernels": lambda tree: normal_kernels(tree, jax.random.key(0), 0.02),
  "in_dtype": lambda tree: in_dtype(tree, jnp.bfloat16),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_parameter_without_a_row_is_refused_by_every_reader(reader):
  READERS[reader]({"token": {"table": jnp.ones((2, 2))}})
  with pytest.raises(LookupError, match=r"gru/reset/kernel has no row .*add one to ROLES in plm"):
    READERS[reader]({"gru": {"reset": {"kernel": jnp.ones((2, 2))}}})


def test_only_queries_are_divided_where_scores_are_and_only_what_ends_in_the_stream_starts_small():
  plain = Decoder(**ROWS)
  key = jax.random.key(0)
  model = plain.init(key, {})
  small = dataclasses.replace(plain, residual_init=True).init(key, {})
  scaled = dataclasses.replace(plain, inverse_layer_scale=True).init(key, {}).scaled_blocks()
  halves = {}
  for (path, _, leaf), other in zip(with_roles(model), jax.tree.leaves(small), strict=True):
    halves[path] = not np.array_equal(leaf, other)
    np.testing.assert_allclose(other, leaf / 2 if halves[path] else leaf, rtol=1e-6)
  ends = ("attention/output/kernel", "feed_forward/down/kernel")
  assert {path for path, half in halves.items() if half} == {f"blocks/{end}" for end in ends}
  for (path, _, leaf), other in zip(with_roles(model.blocks), jax.tree.leaves(scaled), strict=True):
    same = path not in ("attention/query/kernel", "attention/query/bias")
    np.testing.assert_array_equal(other[0], leaf[0])
    np.testing.assert_array_equal(other[1], leaf[1] if same else leaf[1] / 2, err_msg=path)
