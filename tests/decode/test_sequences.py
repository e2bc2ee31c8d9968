"""Encoder-decoders write through the same searches, their sources read once and padded right."""

import jax
import numpy as np
import pytest

from plm_jax.data.tokenizers import WordPiece
from plm_jax.decode import writer
from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import Prompt, readable, source_of, write
from plm_jax.models.bart import Bart
from plm_jax.models.compute import Compute
from plm_jax.models.t5 import T5
from tests import toy_run
from tests.data.toy_store import CLS, PAD, SEP
from tests.decode.test_generation import writer_of

SIZES = {"vocab_size": 30, "layers": 1, "width": 16, "heads": 2, "hidden": 20}
CONFIGS = {
  "t5": T5(head_width=6, logit_scale=False, **SIZES),
  "bart": Bart(positions=24, initializer_range=0.6, **SIZES),
}
STARTS = {"t5": [PAD], "bart": [SEP]}
SOURCES = [[5, 6, 7, SEP], [9, SEP], [10, 11, 12, 13, 14, 15, 16, SEP]]


@pytest.fixture(scope="module", params=CONFIGS)
def name(request):
  return request.param


@pytest.fixture(scope="module")
def trained(name):
  return writer_of(CONFIGS[name])


@jax.jit
def next_logits(model, source, length, target):
  batch = {"input_ids": source, "length": length, "decoder_input_ids": target}
  batch["decoder_length"] = length * 0 + target.shape[1]
  return model.token_logits(model(batch, Compute(dtype="float32")))


def by_full_forward(trained, source, start, steps):
  """Greedy search without a cache and without a batch."""
  ids, row = list(start), np.zeros((1, 8), np.int32)
  row[0, : len(source)] = source
  for _ in range(steps):
    target = np.zeros((1, steps + 1), np.int32)
    target[0, : len(ids)] = ids
    logits = next_logits(trained.params, row, np.array([len(source)]), target)
    ids.append(int(np.argmax(logits[0, len(ids) - 1])))
    if ids[-1] == SEP:
      return ids[len(start) : -1]
  return ids[len(start) :]


@pytest.mark.slow
def test_greedy_search_is_the_argmax_of_the_full_forward_pass(trained, name):
  prompts = [Prompt(STARTS[name], source) for source in SOURCES]
  texts = [texts[0] for texts in write(*trained, prompts, Rules(max_length=8))]
  expected = [by_full_forward(trained, source, STARTS[name], 8) for source in SOURCES]
  assert [text.ids for text in texts] == expected
  assert len({round(text.score, 5) for text in texts}) == 3  # they do read their sources


def test_the_beams_of_a_source_do_not_depend_on_other_sources(trained, name):
  prompts = [Prompt(STARTS[name], source) for source in SOURCES]
  rules = Rules(max_length=6, beams=3, length_penalty=0.6)
  together = write(*trained, prompts, rules, samples=3)
  others = [prompts[0], Prompt(STARTS[name], [20, 21, SEP]), prompts[2]]
  elsewhere = write(*trained, others, rules, samples=3)
  for number in (0, 2):
    for one, other in zip(together[number], elsewhere[number], strict=True):
      assert one.ids == other.ids and one.score == pytest.approx(other.score, abs=1e-5)


def test_only_the_end_ends_what_an_encoder_decoder_writes(trained):
  vocab = trained.tokenizer.vocab
  assert writer.ends(vocab, causal=False).tolist() == [SEP]
  assert set(writer.ends(vocab, causal=True)) > {SEP, CLS}


def test_a_source_names_sentinels_and_blanks_and_a_target_is_shown_with_them():
  tokenizer = toy_run.prepared(60, WordPiece(vocab_size=64, sentinels=8)).tokenizer
  vocab = tokenizer.vocab
  text, (first, second) = "w1 <extra_id_0> w2 [MASK] <extra_id_1>", vocab.sentinels[:2]
  ids = source_of(text, tokenizer).tolist()
  assert [i for i in ids if vocab.special[i]] == [first, vocab.mask, second]
  assert readable(tokenizer, [vocab.cls, *ids, vocab.sep]) == text
