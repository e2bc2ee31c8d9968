"""Word order: only the order differs, and nothing else tells a shuffled sentence."""

import json
import re

import pytest

from plm_jax.data.documents import Document
from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from plm_jax.tasks.label import Label
from plm_jax.tasks.word_order import CLASSES, WordOrder, by_word_order

TEXT = WordOrder(
  source="tfds:toy",
  held_out=0.2,
  dev_share=0.2,
  length=12,
  shortest=2,
  least=2,
)


def sentences(count):
  """Of six words, in which a smaller number always stands before a larger one."""
  return tuple(
    " ".join(
      f"w{n % 7 + 7 * place}" for place, n in enumerate((i, i // 7, i // 49, i, i + 1, i + 2))
    )
    for i in range(count)
  )


def test_half_are_shuffled_and_keep_their_words_and_what_stands_between():
  text = tuple(f"{s.upper()}, (as `x.y` says)." for s in sentences(343))
  in_order, shuffled = by_word_order(Document("a", text, "label"))
  assert (in_order.label, shuffled.label) == CLASSES
  assert in_order.name == shuffled.name == "a"
  assert set(in_order.sentences) <= {s.lower() for s in text}
  assert 130 < len(shuffled.sentences) < 213
  originals = {tuple(sorted(re.findall(r"\w+", s.lower()))): s.lower() for s in text}
  for made in shuffled.sentences:
    original = originals[tuple(sorted(re.findall(r"\w+", made)))]
    assert made != original
    assert made.split()[-2] == original.split()[-2] == "`x.y`"  # more than a word
    assert re.sub(r"\w+", "_", made) == re.sub(r"\w+", "_", original)


def test_a_sentence_is_made_of_itself_alone():
  text = sentences(60)
  whole = by_word_order(Document("a", text))
  halves = [by_word_order(Document("b", part)) for part in (text[30:], text[:30])]
  for number in range(2):
    together = [s for half in halves for s in half[number].sentences]
    assert sorted(together) == sorted(whole[number].sentences)


def test_what_is_too_short_to_have_an_order_is_left_out():
  said = ("One two three four.", "a a a a a a", "f(x) g(x) h(x) a b c d")
  assert by_word_order(Document("a", said)) == []


def documents():
  text = sentences(343)
  return [Document(f"d{i}", text[i * 7 : i * 7 + 7]) for i in range(49)]


def test_a_text_without_labels_is_enough_and_a_bag_of_words_knows_nothing():
  tokenizer = WordPiece(vocab_size=100).train(iter(sentences(343)))
  task, splits = TEXT.split(tokenizer, documents())
  assert task.classes == CLASSES
  sides = [s.documents for s in splits[:3]]
  assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
  words = task.score(splits.test, task.baseline("words", splits))
  assert 0.3 < words["accuracy"] < 0.7
  with pytest.raises(UserError, match="train split has no sentence with at least 5 different"):
    TEXT.split(tokenizer, [d._replace(sentences=("one two three",)) for d in documents()])
  with pytest.raises(UserError, match="has no label"):
    Label(source="tfds:toy", held_out=0.2).split(tokenizer, documents())


def test_a_book_is_cut_as_pretraining_cuts_it_and_a_jsonl_needs_no_labels(tmp_path):
  book = tmp_path / "book.txt"
  book.write_text("\n".join(sentences(343)))
  assert len(list(WordOrder(source=str(book)).documents(tmp_path))) > 20
  lines = tmp_path / "lines.jsonl"
  lines.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(30)))
  assert len(list(WordOrder(source=str(lines)).documents(tmp_path))) == 30
  table = tmp_path / "table.csv"
  table.write_text("text,stars\n" + "".join(f"{s},{i % 3}\n" for i, s in enumerate(sentences(30))))
  assert len(list(WordOrder(source=str(table)).documents(tmp_path))) == 30
