"""Batches of labelled rows are functions of the step; every row counts once."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from plm_jax.models.bart import Bart, MBart
from plm_jax.models.bert import Bert
from plm_jax.models.gpt import Gpt1, Gpt2
from plm_jax.models.roberta import Roberta
from plm_jax.models.t5 import T5
from plm_jax.models.vaswani import Transformer
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.examples import Example, Examples
from plm_jax.tasks.rows import LabelledBatches, cut_sizes
from tests.tasks.conftest import examples_of

TOKENIZER = WordPiece(vocab_size=40).train(iter(["a b c d"] * 9))
VOCAB = TOKENIZER.vocab
BERT = Bert(vocab_size=40)


def batches(count=10, global_batch=4, **settings):
  ids = [np.arange(5, 6 + i % 7, dtype=np.int32) for i in range(count)]
  rows = rows_of(examples_of(ids, np.arange(count)), VOCAB, BERT, 6)
  return LabelledBatches(rows, seed=3, global_batch=global_batch, **settings)


def rows_of(examples, vocab, model, length=6):
  tokenizer = copy.copy(TOKENIZER)
  tokenizer.vocab = vocab
  return Classify(length=length).rows(examples, model, tokenizer)


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_batch_is_a_function_of_its_step_in_any_process():
  ours, theirs = batches(), pickle.loads(pickle.dumps(batches()))
  later = ours(17)
  for step in (3, 17, 0):
    ours(step)
  assert same(later, theirs(17))
  assert not same(ours(0), ours(1))


def test_an_epoch_has_every_example_once_and_an_order_of_its_own():
  made = batches()
  labels = np.concatenate([made(step)["label"] for step in range(10)]).reshape(4, 10)
  assert (np.sort(labels, axis=1) == np.arange(10)).all()
  assert len({tuple(epoch) for epoch in labels}) == 4


def test_a_batch_larger_than_the_data_goes_through_it_again():
  assert np.bincount(batches(3, 8)(0)["label"]).sum() == 8


def test_processes_make_the_same_global_batch_together():
  whole = batches(10, 8)(2)
  parts = [batches(10, 8, process_index=i, process_count=2)(2) for i in (0, 1)]
  joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
  assert same(whole, joined)


def test_a_published_vocabulary_of_two_tokens_for_everything_frames_rows_too():
  """GPT-2 has <|endoftext|> alone, which ends a row and fills it up."""
  vocab = dataclasses.replace(VOCAB, cls=None, sep=None, pad=None, bos=1, eos=1)
  made = rows_of(examples_of([[5, 6]]), vocab, BERT)
  assert made.tokens["input_ids"].tolist() == [[1, 5, 6, 1, 1, 1]]
  assert made.values["length"].tolist() == [4]


@pytest.mark.parametrize(
  ("model", "source", "decoder", "end"),
  [
    (T5(vocab_size=40), [5, 6, 3], [0, 5, 6], 3),  # "text </s>", behind padding
    (Bart(vocab_size=40), [2, 5, 6, 3], [3, 2, 5, 6], 4),  # "<s> text </s>", behind </s>
    (Transformer(vocab_size=40), [2, 5, 6, 3], [2, 2, 5, 6], 4),  # behind <s>
    (MBart(vocab_size=40), [5, 6, 3, 9], [9, 5, 6, 3], 3),  # "text </s> en_XX", behind en_XX
  ],
)
def test_an_encoder_decoder_reads_a_text_twice_and_its_classes_at_the_end(
  model, source, decoder, end
):
  roles = {"pad": 0, "bos": 2, "eos": 3, "cls": None, "sep": None, "languages": {"en_XX": 9}}
  vocab = dataclasses.replace(VOCAB, **roles)
  rows = rows_of(examples_of([[5, 6], range(5, 20)]), vocab, model)
  made = LabelledBatches(rows, seed=3, global_batch=2)
  first, cut = (
    {name: array[row].tolist() for name, array in made.evaluation()[0].items()} for row in (0, 1)
  )
  padding = [0] * (6 - len(source))
  assert first["input_ids"] == source + padding and first["length"] == len(source)
  assert first["decoder_input_ids"] == decoder + padding and first["decoder_length"] == end
  assert cut["length"] == 6 and 3 in cut["input_ids"]  # a long text keeps its end
  assert cut["input_ids"][cut["decoder_length"] - 1] == 3


def test_a_decoder_reads_a_text_of_a_vocabulary_without_begin_and_end():
  """GPT-1's."""
  vocab = dataclasses.replace(VOCAB, cls=None, sep=None, bos=None, eos=None, pad=None)
  made = rows_of(examples_of([[5, 6], range(5, 20)]), vocab, Gpt1(vocab_size=40))
  assert made.tokens["input_ids"].tolist() == [[5, 6, 0, 0, 0, 0], [5, 6, 7, 8, 9, 10]]
  assert made.values["length"].tolist() == [2, 6]


def test_a_tokenizer_without_an_end_makes_no_sources():
  vocab = dataclasses.replace(VOCAB, cls=None, sep=None, bos=None, eos=None)
  with pytest.raises(UserError, match=r"model\.frame=t5 needs a tokenizer with"):
    rows_of(examples_of([[5, 6]]), vocab, T5(vocab_size=40))


def test_a_row_is_cls_text_sep_and_padding():
  made = batches(7)
  row = made.rows.tokens["input_ids"][1]
  assert row.tolist() == [VOCAB.cls, 5, 6, VOCAB.sep, VOCAB.pad, VOCAB.pad]
  assert made.rows.values["length"][1] == 4
  cut = made.rows.tokens["input_ids"][6]
  assert cut.tolist() == [VOCAB.cls, 5, 6, 7, 8, VOCAB.sep]


def test_evaluation_has_every_row_once_in_order_and_fills_up_with_rows_of_no_weight():
  made = batches(10, 4).evaluation()
  weight = np.concatenate([batch["row_weight"] for batch in made])
  labels = np.concatenate([batch["label"] for batch in made])
  assert {batch["input_ids"].shape for batch in made} == {(4, 6)}
  assert labels[weight > 0].tolist() == list(range(10))
  assert weight.sum() == 10


def test_a_tokenizer_without_cls_is_refused():
  with pytest.raises(UserError, match="the begin and the end of a text"):
    rows_of(examples_of([]), dataclasses.replace(VOCAB, cls=None), BERT)


# --- pairs ----------------------------------------------------------------------------------------

FAIRSEQ = dataclasses.replace(VOCAB, pad=0, cls=2, bos=2, sep=3, eos=3)
T5_VOCAB = dataclasses.replace(VOCAB, pad=0, cls=None, sep=None, bos=None, eos=3)


@pytest.mark.parametrize(
  ("model", "vocab", "row", "segments"),
  [
    (BERT, dataclasses.replace(VOCAB, cls=2, sep=3), [2, 5, 6, 3, 7, 3], [0, 0, 0, 0, 1, 1]),
    (Roberta(vocab_size=40), FAIRSEQ, [2, 5, 6, 3, 3, 7, 3], [0, 0, 0, 0, 0, 1, 1]),
    (Bart(vocab_size=40), FAIRSEQ, [2, 5, 6, 3, 3, 7, 3], [0, 0, 0, 0, 0, 1, 1]),
    (T5(vocab_size=40), T5_VOCAB, [5, 6, 3, 7, 3], [0, 0, 0, 1, 1]),
    (Gpt2(vocab_size=40), dataclasses.replace(T5_VOCAB, bos=1, eos=1), [1, 5, 6, 1, 7, 1], None),
  ],
)
def test_a_pair_has_the_special_tokens_of_its_family(model, vocab, row, segments):
  pair = Examples([Example(("x", "y"))], [(np.array([5, 6]), np.array([7]))])
  made = rows_of(pair, vocab, model, 9)
  assert made.tokens["input_ids"][0, : made.values["length"][0]].tolist() == row
  if segments:
    assert made.tokens["segment_ids"][0, : len(row)].tolist() == segments
  at = made.text[0] >= 0
  assert list(zip(made.text[0][at], made.piece[0][at])) == [(0, 0), (0, 1), (1, 0)]


def test_gpt_1_has_no_special_token_and_separates_a_pair_by_a_delimiter():
  vocab = dataclasses.replace(VOCAB, cls=None, sep=None, bos=None, eos=None)
  pair = Examples([Example(("x", "y"))], [(np.array([5, 6]), np.array([7]))])
  made = rows_of(pair, vocab, Gpt1(vocab_size=40), 9)
  delimiter = TOKENIZER.encode("$").tolist()
  assert delimiter
  assert made.tokens["input_ids"][0, : made.values["length"][0]].tolist() == [5, 6, *delimiter, 7]


@pytest.mark.parametrize(
  ("sizes", "room", "kept"),
  [
    ([10, 4], 9, [5, 4]),
    ([4, 10], 9, [4, 5]),
    ([10, 10], 9, [5, 4]),
    ([3, 3], 9, [3, 3]),
    ([20], 9, [9]),
    ([5, 1], 0, [0, 0]),
  ],
)
def test_the_longest_text_of_a_row_is_cut_first(sizes, room, kept):
  assert cut_sizes(sizes, room) == kept


def test_rows_of_an_example_stay_together_in_every_batch():
  rows = dataclasses.replace(batches(12).rows, together=3)
  made = LabelledBatches(rows, seed=3, global_batch=6)
  labels = np.concatenate([made(step)["label"] for step in range(2)])
  assert sorted(labels) == list(range(12)) and list(labels) != list(range(12))
  assert (labels.reshape(-1, 3) == labels[::3, None] + np.arange(3)).all()
  with pytest.raises(UserError, match="multiple of the 3 rows of an example"):
    LabelledBatches(rows, seed=3, global_batch=4)


def test_batches_for_predictions_have_every_row_once_in_few_shapes():
  rng = np.random.default_rng(0)
  ids = [rng.integers(5, 40, size) for size in rng.integers(1, 70, 50)]
  rows = rows_of(examples_of(ids, np.arange(50)), VOCAB, BERT, 50)
  seen, shapes = [], set()
  for numbers, batch in rows.by_length(8):
    seen += numbers.tolist()
    shapes.add(batch["input_ids"].shape)
    assert batch["label"][: len(numbers)].tolist() == numbers.tolist()
    assert batch["row_weight"].sum() == len(numbers)
    assert (batch["length"] <= batch["input_ids"].shape[1]).all()
  assert sorted(seen) == list(range(50))
  assert shapes <= {(8, 16), (8, 32), (8, 48), (8, 50)}


def test_many_batches_for_predictions_have_less_padding():
  length = np.random.default_rng(0).integers(1, 70, 300)
  rows = rows_of(examples_of([np.full(n, 7) for n in length], np.arange(300)), VOCAB, BERT, 72)
  made = [batch for _, batch in rows.by_length(8)]
  widths = {batch["input_ids"].shape[1] for batch in made}
  assert widths <= {16, 20, 24, 28, 32, 40, 48, 56, 64, 72}
  assert all((batch["length"] <= batch["input_ids"].shape[1]).all() for batch in made)
  assert sum(b["input_ids"].size for b in made) < 1.15 * sum(b["length"].sum() for b in made)


def test_training_batches_by_length_have_every_row_once_an_epoch_in_few_shapes():
  rng = np.random.default_rng(0)
  ids = [rng.integers(5, 40, size) for size in rng.integers(1, 70, 96)]
  rows = rows_of(examples_of(ids, np.arange(96)), VOCAB, BERT, 50)
  made = LabelledBatches(rows, seed=3, global_batch=8, by_length=True)
  epochs = [[made(step) for step in range(12 * epoch, 12 * epoch + 12)] for epoch in (0, 1)]
  for batches_ in epochs:
    assert sorted(np.concatenate([b["label"] for b in batches_])) == list(range(96))
    for batch in batches_:
      width = batch["input_ids"].shape[1]
      assert width in (16, 32, 48, 50) and batch["length"].max() <= width
      assert width == 16 or batch["length"].max() > width / 2
  assert same(made(5), LabelledBatches(rows, seed=3, global_batch=8, by_length=True)(5))
  assert not same(made(0), made(12))
  used = sum(b["input_ids"].size for b in epochs[0])
  assert used < 0.85 * 96 * 50
  parts = [
    LabelledBatches(rows, seed=3, global_batch=8, process_index=i, process_count=2, by_length=True)(
      2
    )
    for i in (0, 1)
  ]
  assert same(made(2), {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def test_rows_of_an_example_stay_together_by_length_too():
  rows = dataclasses.replace(batches(12).rows, together=3)
  made = LabelledBatches(rows, seed=3, global_batch=6, by_length=True)
  labels = np.concatenate([made(step)["label"] for step in range(2)])
  assert sorted(labels) == list(range(12))
  assert (labels.reshape(-1, 3) == labels[::3, None] + np.arange(3)).all()
