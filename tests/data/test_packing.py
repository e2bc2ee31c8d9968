"""RoBERTa's formats against the rules of its paper, and against fairseq's loop over sentences."""

import dataclasses
import pickle

import numpy as np
import pytest

from plm_jax import overrides
from plm_jax.data import packing
from plm_jax.data.packing import DocSentences, FullSentences, SentencePair
from plm_jax.data.pipeline import Batches, Corpus, iterate
from plm_jax.data.segments import SegmentPair
from plm_jax.data.tables import pass_table
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.models.roberta import Roberta
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.nsp import NSP
from plm_jax.optim.adamw import AdamW
from tests.data.test_pipeline import assert_same
from tests.data.toy_store import CLS, PAD, SEP, ToyStore, random_store, toy_vocab

VOCAB = toy_vocab()
PACKED = (FullSentences(), DocSentences())


def texts_of(segments, store, length=64, seed=0, pass_=0):
  """(rows as lists of tokens without padding, the table)."""
  table = segments.table(store, length, seed, pass_)
  rows = segments.read(store, table, length, VOCAB)
  for ids, n in zip(rows["input_ids"], rows["length"], strict=True):
    assert (ids[n:] == PAD).all() and (ids[:n] != PAD).all()
  assert rows["length"].tolist() == segments.tokens(table).tolist()
  return [ids[:n].tolist() for ids, n in zip(rows["input_ids"], rows["length"])], table


def by_the_loop(store, length, crosses):
  """Rows by fairseq's `complete` or `complete_doc`, sentence by sentence; long ones are cut."""
  rows, row, room = [], [], length - 2
  for d in range(len(store.document_starts) - 1):
    if row and not crosses:
      rows, row = [*rows, row], []
    is_new = bool(row)
    for s in range(store.document_starts[d], store.document_starts[d + 1]):
      sentence = store.tokens[store.sentence_starts[s] : store.sentence_starts[s + 1]].tolist()
      for piece in (sentence[i : i + room] for i in range(0, len(sentence), room)):
        if row and len(row) + is_new + len(piece) > room:
          rows, row, is_new = [*rows, row], [], False
        row = row + [SEP] * is_new + piece
        is_new = False
  return [[CLS, *row, SEP] for row in [*rows, row] if row]


@pytest.mark.parametrize("block", [3, 50, 1 << 20])
@pytest.mark.parametrize("longest", [30, 200])
@pytest.mark.parametrize("segments", PACKED)
def test_rows_are_those_of_fairseq_s_loop(segments, longest, block, monkeypatch):
  monkeypatch.setattr(packing, "_BLOCK", block)  # sentences that are looked at at once
  store = random_store(60, longest=longest)
  texts, table = texts_of(segments, store)
  assert texts == by_the_loop(store, 64, segments.crosses)
  assert table["length"].sum() == len(store.tokens)
  assert max(map(len, texts)) <= 64


def test_full_sentences_cross_documents_with_a_separator_and_doc_sentences_never_do():
  store = ToyStore([[10, 10], [5], [20, 30, 8]])
  a, b, c = (store.tokens[i:j].tolist() for i, j in ((0, 20), (20, 25), (25, 83)))
  full, _ = texts_of(FullSentences(), store)
  assert full == [[CLS, *a, SEP, *b, SEP, *c[:20], SEP], [CLS, *c[20:], SEP]]
  doc, _ = texts_of(DocSentences(), store)
  assert doc == [[CLS, *a, SEP], [CLS, *b, SEP], [CLS, *c, SEP]]


def test_a_document_that_begins_a_row_has_no_separator_before_it():
  store = ToyStore([[62], [30, 31], [30]])
  full, _ = texts_of(FullSentences(), store)
  assert [row.count(SEP) for row in full] == [1, 1, 1]
  # 61 tokens are in the second row: a separator and one token more would fit, 30 do not.
  assert [len(row) for row in full] == [64, 63, 32]


def test_a_row_has_one_separator_for_every_document_that_begins_in_it():
  store = ToyStore([[1]] * 100)
  full, table = texts_of(FullSentences(), store)
  assert table["length"].tolist() == [31, 31, 31, 7]  # 31 tokens and 30 separators
  assert full[0][2:-1:2] == [SEP] * 30


@pytest.mark.parametrize("segments", PACKED)
def test_empty_documents_and_sentences_lose_no_token(segments):
  store = ToyStore([[0, 0], [], [5, 5, 0, 5], [70], []])
  texts, _ = texts_of(segments, store)
  words = [t for row in texts for t in row if t not in (CLS, SEP)]
  assert words == store.tokens.tolist()
  assert len(segments.table(ToyStore([[]]), 64, 0, 0)) == 0


@pytest.mark.parametrize("segments", [*PACKED, SentencePair(), SegmentPair(separators=2)])
def test_rows_have_the_names_and_types_of_segment_pairs(segments):
  store = random_store(30)
  table = segments.table(store, 64, 0, 0)
  rows = segments.read(store, table, 64, VOCAB)
  assert {k: (v.dtype, v.shape) for k, v in rows.items()} == {
    "input_ids": (np.int32, (len(table), 64)),
    "segment_ids": (np.int32, (len(table), 64)),
    "length": (np.int32, (len(table),)),
    "pair_label": (np.int32, (len(table),)),
  }


@pytest.mark.parametrize("segments", PACKED)
def test_packed_rows_are_kept_once_whatever_the_seed_and_the_pass(segments, tmp_path):
  store = random_store(20, directory=tmp_path)
  tables = [
    pass_table(store, segments, 64, seed, pass_) for seed, pass_ in ((0, 0), (0, 3), (5, 1))
  ]
  assert len({table.tobytes() for table in tables}) == 1
  assert len(list(tmp_path.iterdir())) == 1


# SENTENCE-PAIR+NSP.


def sentence_at(store, offset):
  return int(np.searchsorted(store.sentence_starts, offset, side="right")) - 1


@pytest.fixture(scope="module")
def pairs():
  store = random_store(400, most=20)
  return store, SentencePair().table(store, 64, 0, 0)


def test_label_0_is_the_next_sentence_and_label_1_comes_from_another_document(pairs):
  store, table = pairs
  for row in table:
    a, b = sentence_at(store, row["a_start"]), sentence_at(store, row["b_start"])
    documents = store.document_of(row["a_start"]), store.document_of(row["b_start"])
    if row["label"]:
      assert documents[0] != documents[1]
    else:
      assert b == a + 1 and documents[0] == documents[1]


@pytest.mark.parametrize("documents", [2, 3])
def test_of_few_documents_a_random_sentence_comes_from_one_of_the_others(documents):
  store = random_store(documents, most=40)
  for pass_ in range(5):
    for row in SentencePair().table(store, 64, 0, pass_):
      same = store.document_of(row["a_start"]) == store.document_of(row["b_start"])
      assert same == (row["label"] == 0)


def test_every_sentence_is_read_once_beside_those_that_are_drawn(pairs):
  store, table = pairs
  read = [sentence_at(store, row["a_start"]) for row in table]
  read += [sentence_at(store, row["b_start"]) for row in table if not row["label"]]
  assert sorted(read) == list(range(len(store.sentence_starts) - 1))


def test_the_coin_is_fair_where_there_is_a_next_sentence(pairs):
  store, table = pairs
  a = np.array([sentence_at(store, start) for start in table["a_start"]])
  is_last = np.isin(a + 1, store.document_starts)
  assert (table["label"][is_last] == 1).all()
  labels = table["label"][~is_last]
  assert abs(labels.mean() - 0.5) < 3 * np.sqrt(0.25 / len(labels))


def test_random_sentences_come_from_all_documents_alike(pairs):
  store, table = pairs
  drawn = [store.document_of(row["b_start"]) for row in table if row["label"]]
  counts = np.bincount(drawn, minlength=400)
  statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
  assert abs(statistic - 400) < 5 * np.sqrt(2 * 400)


def test_pairs_of_sentences_are_laid_out_with_two_separators(pairs):
  store, table = pairs
  texts, _ = texts_of(SentencePair(), store)
  for row, text in zip(table, texts, strict=True):
    a, b = (store.tokens[row[f"{x}_start"] :][: row[f"{x}_length"]].tolist() for x in "ab")
    assert text == [CLS, *a, SEP, SEP, *b, SEP]


def test_pairs_that_are_too_long_lose_the_end_of_the_longer_sentence():
  store = random_store(200, longest=90)
  whole = SentencePair().table(store, 1024, 0, 0)
  table = SentencePair().table(store, 64, 0, 0)
  assert (whole[["a_start", "b_start", "label"]] == table[["a_start", "b_start", "label"]]).all()
  assert (SentencePair().tokens(table) <= 64).all()
  for before, after in zip(whole, table, strict=True):
    a, b = int(before["a_length"]), int(before["b_length"])
    while a + b > 60:
      a, b = (a - 1, b) if a > b else (a, b - 1)
    assert (after["a_length"], after["b_length"]) == (a, b)


def test_seeds_and_passes_draw_other_pairs_and_blocks_do_not_matter(monkeypatch):
  store = random_store(60)
  tables = [SentencePair().table(store, 64, seed, p) for seed, p in ((0, 0), (1, 0), (0, 1))]
  assert len({table.tobytes() for table in tables}) == 3
  monkeypatch.setattr(packing, "_BLOCK", 5)
  assert SentencePair().table(store, 64, 0, 0).tobytes() == tables[0].tobytes()


def test_a_single_document_pairs_with_itself():
  table = SentencePair().table(ToyStore([[5] * 9]), 64, 0, 0)
  assert len(table) and table["b_length"].min() == 5
  assert len(SentencePair().table(ToyStore([[0, 0], []]), 64, 0, 0)) == 0


# In the pipeline.


@pytest.mark.parametrize("segments", [*PACKED, SentencePair()])
def test_batches_are_functions_of_the_step_on_any_number_of_hosts(segments):
  store = random_store(120)
  corpus = Corpus(length=64, passes=3, segments=segments)

  def batches(**hosts):
    return Batches(store, corpus, (MLM(rules="fairseq"),), VOCAB, 0, 8, **hosts)

  whole = batches()
  first = [whole(step) for step in range(12)]
  with_thread = iterate(batches(), 4, 12)
  for step, batch in enumerate(with_thread, 4):
    assert_same(batch, first[step])
  with_thread.close()
  assert_same(pickle.loads(pickle.dumps(whole))(7), first[7])
  parts = [batches(process_index=i, process_count=2) for i in range(2)]
  for step in (0, 9):
    local = [part(step) for part in parts]
    assert_same(first[step], {k: np.concatenate([p[k] for p in local]) for k in local[0]})
  assert len({tuple(b["input_ids"].shape) for b in first}) == 1


def test_epochs_of_packed_rows_differ_in_their_order_and_their_masks_alone():
  store = random_store(60)
  corpus = Corpus(length=64, passes=10, segments=FullSentences())
  size = len(FullSentences().table(store, 64, 0, 0))
  batches = Batches(store, corpus, (MLM(),), VOCAB, 0, size)

  def texts(batch):
    ids, used = batch["input_ids"].copy(), batch["mlm_weights"] > 0
    ids[np.nonzero(used)[0], batch["mlm_positions"][used]] = batch["mlm_targets"][used]
    return [row.tobytes() for row in ids]

  one, two = batches(0), batches(1)
  assert texts(one) != texts(two)
  assert sorted(texts(one)) == sorted(texts(two))
  assert (one["input_ids"] != two["input_ids"]).any()


def test_fill_is_the_share_of_positions_that_are_text():
  store = random_store(200, longest=60)

  def fill(segments):
    batches = Batches(store, Corpus(length=64, segments=segments), (MLM(),), VOCAB, 0, 8)
    rows = segments.read(store, segments.table(store, 64, 0, 0), 64, VOCAB)
    assert batches.fill() == pytest.approx((rows["input_ids"] != PAD).mean())
    return batches.fill()

  assert fill(FullSentences()) > fill(DocSentences())
  fill(SentencePair())
  fill(SegmentPair(next="none", separators=2))


@pytest.mark.parametrize("segments", PACKED)
def test_rows_without_pairs_are_refused_for_next_sentence_prediction(segments):
  experiment = Experiment(
    model=Roberta(),
    objectives=(MLM(),),
    data=Corpus(segments=SentencePair()),
    optim=AdamW(warmup=0),
    global_batch=8,
    steps=2,
  )
  both = dataclasses.replace(experiment, objectives=(MLM(), NSP()))
  with pytest.raises(UserError, match=r"no pairs .*segments=SegmentPair\(next='random'\)"):
    dataclasses.replace(both, data=Corpus(segments=segments))


def test_formats_can_be_chosen_from_the_command_line():
  corpus = Corpus()
  for text, segments in (
    ("FullSentences", FullSentences()),
    ("DocSentences()", DocSentences()),
    ("SentencePair(separators=1)", SentencePair(separators=1)),
    ("SegmentPair(short=0,separators=2)", SegmentPair(short=0.0, separators=2)),
  ):
    chosen = overrides.apply(corpus, [f"segments={text}"])
    assert chosen.segments == segments
    assert overrides.from_json(overrides.to_json(chosen)) == chosen


def test_nonsense_is_refused():
  with pytest.raises(UserError, match="separators"):
    SentencePair(separators=0)
