"""Preparing text: the split, the arrays, and that a killed preparation ends with the same bytes."""

import errno
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from plm_jax.data import preparation, processes
from plm_jax.data.digests import damage
from plm_jax.data.digests import digests as file_digests
from plm_jax.data.preparation import prepare
from plm_jax.data.store import TokenStore, token_type
from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from plm_jax.progress import progress_bar


def corpus(path, held_out=0.2, vocab_size=120):
  return SimpleNamespace(
    lines=False, source=str(path), tokenizer=WordPiece(vocab_size=vocab_size), held_out=held_out
  )


def text(documents=60):
  draw = random.Random(0)
  words = ["river", "mountain", "the", "of", "walks", "over", "seven", "stone", "lamp", "a"]
  lines = [
    "\n".join(" ".join(draw.choices(words, k=7)) for _ in range(5)) for _ in range(documents)
  ]
  return "\n\n".join(lines)


@pytest.fixture
def path(tmp_path):
  (tmp_path / "text.txt").write_text(text())
  return tmp_path / "text.txt"


def digests(folder: Path):
  files = sorted(file for file in folder.rglob("*") if file.is_file())
  return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def sentences_of(store, document):
  first, last = store.document_starts[document : document + 2]
  return [store.tokens[a:b] for a, b in itertools.pairwise(store.sentence_starts[first : last + 1])]


def test_a_text_that_changes_while_it_is_prepared_is_not_kept(path, tmp_path, monkeypatch):
  encode, before = preparation._Preparation._encode, path.read_text()

  def changes(self):
    path.write_text(before + "\n\nAnother document.\nAnd its end.")
    return encode(self)

  monkeypatch.setattr(preparation._Preparation, "_encode", changes)
  with pytest.raises(UserError, match="changed while it was prepared; run the same command again"):
    prepare(corpus(path), tmp_path / "cache", progress=False)
  monkeypatch.setattr(preparation._Preparation, "_encode", encode)
  path.write_text(before)
  made = prepare(corpus(path), tmp_path / "cache", progress=False)
  assert made.train.documents + made.valid.documents == 60


def test_a_text_that_vanishes_is_a_sentence(path, tmp_path, monkeypatch):
  monkeypatch.setattr(preparation, "in_pieces", lambda source: (path.unlink(), source)[1])
  with pytest.raises(UserError, match=r"text\.txt' cannot be read: No such file"):
    prepare(corpus(path), tmp_path / "cache", progress=False)


def test_the_stored_tokens_are_the_text_in_order(path, tmp_path):
  made = prepare(corpus(path), tmp_path / "cache", progress=False)
  documents = [block.split("\n") for block in path.read_text().split("\n\n")]
  for store in (made.train, made.valid):
    assert store.tokens.dtype == np.uint16 and store.sentence_starts[-1] == len(store.tokens)
    for i in range(store.documents):
      number = int(store.name_and_label(i)[0].rpartition(":")[2]) // 6
      ids = [made.tokenizer.encode(sentence) for sentence in documents[number]]
      assert all(map(np.array_equal, sentences_of(store, i), ids))
    assert store.counts.sum() == len(store.tokens)
    assert np.array_equal(np.bincount(store.tokens, minlength=len(store.counts)), store.counts)
  assert made.train.documents + made.valid.documents == 60
  said = made.manifest["files"]["train.tokens"]
  stored = (made.directory / "train.tokens").read_bytes()
  assert said == {"bytes": len(stored), "sha256": hashlib.sha256(stored).hexdigest()}


def test_the_side_of_a_document_depends_on_its_text_alone(path, tmp_path):
  def held(source):
    made = prepare(corpus(source), tmp_path / "cache", progress=False)
    return {
      made.tokenizer.decode(np.concatenate(sentences_of(made.valid, i)))
      for i in range(made.valid.documents)
    }

  blocks = path.read_text().split("\n\n")
  other = tmp_path / "other.txt"
  other.write_text("\n\n".join(reversed(blocks)))
  assert held(path) == held(other)


def test_a_store_pickles_as_its_path(path, tmp_path):
  store = prepare(corpus(path), tmp_path / "cache", progress=False).train
  assert len(pickle.dumps(store)) < 500
  assert np.array_equal(pickle.loads(pickle.dumps(store)).tokens, store.tokens)


def test_a_finished_preparation_is_reused_and_a_damaged_one_made_again(path, tmp_path, monkeypatch):
  first = prepare(corpus(path), tmp_path / "cache", progress=False)
  before = digests(first.directory)
  with monkeypatch.context() as patch:
    patch.setattr(preparation._Preparation, "run", lambda self: pytest.fail("prepared again"))
    prepare(corpus(path), tmp_path / "cache", progress=False)
  os.truncate(first.directory / "train.tokens", 10)
  assert digests(prepare(corpus(path), tmp_path / "cache", progress=False).directory) == before
  assert (
    prepare(corpus(path, held_out=0.3), tmp_path / "cache", progress=False).directory
    != first.directory
  )


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def a_pipe(path):
  path.unlink()
  os.mkfifo(path)


@pytest.mark.parametrize("harm", [flip, a_pipe, Path.unlink])
def test_damage_to_any_file_of_a_text_is_told_and_mended(path, tmp_path, harm, capsys):
  made = prepare(corpus(path), tmp_path / "cache", progress=False)
  before = digests(made.directory)
  for name in before:
    harm(made.directory / name)
    again = prepare(corpus(path), tmp_path / "cache", progress=False)
    told = capsys.readouterr().err
    assert digests(again.directory) == before
    # Without its manifest a text is unfinished.
    assert ("is damaged" in told and "made again" in told) or name == "manifest.json"


def test_texts_that_changed_places_are_told_and_mended(path, tmp_path, capsys):
  other = tmp_path / "other.txt"
  other.write_text(text(40))
  texts = [prepare(corpus(p), tmp_path / "cache", progress=False) for p in (path, other)]
  before = [digests(made.directory) for made in texts]
  one, two = (made.directory for made in texts)
  one.rename(tmp_path / "spare")
  two.rename(one)
  (tmp_path / "spare").rename(two)
  for source, folder, expected in zip((path, other), (one, two), before):
    assert (
      digests(prepare(corpus(source), tmp_path / "cache", progress=False).directory) == expected
    )
    assert f"{folder} is damaged (manifest.json is that of another text)" in capsys.readouterr().err


def test_large_files_are_checked_by_a_sample_of_blocks(tmp_path, monkeypatch):
  monkeypatch.setattr("plm_jax.data.digests.BLOCK", 10)
  monkeypatch.setattr("plm_jax.data.digests.WHOLE", 99)
  monkeypatch.setattr("plm_jax.data.digests.SAMPLE", 3)
  content = bytes(range(105))
  (tmp_path / "large").write_bytes(content)
  record = file_digests(tmp_path / "large")
  assert len(record["blocks"]) == 11 and damage(tmp_path / "large", record) is None
  (tmp_path / "large").write_bytes(content[:-1] + b"?")  # the last block is always read
  assert damage(tmp_path / "large", record) == "large has other bytes"
  (tmp_path / "large").write_bytes(content[:50] + b"?" + content[51:])
  assert any(damage(tmp_path / "large", record) for _ in range(200))


def read_only(monkeypatch, folder):
  """The folder as on a file system that can only be read: root ignores permissions."""

  def opener(path, *args, **kwargs):
    writes = any(mark in (args[0] if args else kwargs.get("mode", "r")) for mark in "wa+x")
    if writes and Path(path).is_relative_to(folder):
      raise OSError(errno.EROFS, "Read-only file system", str(path))
    return real(path, *args, **kwargs)

  real = io.open
  monkeypatch.setattr("builtins.open", opener)
  monkeypatch.setattr(io, "open", opener)


def test_a_cache_that_can_only_be_read_works_if_the_text_is_there(path, tmp_path, monkeypatch):
  made = prepare(corpus(path), tmp_path / "cache", progress=False)
  with monkeypatch.context() as patch:
    read_only(patch, tmp_path / "cache")
    again = prepare(corpus(path), tmp_path / "cache", progress=False)
    with pytest.raises(OSError, match="Read-only"):
      prepare(corpus(path, held_out=0.3), tmp_path / "cache", progress=False)
  assert np.array_equal(again.train.tokens, made.train.tokens)
  flip(made.directory / "train.tokens")
  read_only(monkeypatch, tmp_path / "cache")
  with pytest.raises(
    UserError, match=r"is damaged \(train.tokens has other bytes\), and the cache"
  ):
    prepare(corpus(path), tmp_path / "cache", progress=False)


class Stop(BaseException):
  pass


@pytest.mark.parametrize(
  "name", ["train.tokens", "valid.names", "journal.json", "tokenizer/vocab.txt"]
)
def test_an_unfinished_text_that_was_damaged_is_begun_again(
  path, tmp_path, monkeypatch, name, capsys
):
  expected = digests(prepare(corpus(path), tmp_path / "whole", progress=False).directory)

  def stop(self, journal):
    raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(preparation._Preparation, "_finish", stop)
    with pytest.raises(Stop):
      prepare(corpus(path), tmp_path / "cache", progress=False)
  (folder,) = (p for p in (tmp_path / "cache/prepared").iterdir() if p.is_dir())
  flip(folder / name)
  made = prepare(corpus(path), tmp_path / "cache", progress=False)
  assert digests(made.directory) == expected
  told = capsys.readouterr().err
  assert ("is begun again" in told) == (not name.startswith("tokenizer"))


@pytest.mark.parametrize(
  ("where", "after"),
  [
    ("add", 0),
    ("add", 15),
    ("sync", 0),
    ("sync", 3),
    ("_replace", 0),
    ("_replace", 3),
    ("_finish", 0),
  ],
)
def test_an_interrupted_preparation_goes_on_and_ends_with_the_same_bytes(
  path, tmp_path, monkeypatch, where, after
):
  monkeypatch.setattr(preparation, "CHUNK", 900)
  monkeypatch.setattr(preparation, "JOURNAL", 1)
  whole = prepare(corpus(path), tmp_path / "whole", progress=False)
  owner = {"_replace": preparation, "_finish": preparation._Preparation}.get(
    where, preparation.StoreWriter
  )
  original, calls = getattr(owner, where), []

  def breaks(*arguments):
    calls.append(1)
    if len(calls) == after + 1:
      raise Stop
    return original(*arguments)

  encoded = []
  with monkeypatch.context() as patch:
    patch.setattr(owner, where, breaks)
    with pytest.raises(Stop):
      prepare(corpus(path), tmp_path / "cut", progress=False)
  add = preparation.StoreWriter.add
  monkeypatch.setattr(preparation.StoreWriter, "add", lambda *a: (encoded.append(1), add(*a))[1])
  cut = prepare(corpus(path), tmp_path / "cut", progress=False)
  assert digests(cut.directory) == digests(whole.directory)
  if where == "_finish":
    assert not encoded  # nothing is encoded twice


KILLED = """
import os, signal, sys
from types import SimpleNamespace
from plm_jax.data import preparation, processes
from plm_jax.data.tokenizers import WordPiece
preparation.CHUNK = 900
preparation.JOURNAL = 1
sync, calls = preparation.StoreWriter.sync, []
def dies(self):
  calls.append(1)
  if len(calls) == 6:
    self.files["tokens"].write(b"torn")
    self.files["tokens"].flush()
    os.kill(os.getpid(), signal.SIGKILL)
  return sync(self)
preparation.StoreWriter.sync = dies
preparation.prepare(
  SimpleNamespace(
    source=sys.argv[1], tokenizer=WordPiece(vocab_size=120), held_out=0.2, lines=False
  ),
  sys.argv[2], progress=False)
"""


def test_a_preparation_killed_by_sigkill_ends_with_the_same_bytes(path, tmp_path):
  run = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "cut")]
  root = Path(__file__).parents[2]
  assert subprocess.run(run, cwd=root, check=False).returncode == -signal.SIGKILL
  assert list((tmp_path / "cut").rglob("journal.json"))
  cut = prepare(corpus(path), tmp_path / "cut", progress=False)
  whole = prepare(corpus(path), tmp_path / "whole", progress=False)
  assert digests(cut.directory) == digests(whole.directory)


@pytest.mark.parametrize(
  ("content", "held_out", "words"),
  [
    ("one document only\nof two sentences", 0.2, "1 document of a few sentences and at least two"),
    ("one a\n\ntwo b\n\nthree c", 1e-9, "set data.held_out to at least"),
    ("one a\n\ntwo b\n\nthree c", 1.0, "lower data.held_out"),
  ],
)
def test_text_that_cannot_be_split_gets_a_sentence(tmp_path, content, held_out, words):
  (tmp_path / "a.txt").write_text(content)
  with pytest.raises(UserError) as error:
    prepare(corpus(tmp_path / "a.txt", held_out), tmp_path / "cache", progress=False)
  assert words in str(error.value).replace(",", "")


def test_what_has_no_token_is_dropped_and_counted(path, tmp_path):
  path.write_text(path.read_text() + "\n\n\u0007\u0008\n\nriver\n\u0007")
  made = prepare(corpus(path), tmp_path / "cache", progress=False)
  assert made.manifest["dropped"] == {
    "documents without a token": 1,
    "sentences without a token": 2,
  }
  assert np.diff(made.train.sentence_starts).min() > 0


def test_ids_take_two_bytes_where_they_fit():
  assert token_type(65536) == np.uint16 and token_type(65537) == np.uint32


def test_names_and_labels_are_read_one_by_one(tmp_path):
  lines = [json.dumps({"text": f"river stone lamp {i}", "label": f"l{i}"}) for i in range(40)]
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  store = prepare(corpus(tmp_path / "a.jsonl"), tmp_path / "cache", progress=False).train
  assert isinstance(store, TokenStore)
  for name, label in map(store.name_and_label, range(store.documents)):
    assert label == f"l{int(name.split(':')[1]) - 1}"


# Worker processes


@pytest.fixture
def two_workers(monkeypatch):
  """Even small texts go to two processes; the list of those that were started."""
  monkeypatch.setattr(preparation, "LARGE", 0)
  monkeypatch.setattr(preparation, "CHUNK", 900)
  monkeypatch.setattr(preparation, "JOURNAL", 1)
  monkeypatch.setattr(processes, "cores", lambda: 2)
  started, start = [], processes.start

  def starts(*arguments, **settings):
    started.append(start(*arguments, **settings))
    return started[-1]

  monkeypatch.setattr(processes, "start", starts)
  return started


def test_any_number_of_workers_writes_the_same_bytes(path, tmp_path, monkeypatch, two_workers):
  started = two_workers
  two = prepare(corpus(path), tmp_path / "two", progress=False)
  # Two for the text of the tokenizer, and two that encode.
  assert len(started) == 4 and all(process.poll() is not None for process in started)
  monkeypatch.setattr(processes, "cores", lambda: 1)
  one = prepare(corpus(path), tmp_path / "one", progress=False)
  assert len(started) == 4
  assert digests(one.directory) == digests(two.directory)


def test_a_killed_worker_is_told_in_a_sentence_and_the_preparation_goes_on(
  path, tmp_path, monkeypatch, two_workers
):
  add, calls = preparation.StoreWriter.add, []

  def kills(*arguments):
    calls.append(1)
    if len(calls) == 3:
      for process in two_workers:
        process.kill()
    return add(*arguments)

  with monkeypatch.context() as patch:
    patch.setattr(preparation.StoreWriter, "add", kills)
    with pytest.raises(UserError, match=r"was killed \(exit code -9"):
      prepare(corpus(path), tmp_path / "cut", progress=False)
  cut = prepare(corpus(path), tmp_path / "cut", progress=False)
  monkeypatch.setattr(processes, "cores", lambda: 1)
  whole = prepare(corpus(path), tmp_path / "whole", progress=False)
  assert digests(cut.directory) == digests(whole.directory)


PARENT = """
import os, signal, sys
from plm_jax.data import chunks, encoding
from plm_jax.data.documents import Document
from plm_jax.data.tokenizers import WordPiece
tokenizer = WordPiece(vocab_size=40).train(["a few words"])
pool = encoding._Workers(chunks.Encoding(tokenizer, 0.1), 2)
chunk = chunks.Chunk((Document("a", ("words",)),), chunks.Place())
pool.do(chunk)
print(*(process.pid for process in pool._all), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_their_parent_is_killed():
  root = Path(__file__).parents[2]
  run = subprocess.Popen([sys.executable, "-c", PARENT], cwd=root, stdout=subprocess.PIPE)
  # The workers hold no end of this pipe but their parent's copy of stderr; the pids come first.
  pids = [int(pid) for pid in run.stdout.readline().split()]
  run.stdout.close()
  assert run.wait() == -signal.SIGKILL and len(pids) == 2
  for pid in pids:
    until_gone(pid)


def until_gone(pid):
  """Returns when the process has ended; it is no child of ours, so that we can only look."""
  while True:
    try:
      state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
      return
    if state == "Z":
      return
    os.sched_yield()


def test_a_worker_imports_no_jax(tmp_path):
  code = (
    "import sys, plm_jax.data.encoding, plm_jax.data.tokenizer_backends; "
    "print(*{'jax', 'tensorflow_datasets', 'matplotlib', 'tqdm'} & set(sys.modules))"
  )
  root = Path(__file__).parents[2]
  run = [sys.executable, "-c", code]
  done = subprocess.run(run, cwd=root, capture_output=True, text=True, check=True)
  assert done.stdout.split() == []


# Texts with few documents


def test_a_text_without_a_blank_line_is_cut_into_pieces_and_the_manifest_says_so(path, tmp_path):
  path.write_text(path.read_text().replace("\n\n", "\n"))
  made = prepare(corpus(path), tmp_path / "cache", progress=False)
  assert made.manifest["source"]["cut into pieces of sentences"] == 8
  assert made.train.documents + made.valid.documents == -(-300 // 8)
  assert made.train.sentences + made.valid.sentences == 300
  assert made.train.name_and_label(0)[0].startswith("text.txt:1+")


def test_a_text_with_twenty_documents_is_not_cut(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("\n\n".join("\n".join(f"river {i} {j}" for j in range(30)) for i in range(20)))
  made = prepare(corpus(path), tmp_path / "cache", progress=False)
  assert "cut into pieces of sentences" not in made.manifest["source"]
  assert made.train.documents + made.valid.documents == 20


# Progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize(("stream", "lines"), [(io.StringIO, 3), (Terminal, 1)])
def test_a_bar_in_a_log_is_a_few_lines_and_in_a_terminal_one_that_is_redrawn(
  monkeypatch, stream, lines
):
  monkeypatch.setattr(sys, "stderr", stream())
  clock = iter(range(10**6))  # tqdm looks at it twice a step at most
  monkeypatch.setattr("tqdm.std.time", lambda: next(clock) / 100)
  with progress_bar(500, "Doing") as bar:
    for _ in range(500):
      bar.update(1)
  written = sys.stderr.getvalue()
  assert len(written.splitlines() if lines > 1 else written.split("\n")[:-1]) == lines
  assert "500/500" in written and ("\r" in written) == (lines == 1)
