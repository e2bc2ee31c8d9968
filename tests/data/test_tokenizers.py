"""Tokenizers: published ids, reproducible training, word starts, round trips, errors."""

import json
import os
import pickle
import random
import subprocess
import sys
import unicodedata
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from plm_jax.data import tokenizer_backends
from plm_jax.data.tokenizer_backends import flat
from plm_jax.data.tokenizer_files import MBART_LANGUAGES, in_fairseq_order, read_backend
from plm_jax.data.tokenizers import KINDS, BytePairs, Tokenizer, Unigram, WordPiece, load_tokenizer
from plm_jax.errors import UserError

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("PLM_JAX_SHARED_DATA", ROOT.parent / "shared" / "data"))
TOK = SHARED / "tok"
published = pytest.mark.skipif(not TOK.is_dir(), reason=f"no published tokenizer files at {TOK}")


def invented_text(sentences: int = 400) -> list[str]:
  """Invented words with many ties between pairs, which is where trainers lose their way."""
  draw = random.Random(0)
  syllables = [a + b for a in "klmtrsvqbx" for b in ("a", "o", "i", "u", "étu", "2", "-")]
  words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(500)]
  return [" ".join(draw.choices(words, k=12)).capitalize() + "." for _ in range(sentences)]


TRAINED = {
  "word_piece": WordPiece(vocab_size=300),
  "word_piece_cased": WordPiece(vocab_size=300, lowercase=False),
  "byte_pairs": BytePairs(vocab_size=400, prefix_space=False),
  "byte_pairs_prefix": BytePairs(vocab_size=400),
  "unigram_albert": Unigram(vocab_size=120, lowercase=True),
  "unigram_t5": Unigram(vocab_size=120, layout="t5"),
}


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
  return {name: config.train(iter(invented_text())) for name, config in TRAINED.items()}


@cache
def gpt2() -> Tokenizer:
  return load_tokenizer(TOK / "gpt2")


def vectors(name: str) -> list[tuple[str, list[int]]]:
  # newline="": the texts hold carriage returns
  with open(TOK / "vectors" / f"{name}.inp", encoding="utf-8", newline="") as f:
    texts = f.read().split("\n__ggml_vocab_test__\n")
  lines = (TOK / "vectors" / f"{name}.out").read_text().split("\n")
  return [(t, [int(i) for i in line.split()]) for t, line in zip(texts, lines, strict=True)]


# Published files


@published
@pytest.mark.parametrize(
  ("name", "path"),
  [
    ("bert-bge", "bert-base-uncased/vocab.txt"),
    ("bert-bge", "bert-base-uncased/tokenizer.json"),
    ("bert-bge", "bert-base-uncased"),
    ("gpt-2", "gpt2/vocab.bpe"),
  ],
)
def test_published_files_give_the_published_ids(name, path):
  tokenizer, expected = load_tokenizer(TOK / path), vectors(name)
  assert len(expected) == 47
  assert [tokenizer.encode(text).tolist() for text, _ in expected] == [ids for _, ids in expected]


@published
def test_roberta_numbers_the_pieces_of_gpt2_in_its_own_order():
  """fairseq renumbers GPT-2's pieces by frequency (dict.txt) after 4 specials: <s> 0 .. <unk> 3."""
  roberta, renumbered = vectors("roberta-bpe"), {}
  for text, ids in roberta:
    for ours, theirs in zip(gpt2().encode(text).tolist(), ids, strict=True):
      assert renumbered.setdefault(ours, theirs) == theirs
  assert len(set(renumbered.values())) == len(renumbered) > 150
  assert min(renumbered.values()) == renumbered[gpt2().encode(".").item()] == 4


@published
def test_huggingface_and_openai_file_names_are_the_same_tokenizer(tmp_path):
  (tmp_path / "vocab.json").write_bytes((TOK / "gpt2/encoder.json").read_bytes())
  (tmp_path / "merges.txt").write_bytes((TOK / "gpt2/vocab.bpe").read_bytes())
  assert load_tokenizer(tmp_path).fingerprint == gpt2().fingerprint


@published
def test_vocab_txt_and_tokenizer_json_are_the_same_tokenizer():
  bert = load_tokenizer(TOK / "bert-base-uncased/vocab.txt")
  assert bert.fingerprint == load_tokenizer(TOK / "bert-base-uncased/tokenizer.json").fingerprint
  vocab = bert.vocab
  assert (vocab.size, vocab.pad, vocab.unk, vocab.cls, vocab.sep) == (30522, 0, 100, 101, 102)
  assert (vocab.mask, vocab.bos, vocab.eos) == (103, None, None)
  assert np.flatnonzero(vocab.special).tolist() == [0, 100, 101, 102, 103]


@published
def test_chinese_text_is_split_into_single_characters():
  tokenizer = load_tokenizer(TOK / "bert-base-chinese/vocab.txt")
  text = "四川敘永縣城，北魏孝文帝遷都洛陽。我想在北京工作"
  assert tokenizer.tokens(tokenizer.encode(text)) == list(text)
  assert tokenizer.vocab.word_start[tokenizer.encode(text)].all()


@published
def test_published_sentencepiece_models_keep_their_layouts_of_ids():
  albert = Unigram(path=str(TOK / "albert/30k-clean.model"), lowercase=True).load().vocab
  assert (albert.size, albert.pad, albert.unk, albert.cls, albert.sep) == (30000, 0, 1, 2, 3)
  assert (albert.mask, albert.bos, albert.eos) == (4, None, None)
  t5 = load_tokenizer(TOK / "spm/seqio_t5_test.model").vocab
  assert (t5.pad, t5.eos, t5.unk, t5.bos, t5.cls, t5.sep) == (0, 1, 2, None, None, None)
  llama = load_tokenizer(SHARED / "ckpt/stories260K/tok512.model")
  assert (llama.vocab.size, llama.vocab.bos, llama.vocab.eos) == (512, 1, 2)
  # shared data's README: the greedy continuation of stories260K
  story = [403, 407, 261, 378, 432, 383, 286, 261, 376, 298]
  assert llama.decode(story).startswith("Once upon a time, there was")
  assert llama.encode(llama.decode(story)).tolist() == story


@published
def test_gpt1_marks_ends_of_words_and_knows_no_word_starts():
  gpt1 = load_tokenizer(TOK / "gpt1")
  ids = gpt1.encode("Hello unbelievableness , world")
  assert gpt1.tokens(ids)[0] == "hello</w>" and gpt1.vocab.size == 40478
  assert gpt1.decode(ids) == "hello unbelievableness , world"
  assert gpt1.vocab.word_start is None


@published
def test_gpt1_has_the_ids_and_the_text_of_transformers():
  transformers = pytest.importorskip("transformers")
  ours = load_tokenizer(TOK / "gpt1")
  theirs = transformers.OpenAIGPTTokenizer(
    str(TOK / "gpt1/encoder_bpe_40000.json"), str(TOK / "gpt1/vocab_40000.bpe")
  )
  for text in (
    "The function, of course, isn't callable: 3.14 + x_y!",
    "Na\u00efve \u4e2d caf\u00e9",
  ):
    ids = ours.encode(text).tolist()
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


# Word starts, compared with definitions of their own


def basic_words(text: str) -> int:
  """How many words Devlin et al.'s BasicTokenizer sees, counted character by character."""
  words, inside = 0, False
  for c in unicodedata.normalize("NFD", text):
    kind = unicodedata.category(c)
    mark = kind[0] == "P" or (c.isascii() and kind[0] == "S") or 0x4E00 <= ord(c) <= 0x9FFF
    if c.isspace() or mark:
      words, inside = words + mark, False
    elif kind not in ("Mn", "Cc", "Cf"):
      words, inside = words + (not inside), True
  return words


@published
def test_word_starts_of_wordpiece_are_the_words_of_the_basic_tokenizer():
  tokenizer = load_tokenizer(TOK / "bert-base-uncased")
  lines = (SHARED / "lm/wikitext-2/valid.txt").read_text(encoding="utf-8").split("\n")[:400]
  lines += (SHARED / "lm/bert_sample_text.txt").read_text(encoding="utf-8").split("\n")
  assert sum(map(len, lines)) > 50_000
  for line in lines:
    line = line.replace("<unk>", "")
    assert tokenizer.vocab.word_start[tokenizer.encode(line)].sum() == basic_words(line)


@published
def test_word_starts_of_byte_pairs_are_the_words_after_a_space():
  tokenizer = gpt2()
  text = (SHARED / "lm/tinyshakespeare/input.txt").read_text()[:20_000]
  for line in text.split("\n"):
    begins = tokenizer.vocab.word_start[tokenizer.encode(line)].sum()
    assert begins == len(line.split(" ")) - 1, line


@pytest.mark.parametrize("name", TRAINED)
def test_a_tokenizer_is_of_the_kind_of_its_configuration(trained, name):
  assert KINDS[trained[name].kind] is type(TRAINED[name])


@pytest.mark.parametrize("name", ["byte_pairs_prefix", "unigram_albert", "unigram_t5"])
def test_word_starts_are_words_between_spaces(trained, name):
  tokenizer = trained[name]
  for line in invented_text(50):
    ids = tokenizer.encode(line)
    assert tokenizer.vocab.word_start[ids].sum() == len(line.split())
    assert tokenizer.vocab.word_start[ids[0]]


# Training

ORDER = {
  "word_piece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
  "word_piece_cased": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
  "byte_pairs": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
  "byte_pairs_prefix": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
  "unigram_albert": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
  "unigram_t5": ["<pad>", "</s>", "<unk>"],
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_gives_the_asked_size_and_the_paper_s_specials_first(trained, name):
  tokenizer, specials = trained[name], ORDER[name]
  vocab = tokenizer.vocab
  assert vocab.size == TRAINED[name].vocab_size
  assert len(set(tokenizer.tokens(range(vocab.size)))) == vocab.size
  assert tokenizer.tokens(range(len(specials))) == specials
  assert np.flatnonzero(vocab.special).tolist() == list(range(len(specials)))
  assert vocab.word_start[: len(specials)].all()
  assert not any(vocab.special[tokenizer.encode(line)].any() for line in invented_text())


@pytest.mark.parametrize("name", TRAINED)
def test_training_stops_early_when_the_text_gives_no_more(name):
  config = TRAINED[name]
  tokenizer = type(config)(vocab_size=5000, **({"layout": "t5"} if "t5" in name else {})).train(
    ["one small text", "two small texts"] * 3
  )
  assert 5 < tokenizer.vocab.size < 5000
  assert tokenizer.decode(tokenizer.encode("one small text")) == "one small text"


TRAIN_ANEW = """
from tests.data.test_tokenizers import TRAINED, invented_text
print(*(config.train(iter(invented_text())).fingerprint for config in TRAINED.values()))
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_training_is_the_same_in_every_process_and_with_any_number_of_threads(trained, threads):
  env = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", TRAIN_ANEW]
  done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.stdout.split() == [t.fingerprint for t in trained.values()], done.stderr


def test_other_text_or_other_rules_give_another_fingerprint(trained):
  prints = [t.fingerprint for t in trained.values()]
  prints.append(WordPiece(vocab_size=300).train(invented_text(399)).fingerprint)
  assert len(set(prints)) == len(prints)


def test_the_order_of_merges_is_part_of_the_fingerprint(tmp_path):
  damage(tmp_path, "vocab.json", b'{"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}')
  damage(tmp_path, "merges.txt", b"a b\nb c\n")
  first = load_tokenizer(tmp_path)
  damage(tmp_path, "merges.txt", b"b c\na b\n")
  second = load_tokenizer(tmp_path)
  assert (first.encode("abc").tolist(), second.encode("abc").tolist()) == ([3, 2], [0, 4])
  assert first.fingerprint != second.fingerprint


def test_rare_characters_beyond_a_quarter_of_the_vocabulary_become_unknown():
  text = [f"common words here qx jq qx{chr(0x1200 + i)}jq" for i in range(100)]
  tokenizer = WordPiece(vocab_size=80).train(text)
  assert tokenizer.vocab.unk not in tokenizer.encode("common words here")
  assert tokenizer.encode("qx\u1263").tolist() == [tokenizer.vocab.unk]
  tokens = tokenizer.tokens(range(tokenizer.vocab.size))
  common = set("commonwordshereqxj")
  assert len({c for c in "".join(tokens[5:]) if c >= "\u1200"}) == 80 // 4 - len(common)
  # nor does what stood around them grow together
  assert not any("xj" in token for token in tokens)


@pytest.mark.parametrize("name", TRAINED)
def test_text_without_words_is_refused_in_a_sentence(name):
  with pytest.raises(UserError, match="contains no words"):
    TRAINED[name].train(iter(["", "  "]))


def test_unigram_training_keeps_sentences_at_even_distances():
  from plm_jax.data.tokenizer_training import thin_out

  assert thin_out(iter("abcdef"), 6) == list("abcdef")
  kept = thin_out(map(str, range(1000)), 100)
  assert 50 <= len(kept) <= 100
  assert len({int(b) - int(a) for a, b in pairwise(kept)}) == 1


# Encoding and decoding


@pytest.mark.parametrize("name", TRAINED)
def test_ids_are_int32_and_an_empty_text_has_none(trained, name):
  for ids in trained[name].encode_batch(["", "Kalo mi", ""]):
    assert ids.dtype == np.int32 and ids.ndim == 1
  assert trained[name].encode("").size == 0
  assert trained[name].encode("", special=True).size == 0
  assert trained[name].encode_batch([]) == []


@pytest.mark.parametrize("name", TRAINED)
def test_batches_and_single_texts_have_the_same_ids(trained, name):
  texts = invented_text(30)
  tokenizer = pickle.loads(pickle.dumps(trained[name]))  # with nothing remembered
  batch = tokenizer.encode_batch(texts)
  for text, ids in zip(texts, batch, strict=True):
    np.testing.assert_array_equal(tokenizer.encode(text), ids)


def same(found, expected) -> bool:
  return all(map(np.array_equal, found, expected))


def test_forgotten_words_are_learnt_again(trained, monkeypatch):
  monkeypatch.setattr(tokenizer_backends, "MAX_CACHED_WORDS", 50)
  backend = pickle.loads(pickle.dumps(trained["word_piece"])).backend
  texts = invented_text(100)
  for start in range(0, 100, 10):
    block = texts[start : start + 10]
    assert same(backend.encode_flat(block), flat(backend._encode_texts(block)))
  assert len(backend._words._number) < len({word for text in texts for word in text.split()})


def test_word_by_word_encoding_is_the_library_s_own_for_any_characters(trained):
  draw = random.Random(0)
  some = [chr(c) for c in range(0x30000) if not 0xD800 <= c < 0xE000]
  near = " kalo,étu\x00\x0b\x1c\x85\u00a0\u2028\u3000\u0301\u4e00İΣ"
  texts = [
    "".join(draw.choice(some if draw.random() < 0.3 else near) for _ in range(40))
    for _ in range(500)
  ]
  for name in ("word_piece", "word_piece_cased"):
    backend = trained[name].backend
    assert backend.word_by_word
    assert same(backend.encode_flat(texts), flat(backend._encode_texts(texts)))
    assert same(backend.encode_flat(texts), flat(backend._encode_texts(texts)))  # now remembered


@pytest.mark.parametrize("name", TRAINED)
def test_names_of_special_tokens_are_text_unless_asked_for(trained, name):
  tokenizer = trained[name]
  for token in ORDER[name]:
    plain = tokenizer.encode(f"kalo {token} mitu")
    named = [i for i in plain.tolist() if tokenizer.vocab.special[i] and i != tokenizer.vocab.unk]
    assert not named
    asked = tokenizer.encode(f"kalo {token} mitu", special=True)
    assert ORDER[name].index(token) in asked


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "unigram_t5"])  # no mask
def test_a_blank_takes_the_space_before_it(trained, name):
  tokenizer = trained[name]
  mask = tokenizer.token(tokenizer.vocab.mask)
  asked = tokenizer.encode(f"kalo {mask} mitu", special=True).tolist()
  parts = tokenizer.encode("kalo").tolist(), tokenizer.encode(" mitu").tolist()
  assert asked == [*parts[0], tokenizer.vocab.mask, *parts[1]]
  gap = "" if tokenizer.kind == "byte_pairs" else " "
  assert tokenizer.decode(asked, special=True) == f"kalo{gap}{mask} mitu".replace("  ", " ") or (
    name == "byte_pairs_prefix"
  )
  assert mask not in tokenizer.decode(asked)


@pytest.mark.parametrize("name", TRAINED)
def test_decoding_gives_readable_text(trained, name):
  tokenizer = trained[name]
  text = invented_text()[3]
  if tokenizer.backend.lowercase:
    plain = unicodedata.normalize("NFD", text.lower())
    text = "".join(c for c in plain if unicodedata.category(c) != "Mn")
  decoded = tokenizer.decode(tokenizer.encode(text))
  # WordPiece does not know whether a hyphen stood alone
  assert decoded.replace(" - ", "-").replace("- ", "-").replace(" -", "-").strip() == text.replace(
    "- ", "-"
  )


# Moving and keeping


@pytest.mark.parametrize("name", TRAINED)
def test_tokenizers_travel_to_worker_processes(trained, name):
  there = pickle.loads(pickle.dumps(trained[name]))
  assert there.fingerprint == trained[name].fingerprint
  text = f"Kalo {ORDER[name][0]} mitu"
  np.testing.assert_array_equal(there.encode(text), trained[name].encode(text))
  vocab = pickle.loads(pickle.dumps(trained[name].vocab))
  np.testing.assert_array_equal(vocab.word_start, there.vocab.word_start)
  assert vocab.size == there.vocab.size and vocab.mask == there.vocab.mask


@pytest.mark.parametrize("name", TRAINED)
def test_a_saved_tokenizer_loads_as_itself(trained, name, tmp_path):
  trained[name].save(tmp_path)
  loaded = load_tokenizer(tmp_path)
  assert loaded.fingerprint == trained[name].fingerprint
  text = f"Kalo {ORDER[name][0]} Mitu."
  np.testing.assert_array_equal(loaded.encode(text), trained[name].encode(text))
  np.testing.assert_array_equal(loaded.vocab.special, trained[name].vocab.special)
  assert loaded.vocab.cls == trained[name].vocab.cls
  loaded.save(tmp_path / "again")
  for file in (tmp_path / "again").iterdir():
    assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def test_saved_files_carry_the_published_names(trained, tmp_path):
  for name in ("word_piece", "byte_pairs", "unigram_albert"):
    trained[name].save(tmp_path / name)
  names = {f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*.*")}
  assert names >= {"word_piece/vocab.txt", "word_piece/tokenizer.json", "unigram_albert/spm.model"}
  assert names >= {f"byte_pairs/{f}" for f in ("vocab.json", "merges.txt", "tokenizer.json")}
  lines = (tmp_path / "word_piece/vocab.txt").read_text(encoding="utf-8").split("\n")
  assert lines[:2] == ["[PAD]", "[UNK]"] and len(lines) == 301


@pytest.mark.parametrize("name", ["word_piece", "byte_pairs"])
def test_other_libraries_read_the_saved_tokenizer_json_with_its_special_tokens(
  trained, name, tmp_path
):
  from tokenizers import Tokenizer as HuggingFace

  trained[name].save(tmp_path)
  first, last = (trained[name].vocab.cls, trained[name].vocab.sep)
  text = f"kalo {trained[name].token(trained[name].vocab.mask)} mitu"
  theirs = HuggingFace.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
  assert theirs == [first, *trained[name].encode(text, special=True), last]


# The user's mistakes


def damage(folder: Path, name: str, content: bytes) -> Path:
  (folder / name).write_bytes(content)
  return folder / name


def test_missing_and_unknown_files_are_told_in_a_sentence(tmp_path):
  with pytest.raises(UserError, match="There is no tokenizer at"):
    load_tokenizer(tmp_path / "nothing")
  with pytest.raises(UserError, match=r"contains none of vocab\.txt"):
    load_tokenizer(tmp_path)
  with pytest.raises(UserError, match="not a tokenizer file that this project reads"):
    load_tokenizer(damage(tmp_path, "other.json", b"{}"))
  with pytest.raises(UserError, match=r"needs vocab\.bpe beside it"):
    load_tokenizer(damage(tmp_path, "encoder.json", b'{"a": 0}'))
  with pytest.raises(UserError, match="no path to load from"):
    WordPiece().load()


@pytest.mark.parametrize(
  ("name", "content", "sentence"),
  [
    ("vocab.txt", b"[UNK]\n\xff\xfe\n", "byte 6 is not UTF-8"),
    ("vocab.txt", b"the\na\n", r"has no line \[UNK\]"),
    ("vocab.txt", b"[UNK]\na\nb\na\n", "line 4 repeats the token 'a' of line 2"),
    ("tokenizer.json", b'{"model": {"type": "Unigram"}}', "expected WordPiece or BPE"),
    ("tokenizer.json", b'{"model": {"type": "BPE"}}', "cannot be read"),
    ("tokenizer.json", b'{"model": 3}', "cannot be read"),
    ("tokenizer.json", b'{"model": {"type": "BPE", "merges": ["a"]}}', "cannot be read"),
    ("tokenizer.json", b'{"model": ', "cannot be read: Expecting value"),
    ("tokenizer.json", b"[]", "expected a JSON object"),
    ("spm.model", b"", "is empty"),
    ("spm.model", b"not a protocol buffer", "cannot be read"),
  ],
)
def test_damaged_files_are_told_in_a_sentence(tmp_path, name, content, sentence):
  with pytest.raises(UserError, match=sentence):
    load_tokenizer(damage(tmp_path, name, content))


def test_damaged_byte_pairs_are_told_in_a_sentence(tmp_path):
  damage(tmp_path, "merges.txt", b"#version: 0.2\na b\n")
  for vocab, sentence in ((b'{"a": 0, "b": 0}', "one id"), (b'{"a": 0, "b": 1}', "lacks 'ab'")):
    damage(tmp_path, "vocab.json", vocab)
    with pytest.raises(UserError, match=sentence):
      load_tokenizer(tmp_path)
  damage(tmp_path, "merges.txt", b"a b c\n")
  with pytest.raises(UserError, match="line 1 is damaged"):
    load_tokenizer(tmp_path)


def test_a_saved_tokenizer_changed_since_is_refused(trained, tmp_path):
  trained["word_piece"].save(tmp_path)
  file = tmp_path / "tokenizer.json"
  rules = json.loads(file.read_text(encoding="utf-8"))
  vocab = rules["model"]["vocab"]
  vocab["k"], vocab["l"] = vocab["l"], vocab["k"]
  file.write_text(json.dumps(rules), encoding="utf-8")
  with pytest.raises(UserError, match="not the one that was saved"):
    load_tokenizer(tmp_path)
  with pytest.raises(UserError, match="not the one that was saved"):
    WordPiece(path=str(tmp_path)).load()


def test_a_path_of_another_kind_or_with_other_rules_is_refused(trained, tmp_path):
  trained["word_piece"].save(tmp_path)
  assert WordPiece(path=str(tmp_path)).load().vocab.size == 300
  with pytest.raises(UserError, match=r"use WordPiece\(path=...\) instead of BytePairs"):
    BytePairs(path=str(tmp_path)).load()
  with pytest.raises(UserError, match="made with lowercase=True"):
    WordPiece(path=str(tmp_path), lowercase=False).load()


@pytest.mark.parametrize("name", ["word_piece", "byte_pairs", "unigram_t5"])
def test_sentinels_and_languages_have_the_ids_after_the_vocabulary(trained, name, tmp_path):
  config = replace(TRAINED[name], sentinels=100, languages=("en_XX", "de_DE"))
  tokenizer = Tokenizer(trained[name].backend, config.sentinels, config.languages)
  own, vocab = trained[name].vocab.size, tokenizer.vocab
  assert vocab.size == own + config.added == own + 102
  assert vocab.sentinels.tolist() == list(range(own + 99, own - 1, -1))
  assert tokenizer.token(vocab.sentinels[0]) == "<extra_id_0>"
  assert vocab.languages == {"en_XX": own + 100, "de_DE": own + 101}
  assert vocab.special[own:].all() and vocab.word_start[own:].all()
  np.testing.assert_array_equal(vocab.special[:own], trained[name].vocab.special)
  ids = [*trained[name].encode("kalo"), vocab.sentinels[7]]
  assert tokenizer.decode(ids) == trained[name].decode(ids[:-1])
  assert tokenizer.decode(ids, special=True).endswith("<extra_id_7>")
  assert tokenizer.encode("<extra_id_7>", special=True).tolist() == [vocab.sentinels[7]]
  assert tokenizer.fingerprint != trained[name].fingerprint
  assert pickle.loads(pickle.dumps(tokenizer)).fingerprint == tokenizer.fingerprint
  tokenizer.save(tmp_path)
  assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
  assert replace(config, path=str(tmp_path)).load().vocab.size == vocab.size
  with pytest.raises(UserError, match="made with sentinels=100"):
    replace(config, path=str(tmp_path), sentinels=0).load()


def test_sentinels_come_with_published_files_that_know_nothing_of_them(trained, tmp_path):
  trained["unigram_t5"].save(tmp_path)
  (tmp_path / "tokenizer_rules.json").unlink()
  loaded = Unigram(path=str(tmp_path), layout="t5", sentinels=100).load()
  assert loaded.vocab.size == trained["unigram_t5"].vocab.size + 100


@pytest.mark.parametrize("name", TRAINED)
def test_full_stops_are_told_from_other_tokens(trained, name):
  vocab, stop = trained[name].vocab, trained[name].encode("kalo.")[-1]
  assert vocab.full_stop[stop] and vocab.full_stop.sum() <= 2


def test_byte_pairs_take_a_prefix_space_when_trained_and_none_when_published(trained, tmp_path):
  assert trained["byte_pairs_prefix"].backend.prefix_space  # nothing was said
  text = "kalo kalo"
  ids = trained["byte_pairs_prefix"].encode(text).tolist()
  assert ids[: len(ids) // 2] * 2 == ids
  assert trained["byte_pairs_prefix"].decode(ids) == text
  trained["byte_pairs_prefix"].save(tmp_path / "own")
  assert BytePairs(path=str(tmp_path / "own")).load().encode(text).tolist() == ids
  trained["byte_pairs"].save(tmp_path / "published")
  (tmp_path / "published/tokenizer.json").unlink()
  (tmp_path / "published/tokenizer_rules.json").unlink()
  assert not BytePairs(path=str(tmp_path / "published")).load().backend.prefix_space
  with pytest.raises(UserError, match="made with prefix_space=True"):
    BytePairs(path=str(tmp_path / "own"), prefix_space=False).load()


def test_more_characters_than_pieces_leave_the_rare_ones_to_unk():
  common, rare = "kalo mitu seda", "".join(map(chr, range(0x4E00, 0x4E00 + 400)))
  tokenizer = Unigram(vocab_size=60).train([common] * 500 + [rare])
  assert tokenizer.vocab.size <= 60
  assert tokenizer.vocab.unk not in tokenizer.encode(common)
  assert tokenizer.vocab.unk in tokenizer.encode(rare)


def test_nonsense_in_a_configuration_is_refused():
  for make in (
    lambda: WordPiece(vocab_size=3),
    lambda: BytePairs(vocab_size=256),
    lambda: Unigram(vocab_size=0),
    lambda: Unigram(layout="bert"),
    lambda: WordPiece(sentinels=-1),
    lambda: BytePairs(languages=("en_XX", "en_XX")),
  ):
    with pytest.raises(UserError):
      make()


def test_a_file_of_xlm_r_has_the_ids_of_fairseq(tmp_path):
  """transformers' rule: one more than in the file, and the special tokens in front."""
  (tmp_path / "text").write_text("\n".join(invented_text(100)))
  sentencepiece.SentencePieceTrainer.train(
    input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=120, minloglevel=5
  )
  file = read_backend(tmp_path / "m.model")
  tokenizer = Tokenizer(in_fairseq_order(file))
  vocab, (ids, _) = tokenizer.vocab, file.encode_flat(invented_text(9))
  assert (vocab.bos, vocab.pad, vocab.eos, vocab.unk) == (0, 1, 2, 3)
  assert (vocab.mask, vocab.size) == (121, 122)
  expected = np.where(ids == 0, 3, ids + 1)
  np.testing.assert_array_equal(tokenizer.encode_flat(invented_text(9))[0], expected)
  tokenizer.save(tmp_path / "saved")
  assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint
  with pytest.raises(UserError, match="not one of XLM-R or mBART"):
    in_fairseq_order(TRAINED["unigram_t5"].train(invented_text()).backend)


def test_a_file_of_mbart_has_its_languages_and_the_mask_after_the_pieces(tmp_path):
  """The ids of transformers' MBartTokenizer, where it is installed."""
  (tmp_path / "text").write_text("\n".join(invented_text(100)))
  sentencepiece.SentencePieceTrainer.train(
    input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=120, minloglevel=5
  )
  file = read_backend(tmp_path / "m.model")
  tokenizer = Tokenizer(in_fairseq_order(file, MBART_LANGUAGES))
  vocab = tokenizer.vocab
  assert (vocab.languages["ar_AR"], vocab.languages["zh_CN"]) == (121, 145)
  assert (vocab.mask, vocab.size, vocab.special[121:].all()) == (146, 147, True)
  tokenizer.save(tmp_path / "saved")
  kept = load_tokenizer(tmp_path / "saved")
  assert kept.vocab.languages == vocab.languages and kept.fingerprint == tokenizer.fingerprint
  config = Unigram(path=str(tmp_path / "saved"), languages=MBART_LANGUAGES)
  assert config.load().fingerprint == tokenizer.fingerprint
  with pytest.raises(UserError, match="set languages="):
    replace(config, languages=()).load()
  assert tokenizer.encode("a <mask> en_XX", special=True).tolist()[-2:] == [146, 124]
