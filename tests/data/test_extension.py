"""New words become tokens, old ids stay, and a new row is the mean of those of its pieces."""

import dataclasses

import jax
import numpy as np
import pytest

from plm_jax.data.extension import costly_words, extended
from plm_jax.data.tokenizers import BytePairs, Unigram, WordPiece, Words, load_tokenizer
from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.extended_run import extend
from plm_jax.export.from_run import from_run
from plm_jax.models.bert import Bert
from plm_jax.models.gpt import Gpt2
from plm_jax.models.parameters import with_roles
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.nsp import NSP
from plm_jax.runs import Run
from tests.toy_run import TOY

TEXT = [
  "the red fox saw the old dog",
  "a dog and a fox ran to the sea",
  "seas are as old as red",
] * 9
NEW = ["seafox", "reddog", "dog"]
KINDS = {
  "word_piece": WordPiece(vocab_size=60),
  "byte_pairs": BytePairs(vocab_size=300),
  "as_published": BytePairs(vocab_size=300, prefix_space=False),
  "unigram": Unigram(vocab_size=40, layout="albert"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_word_is_one_token_and_old_ids_stay(tmp_path, kind):
  old = KINDS[kind].train(TEXT)
  new, parts = extended(old, NEW)
  texts = ["a seafox ran", " the reddog, seafox", *TEXT]
  assert new.pieces[: len(old.pieces)] == old.pieces
  assert len(new.pieces) == len(old.pieces) + len(parts)
  for text in texts:
    assert new.decode(new.encode(text)) == old.decode(old.encode(text))
  ids = new.encode(" a seafox")
  (place,) = np.flatnonzero(ids >= len(old.pieces))
  spelled = [*ids[:place], *parts[ids[place] - len(old.pieces)]]
  assert spelled == old.encode(" a seafox").tolist()
  for text in TEXT:
    assert new.encode(text).tolist() == old.encode(text).tolist()
  new.save(tmp_path / "t")
  assert load_tokenizer(tmp_path / "t").fingerprint == new.fingerprint


def test_what_cannot_be_one_token_is_refused():
  for tokenizer, words, said in (
    (KINDS["word_piece"].train(TEXT), ["red-fox", "\x00", "a" * 120], "3 of 3 .*'red-fox'"),
    (KINDS["word_piece"].train(TEXT), [*NEW, "[MASK]"], r"1 of 4 .*'\[MASK\]'"),
    (KINDS["byte_pairs"].train(TEXT), ["red fox", "sea", ""], "2 of 3 .*'red fox'"),
    (KINDS["unigram"].train(TEXT), ["red fox"], "1 of 1 .*'red fox'"),
    (Unigram(vocab_size=40, layout="t5", sentinels=3).train(TEXT), NEW, "sentinels"),
    (Words(min_count=1).train(TEXT), NEW, "whole words"),
  ):
    with pytest.raises(UserError, match=said):
      extended(tokenizer, words)


def test_costly_words_are_those_that_save_the_most_tokens():
  tokenizer = KINDS["word_piece"].train(TEXT)
  sentences = ["Seafox reddogs"] * 6 + ["reddogs dog"] * 5 + ["rarely"]
  assert costly_words(tokenizer, sentences, 9) == ["reddogs", "seafox"]
  assert costly_words(tokenizer, sentences, 1) == ["reddogs"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["word_piece", "byte_pairs"])
def test_new_rows_are_means_and_the_run_is_exported_with_them(tmp_path, kind):
  tokenizer, size = KINDS[kind].train(TEXT), {"vocab_size": 310, "width": 8, "heads": 2}
  model, heads = {
    "word_piece": (Bert(**size, layers=1, positions=32), {"mlm": 0, "nsp": 2}),
    "byte_pairs": (Gpt2(**size, layers=1, positions=32), {"lm": 0}),
  }[kind]
  objectives = {"word_piece": (MLM(), NSP()), "byte_pairs": (CLM(),)}[kind]
  experiment = dataclasses.replace(TOY, model=model, objectives=objectives)
  params = model.init(jax.random.key(0), heads)
  Run(experiment=experiment, params=params, tokenizer=tokenizer).save(tmp_path / "old")
  new = extend(Run.load(tmp_path / "old"), NEW, tmp_path / "new")
  _, parts = extended(tokenizer, NEW)
  first, last = tokenizer.vocab.size, new.tokenizer.vocab.size
  assert new.config.vocab_size == max(310, last) and last - first == len(parts)
  old_leaves, new_leaves = (
    {path: x for path, role, x in with_roles(p) if "vocab" in role.axes}
    for p in (params, new.params)
  )
  assert len(old_leaves) == (2 if kind == "word_piece" else 1)
  for path, old in old_leaves.items():
    rows = np.asarray(new_leaves[path])
    np.testing.assert_array_equal(rows[:first], old[:first])
    means = [np.asarray(old)[ids].mean(0) for ids in parts]
    np.testing.assert_allclose(rows[first:last], means, atol=1e-7)
  hf.save(from_run(new), tmp_path / "exported")
  assert hf.load(tmp_path / "exported").config.vocab_size == new.config.vocab_size
  with pytest.raises(UserError, match="a token for each of the 3 words already"):
    extend(new, NEW, tmp_path / "again")
