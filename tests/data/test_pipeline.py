"""Claims about batches: pure, complete, independent of hosts and workers."""

import dataclasses
import pickle
from collections import Counter

import numpy as np
import pytest

from plm_jax.data.pipeline import Batches, Corpus, iterate
from plm_jax.data.segments import SegmentPair
from plm_jax.errors import UserError
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.nsp import NSP
from tests.data.toy_store import random_store, toy_vocab

CORPUS = Corpus(length=64, passes=3)
STORE = random_store(60)
BERT = (MLM(), NSP())


def batches_of(store=STORE, corpus=CORPUS, objectives=BERT, seed=0, batch=16, **hosts):
  return Batches(store, corpus, objectives, toy_vocab(), seed, batch, **hosts)


def assert_same(one, other):
  assert one.keys() == other.keys()
  for key in one:
    np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def epoch_sizes(passes=3, seed=0):
  return [len(SegmentPair().table(STORE, 64, seed, p)) for p in range(passes)]


def text_of(batch, i):
  """A row's original tokens, whatever was masked."""
  ids = batch["input_ids"][i].copy()
  used = batch["mlm_weights"][i] > 0
  ids[batch["mlm_positions"][i][used]] = batch["mlm_targets"][i][used]
  return ids.tobytes()


def counted_texts(batches):
  return [text_of(b, i) for b in batches for i in np.flatnonzero(b["row_weight"])]


def test_a_batch_is_a_pure_function_of_its_step():
  batches = batches_of()
  first = [batches(step) for step in range(6)]
  for step in (5, 0, 3):
    assert_same(batches(step), first[step])
  copy = pickle.loads(pickle.dumps(batches))
  assert_same(copy(4), first[4])
  assert any((first[0][k] != first[1][k]).any() for k in first[0])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_make_the_same_global_batch(hosts):
  parts = [batches_of(process_index=i, process_count=hosts) for i in range(hosts)]
  whole = batches_of()
  last = sum(epoch_sizes()) // 16  # over the end of an epoch
  for step in (0, 7, last, last + 1, 1000):
    local = [part(step) for part in parts]
    assert_same(whole(step), {k: np.concatenate([p[k] for p in local]) for k in local[0]})
  local = [part.evaluation() for part in parts]
  for i, batch in enumerate(whole.evaluation()):
    assert_same(batch, {k: np.concatenate([p[i][k] for p in local]) for k in local[0][i]})


def test_every_epoch_has_every_row_of_its_pass_exactly_once():
  batches, vocab = batches_of(), toy_vocab()
  sizes = epoch_sizes()
  assert len(set(sizes)) > 1  # passes of different sizes, or the test would miss the point
  sizes = sizes * 2  # the passes, and once more
  texts = []
  for step in range(sum(sizes) // 16 + 1):
    batch = batches(step)
    texts += [text_of(batch, i) for i in range(16)]
  first, orders = 0, []
  for epoch, size in enumerate(sizes):
    table = SegmentPair().table(STORE, 64, 0, epoch % 3)
    rows = SegmentPair().read(STORE, table, 64, vocab)["input_ids"]
    seen = texts[first : first + size]
    assert Counter(seen) == Counter(row.tobytes() for row in rows)
    orders.append(seen)
    first += size
  assert orders[0] != orders[3]  # the same rows in another order


def test_passes_are_made_only_when_they_are_reached():
  batches = batches_of()
  batches(0)
  assert len(batches._tables) == 1
  batches(10_000)
  assert len(batches._tables) == 3


def test_masks_are_new_every_epoch_or_repeat_when_static():
  corpus = dataclasses.replace(CORPUS, passes=1)
  size = epoch_sizes(1)[0]

  def masks(epoch, objective):
    """text -> positions, of one epoch."""
    batches = batches_of(corpus=corpus, objectives=(objective,), batch=1)
    found = {}
    for step in range(epoch * size, (epoch + 1) * size):
      batch = batches(step)
      found[text_of(batch, 0)] = batch["mlm_positions"][0].tolist()
    return found

  dynamic, static = MLM(), MLM(masking="static", copies=2)
  assert masks(0, dynamic) == masks(0, dynamic)

  def differ(one, other):
    return np.mean([one[text] != other[text] for text in one])

  assert differ(masks(0, dynamic), masks(2, dynamic)) > 0.9
  assert masks(0, static) == masks(2, static)
  assert differ(masks(0, static), masks(1, static)) > 0.9


def test_seeds_change_the_rows_and_the_order_but_not_the_evaluation():
  one, other = batches_of(seed=0), batches_of(seed=1)
  assert (one(0)["input_ids"] != other(0)["input_ids"]).any()
  for a, b in zip(one.evaluation(), other.evaluation(), strict=True):
    assert_same(a, b)


def test_evaluation_counts_every_row_once_in_order():
  batches, vocab = batches_of(), toy_vocab()
  table = SegmentPair().table(STORE, 64, 0, 0)
  assert len(table) % 16  # or there is nothing to fill up
  expected = [r.tobytes() for r in SegmentPair().read(STORE, table, 64, vocab)["input_ids"]]
  result = batches.evaluation()
  assert counted_texts(result) == expected
  filled = result[-1]
  empty = filled["row_weight"] == 0
  assert 0 < empty.sum() < 16
  assert (filled["mlm_weights"][empty] == 0).all()
  assert all(batch["input_ids"].shape == (16, 64) for batch in result)


def test_evaluation_of_fewer_rows_takes_them_from_everywhere():
  whole = batches_of().evaluation()
  some = batches_of().evaluation(max_rows=20)
  assert sum(batch["row_weight"].sum() for batch in some) == 20
  every, taken = counted_texts(whole), counted_texts(some)
  places = [every.index(text) for text in taken]
  assert places == sorted(set(places))
  assert places[-1] > len(every) * 0.9
  assert_same(whole[0], batches_of().evaluation(max_rows=10**9)[0])


def test_a_held_out_side_smaller_than_a_batch_can_be_evaluated():
  (only,) = batches_of(store=random_store(2), batch=512).evaluation()
  assert 0 < only["row_weight"].sum() < 512


def test_the_thread_delivers_the_steps_in_order_and_says_how_long_it_was_waited_for():
  batches = batches_of()
  stream = iterate(batches, 3, 9)
  got = list(stream)
  stream.close()
  assert len(got) == 6
  for step, batch in enumerate(got, start=3):
    assert_same(batch, batches(step))
  assert stream.waited > 0


@pytest.mark.slow
def test_worker_processes_deliver_the_same_batches(tmp_path):
  store = random_store(60, directory=tmp_path)
  batches = batches_of(store=store)
  stream = iterate(batches, 5, 11, workers=2)
  got = list(stream)
  stream.close()
  assert len(got) == 6
  for step, batch in enumerate(got, start=5):
    assert_same(batch, batches_of()(step))


def test_a_corpus_smaller_than_a_batch_is_refused_in_a_sentence():
  small = batches_of(store=random_store(2), batch=512)
  for action in (lambda: small(0), lambda: iterate(small, 0, 1)):
    with pytest.raises(UserError, match=r"makes \d+ rows .* batch of 512.*smaller global_batch"):
      action()


def test_a_batch_that_the_processes_cannot_share_is_refused():
  with pytest.raises(UserError, match="multiple of the number of processes, 3"):
    batches_of(process_count=3)


@pytest.mark.parametrize(
  "change",
  [{"length": 7}, {"held_out": 0.0}, {"held_out": 0.6}, {"passes": 0}, {"workers": -1}],
)
def test_a_corpus_refuses_nonsense(change):
  with pytest.raises(UserError, match=f"data.{next(iter(change))}"):
    Corpus(**change)
