"""Segment pairs against the rules of create_pretraining_data.py, and against a copy of its loop."""

import dataclasses
import hashlib
import os
import threading

import numpy as np
import pytest

from plm_jax.data import pairing as pairing_module
from plm_jax.data.draws import Sequence
from plm_jax.data.pairing import Pairing
from plm_jax.data.segments import SegmentPair
from plm_jax.data.tables import pass_table
from plm_jax.errors import UserError
from tests.data.toy_store import CLS, PAD, SEP, ToyStore, random_store, toy_vocab

ROOM = 61  # at length 64


def table_of(store, pass_=0, seed=0, length=64, **options):
  return SegmentPair(**options).table(store, length, seed, pass_)


def reference(store, document, draw, room, short=0.1, next="random"):
  """`create_instances_from_document` of BERT or ALBERT, on lists of token offsets.

  The one liberty: the coins of a truncation are tossed together at its end, as in our code.
  """
  bounds, starts = store.document_starts, store.sentence_starts
  texts = [
    [list(range(starts[s], starts[s + 1])) for s in range(bounds[d], bounds[d + 1])]
    for d in range(len(bounds) - 1)
  ]
  text, rows, chunk, chunk_length, i = texts[document], [], [], 0, 0
  target = room
  if draw.chance(short):
    target = 2 + draw.below(room - 1)
  while i < len(text):
    chunk.append(text[i])
    chunk_length += len(text[i])
    if i == len(text) - 1 or chunk_length >= target:
      a_end = 1
      if len(chunk) >= 2:
        a_end = 1 + draw.below(len(chunk) - 1)
      a, b, label = join(chunk[:a_end]), [], 0
      if len(chunk) == 1 or (next == "random" and draw.chance(0.5)):
        label = 1
        for _ in range(10):
          other = draw.below(len(texts))
          if other != document:
            break
        start = draw.below(len(texts[other]))
        for sentence in texts[other][start:]:
          b += sentence
          if len(b) >= target - len(a):
            break
        i -= len(chunk) - a_end
      elif next == "swapped" and draw.chance(0.5):  # google-research/albert
        a, b, label = join(chunk[a_end:]), a, 1
      else:
        b = join(chunk[a_end:])
      rows.append((*truncate(a, b, room, draw), label))
      chunk, chunk_length = [], 0
    i += 1
  return rows


def join(sentences):
  return [token for sentence in sentences for token in sentence]


def truncate(a, b, room, draw):
  cuts = [0, 0]
  while len(a) + len(b) - sum(cuts) > room:
    cuts[0 if len(a) - cuts[0] > len(b) - cuts[1] else 1] += 1
  for tokens, cut in ((a, cuts[0]), (b, cuts[1])):
    heads = pairing_module._heads(cut, draw)
    del tokens[:heads]
    del tokens[len(tokens) - (cut - heads) :]
  return a, b


@pytest.mark.parametrize("longest", [8, 30, 90])  # 90: sentences longer than a row
@pytest.mark.parametrize("short", [0.1, 1.0])
@pytest.mark.parametrize("next", ["random", "swapped"])
@pytest.mark.parametrize("few", [1, 1000])  # documents in step, or one after the other
def test_rows_equal_the_original_s_loop(longest, short, next, few, monkeypatch):
  monkeypatch.setattr(pairing_module, "_FEW", few)
  store = random_store(40, longest=longest)
  expected = []
  for document in range(40):
    expected += reference(store, document, Sequence(7, 3, document), ROOM, short, next)
  rows = table_of(store, pass_=3, seed=7, short=short, next=next)
  assert len(rows) == len(expected)
  for row, (a, b, label) in zip(rows, expected, strict=True):
    assert (row["a_start"], row["a_length"]) == (a[0], len(a))
    assert (row["b_start"], row["b_length"]) == (b[0], len(b))
    assert row["label"] == label
    assert a == list(range(a[0], a[0] + len(a)))  # contiguous even when truncated


@pytest.mark.parametrize("next", ["random", "swapped", "none"])
@pytest.mark.parametrize("documents", [1, 2, 300])
def test_documents_in_step_have_the_rows_of_the_loop(documents, next, monkeypatch):
  # Empty sentences and documents, sentences of several rows, documents of one and of 200 sentences.
  rng = np.random.default_rng(documents)
  sizes = (
    rng.choice([0, 1, 2, 9, 200], documents, p=[0.1, 0.2, 0.2, 0.4, 0.1])
    if documents > 2
    else [9] * documents
  )
  store = ToyStore([rng.choice([0, 1, 5, 30, 61, 400], size) for size in sizes])
  monkeypatch.setattr(pairing_module, "_FEW", 10**9)
  loop = table_of(store, pass_=2, seed=5, next=next, short=0.3)
  monkeypatch.setattr(pairing_module, "_FEW", 1)
  for lanes, block in ((8192, 1 << 21), (50, 1 << 21), (20, 700)):
    monkeypatch.setattr(pairing_module, "_LANES", lanes)
    monkeypatch.setattr(pairing_module, "_BLOCK", block)
    in_step = table_of(store, pass_=2, seed=5, next=next, short=0.3)
    assert in_step.tobytes() == loop.tobytes()
  assert len(loop) > 1000 or documents < 300


@pytest.mark.parametrize(
  "next, digest",
  [("random", "06757d41eecb2e72"), ("swapped", "52d71440ade10e3d"), ("none", "b16edb6253aba316")],
)
def test_the_rows_are_those_of_the_first_release(next, digest):
  store = random_store(500, most=40, longest=50)
  table = table_of(store, pass_=4, seed=11, next=next)
  assert hashlib.sha256(table.tobytes()).hexdigest()[:16] == digest


def test_random_b_is_from_another_document_and_next_b_continues_a():
  store = random_store(80)
  rows = table_of(store)
  a_document, b_document = store.document_of(rows["a_start"]), store.document_of(rows["b_start"])
  random = rows["label"] == 1
  assert random.any()
  assert not random.all()
  assert (a_document[random] != b_document[random]).all()
  assert (a_document[~random] == b_document[~random]).all()
  whole = rows[~random & (rows["a_length"] + rows["b_length"] < ROOM)]
  np.testing.assert_array_equal(whole["a_start"] + whole["a_length"], whole["b_start"])
  cut = rows[~random]
  assert (cut["a_start"] + cut["a_length"] <= cut["b_start"]).all()


def test_swapped_pairs_are_the_same_two_segments_in_the_other_order():
  store = random_store(300, most=20)
  rows = table_of(store, next="swapped")
  whole = rows[rows["a_length"] + rows["b_length"] < ROOM]
  a_document, b_document = (store.document_of(whole[f"{part}_start"]) for part in "ab")
  swapped = (whole["label"] == 1) & (a_document == b_document)
  random, ordered = whole[a_document != b_document], whole[whole["label"] == 0]
  np.testing.assert_array_equal(ordered["a_start"] + ordered["a_length"], ordered["b_start"])
  swapped = whole[swapped]
  np.testing.assert_array_equal(swapped["b_start"] + swapped["b_length"], swapped["a_start"])
  assert len(ordered) + len(swapped) + len(random) == len(whole)
  assert (random["label"] == 1).all()
  of_two = len(ordered) + len(swapped)
  assert abs(len(swapped) / of_two - 0.5) < 3 * 0.5 / np.sqrt(of_two)
  assert 0.5 < rows["label"].mean() < 0.6


def test_swapping_keeps_the_segments_that_order_has():
  # Two sentences in a document and no truncation: the same pair whatever the coin says.
  store = ToyStore([[30, 31]] * 40)
  pairs = table_of(store, next="swapped", short=0.0)
  halves = [set(zip(pairs[f"{part}_start"], pairs[f"{part}_length"])) for part in "ab"]
  assert len(halves[0] | halves[1]) == 80 and not halves[0] & halves[1]
  assert set(pairs["label"]) == {0, 1}


def test_a_lonely_document_is_its_own_random_partner():
  rows = table_of(ToyStore([[10] * 30]))
  assert set(rows["label"]) == {0, 1}


def test_the_coin_is_fair_for_chunks_of_two_sentences():
  store = ToyStore([[30, 31], [61]])
  labels = [table_of(store, seed=seed, short=0.0)["label"][0] for seed in range(2000)]
  assert abs(np.mean(labels) - 0.5) < 3 * 0.5 / np.sqrt(2000)


def test_random_pairs_prevail_because_single_sentences_always_get_one():
  # 54 to 58% with the original on synthetic text.
  assert 0.5 < table_of(random_store(2000, most=20))["label"].mean() < 0.65


@pytest.mark.parametrize("next", ["random", "swapped"])
def test_a_chunk_of_one_sentence_always_gets_a_random_b(next):
  rows = table_of(ToyStore([[61], [200], [5]] * 20), next=next)
  assert (rows["label"] == 1).all()
  assert len(rows) == 60


def test_ten_percent_of_document_passes_are_short_with_targets_from_two_up():
  # Sentences of one token: a pair that follows on has exactly the target length.
  store = ToyStore([[1] * 80] * 6000)
  rows = table_of(store)
  first = rows[np.unique(store.document_of(rows["a_start"]), return_index=True)[1]]
  first = first[first["label"] == 0]
  targets = first["a_length"] + first["b_length"]
  short = targets < ROOM
  share = 0.1 * 59 / 60  # of 60 possible targets one is the full length
  assert abs(short.mean() - share) < 3 * np.sqrt(share * (1 - share) / len(targets))
  assert targets[short].min() == 2
  assert targets[short].max() == ROOM - 1
  assert abs(targets[short].mean() - 31) < 5 * 17 / np.sqrt(short.sum())


def test_pairs_fit_and_truncation_only_shortens_the_longer_side():
  store = random_store(200, longest=100)
  rows = table_of(store)
  assert (rows["a_length"] + rows["b_length"] <= ROOM).all()
  assert rows["a_length"].min() >= 1
  assert rows["b_length"].min() >= 1
  pairing = Pairing("random", 0.1, store, 61)
  for a, b in [(10, 80), (80, 10), (40, 41), (41, 40), (90, 90), (30, 31), (61, 1)]:
    _, _, got_a, got_b, _ = pairing.truncated(0, a, 1000, 1000 + b, 0, Sequence(0))
    assert got_a + got_b == min(a + b, 61)
    assert (got_a, got_b) == ((a, b) if a + b <= 61 else truncated_lengths(a, b, 61))


def truncated_lengths(a, b, room):
  while a + b > room:
    a, b = (a - 1, b) if a > b else (a, b - 1)
  return a, b


def test_truncation_takes_from_front_and_back_alike():
  pairing = Pairing("random", 0.1, random_store(3), 61)
  fronts = [pairing.truncated(0, 161, 500, 530, 0, Sequence(s))[0] for s in range(400)]
  assert abs(np.mean(fronts) - 65) < 5 * np.sqrt(130 / 4 / 400)
  assert abs(np.var(fronts) / (130 / 4) - 1) < 5 * np.sqrt(2 / 400)


def test_a_document_s_rows_do_not_depend_on_the_draws_of_others():
  one, other = [[20] * 9, [15] * 7, [8] * 30], [[20] * 9, [3] * 2, [8] * 30]

  def first(sentences):
    rows = table_of(ToyStore(sentences))[["a_start", "a_length", "label"]]
    return rows[rows["a_start"] < 180].tolist()

  assert first(one) == first(other)


def test_passes_and_seeds_segment_differently_and_repeatably():
  store = random_store(30)
  tables = [table_of(store, pass_=p, seed=s).tobytes() for p, s in ((0, 0), (1, 0), (0, 1))]
  assert len(set(tables)) == 3
  assert table_of(store).tobytes() == tables[0]


def test_none_takes_every_token_once_and_never_a_random_b():
  store = random_store(50, longest=10)
  rows = table_of(store, next="none", short=0.0, length=512)
  assert (rows["label"] == 0).all()
  assert rows["a_length"].sum() + rows["b_length"].sum() == len(store.tokens)
  rows = SegmentPair().read(store, rows[rows["b_length"] == 0][:1], 512, toy_vocab())
  assert (rows["input_ids"] == SEP).sum() == 1
  assert rows["segment_ids"].sum() == 0


def test_read_lays_out_cls_a_sep_b_sep():
  store = random_store(60, longest=40)
  table = table_of(store)
  rows = SegmentPair().read(store, table, 64, toy_vocab())
  for i, (span, ids) in enumerate(zip(table, rows["input_ids"], strict=True)):
    a = store.tokens[span["a_start"] :][: span["a_length"]].tolist()
    b = store.tokens[span["b_start"] :][: span["b_length"]].tolist()
    expected = [CLS, *a, SEP, *b, SEP]
    assert rows["length"][i] == len(expected) <= 64
    assert ids.tolist() == expected + [PAD] * (64 - len(expected))
    kinds = [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert rows["segment_ids"][i].tolist() == kinds + [0] * (64 - len(expected))
    assert rows["pair_label"][i] == span["label"]
  assert {k: (v.dtype, v.shape) for k, v in rows.items()} == {
    "input_ids": (np.int32, (len(table), 64)),
    "segment_ids": (np.int32, (len(table), 64)),
    "length": (np.int32, (len(table),)),
    "pair_label": (np.int32, (len(table),)),
  }


@pytest.mark.parametrize("next", ["random", "none"])
def test_roberta_s_pairs_have_two_separators_between_a_and_b(next):
  store, segments = random_store(60, longest=40), SegmentPair(next=next, separators=2)
  table = segments.table(store, 64, 0, 0)
  rows = segments.read(store, table, 64, toy_vocab())
  assert (table["a_length"] + table["b_length"]).max() == 60
  for i, (span, ids) in enumerate(zip(table, rows["input_ids"], strict=True)):
    a = store.tokens[span["a_start"] :][: span["a_length"]].tolist()
    b = store.tokens[span["b_start"] :][: span["b_length"]].tolist()
    expected = [CLS, *a, SEP, SEP, *b, SEP] if b else [CLS, *a, SEP]
    assert rows["length"][i] == len(expected) <= 64
    assert ids.tolist() == expected + [PAD] * (64 - len(expected))
    assert rows["segment_ids"][i].sum() == len(b) + bool(b)
  assert (next == "none") == (table["b_length"] == 0).any()


def test_a_vocabulary_without_cls_and_sep_frames_a_row_by_its_bos_and_eos():
  store, plain = random_store(20), toy_vocab()
  named = dataclasses.replace(plain, cls=None, sep=None, bos=CLS, eos=SEP)
  table = table_of(store)
  one, other = (SegmentPair().read(store, table, 64, vocab) for vocab in (plain, named))
  np.testing.assert_array_equal(one["input_ids"], other["input_ids"])
  with pytest.raises(UserError, match="for padding"):
    SegmentPair().read(store, table, 64, dataclasses.replace(plain, pad=None))


def test_empty_documents_and_sentences_make_no_rows():
  store = ToyStore([[0, 0], [], [5, 5, 0, 5], [70]])
  rows = table_of(store)
  assert len(rows)
  assert rows["a_length"].min() >= 1
  assert rows["b_length"].min() >= 1
  assert len(table_of(ToyStore([[]]))) == 0


def test_tables_are_kept_beside_the_store(tmp_path):
  store = random_store(20, directory=tmp_path)
  made = pass_table(store, SegmentPair(), 64, 0, 1)
  (file,) = tmp_path.iterdir()
  kept = pass_table(store, SegmentPair(), 64, 0, 1)
  assert isinstance(kept, np.memmap)
  np.testing.assert_array_equal(made, kept)
  np.testing.assert_array_equal(kept, table_of(store, pass_=1))
  stamp = file.stat().st_mtime_ns
  pass_table(store, SegmentPair(next="none"), 64, 0, 1)
  held_out = random_store(9, directory=tmp_path, split="valid")
  assert len(pass_table(held_out, SegmentPair(), 64, 0, 1)) < len(made)
  assert len(list(tmp_path.iterdir())) == 3
  assert file.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "pipe", "folder", "other"])
def test_a_damaged_table_is_told_and_made_again(tmp_path, harm, capsys):
  store = random_store(20, directory=tmp_path)
  made = np.array(pass_table(store, SegmentPair(), 64, 0, 1))
  (file,) = tmp_path.iterdir()
  data = bytearray(file.read_bytes())
  data[200] ^= 4
  if harm == "other":
    pass_table(store, SegmentPair(next="none"), 64, 0, 1)
    (other,) = (p for p in tmp_path.iterdir() if p != file)
    other.replace(file)
  elif harm in ("pipe", "folder"):
    file.unlink()
    os.mkfifo(file) if harm == "pipe" else file.mkdir()
  else:
    file.write_bytes({"flip": data, "cut": data[:100], "empty": b""}[harm])
  np.testing.assert_array_equal(pass_table(store, SegmentPair(), 64, 0, 1), made)
  assert "are made again" in capsys.readouterr().err
  np.testing.assert_array_equal(pass_table(store, SegmentPair(), 64, 0, 1), made)
  assert not capsys.readouterr().err


def test_a_table_of_an_older_version_is_made_again_without_a_word(tmp_path, capsys):
  store = random_store(20, directory=tmp_path)
  made = np.array(pass_table(store, SegmentPair(), 64, 0, 1))
  (file,) = tmp_path.iterdir()
  with file.open("wb") as old:
    np.save(old, made[::-1])
  np.testing.assert_array_equal(pass_table(store, SegmentPair(), 64, 0, 1), made)
  assert not capsys.readouterr().err


def test_threads_that_make_the_same_table_leave_one_file(tmp_path):
  store = random_store(50, directory=tmp_path)
  threads = [
    threading.Thread(target=pass_table, args=(store, SegmentPair(), 64, 0, 0)) for _ in range(4)
  ]
  [t.start() for t in threads]
  [t.join() for t in threads]
  assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_to_costs_only_the_keeping(tmp_path):
  store = random_store(5, directory=tmp_path / "gone")
  np.testing.assert_array_equal(pass_table(store, SegmentPair(), 64, 0, 0), table_of(store))


def test_nonsense_is_refused():
  with pytest.raises(UserError, match="next"):
    SegmentPair(next="sentence")
  with pytest.raises(UserError, match="separators"):
    SegmentPair(separators=3)
  with pytest.raises(UserError, match="share"):
    SegmentPair(short=1.5)
