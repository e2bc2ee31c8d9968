"""Batches of labelled rows are functions of the step; every row counts once."""

import dataclasses
import pickle

import numpy as np
import pytest

from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from plm_jax.models.bart import Bart, MBart
from plm_jax.models.bert import Bert
from plm_jax.models.gpt import Gpt1
from plm_jax.models.t5 import T5
from plm_jax.models.vaswani import Transformer
from plm_jax.tasks.labelled_text import Examples
from plm_jax.tasks.rows import LabelledBatches

VOCAB = WordPiece(vocab_size=40).train(iter(["a b c d"] * 9)).vocab
BERT = Bert(vocab_size=40)


def batches(count=10, global_batch=4, **settings):
  ids = [np.arange(5, 6 + i % 7, dtype=np.int32) for i in range(count)]
  examples = Examples(["x"] * count, ids, np.arange(count, dtype=np.int32), ["d"] * count)
  return LabelledBatches.of(examples, VOCAB, 6, BERT, seed=3, global_batch=global_batch, **settings)


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
  examples = Examples(["x"], [np.array([5, 6])], np.zeros(1, np.int32), ["d"])
  made = LabelledBatches.of(examples, vocab, 6, BERT, seed=3, global_batch=1)
  assert made.rows.input_ids.tolist() == [[1, 5, 6, 1, 1, 1]] and made.rows.lengths.tolist() == [4]


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
  examples = Examples(["x"] * 2, [np.array([5, 6]), np.arange(5, 20)], np.zeros(2, int), ["d"] * 2)
  made = LabelledBatches.of(examples, vocab, 6, model, seed=3, global_batch=2)
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
  examples = Examples(["x"] * 2, [np.array([5, 6]), np.arange(5, 20)], np.zeros(2, int), ["d"] * 2)
  made = LabelledBatches.of(examples, vocab, 6, Gpt1(vocab_size=40), seed=3, global_batch=2).rows
  assert made.input_ids.tolist() == [[5, 6, 0, 0, 0, 0], [5, 6, 7, 8, 9, 10]]
  assert made.lengths.tolist() == [2, 6]


def test_a_tokenizer_without_an_end_makes_no_sources():
  vocab = dataclasses.replace(VOCAB, cls=None, sep=None, bos=None, eos=None)
  examples = Examples(["x"], [np.array([5, 6])], np.zeros(1, np.int32), ["d"])
  with pytest.raises(UserError, match=r"model\.frame=t5 needs a tokenizer with"):
    LabelledBatches.of(examples, vocab, 6, T5(vocab_size=40), seed=3, global_batch=1)


def test_a_row_is_cls_text_sep_and_padding():
  made = batches(7)
  row = made.rows.input_ids[1]
  assert row.tolist() == [VOCAB.cls, 5, 6, VOCAB.sep, VOCAB.pad, VOCAB.pad]
  assert made.rows.lengths[1] == 4
  cut = made.rows.input_ids[6]
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
    LabelledBatches.of(
      Examples([], [], np.zeros(0, np.int32), []),
      VOCAB.__class__(**{**vars(VOCAB), "cls": None}),
      6,
      BERT,
      seed=0,
      global_batch=1,
    )
