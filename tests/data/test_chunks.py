"""Parts of files have the documents of the whole files, wherever they are cut."""

import gzip
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from plm_jax.data import chunks, preparation, processes, text_blocks, text_files
from plm_jax.data.chunks import Place, chunks_of
from plm_jax.data.corpora import open_source
from plm_jax.data.layout import Layout
from plm_jax.data.preparation import Joined, prepare
from plm_jax.errors import UserError
from tests.data.test_store import Stop, corpus, digests

# What a text may be made of: blank lines of all kinds, titles, sections, long lines, line breaks.
BITS = (
  *("A sentence. ", "And another one of words", "and it goes on, ", "\n", "\n", "\n\n", "\n\n\n"),
  *(" \n", "\t\n \n", "\r\n", "\r\n\r\n", "\x0b\n", "\u00a0\n", "x" * 70, "é à ü 語。文", "\ufeff"),
  *(
    "\n = Title = \n",
    "\n\n= Other =\n",
    "\n \n = = Part = = \n",
    "\n\n= Title =\n\n",
    "= no = title",
  ),
)
LAYOUTS = (Layout(), Layout(wrapped=True), Layout(wrapped=True, run=2), Layout(titles=True))


def random_text(seed: int, bits: int = 120) -> str:
  return "".join(np.random.default_rng(seed).choice(BITS, bits))


START = Place()


def documents_from(source, place=START, size=100):
  """The documents of all chunks, and the place after each chunk."""
  made = list(chunks_of(source, place, size))
  return [list(chunk.documents()) for chunk in made], [chunk.after for chunk in made]


def assert_parts_are_the_whole(source, size):
  expected = list(source.documents())
  parts, places = documents_from(source, size=size)
  assert list(itertools.chain(*parts)) == expected
  for number in range(0, len(places), max(1, len(places) // 3)):  # a stopped reading goes on
    read = sum(map(len, parts[: number + 1]))
    rest, _ = documents_from(source, Place(*places[number]), size)
    assert list(itertools.chain(*rest)) == expected[read:]
  return len(parts)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("most", [1 << 26, 200])  # below it, a place to cut is searched
def test_parts_of_any_text_have_its_documents(layout, most, tmp_path, monkeypatch):
  for module in (text_files, text_blocks):
    monkeypatch.setattr(module, "probed", lambda file: layout)
  monkeypatch.setattr(text_blocks, "MOST", most)
  monkeypatch.setattr(text_blocks, "_WINDOW", 40)
  monkeypatch.setattr(text_files, "LONGEST_DOCUMENT", 400)
  monkeypatch.setattr(text_files, "_LONGEST_PIECE", 64)
  cut = 0
  for seed in range(25):
    (tmp_path / "a.txt").write_text(random_text(seed), newline="")
    for size in (7, 150):
      source = open_source(str(tmp_path / "a.txt"))
      if list_or_empty(source):
        cut += assert_parts_are_the_whole(source, size) > 1
  assert cut > 25


def list_or_empty(source):
  try:
    return list(source.documents())
  except UserError:  # a text of blank lines
    return []


def test_parts_of_kept_lines_have_their_documents(tmp_path, monkeypatch):
  monkeypatch.setattr(text_files, "LONGEST_DOCUMENT", 300)
  for seed in range(25):
    (tmp_path / "a.txt").write_text(random_text(seed), newline="")
    for size in (7, 150):
      assert_parts_are_the_whole(open_source(str(tmp_path / "a.txt"), lines=True), size)


def written(folder: Path) -> None:
  """Files of all kinds."""
  texts = [f"Document {i} has a sentence. " + "And one more of it. " * (i % 7) for i in range(60)]
  folder.mkdir(exist_ok=True)
  (folder / "a.txt").write_text("\n\n".join(texts))
  (folder / "b.txt.gz").write_bytes(gzip.compress("\n\n".join(texts[::-1]).encode()))
  lines = "\n".join(json.dumps({"text": t, "label": i % 3}) for i, t in enumerate(texts)) + "\n\n"
  (folder / "c.jsonl").write_text(lines)
  with pyarrow.output_stream(str(folder / "d.jsonl.zst"), compression="zstd") as stream:
    stream.write(lines.replace("has", "had").encode())
  (folder / "e.tsv").write_text("".join(f"source {i}\ttarget {i}\trest\n" for i in range(40)))
  parquet.write_table(
    pyarrow.table({"text": [*texts, None, "the end."]}), folder / "f.parquet", row_group_size=9
  )
  for i in range(30):
    (folder / f"small{i}.txt").write_text(f"A small file, number {i}.")


@pytest.mark.parametrize("most", [1 << 26, 300])
def test_parts_of_all_kinds_of_files_have_their_documents(tmp_path, most, monkeypatch):
  monkeypatch.setattr(text_blocks, "MOST", most)
  written(tmp_path / "all")
  for size in (30, 700, 1 << 20):
    assert_parts_are_the_whole(open_source(str(tmp_path / "all")), size)
    for file in (tmp_path / "all").iterdir():
      assert_parts_are_the_whole(open_source(str(file)), size)
  joined = Joined((open_source(str(tmp_path / "all")), open_source("controlled:topics/0/20")))
  assert list(itertools.chain(*documents_from(joined)[0])) == list(joined.documents())


def test_a_chunk_has_about_its_size_and_small_files_share_one(tmp_path):
  (tmp_path / "a.txt").write_text("A document of this text.\n\n" * 10_000)
  sizes = [len(chunk.items[0].data) for chunk in chunks_of(open_source(str(tmp_path)), START, 9000)]
  assert len(sizes) > 25 and max(sizes) < 2 * 9000
  (tmp_path / "a.txt").unlink()
  for i in range(100):
    (tmp_path / f"{i}.txt").write_text("A small file.")
  assert [len(c.items) for c in chunks_of(open_source(str(tmp_path)), START, 260)] == [20] * 5


def test_all_numbers_of_workers_write_the_same_bytes_for_all_kinds_of_files(tmp_path, monkeypatch):
  written(tmp_path / "all")
  monkeypatch.setattr(preparation, "LARGE", 0)
  made = []
  for workers, chunk in ((1, 4 << 20), (1, 1500), (2, 1500)):
    monkeypatch.setattr(preparation, "CHUNK", chunk)
    monkeypatch.setattr(processes, "cores", lambda: workers)  # noqa: B023
    cache = tmp_path / f"cache-{workers}-{chunk}"
    made.append(digests(prepare(corpus(tmp_path / "all"), cache, progress=False).directory))
  assert made[0] == made[1] == made[2]


def test_a_stopped_preparation_does_not_read_again_what_was_written(tmp_path, monkeypatch):
  (tmp_path / "a.txt").write_text("".join(f"Document {i}.\nIts end.\n\n" for i in range(400)))
  monkeypatch.setattr(preparation, "CHUNK", 900)
  monkeypatch.setattr(preparation, "JOURNAL", 2)
  whole = prepare(corpus(tmp_path / "a.txt"), tmp_path / "whole", progress=False)
  replace, calls, started = preparation._replace, [], []

  def stops(path, content):
    replace(path, content)
    calls.append(content)
    if len(calls) == 5:
      raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(preparation, "_replace", stops)
    with pytest.raises(Stop):
      prepare(corpus(tmp_path / "a.txt"), tmp_path / "cut", progress=False)
  parts_of = text_blocks.parts_of
  monkeypatch.setattr(
    chunks, "parts_of", lambda start, size: (started.append(start), parts_of(start, size))[1]
  )
  cut = prepare(corpus(tmp_path / "a.txt"), tmp_path / "cut", progress=False)
  assert [(part.offset, part.line) for part in started] == [tuple(calls[-1]["place"][1:3])]
  assert 8000 < started[0].offset < 9900
  assert digests(cut.directory) == digests(whole.directory)


@pytest.mark.parametrize("workers", [1, 2])
def test_damage_in_a_later_part_is_told_with_its_place_in_the_file(tmp_path, workers, monkeypatch):
  monkeypatch.setattr(preparation, "LARGE", 0)
  monkeypatch.setattr(preparation, "CHUNK", 500)
  monkeypatch.setattr(processes, "cores", lambda: workers)
  text = b"One line of text.\n\n" * 300
  (tmp_path / "a.txt").write_bytes(text + b"caf\xe9\n\n" + text)
  with pytest.raises(UserError, match=rf"byte 0xe9 at offset {len(text) + 3}, line 601\."):
    prepare(corpus(tmp_path / "a.txt"), tmp_path / "cache", progress=False)
  lines = b'{"text": "One line of text."}\n' * 300
  (tmp_path / "b.jsonl").write_bytes(lines + b'{"text": \n')
  with pytest.raises(UserError, match="line 301, is not JSON"):
    prepare(corpus(tmp_path / "b.jsonl"), tmp_path / "cache", progress=False)


def test_a_stretch_without_an_end_is_read_as_a_stream_and_held_in_documents(tmp_path, monkeypatch):
  monkeypatch.setattr(text_blocks, "MOST", 2000)
  monkeypatch.setattr(text_files, "LONGEST_DOCUMENT", 300)
  text = "A first one.\n\n" * 50 + "A line of a book without an end.\n" * 300
  (tmp_path / "a.txt").write_text(text)
  items = [i for c in chunks_of(open_source(str(tmp_path)), START, 400) for i in c.items]
  is_part = [hasattr(item, "data") for item in items]
  assert is_part == sorted(is_part, reverse=True) and 0 < sum(is_part) < len(items)
  assert all(len(item.data) < 1000 for item in items[: sum(is_part)])


def test_a_part_of_a_plain_file_is_read_from_its_place_on(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"first\n\nsecond\n\nthird")
  whole = open_source(str(tmp_path)).whole(0)
  with whole._replace(offset=7).opened() as stream:
    assert isinstance(stream, io.BufferedReader) and stream.read() == b"second\n\nthird"
