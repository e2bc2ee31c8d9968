"""Entities and their scores, against golden values of seqeval 1.2.2 (default mode)."""

import pytest

from plm_jax.tasks.entities import all_tags, entities, entity_counts, in_iobes, scheme_of


def split(*lines):
  return [line.split() for line in lines]


# (tags, entities): seqeval's `get_entities`.
GOLDEN = [
  ("O B-PER I-PER O B-LOC", [("PER", 1, 2), ("LOC", 4, 4)]),
  ("I-PER I-PER B-PER O I-LOC I-ORG", [("PER", 0, 1), ("PER", 2, 2), ("LOC", 4, 4), ("ORG", 5, 5)]),
  ("B-A E-A S-B I-B O E-A", [("A", 0, 1), ("B", 2, 2), ("B", 3, 3), ("A", 5, 5)]),
  ("B-creative-work I-creative-work I-creative", [("creative-work", 0, 1), ("creative", 2, 2)]),
  ("B-A I-B I-A", [("A", 0, 0), ("B", 1, 1), ("A", 2, 2)]),
  ("O O", []),
]


@pytest.mark.parametrize(("tags", "expected"), GOLDEN)
def test_entities_are_those_of_the_reference(tags, expected):
  assert entities(tags.split()) == expected


def test_scores_count_whole_entities_and_not_words():
  true = split(
    "O B-PER I-PER O B-LOC",
    "B-ORG I-ORG I-ORG O O I-PER",
    "I-LOC I-LOC B-LOC O",
    "O O O",
    "B-PER B-PER I-ORG O",
  )
  predicted = split(
    "O B-PER I-PER O B-ORG",
    "B-ORG I-ORG O O O I-PER",
    "I-LOC I-LOC I-LOC O",
    "O B-PER O",
    "B-PER I-PER I-ORG O",
  )
  counts = entity_counts(true, predicted)
  assert counts[""] == (3, 8, 9) and list(counts) == ["", "LOC", "ORG", "PER"]
  f1 = pytest.approx(0.35294117647058826)  # seqeval
  assert counts[""].scores() == {"f1": f1, "precision": 0.375, "recall": pytest.approx(1 / 3)}
  assert [counts[k].scores()["f1"] for k in ("LOC", "ORG", "PER")] == [0, pytest.approx(0.4), 0.5]
  words = [a == b for x, y in zip(true, predicted) for a, b in zip(x, y)]
  assert sum(words) / len(words) > 0.7  # the accuracy of words is not the score


def test_scores_of_iobes_are_those_of_the_reference():
  true = split("B-A E-A S-B O", "S-A B-B I-B E-B", "O S-A")
  predicted = split("B-A E-A S-A O", "S-A B-B I-B I-B", "S-A S-A")
  scores = entity_counts(true, predicted)[""].scores()
  assert list(scores.values()) == pytest.approx([0.7272727272727272, 0.6666666666666666, 0.8])


def test_no_entities_score_zero_and_do_not_divide_by_it():
  assert entity_counts([["O"]], [["O"]])[""].scores() == {"f1": 0, "precision": 0, "recall": 0}


@pytest.mark.parametrize(
  ("scheme", "lines"),
  [
    ("IO", ["O I-PER I-PER O I-LOC"]),
    ("IOB1", ["I-PER I-PER B-PER O", "O I-LOC"]),
    ("IOB2", ["B-PER I-PER B-PER O", "O B-LOC"]),
    ("IOB2", ["B-PER O"]),
    ("IOBES", ["B-PER E-PER S-LOC O"]),
    ("", ["DET NOUN VERB"]),
    ("", ["B-PER O X"]),
    ("", ["O O"]),
  ],
)
def test_the_scheme_follows_from_the_tags(scheme, lines):
  assert scheme_of(split(*lines)) == scheme


def test_a_type_has_all_tags_of_its_scheme():
  assert all_tags(["B-b", "O", "B-a"], "IOB2") == ("O", "B-a", "I-a", "B-b", "I-b")
  assert all_tags(["S-a"], "IOBES") == ("O", "B-a", "E-a", "I-a", "S-a")
  assert all_tags(["VERB", "DET"], "") == ("DET", "VERB")


def test_bilou_and_bmes_are_read_as_iobes():
  bilou = [["U-PER", "O", "B-LOC", "I-LOC", "L-LOC"]]
  assert in_iobes(bilou) == [["S-PER", "O", "B-LOC", "I-LOC", "E-LOC"]]
  assert in_iobes([["B-LOC", "M-LOC", "E-LOC", "S-PER"]]) == [["B-LOC", "I-LOC", "E-LOC", "S-PER"]]
  assert in_iobes([["M-x", "VERB"]]) == [["M-x", "VERB"]]  # no scheme: a tag without a mark
