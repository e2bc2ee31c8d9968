"""Published tokenizers: every entry of their files is read, known to be silent, or refused; their
ids are transformers'."""

import json
import os
import pickle
import shutil
import unicodedata

import numpy as np
import pytest

from plm_jax.data.tokenizers import Unigram, load_tokenizer, read_published
from plm_jax.data.vocab import SpecialTokens
from plm_jax.errors import UserError
from tests.data import published_folders as folders

GOLDEN = json.loads(folders.GOLDEN.read_text())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  root = tmp_path_factory.mktemp("published")
  return {f.name: f for f in [*folders.encoders(root), *folders.decoders(root)]}


@pytest.fixture
def copy(published, tmp_path):
  """A copy of a folder, with changed entries of one of its JSON files."""

  def copied(name, file=None, remove=(), **entries):
    folder = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
    shutil.copytree(published[name], folder)
    if file is not None:
      place = folder / file
      document = json.loads(place.read_text()) if place.exists() else {}
      kept = {n: v for n, v in document.items() if n not in remove}
      place.write_text(json.dumps(kept | entries))
    return folder

  return copied


@pytest.mark.parametrize("name", GOLDEN)
def test_the_ids_of_nasty_texts_are_those_recorded_from_transformers(name, published):
  tokenizer = read_published(published[name])
  ids = [row.tolist() for row in tokenizer.encode_batch(folders.nasty(40))]
  assert ids == GOLDEN[name]


@pytest.mark.slow
def test_a_thousand_nasty_texts_have_the_ids_of_transformers(published, tmp_path):
  """Unigram files are read by SentencePiece, which made them. transformers 5 reads names of special
  tokens as tokens there, joins unknown characters, and adds no space before a first "▁": such texts
  are left out."""
  transformers = pytest.importorskip("transformers")
  joined = {"t5", "xlm_roberta"} | {f.name for f in folders.unigrams(tmp_path / "u")}
  for folder in [*published.values(), *sorted((tmp_path / "u").iterdir())]:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    ours = read_published(folder, model_type)
    differ = []
    for text in folders.nasty(1000, hard=folder.name not in joined):
      ids = ours.encode(text).tolist()
      expected = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
      if folder.name in joined:
        unk = ours.vocab.unk
        if unk in ids or unk in expected or text.startswith(" ") or "▁" in text:
          continue
      if ids != expected:
        differ.append((text, ours.tokens(ids), theirs.convert_ids_to_tokens(expected)))
    assert not differ, (folder.name, len(differ), differ[:3])


@pytest.mark.slow
def test_nasty_texts_have_the_ids_of_the_slow_tokenizer_of_bert(published):
  """It reads special tokens in a text, drops unassigned and private characters, and composes
  accents (NFC), none of which BERT's own code or the fast tokenizer does: these texts are left
  out."""
  legacy = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
  names = ("[MASK]", "[SEP]")
  left_out = {"Cn", "Co"}
  texts = [
    text
    for text in folders.nasty(1000)
    if not any(name in text for name in names)
    and left_out.isdisjoint(map(unicodedata.category, text))
    and unicodedata.is_normalized("NFC", text)
  ]
  assert len(texts) > 600
  for name in ("bert_lower", "bert_cased", "accents_cased", "chinese_lower"):
    ours = read_published(published[name]).encode_batch(texts)
    theirs = legacy.BertTokenizerLegacy.from_pretrained(published[name])
    assert [ids.tolist() for ids in ours] == theirs(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.slow
def test_nasty_texts_have_the_pieces_of_a_slow_tokenizer_for_model_files(tmp_path):
  """transformers 5 has none for T5, XLM-R and LLaMA, but one for any `.model`."""
  transformers = pytest.importorskip("transformers")
  special = {"unk_token": "<unk>", "bos_token": "<s>", "sep_token": "</s>"}
  texts = folders.nasty(1000, hard=False)
  folders.unigrams(tmp_path / "u")
  for name, family in (("t5", "t5"), ("xlm_roberta", "xlm-roberta"), ("llama_True", "llama")):
    (file,) = (tmp_path / "u" / name).glob("*.model")
    theirs = transformers.BertGenerationTokenizer(str(file), **special)
    ours = read_published(file.parent, family)
    unk = ours.token(ours.vocab.unk)
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
      known = [piece if piece in ours.pieces else unk for piece in theirs.tokenize(text)]
      assert ours.tokens(ids) == known


def test_an_albert_is_in_lower_case_without_accents_unless_its_files_say_otherwise(tmp_path):
  text = "Crème Brûlée"
  pieces = Unigram(vocab_size=80, lowercase=True).train(["crème brûlée creme brulee"] * 9)
  for config, same in (
    (None, "creme brulee"),
    ({}, "creme brulee"),
    ({"keep_accents": True}, "crème brûlée"),
    ({"do_lower_case": False}, "Creme Brulee"),
  ):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folders.write(folder, "albert", {"spiece.model": pieces.backend.proto}, config or {})
    if config is None:
      (folder / "tokenizer_config.json").unlink()
    tokenizer = read_published(folder, "albert")
    expected, _ = pieces.backend.model.encode(same), None
    assert tokenizer.encode(text).tolist() == expected
    (ids,), (spans,) = tokenizer.encode_offsets([text])
    assert ids.tolist() == expected and spans.max() == len(text)
    tokenizer.save(folder / "saved")
    again = load_tokenizer(folder / "saved")
    assert again.encode(text).tolist() == expected and again.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
  ("file", "entries", "sentence"),
  [
    ("tokenizer_config.json", {"do_sing": 1}, "sets do_sing=1, which this project does not know"),
    ("tokenizer_config.json", {"never_split": ["a"]}, "sets never_split=.*not support"),
    ("tokenizer_config.json", {"do_basic_tokenize": False}, "do_basic_tokenize=False"),
    ("tokenizer_config.json", {"strip_accents": "no"}, "strip_accents='no'; expected true"),
    ("tokenizer_config.json", {"pad_token": 3}, "pad_token=3; expected a token"),
    ("tokenizer_config.json", {"extra_ids": -1}, "extra_ids=-1"),
    ("tokenizer_config.json", {"tokenizer_class": []}, r"tokenizer_class=\[\]"),
    ("tokenizer_config.json", {"additional_special_tokens": "a"}, "expected a list of tokens"),
    ("special_tokens_map.json", {"wrong": "a"}, "sets wrong, which is no special token"),
    ("added_tokens.json", {"x": -1}, "with the id -1"),
    ("added_tokens.json", {"xx": 9999}, "with the id 9999, and its vocabulary .* ends at"),
    ("added_tokens.json", {"x": 0}, r"'\[PAD\]' at 0"),
    ("generation_config.json", {"wrong": 1}, "sets wrong=1, which this project does not know"),
    ("generation_config.json", {"eos_token_id": [1, "x"]}, "eos_token_id=.*expected ids"),
    ("config.json", {"bos_token_id": -2}, "bos_token_id=-2; expected ids from 0"),
  ],
)
def test_an_entry_that_is_unknown_or_wrong_is_refused_by_name(file, entries, sentence, copy):
  with pytest.raises(UserError, match=sentence):
    read_published(copy("bert_lower", file, **entries))


def test_silent_entries_change_nothing(copy, published):
  entries = {"model_max_length": 512, "padding_side": "left", "chat_template": "{{x}}"}
  changed = read_published(copy("bert_lower", "tokenizer_config.json", **entries))
  assert changed.fingerprint == read_published(published["bert_lower"]).fingerprint


def test_begin_and_ends_are_those_that_the_files_name(copy, tmp_path):
  """A LLaMA 3 ends at the end of a text and at the end of a turn."""
  folder = copy("llama3", "generation_config.json", eos_token_id=[398, 399])
  first = read_published(folder)
  names = [first.pieces.index(f"<|{n}|>") for n in ("begin_of_text", "end_of_text", "eot_id")]
  begin, end, turn = names
  folder = copy("llama3", "generation_config.json", eos_token_id=[end, turn])
  tokenizer = read_published(folder)
  vocab = tokenizer.vocab
  assert (vocab.begin, vocab.end, vocab.ends) == ([begin], [end], (turn,))
  assert vocab.pad is None and vocab.special[names].all()
  tokenizer.save(tmp_path / "saved")
  for again in (load_tokenizer(tmp_path / "saved"), pickle.loads(pickle.dumps(tokenizer))):
    assert again.fingerprint == tokenizer.fingerprint != first.fingerprint
    assert (again.vocab.begin, again.vocab.ends) == ([begin], (turn,))
  no_names = {"remove": ("bos_token", "eos_token"), "tokenizer_class": "PreTrainedTokenizerFast"}
  folder = copy("llama3", "tokenizer_config.json", **no_names)
  ids = {"model_type": "llama", "bos_token_id": begin, "eos_token_id": turn, "pad_token_id": end}
  (folder / "config.json").write_text(json.dumps(ids))
  vocab = read_published(folder).vocab
  assert (vocab.begin, vocab.end, vocab.pad) == ([begin], [turn], end)
  vocab = read_published(copy("llama3", "tokenizer_config.json", bos_token=None)).vocab
  assert vocab.begin == []
  with pytest.raises(UserError, match="sets eos_token_id=5000, and its tokenizer has"):
    read_published(copy("llama3", "generation_config.json", eos_token_id=5000))


def test_a_text_has_no_begin_if_the_files_say_so(copy):
  for says in (True, False):
    config = {"add_bos_token": says, "add_eos_token": False}
    vocab = read_published(copy("llama3", "tokenizer_config.json", **config)).vocab
    assert bool(vocab.begin) == says and vocab.end
    vocab = read_published(copy("gpt2_False", "tokenizer_config.json", **config)).vocab
    assert vocab.begin  # one token is begin and end here, whatever transformers puts before a text


def test_tokens_added_to_sentencepiece_have_the_ids_of_their_files(tmp_path):
  pieces = Unigram(vocab_size=80).train(["crème brûlée creme brulee"] * 9).backend
  size = len(pieces.pieces)
  added = {str(size): folders.token("NEW", False), str(size + 1): folders.token("<end>", True)}
  config = {"eos_token": "<end>", "pad_token": "<end>", "added_tokens_decoder": added}
  config["tokenizer_class"] = "LlamaTokenizer"
  folder = folders.write(tmp_path / "a", "llama", {"tokenizer.model": pieces.proto}, config)
  tokenizer = read_published(folder, "llama")
  vocab = tokenizer.vocab
  assert (vocab.eos, vocab.pad, vocab.size) == (size + 1, size + 1, size + 2)
  assert vocab.special[size + 1] and not vocab.special[size]
  ids = tokenizer.encode("crème NEW <end>").tolist()
  assert size in ids and size + 1 not in ids
  assert tokenizer.encode("crème NEW <end>", special=True)[-1] == size + 1
  tokenizer.save(tmp_path / "saved")
  assert load_tokenizer(tmp_path / "saved").encode("crème NEW <end>").tolist() == ids


def test_special_tokens_map_counts_where_no_added_tokens_are_listed(copy):
  mapped = copy("gpt2_False", "special_tokens_map.json", pad_token={"content": "<pad>"})
  assert read_published(mapped).vocab.pad == read_published(mapped).pieces.index("<pad>")
  new = read_published(copy("gpt2_False", "special_tokens_map.json", pad_token="[EMPTY]"))
  assert new.token(new.vocab.size - 1) == "[EMPTY]" and new.vocab.pad == new.vocab.size - 1


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    (lambda d: d["model"]["vocab"].clear(), "expected one id for each token"),
    (lambda d: d["model"]["vocab"].update(zzz=4_000_000_000), "'zzz' the id 4000000000"),
    (lambda d: d["added_tokens"].append({"id": 4_000_000_000, "content": "x"}), "id 4000000000"),
    (lambda d: d["added_tokens"][0].update(id=500), "with the id 500, where its place is"),
    (lambda d: d["added_tokens"].append("x"), "adds 'x', which is no token"),
    (lambda d: d["model"].update(dropout=0.1), "dropout=0.1: the ids of a text would be random"),
    (lambda d: d["model"].update(unk_token="none"), "unknown token 'none'"),
    (
      lambda d: d.update(
        normalizer={
          "type": "Sequence",
          "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"} for _ in range(40)
          ],
        }
      ),
      "characters of one; it is refused",
    ),
    (lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [1]}), "no objects"),
  ],
)
def test_a_tokenizer_that_cannot_work_is_refused_before_the_library_reads_it(
  change, sentence, copy
):
  folder = copy("llama3")
  document = json.loads((folder / "tokenizer.json").read_text())
  change(document)
  (folder / "tokenizer.json").write_text(json.dumps(document))
  with pytest.raises(UserError, match=sentence):
    read_published(folder)


def test_a_byte_order_mark_and_blanks_at_line_ends_are_no_part_of_a_token(copy, published):
  folder = copy("bert_lower")
  text = (folder / "vocab.txt").read_text()
  (folder / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", " \r\n").encode())
  assert read_published(folder).pieces == read_published(published["bert_lower"]).pieces


def test_fifos_and_links_that_lead_out_are_refused(copy, tmp_path):
  folder = copy("bert_lower")
  (folder / "vocab.txt").unlink()
  os.mkfifo(folder / "vocab.txt")
  with pytest.raises(UserError, match="is a FIFO"):
    read_published(folder)
  (tmp_path / "secret").write_text("{}")
  folder = copy("bert_lower")
  (folder / "added_tokens.json").symlink_to(tmp_path / "secret")
  with pytest.raises(UserError, match=r"is a link to .*secret, outside of its folder"):
    read_published(folder)


def test_a_link_to_itself_is_told_where_it_is_read_and_replaced_where_it_is_written(tmp_path):
  from plm_jax.data.tokenizers import BytePairs, load_tokenizer

  tokenizer = BytePairs(vocab_size=300).train(["He said yes. Then no, he left so."] * 9)
  tokenizer.save(tmp_path)
  for name in ("tokenizer_rules.json", "tokenizer.json", "vocab.json", "merges.txt"):
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to(name)
    with pytest.raises(UserError, match=rf"{name} is a link that leads back to itself; put the"):
      load_tokenizer(tmp_path)
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    (tmp_path / "tokenizer.json").unlink()  # which is read in place of the two others


def test_brackets_within_brackets_are_a_sentence(copy):
  folder = copy("bert_lower")
  (folder / "tokenizer_config.json").write_text('{"a":' * 100_000)
  with pytest.raises(UserError, match=r"tokenizer_config\.json cannot be read"):
    read_published(folder)


@pytest.mark.parametrize("kind", ["t5", "byte_pairs"])
def test_the_text_after_a_sentinel_has_the_pieces_that_it_has_in_pretraining(kind):
  """Span corruption replaces "yes" in "He said yes. Then no, he left"."""
  from plm_jax.data.tokenizers import BytePairs

  made = Unigram(vocab_size=60, layout="t5", sentinels=2) if kind == "t5" else None
  made = made or BytePairs(vocab_size=300, sentinels=2)
  tokenizer = made.train(["He said yes. Then no, he left so."] * 9)
  whole, vocab = "He said yes. Then no, he left", tokenizer.vocab
  ids = tokenizer.encode("He said <extra_id_0>. Then <extra_id_1>, he left", special=True)
  parts = np.split(ids, np.flatnonzero(np.isin(ids, vocab.sentinels)))
  plain = [tokenizer.tokens(part[part < vocab.sentinels.min()]) for part in parts]
  pieces = tokenizer.tokens(tokenizer.encode(whole))
  assert pieces[: len(plain[0])] == plain[0] and pieces[-len(plain[2]) :] == plain[2]
  middle = "".join(plain[1])
  assert middle[0] == "." and middle in "".join(pieces)


def test_half_a_character_is_a_sentence(published):
  for text, special in (("[MASK] \udcff", False), ("\udcff [MASK]", True), ("[MASK]\udcff", True)):
    with pytest.raises(UserError, match="half a character"):
      read_published(published["bert_lower"]).encode(text, special)


def test_roles_and_ends_are_none_where_names_tell_all(published):
  for name in ("bert_lower", "roberta_False", "gpt2_False"):
    assert read_published(published[name]).special == SpecialTokens()
