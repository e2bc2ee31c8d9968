"""CoNLL and CoNLL-U files as they are, words of plain text, and files that are refused."""

import os
from pathlib import Path

import pytest

from plm_jax.errors import UserError
from plm_jax.tasks.conll import joined, read_conll, words_of
from plm_jax.tasks.entities import scheme_of

SHARED = Path(os.environ.get("PLM_JAX_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
shared = pytest.mark.skipif(not (SHARED / "ner").is_dir(), reason=f"no shared data at {SHARED}")


def write(tmp_path, text, name="a.conll"):
  (tmp_path / name).write_bytes(text.encode())
  return tmp_path / name


def words(item):
  return [item.texts[0][start:end] for start, end in item.words]


@pytest.mark.parametrize("tab", [" ", "\t", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_are_separated_by_tabs_or_blanks_and_the_last_is_the_tag(tmp_path, tab, end):
  lines = ["-DOCSTART- -X- O", "", "EU NNP B-ORG", "rejects VBZ O", "", "", "German JJ B-MISC"]
  path = write(tmp_path, end.join(lines).replace(" ", tab))
  first, second = read_conll(path, None, labelled=True)
  assert first.texts == ("EU rejects",) and first.target == ["B-ORG", "O"]
  assert words(first) == ["EU", "rejects"] and second.target == ["B-MISC"]
  assert (first.name, second.name) == ("a.conll:3", "a.conll:7")
  assert read_conll(path, 2, labelled=True)[0].target == ["NNP", "VBZ"]


def test_a_word_with_odd_characters_is_one_word(tmp_path):
  (item,) = read_conll(write(tmp_path, "a\u00a0b\tO\n\u2028\tO\nx y\tB-A\n\t\n"), None, True)
  assert words(item) == ["a\u00a0b", "\u2028", "x y"] and item.target == ["O", "O", "B-A"]


def test_words_without_tags_are_read_for_predictions(tmp_path):
  (item,) = read_conll(write(tmp_path, "the\ncat\n"), None, labelled=False)
  assert item.target is None and item.texts == ("the cat",)


def test_many_documents_are_kept_together_and_few_are_not(tmp_path):
  part = "-DOCSTART- O\n\na O\n\nb B-X\n\n"
  many = read_conll(write(tmp_path, part * 20), None, True)
  assert len({item.document for item in many}) == 20 and len(many) == 40
  few = read_conll(write(tmp_path, part * 3), None, True)
  assert len({item.document for item in few}) == 6


CONLLU = """# newdoc id = d
# sent_id = 1
# text = I didn't see du x.
1\tI\tI\tPRON\tPRP\t_\t3\tnsubj\t_\t_
2-3\tdidn't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdid\tdo\tAUX\tVBD\t_\t3\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
4\tsee\tsee\tVERB\tVB\t_\t0\troot\t_\t_
4.1\tsaw\tsee\tVERB\tVBD\t_\t_\t_\t_\t_
5-6\tdu\t_\t_\t_\t_\t_\t_\t_\t_
5\tde\tde\tADP\tIN\t_\t4\tcase\t_\t_
6\tle\tle\tDET\tDT\t_\t4\tdet\t_\t_
7\tx\tx\tNOUN\tNN\t_\t4\tobj\t_\tSpaceAfter=No
8\t.\t.\tPUNCT\t.\t_\t4\tpunct\t_\t_

"""


def test_conllu_has_upos_ranges_empty_nodes_and_the_spaces_of_the_text(tmp_path):
  path = write(tmp_path, CONLLU, "a.conllu")
  (item,) = read_conll(path, None, labelled=True)
  assert item.texts == ("I didn't see de le x.",)
  assert words(item) == ["I", "did", "n't", "see", "de", "le", "x", "."]
  assert item.target == ["PRON", "AUX", "PART", "VERB", "ADP", "DET", "NOUN", "PUNCT"]
  assert read_conll(path, 5, labelled=True)[0].target[1] == "VBD"


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("a O\nb\n", "line 2, has the word 'b' and no tag"),
    ("a X O\n\nb O\n", "line 3, has 2 columns where the first word has 3, so words and tags do"),
    ("a\tO\nb\t\n", "line 2, has a word without a tag"),
    ("", "is empty: expected a word and its tag"),
    ("\n\n-DOCSTART- O\n", "is empty: expected a word and its tag"),
  ],
)
def test_words_and_tags_that_do_not_match_are_refused_with_their_line(tmp_path, text, said):
  with pytest.raises(UserError, match=said):
    read_conll(write(tmp_path, text), None, labelled=True)


def test_other_files_are_refused_in_a_sentence(tmp_path):
  with pytest.raises(UserError, match="has 2 columns; CoNLL-U has 10"):
    read_conll(write(tmp_path, "1\ta\n", "a.conllu"), None, True)
  with pytest.raises(UserError, match="does not exist"):
    read_conll(tmp_path / "none.conll", None, True)
  with pytest.raises(UserError, match=r"task\.column is 4, and a\.conll has the columns 1 to 2"):
    read_conll(write(tmp_path, "a O\n"), 4, True)
  (tmp_path / "b.conll").write_bytes("ä O\n".encode("latin-1"))
  with pytest.raises(UserError, match="is not UTF-8"):
    read_conll(tmp_path / "b.conll", None, True)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("Mr. O'Neil (of U.S.A.) paid $5!", "Mr . O'Neil ( of U.S.A . ) paid $5 !"),
    ("@user likes #nlp  well-known,x", "@user likes #nlp well-known,x"),
    ("我在北京，买iPhone 15。", "我 在 北 京 ， 买 iPhone 15 。"),
    ("東京タワーへ", "東 京 タ ワ ー へ"),
    ("naïve 😀!", "naïve 😀 !"),
  ],
)
def test_plain_text_is_split_at_spaces_and_chinese_by_character(text, expected):
  assert [text[s:e] for s, e in words_of(text)] == expected.split()


@pytest.mark.parametrize("text", ["हिन्दी भाषा", "สวัสดี ครับ", "cafe\u0301 noir"])
def test_combining_marks_are_parts_of_words(text):
  assert [text[s:e] for s, e in words_of(text)] == text.split()


def test_words_are_joined_without_spaces_in_chinese():
  text, spans = joined(["我", "在", "NASA", "工作", "。"], [True] * 5)
  assert text == "我在 NASA 工作。" and [text[s:e] for s, e in spans][2:4] == ["NASA", "工作"]


@shared
@pytest.mark.parametrize(
  ("name", "sentences", "words", "scheme"),
  [
    ("ner/wnut17/train.conll", 3394, 62730, "IOB2"),
    ("ner/wikigold.conll.txt", 1696, 39007, "IO"),
    ("pos/zh_gsdsimp-ud-dev.conllu", 500, 12663, ""),
    ("pos/en_ewt-ud-dev.conllu", 2001, 25147, ""),
  ],
)
def test_real_files_are_read_whole(name, sentences, words, scheme):
  items = read_conll(SHARED / name, None, labelled=True)
  assert len(items) == sentences and sum(len(item.target) for item in items) == words
  assert scheme_of(item.target for item in items) == scheme
  if name.endswith("u"):  # the text of a sentence without ranges is that of its comment
    texts = {
      line[9:] for line in (SHARED / name).read_text().split("\n") if line[:9] == "# text = "
    }
    assert sum(item.texts[0] in texts for item in items) > 0.97 * sentences
