"""What is read of a large text for its tokenizer: a few shards, evenly chosen, and never more."""

import itertools
import json
from types import SimpleNamespace

import pytest

from plm_jax.data import chunks, preparation, processes, shards, tokenizer_sample
from plm_jax.data.chunks import Place
from plm_jax.data.corpora import open_source
from plm_jax.data.preparation import Joined, prepare, train_tokenizer
from plm_jax.data.shards import shards_of
from plm_jax.data.tokenizer_sample import Sampling, sample_of
from plm_jax.data.tokenizers import WordPiece
from tests.data.test_chunks import documents_from, written
from tests.data.test_store import corpus, digests


@pytest.fixture
def small_sample(monkeypatch):
  """A tokenizer is trained on 2,000 characters, of at least 4 shards."""
  monkeypatch.setattr(tokenizer_sample, "SIZE", 2000)
  monkeypatch.setattr(tokenizer_sample, "READ", 4000)
  monkeypatch.setattr(tokenizer_sample, "POINTS", 4)


def folder_of(place, sizes, words=("river",)):
  """A file for each size, of documents of about 100 bytes; those of file i have a word of it."""
  place.mkdir()
  for number, size in enumerate(sizes):
    word = words[number * len(words) // len(sizes)]
    made = [
      f"The {word} of the stone lamp{number}x{i} walks over. " * 2 for i in range(size // 100)
    ]
    (place / f"{number:03}.txt").write_text("\n\n".join(made))
  return place


def taken(sample, held_out=0.0):
  """The sentences that are taken."""
  documents = [d for rated in sample.chunks(1000) for d in Sampling(held_out)(rated)]
  return [sentence for _, sentences in documents for sentence in sentences]


def test_a_small_text_and_one_of_few_files_are_read_whole(tmp_path, small_sample):
  few, small = folder_of(tmp_path / "few", [9000] * 4), folder_of(tmp_path / "small", [200] * 9)
  for folder in (few, small):
    sample = sample_of(open_source(str(folder)))
    assert sample.record() == {} and sample.size == sample.source.size
  every = [s for d in sample.source.documents() for s in d.sentences]
  assert taken(sample) == every and len(every) >= 18
  tokenizer = WordPiece(vocab_size=120)
  made = prepare(corpus(small), tmp_path / "cache", progress=False)
  assert made.manifest["tokenizer"].keys() == {"given", "fingerprint", "size"}
  assert made.manifest["tokenizer"]["given"] == repr(tokenizer)


def test_of_a_large_text_only_as_many_files_as_the_sample_needs_are_read(
  tmp_path, small_sample, monkeypatch
):
  source = open_source(str(folder_of(tmp_path / "text", [1000] * 50)))
  read, parts_of = [], chunks.parts_of
  monkeypatch.setattr(
    chunks, "parts_of", lambda start, size: (read.append(start.name), parts_of(start, size))[1]
  )
  sample = sample_of(source)
  characters = sum(map(len, taken(sample)))
  assert 3600 < sample.size < 5500 and 1000 < characters < 3000
  numbers = [int(name[:3]) for name in dict.fromkeys(read)]
  assert numbers == sample.record()["shards"] and len(numbers) in (4, 5)
  assert {b - a for a, b in itertools.pairwise(numbers)} <= {9, 10, 11, 12, 13}


def test_the_mixture_of_a_sample_is_that_of_the_text_however_unequal_the_files(
  tmp_path, small_sample
):
  """Half of the bytes are in two large files, half in a hundred small ones."""
  folder = folder_of(tmp_path / "text", [50_000] * 2 + [1_000] * 100, ["river"])
  for file in sorted(folder.iterdir())[:2]:
    file.write_text(file.read_text().replace("river", "tower"))
  sentences = taken(sample_of(open_source(str(folder))))
  share = sum("tower" in sentence for sentence in sentences) / len(sentences)
  assert 0.35 < share < 0.65


def test_a_kind_of_text_with_an_even_part_of_the_bytes_is_in_the_sample(tmp_path, small_sample):
  words = ["river", "tower", "cloud", "horse"]
  sample = sample_of(open_source(str(folder_of(tmp_path / "text", [1000] * 60, words))))
  found = " ".join(taken(sample))
  assert all(word in found for word in words)


def test_the_choice_is_in_the_manifest_and_in_the_name_of_the_directory(
  tmp_path, small_sample, monkeypatch
):
  folder = folder_of(tmp_path / "text", [1000] * 50)
  made = prepare(corpus(folder), tmp_path / "cache", progress=False)
  said = made.manifest["tokenizer"]["sample"]
  assert said == sample_of(open_source(str(folder))).record()
  assert said["of"] == 50 and said["characters"] == 2000 and json.dumps(said)
  monkeypatch.setattr(tokenizer_sample, "POINTS", 8)
  other = prepare(corpus(folder), tmp_path / "cache", progress=False)
  assert other.directory != made.directory
  # A tokenizer from elsewhere needs no sample.
  path = str(made.directory / "tokenizer")
  given = SimpleNamespace(**{**vars(corpus(folder)), "tokenizer": WordPiece(path=path)})
  assert "sample" not in prepare(given, tmp_path / "c", progress=False).manifest["tokenizer"]


def test_a_chosen_sample_is_the_same_for_any_number_of_workers(tmp_path, small_sample, monkeypatch):
  folder = folder_of(tmp_path / "text", [1000] * 50)
  monkeypatch.setattr(preparation, "LARGE", 0)
  made = []
  for workers, chunk in ((1, 4 << 20), (1, 300), (2, 300)):
    monkeypatch.setattr(preparation, "CHUNK", chunk)
    monkeypatch.setattr(processes, "cores", lambda: workers)  # noqa: B023
    cache = tmp_path / f"cache-{workers}-{chunk}"
    made.append(prepare(corpus(folder), cache, progress=False))
  assert "sample" in made[0].manifest["tokenizer"]
  one, *others = (digests(each.directory) for each in made)
  assert all(each == one for each in others)


def test_the_tokenizer_of_several_texts_is_trained_on_shards_of_all(tmp_path, small_sample):
  texts = [
    open_source(str(folder_of(tmp_path / word, [1000] * 30, [word]))) for word in ("river", "tower")
  ]
  sample = sample_of(Joined(tuple(texts)))
  found = taken(sample)
  assert len(sample.shards) == 60 and len(sample.rates) < 8
  assert {"river" in sentence for sentence in found} == {True, False}
  made = train_tokenizer(corpus("a,b"), texts, tmp_path / "cache", progress=False)
  assert (made / "vocab.txt").exists()


@pytest.mark.parametrize("size", [30, 700, 1 << 20])
def test_shards_of_all_kinds_of_files_have_the_documents_and_places_of_the_text(tmp_path, size):
  written(tmp_path / "all")
  source = open_source(str(tmp_path / "all"))
  expected, made = list(source.documents()), []
  for shard in shards_of(source):
    made += [d for chunk in shard.chunks(size) for d in chunk.documents()]
    if all_chunks := list(shard.chunks(size)):
      last = all_chunks[len(all_chunks) // 2].after
      rest = [d for chunk in shard.chunks(size, last) for d in chunk.documents()]
      assert expected[len(made) - len(rest) : len(made)] == rest
      # The place is also one of the whole text.
      all_of_it = itertools.chain(*documents_from(source, last, size)[0])
      assert list(all_of_it) == expected[len(made) - len(rest) :]
  assert made == expected


def test_stored_files_of_tfds_are_shards_and_a_part_of_a_split_is_one(tmp_path):
  about = {"splits": [{"name": "train", "numBytes": "1000", "shardLengths": ["4", "0", "6"]}]}
  (tmp_path / "dataset_info.json").write_text(json.dumps(about))
  text = shards.TfdsText("toy", tmp_path, "train")
  made = shards_of(text)
  assert [(s.text.split, s.start, s.size) for s in made] == [
    ("train[0:4]", Place(), 400),
    ("train[4:4]", Place(documents=4), 0),
    ("train[4:10]", Place(documents=4), 600),
  ]
  assert len(shards_of(text._replace(split="train[:5]"))) == 1
  assert text.size == 1000 and made[2].text.first == 4


def test_the_shards_of_a_tfds_text_have_its_documents(tmp_path, monkeypatch):
  records = [{"text": f"Record {i}. Its end."} for i in range(10)]
  about = {"splits": [{"name": "train", "numBytes": "1000", "shardLengths": ["4", "6"]}]}
  (tmp_path / "dataset_info.json").write_text(json.dumps(about))

  def stored(self):
    first, _, last = self.split.removeprefix("train").strip("[]").partition(":")
    return iter(records[int(first or 0) : int(last or 10)])

  monkeypatch.setattr(shards.TfdsText, "records", stored)
  monkeypatch.setattr(
    shards.TfdsText, "_builder", lambda self: SimpleNamespace(info=SimpleNamespace(features={}))
  )
  monkeypatch.setattr("plm_jax.data.tfds_text._features", lambda *_: ("text", None, None))
  text = shards.TfdsText("toy", tmp_path, "train")
  parts = [[d for c in s.chunks(20) for d in c.documents()] for s in shards_of(text)]
  assert parts[0] + parts[1] == list(text.documents()) and len(parts[1]) == 6
  (last,) = [c.after for c in shards_of(text)[1].chunks(60)][:1]
  rest = [d for c in shards_of(text)[1].chunks(60, last) for d in c.documents()]
  assert rest == list(text.documents())[last.documents :] and rest
