"""Neighbours in the token table: cosines of centred rows, groups of frequent words."""

import jax
import numpy as np
import pytest

from plm_jax.data.tokenizers import WordPiece
from plm_jax.decode.neighbours import groups, neighbours
from plm_jax.models.bert import Bert


@pytest.fixture(scope="module")
def planted():
  """A model whose words of one kind have nearly equal rows, its tokenizer, and the words' ids."""
  words = "red blue green one two"
  tokenizer = WordPiece(vocab_size=80).train([f"{words} river stone water"] * 20)
  config = Bert(layers=1, width=16, heads=2, vocab_size=tokenizer.vocab.size)
  params = config.init(jax.random.key(0), {})
  ids = {word: int(tokenizer.encode(word)[0]) for word in words.split()}
  assert len(set(ids.values())) == 5
  table = params.embed.token.table
  rows = np.random.default_rng(0).normal(size=table.shape).astype(np.float32)
  for same in (("red", "blue", "green"), ("one", "two")):
    for number, word in enumerate(same):
      rows[ids[word]] = rows[ids[same[0]]] * (1 + 0.02 * number)
  params.embed.token.table = rows + 5  # a direction that all rows share
  return params, tokenizer, ids


def test_the_nearest_tokens_have_the_most_similar_rows(planted):
  params, tokenizer, ids = planted
  red, one = neighbours(params, tokenizer, [ids["red"], ids["one"]], best=2)
  assert {n.token for n in red} == {"blue", "green"}
  assert one[0].token == "two" and one[0].cosine > 0.99 > 0.9 > one[1].cosine


def test_groups_are_of_frequent_words_and_share_none(planted):
  params, tokenizer, ids = planted
  counts = np.zeros(tokenizer.vocab.size, int)
  counts[list(ids.values())] = 5
  first, *_ = groups(params, tokenizer, counts, number=1, size=3)
  assert set(first) == {"red", "blue", "green"}
  made = groups(params, tokenizer, counts, number=5, size=2)
  words = [word for group in made for word in group]
  assert len(set(words)) == len(words)
  counts[ids["blue"]] = 0
  assert "blue" not in [w for g in groups(params, tokenizer, counts, 5, 2) for w in g]
