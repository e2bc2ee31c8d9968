"""Apache Beam writes the bytes of the serial path, and its mistakes are sentences.

Beam is an extra: `pip install -e '.[test,beam]'`. Its local runner runs in this process.
"""

import sys

import numpy as np
import pytest

from plm_jax.data import beam as beam_module
from plm_jax.data import preparation
from plm_jax.data.beam import END, Beam, _packed, _read
from plm_jax.data.chunks import Chunk, Encoding, Place
from plm_jax.data.documents import Document
from plm_jax.data.mixture import prepare_each
from plm_jax.data.pipeline import Corpus
from plm_jax.data.preparation import prepare
from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from tests.data.test_chunks import written
from tests.data.test_store import Stop, corpus, digests, text

LOCAL = "--runner=FnApiRunner"  # DirectRunner would look for another one on the network

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def local():
  pytest.importorskip("apache_beam", reason="the extra `beam` is not installed")
  return Beam(LOCAL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Files of all kinds, of several chunks each."""
  written(tmp_path / "all")
  (tmp_path / "all" / "long.txt").write_text(text())
  monkeypatch.setattr(preparation, "CHUNK", 900)
  monkeypatch.setattr(preparation, "JOURNAL", 1)
  return tmp_path / "all"


def test_beam_writes_the_bytes_of_the_serial_path(folder, tmp_path, local):
  serial = prepare(corpus(folder), tmp_path / "serial", progress=False)
  made = prepare(corpus(folder), tmp_path / "beam", progress=False, beam=local)
  assert digests(made.directory) == digests(serial.directory)
  # It is found by every later start, with Beam or without.
  again = prepare(corpus(folder), tmp_path / "beam", progress=False)
  assert again.directory == made.directory and len(again.train.tokens) > 1000


@pytest.mark.slow
def test_processes_of_beam_write_the_bytes_of_the_serial_path(folder, tmp_path, local):
  serial = prepare(corpus(folder), tmp_path / "serial", progress=False)
  many = Beam(f"{LOCAL} --direct_num_workers=2 --direct_running_mode=multi_processing")
  made = prepare(corpus(folder), tmp_path / "beam", progress=False, beam=many)
  assert digests(made.directory) == digests(serial.directory)


def test_a_text_that_is_one_shard_and_several_texts_are_encoded_too(tmp_path, local):
  (tmp_path / "a.txt").write_text(text().replace("\n\n", "\n"))  # cut into pieces
  data = Corpus(
    source=f"a={tmp_path / 'a.txt'},b=controlled:topics/0/40",
    tokenizer=WordPiece(vocab_size=120),
    held_out=0.2,
  )
  serial = prepare_each(data, tmp_path / "serial", progress=False)
  made = prepare_each(data, tmp_path / "beam", progress=False, beam=local)
  for name in ("a", "b"):
    # The path of the tokenizer, in the manifest, is another one.
    ours, theirs = (digests(each[name].directory) for each in (made, serial))
    assert ours.pop("manifest.json") and theirs.pop("manifest.json") and ours == theirs


@pytest.mark.parametrize(("begun_with_beam", "after"), [(True, 0), (True, 9), (False, 9)])
def test_a_stopped_preparation_goes_on_with_beam_and_keeps_what_it_has(
  folder, tmp_path, local, monkeypatch, begun_with_beam, after
):
  whole = prepare(corpus(folder), tmp_path / "whole", progress=False)
  replace, calls = preparation._replace, []

  def stops(*arguments):
    replace(*arguments)
    calls.append(1)
    if len(calls) > after:
      raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(preparation, "_replace", stops)
    with pytest.raises(Stop):
      prepare(
        corpus(folder), tmp_path / "cut", progress=False, beam=local if begun_with_beam else None
      )
  packed, names = beam_module._packed, []
  monkeypatch.setattr(
    beam_module, "_packed", lambda after, made: (names.append(after.file), packed(after, made))[1]
  )
  cut = prepare(corpus(folder), tmp_path / "cut", progress=False, beam=local)
  assert digests(cut.directory) == digests(whole.directory)
  if begun_with_beam:  # only the rest of the shard in which it was stopped
    assert len(set(names)) <= 1


def test_a_mistake_in_the_text_is_its_sentence_and_other_shards_are_kept(folder, tmp_path, local):
  bad = folder / "c.jsonl"
  lines = bad.read_bytes()
  bad.write_bytes(lines + b"{\n" + lines)
  number = len(lines.split(b"\n"))
  given = corpus(folder)
  tokenizer = WordPiece(vocab_size=120).train(text().split("\n"))
  tokenizer.save(tmp_path / "tokenizer")
  given.tokenizer = WordPiece(path=str(tmp_path / "tokenizer"))
  with pytest.raises(UserError, match=rf"c\.jsonl', line {number}, is not JSON"):
    prepare(given, tmp_path / "cache", progress=False, beam=local)
  files = [f.name for f in (tmp_path / "cache").rglob("shards/*/*")]
  assert len([name for name in files if name.endswith("-0-0")]) == len(list(folder.iterdir())) - 1
  assert [name for name in files if not name.endswith("-0-0")] == ["000002-0-0.error"]


def test_workers_that_do_not_see_the_cache_are_told(folder, tmp_path, local, monkeypatch):
  monkeypatch.setattr(beam_module._ShardJob, "__call__", lambda self, task: None)
  with pytest.raises(UserError, match=r"37 of 37 shards are not in .* must see the text and the c"):
    prepare(corpus(folder), tmp_path / "cache", progress=False, beam=local)


def test_a_pipeline_that_fails_is_a_sentence(folder, tmp_path, local, monkeypatch):
  def fails(self, task):
    raise RuntimeError("no more memory\nand a trace")

  monkeypatch.setattr(beam_module._ShardJob, "__call__", fails)
  with pytest.raises(UserError, match=r"The Beam pipeline failed: no more memory[^\n]*$"):
    prepare(corpus(folder), tmp_path / "cache", progress=False, beam=local)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ("--runer=FlinkRunner", "--runer, which is no option of Apache Beam"),
    ("--direct_num_workers=two", "invalid int value: 'two'"),
    ("--runner='Flink", "cannot be read: No closing quotation"),
    ("FlinkRunner", "names no runner"),
    ("", "names no runner"),
  ],
)
def test_options_that_beam_does_not_know_are_told(local, options, words, capsys):
  with pytest.raises(UserError) as told:
    Beam(options)
  assert words in str(told.value) and "usage" not in capsys.readouterr().err


def test_a_runner_that_is_none_is_told(folder, tmp_path, local):
  with pytest.raises(UserError, match=r"The Beam pipeline failed: .*Nope"):
    prepare(corpus(folder), tmp_path / "cache", progress=False, beam=Beam("--runner=Nope"))


def test_beam_that_is_not_installed_is_named_as_an_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(UserError, match=r"not installed: pip install 'plm_jax\[beam\]'"):
    Beam(LOCAL)


@pytest.fixture
def encoded():
  tokenizer = WordPiece(vocab_size=120).train(text().split("\n"))
  documents = tuple(Document(f"a:{i}", (f"the river {i}", "a stone")) for i in range(30))
  return Encoding(tokenizer, 0.3)(Chunk(documents, Place()))


def test_what_is_written_of_a_shard_is_read_with_its_types(encoded, tmp_path):
  places = [Place(2, 30, 4), Place(2, 60, 9, 5)]
  (tmp_path / "shard").write_bytes(b"".join(_packed(place, encoded) for place in places) + END)
  read = list(_read(tmp_path / "shard"))
  assert [place for place, _ in read] == places
  for _, again in read:
    assert again[1:] == encoded[1:]
    for ours, theirs in zip(again.splits, encoded.splits, strict=True):
      for name, mine, other in zip(ours._fields, ours, theirs, strict=True):
        assert type(mine) is type(other) and np.array_equal(mine, other), name
        assert isinstance(mine, bytes) or mine.dtype == other.dtype


@pytest.mark.parametrize("place", [5, 0.5, 0.9])
def test_a_damaged_shard_is_told_and_removed(encoded, tmp_path, place):
  data = bytearray(_packed(Place(1), encoded))
  data[place if isinstance(place, int) else int(place * len(data))] ^= 4
  (tmp_path / "shard").write_bytes(data)
  with pytest.raises(UserError, match=r"is damaged .* and was removed: run the same command"):
    list(_read(tmp_path / "shard"))
  assert not (tmp_path / "shard").exists()
  for cut in (_packed(Place(1), encoded)[:-10], _packed(Place(1), encoded), b""):  # without the end
    (tmp_path / "shard").write_bytes(cut)
    with pytest.raises(UserError, match="is damaged"):
      list(_read(tmp_path / "shard"))
