"""The characters that each token covers, for every kind of tokenizer."""

import pickle

import numpy as np
import pytest

from plm_jax.data.offsets import tokens_in, trimmed
from plm_jax.data.tokenizer_backends import aligned_like_albert, clean_like_albert
from plm_jax.data.tokenizers import Unigram, load_tokenizer
from tests.data.test_tokenizers import SHARED, TOK, published, trained  # noqa: F401

TEXTS = (
  *(
    "Hello  wörld, it’s ﬁne ① 你好 😀x",
    "  naïve Ｆｕｌｌ ½",
    "cafe\u0301 bar",
    "don't 😀😀",
    "",
    " ",
  ),
  *(
    "ΟΔΟΣ İstanbul ``q'' Å ¨",
    "a\u200db \x00c \ufffd[MASK]",
    "한국어 ﷺ\u1e9b\u0323",
    "x\n\n y\u3000z",
  ),
)
KINDS = ("word_piece", "word_piece_cased", "byte_pairs", "byte_pairs_prefix")
KINDS += ("unigram_albert", "unigram_t5")


def pieces_of(tokenizer, text):
  (ids,), (offsets,) = tokenizer.encode_offsets([text])
  return [(t, text[s:e]) for t, (s, e) in zip(tokenizer.tokens(ids), offsets, strict=True)]


def check(tokenizer, texts):
  """Ids are those of `encode_batch`; ranges are in order, within the text, without outer space."""
  ids, offsets = tokenizer.encode_offsets(texts)
  for text, ours, theirs, spans in zip(texts, ids, tokenizer.encode_batch(texts), offsets):
    assert ours.tolist() == theirs.tolist() and ours.dtype == np.int32
    assert spans.shape == (len(ours), 2)
    assert (spans[:, 0] <= spans[:, 1]).all() and (np.diff(spans[:, 0]) >= 0).all()
    for start, end in spans:
      part = text[start:end]
      assert 0 <= start <= end <= len(text) and (part.isspace() or part == part.strip())


@pytest.mark.parametrize("name", KINDS)
def test_offsets_do_not_change_the_ids_of_any_kind(trained, name):  # noqa: F811
  check(trained[name], list(TEXTS))
  check(pickle.loads(pickle.dumps(trained[name])), list(TEXTS))
  assert trained[name].encode_offsets([]) == ([], [])


@pytest.mark.parametrize("name", KINDS)
def test_every_letter_is_covered_and_leads_back_to_its_token(trained, name):  # noqa: F811
  text = "  Kalo étu-mari\tQi2  x."
  (ids,), (offsets,) = trained[name].encode_offsets([text])
  assert len(ids)
  for place, letter in enumerate(text):
    if not letter.isspace():
      first, end = tokens_in(offsets, place, place + 1)
      assert first < end and offsets[first][0] <= place < offsets[first][1]
  assert tokens_in(offsets, 0, len(text)) == (0 if offsets[0][1] else 1, len(ids))
  assert tokens_in(offsets, 7, 7) == (0, 0)


@published
def test_word_pieces_cover_the_original_of_stripped_accents_and_joined_marks():
  bert = load_tokenizer(TOK / "bert-base-uncased")
  assert pieces_of(bert, "Wörld, ﬁne cafe\u0301 😀x") == [
    *(("world", "Wörld"), (",", ","), ("ﬁ", "ﬁ"), ("##ne", "ne")),
    *(("cafe", "cafe\u0301"), ("[UNK]", "😀x")),
  ]
  chinese = load_tokenizer(TOK / "bert-base-chinese/vocab.txt")
  text = "我在 北京，10年"
  assert pieces_of(chinese, text) == [(p, p) for p in ("我", "在", "北", "京", "，", "10", "年")]


@published
def test_every_byte_of_a_character_covers_all_of_it():
  assert pieces_of(load_tokenizer(TOK / "gpt2"), "a 😀 b") == [
    *(("a", "a"), ("ĠðŁĺ", "😀"), ("Ģ", "😀"), ("Ġb", "b")),
  ]
  llama = load_tokenizer(SHARED / "ckpt/stories260K/tok512.model")
  assert pieces_of(llama, "你x")[-4:] == [
    *(("<0xE4>", "你"), ("<0xBD>", "你"), ("<0xA0>", "你"), ("x", "x")),
  ]


@published
def test_unigram_pieces_cover_what_nfkc_replaced():
  t5 = load_tokenizer(TOK / "spm/test_model.model")
  assert pieces_of(t5, " ﬁne ½ ö") == [
    *(("▁fine", "ﬁne"), ("▁", " "), ("1", "½"), ("<unk>", "½"), ("2", "½")),
    *(("▁", " "), ("<unk>", "ö")),
  ]
  albert = Unigram(path=str(TOK / "albert/30k-clean.model"), lowercase=True).load()
  assert pieces_of(albert, "  The ``WÖRLD''") == [
    *(("▁the", "The"), ("▁", " "), ('"', "``"), ("world", "WÖRLD"), ('"', "''")),
  ]


@published
@pytest.mark.parametrize(
  "path",
  (
    *("bert-base-uncased", "bert-base-chinese/vocab.txt", "gpt2", "gpt1", "spm/test_model.model"),
    *("albert/30k-clean.model", "spm/test_ja_model.model", "spm/seqio_t5_test.model"),
  ),
)
def test_offsets_do_not_change_the_ids_of_published_tokenizers(path):
  wiki = (SHARED / "lm/wikitext-2/valid.txt").read_text().split("\n")[:60]
  check(load_tokenizer(TOK / path), [*TEXTS, *wiki])


def test_the_cleaning_of_albert_knows_where_each_character_is_from():
  every = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x30000))))
  for text in (*TEXTS, every):
    cleaned, places = aligned_like_albert(text)
    assert cleaned == clean_like_albert(text) and len(places) == len(cleaned)
    assert places == sorted(places)
  cleaned, places = aligned_like_albert(" ﬁ``Ω\u0301  B ")
  assert cleaned == 'fi"ω b'
  assert [" ﬁ``Ω\u0301  B "[s:e] for s, e in places] == ["ﬁ", "ﬁ", "``", "Ω", "  ", "B"]


def test_a_range_of_white_space_alone_stays():
  assert trimmed("a  b", [(0, 2), (2, 3), (2, 4), (4, 4)]).tolist() == [
    *([0, 1], [2, 3], [3, 4], [4, 4]),
  ]
