"""Blanks are whole words, whatever marks a tokenizer puts at their start."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from plm_jax.data.preparation import prepare
from plm_jax.data.tokenizers import BytePairs, Unigram, WordPiece
from plm_jax.decode.fill_mask import blanks_from
from tests.toy_run import TOY


@pytest.mark.parametrize(
  "tokenizer",
  [WordPiece(vocab_size=120), Unigram(vocab_size=120), BytePairs(vocab_size=400)],
  ids=["word_piece", "unigram", "byte_pairs"],
)
def test_a_blank_is_one_whole_word_of_the_sentence(tokenizer, tmp_path):
  words = "the water under old bridges turns slowly while seven people watch from stone walls"
  source, rng = tmp_path / "text.txt", np.random.default_rng(0)
  sentences = [" ".join(rng.permutation(words.split())[:10]) + "." for _ in range(400)]
  source.write_text("\n\n".join("\n".join(sentences[i : i + 8]) for i in range(0, 400, 8)))
  corpus = dataclasses.replace(TOY.data, source=str(source), tokenizer=tokenizer)
  prepared = prepare(corpus, tmp_path, progress=False)
  vocab = prepared.tokenizer.vocab
  blanks = blanks_from(prepared.valid, prepared.tokenizer, 4)
  assert blanks
  for blank in blanks:
    assert blank.ids[blank.position] == vocab.mask
    assert prepared.tokenizer.decode([blank.answer]).strip().isalpha()
    after = np.append(blank.ids, vocab.sep)[blank.position + 1]
    assert vocab.word_start[blank.answer] and vocab.word_start[after]


def test_a_text_without_a_sentence_of_fitting_length_has_no_blanks():
  store = SimpleNamespace(sentence_starts=[0, 3, 60], tokens=np.arange(60))
  assert blanks_from(store, None, 4) == []
