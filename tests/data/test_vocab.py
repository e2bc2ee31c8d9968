"""The tokens around a text, for every kind of vocabulary."""

import dataclasses

import numpy as np
import pytest

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError
from tests.data.test_tokenizers import TRAINED, invented_text

AROUND = {  # the pieces before and after a text, and after a row
  "word_piece": (["[CLS]"], ["[SEP]"], "[PAD]"),
  "word_piece_cased": (["[CLS]"], ["[SEP]"], "[PAD]"),
  "byte_pairs": (["<s>"], ["</s>"], "<pad>"),
  "byte_pairs_prefix": (["<s>"], ["</s>"], "<pad>"),
  "unigram_albert": (["[CLS]"], ["[SEP]"], "<pad>"),
  "unigram_t5": ([], ["</s>"], "<pad>"),
}


def vocab_of(**roles: int) -> Vocab:
  return Vocab(size=9, special=np.zeros(9, bool), word_start=None, **roles)


GPT1, GPT2, LLAMA = vocab_of(unk=0), vocab_of(bos=8, eos=8), vocab_of(unk=0, bos=1, eos=2)
XLNET = vocab_of(unk=0, bos=1, eos=2, cls=3, sep=4, pad=5, mask=6)


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
  return {name: config.train(iter(invented_text())) for name, config in TRAINED.items()}


@pytest.mark.parametrize("name", TRAINED)
def test_each_trained_vocabulary_has_its_papers_tokens_around_a_text(trained, name):
  tokenizer, (begin, end, filler) = trained[name], AROUND[name]
  vocab = tokenizer.vocab
  assert (tokenizer.tokens(vocab.begin), tokenizer.tokens(vocab.end)) == (begin, end)
  assert tokenizer.token(vocab.filler) == filler
  assert vocab.special[vocab.frame_ids].all()
  assert {*begin, *end, filler} == set(tokenizer.tokens(vocab.frame_ids))


@pytest.mark.parametrize(
  ("vocab", "begin", "end", "filler"),
  [(GPT1, [], [], 0), (GPT2, [8], [8], 8), (LLAMA, [1], [2], 2), (XLNET, [3], [4], 5)],
  ids=["gpt1", "gpt2", "llama", "xlnet"],
)
def test_published_vocabularies_lack_roles_or_have_one_token_in_two(vocab, begin, end, filler):
  assert (vocab.begin, vocab.end, vocab.filler) == (begin, end, filler)
  assert len(vocab.frame_ids) == len(set(vocab.frame_ids))


@pytest.mark.parametrize("name", TRAINED)
def test_a_frame_is_the_two_tokens_or_a_sentence(trained, name):
  vocab = trained[name].vocab
  if vocab.begin:
    assert vocab.frame() == (*vocab.begin, *vocab.end)
    bare = dataclasses.replace(vocab, pad=None)
    assert bare.frame(padding=False) == vocab.frame()
    with pytest.raises(UserError, match="for padding"):
      bare.frame()
  else:
    with pytest.raises(UserError, match="the begin and the end of a text"):
      vocab.frame(padding=False)


def test_a_vocabulary_is_made_by_the_names_of_its_roles():
  with pytest.raises(TypeError):
    Vocab(9, 0, 1, 2, 3, 4, None, None, np.zeros(9, bool), None)
