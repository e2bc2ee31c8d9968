"""Token stores from text: split by document, train the tokenizer, encode, write.

The text is read in chunks (`plm_jax.data.chunks`); after every `JOURNAL` of them a journal records
the place in the text and how much of each file is valid. A preparation that was killed resumes at
that place and ends with the same bytes. Arms of an ablation that share a text, a tokenizer and a
split share one locked directory, named by a hash of these. Its files are checked at every start,
and made again where they are damaged.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plm_jax.data import processes
from plm_jax.data.beam import Beam
from plm_jax.data.chunks import Chunk, Encoded, Encoding, Place, chunks_of
from plm_jax.data.corpora import Source, TextFiles, default_cache, open_source
from plm_jax.data.digests import digests
from plm_jax.data.documents import Document
from plm_jax.data.encoding import done
from plm_jax.data.manifest import FILES, MANIFEST, SPLITS, TOKENIZER, clear, fault, hash_of
from plm_jax.data.pieces import Pieces, in_pieces
from plm_jax.data.split import check_split
from plm_jax.data.store import StoreWriter, TokenStore
from plm_jax.data.texts import named_texts
from plm_jax.data.tokenizer_sample import Sample, Sampling, sample_of
from plm_jax.data.tokenizers import Tokenizer, load_tokenizer
from plm_jax.errors import UserError
from plm_jax.files import not_waiting, read_json
from plm_jax.progress import progress_bar

FORMAT = 2  # part of the directory's name: increase it when the stored bytes change
CHUNK = 4 << 20  # bytes that are encoded at once
JOURNAL = 16  # chunks between two entries of the journal: to wait for the disk takes 10 to 50 ms
SHARDS = "shards"  # the folder of what Beam made of each shard, until the end
# Bytes from which worker processes encode: they start in about a second, and each fills a separate
# cache of words (a third more CPU time). The break-even size on a quiet machine is not measured.
LARGE = 24 << 20


@dataclass(frozen=True)
class Prepared:
  """Prepared text. `manifest`: hashes, counts, and numbers of dropped items by reason."""

  tokenizer: Tokenizer
  train: TokenStore
  valid: TokenStore
  manifest: dict
  directory: Path


def prepare(
  corpus,
  cache_dir: str | os.PathLike | None = None,
  progress: bool = True,
  beam: Beam | None = None,
) -> Prepared:
  """The tokenised text of `corpus` (its source, tokenizer and held_out), prepared once.

  cache_dir: see `corpora.default_cache`. beam: encodes the text in place of this machine's worker
  processes, with the same bytes. Errors: `UserError` for text that is too small or damaged,
  and for several texts (`mixture.prepare_each`).
  """
  if len(named_texts(corpus.source)) > 1:
    raise UserError(f"data.source={corpus.source} has several texts, and one is expected here")
  cache = Path(cache_dir or default_cache())
  source = open_source(corpus.source, cache, corpus.lines)
  tokenizer = corpus.tokenizer.load() if corpus.tokenizer.path else None
  key = {
    "format": FORMAT,
    "text": source.fingerprint(),
    "tokenizer": tokenizer.fingerprint if tokenizer else repr(corpus.tokenizer),
    "held_out": corpus.held_out,
    **({"lines": True} if corpus.lines else {}),
    **({} if tokenizer else _sampled(source)),
  }
  directory = _place_of(key, cache)
  with _lock(directory) as writable:
    why = fault(directory, key)
    if why and not writable:
      raise UserError(
        f"the prepared text {directory} is damaged ({why}), and the cache cannot be written; "
        "choose another --cache"
      )
    if why:
      print(f"The prepared text {directory} is damaged ({why}) and is made again.",
            file=sys.stderr)  # fmt: skip
      clear(directory)
    if not (directory / MANIFEST).exists():
      directory.mkdir(exist_ok=True)
      pieces = in_pieces(source)
      if progress and isinstance(pieces, Pieces):
        print(pieces, file=sys.stderr)
      _Preparation(corpus, pieces, tokenizer, directory, key, progress, beam).run()
      if isinstance(source, TextFiles) and source.fingerprint() != key["text"]:
        clear(directory)
        raise UserError(
          f"the text {corpus.source!r} changed while it was prepared; run the same command again"
        )
  return _open(directory, tokenizer)


def train_tokenizer(corpus, sources: Sequence[Source], cache: Path, progress: bool) -> Path:
  """The folder of the tokenizer of `corpus`, trained once on the training documents of all texts
  together. A text is read for it in its natural share."""
  key = {
    "format": FORMAT,
    "texts": [source.fingerprint() for source in sources],
    "tokenizer": repr(corpus.tokenizer),
    "held_out": corpus.held_out,
    "lines": corpus.lines,
    **_sampled(Joined(tuple(sources))),
  }
  directory = _place_of(key, cache)
  with suppress(UserError, OSError):
    load_tokenizer(directory / "tokenizer")
    return directory / "tokenizer"
  with _lock(directory):
    directory.mkdir(exist_ok=True)
    joined = Joined(tuple(map(in_pieces, sources)))
    _Preparation(corpus, joined, None, directory, key, progress).trained()
  return directory / "tokenizer"


def _sampled(source: Source) -> dict:
  """The choice of shards for a tokenizer; empty for texts that are read whole, as all once were."""
  chosen = sample_of(source).record()
  return {"sample": chosen} if chosen else {}


def _place_of(key: dict, cache: Path) -> Path:
  name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=10).hexdigest()
  (cache / "prepared").mkdir(parents=True, exist_ok=True)
  return cache / "prepared" / name


class Joined(NamedTuple):
  """Several texts, one after the other."""

  texts: tuple[Source, ...]

  @property
  def size(self) -> int:
    return sum(text.size for text in self.texts)

  def documents(self) -> Iterator[Document]:
    for text in self.texts:
      yield from text.documents()


@contextmanager
def _lock(directory: Path) -> Iterator[bool]:
  """Waits until no other process prepares the text. Gives whether it may be written: a cache that
  can only be read needs no lock if the text is there."""
  try:
    # The block below closes it.
    file = open(directory.with_suffix(".lock"), "a", opener=not_waiting)  # noqa: SIM115
  except OSError as error:
    read_only = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
    if not read_only or not (directory / MANIFEST).exists():
      raise
    yield False
    return
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print("Another process is preparing the same text: waiting for it.", file=sys.stderr)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield True


def _open(directory: Path, tokenizer: Tokenizer | None) -> Prepared:
  tokenizer = tokenizer or load_tokenizer(directory / "tokenizer")
  manifest = read_json(directory / MANIFEST)
  stores = (TokenStore(directory, split, tokenizer.vocab.size) for split in SPLITS)
  return Prepared(tokenizer, *stores, manifest, directory)


class _Preparation:
  def __init__(
    self, corpus, source, tokenizer, directory: Path, key: dict, progress: bool,
    beam: Beam | None = None,
  ):  # fmt: skip
    self.beam = beam
    self.source, self.config, self.tokenizer = source, corpus.tokenizer, tokenizer
    self.name, self.held_out, self.lines = corpus.source, corpus.held_out, corpus.lines
    self.directory, self.key, self.progress = directory, key, progress

  def run(self) -> None:
    self.tokenizer = self.tokenizer or self.trained()
    self._finish(self._encode())

  @contextmanager
  def _bar(self, title: str, size: int):
    with progress_bar(
      size or None, title, unit="B", unit_scale=True, disable=not self.progress
    ) as bar:
      yield bar
      if bar.total:
        bar.total = bar.n  # the size was an estimate: it counts layout and guesses compression

  # The tokenizer.

  def trained(self) -> Tokenizer:
    folder = self.directory / "tokenizer"
    tokenizer = None
    with suppress(UserError, OSError):
      tokenizer = load_tokenizer(folder)
    if tokenizer is None:
      check_split(self.source, self.name, self.held_out)
      sample = sample_of(self.source)
      with self._bar("Training the tokenizer", sample.size) as bar:
        tokenizer = self.config.train(self._sample(sample, bar), self.lines)
    scratch = self.directory / "tokenizer.part"
    shutil.rmtree(scratch, ignore_errors=True)
    tokenizer.save(scratch)
    if folder.exists() or folder.is_symlink():  # some of its files may be damaged
      clear(folder)
    scratch.rename(folder)
    return load_tokenizer(folder)

  def _sample(self, sample: Sample, bar) -> Iterator[str]:
    """Sentences of training documents: all of a small text, an even sample of a large one."""
    chunks, job, taken = sample.chunks(CHUNK), Sampling(self.held_out), 0
    with closing(done(chunks, job, self._workers(sample.size))) as results:
      for _, documents in results:
        for size, sentences in documents:
          bar.update(size)
          yield from sentences
          taken += size if sentences else 0
          if taken >= sample.most:
            return

  # Encoding.

  def _encode(self) -> dict:
    with ExitStack() as stack, self._bar("Encoding", self.source.size) as bar:
      journal, writers = self._continued()
      place = Place(*journal["place"])
      for writer in writers:
        stack.enter_context(writer)
      dropped = Counter(journal["dropped"])
      bar.update(journal["size"])
      results = stack.enter_context(closing(self._encoded(place, journal["size"])))
      size = journal["size"]
      for number, (place, encoded) in enumerate(results, 1):
        for writer, documents in zip(writers, encoded.splits, strict=True):
          writer.add(documents)
        dropped.update(encoded.dropped)
        size += encoded.size
        bar.update(encoded.size)
        if number % JOURNAL == 0:
          self._write_journal(place, size, dropped, writers)
      return self._write_journal(place, size, dropped, writers)

  def _encoded(self, place: Place, size: int) -> Iterator[tuple[Place, Encoded]]:
    """What follows a place, in order: made by Beam, by worker processes, or here. size: of what is
    before it."""
    job = Encoding(self.tokenizer, self.held_out)
    if self.beam is not None:
      folder = self.directory / SHARDS / self.tokenizer.fingerprint
      yield from self.beam.done(self.source, place, job, folder, CHUNK)
      return
    chunks = chunks_of(self.source, place, CHUNK)
    workers = self._workers(self.source.size - size)
    if workers < 2:  # a worker reads a chunk itself
      chunks = map(Chunk.read, chunks)
    with closing(_ahead(chunks)) as chunks, closing(done(chunks, job, workers)) as results:
      yield from results

  def _write_journal(
    self, place: Place, size: int, dropped: Counter, writers: list[StoreWriter]
  ) -> dict:
    """Writes what the writers hold, then the journal of it. place, size: what was read so far."""
    journal = {
      "place": place,
      "size": size,
      "dropped": dict(dropped),
      "lengths": [writer.sync() for writer in writers],
      "hashes": [writer.hashes() for writer in writers],
      "tokenizer": self.tokenizer.fingerprint,
    }
    _replace(self.directory / "journal.json", journal)
    return journal

  def _continued(self) -> tuple[dict, list[StoreWriter]]:
    """The journal of a preparation that was killed, and writers that go on after it; those of a new
    one if there is none, or if what was written is damaged."""

    def writers_at(lengths) -> list[StoreWriter]:
      size = self.tokenizer.vocab.size
      return [StoreWriter(self.directory, *args, size) for args in zip(SPLITS, lengths)]

    path = self.directory / "journal.json"
    try:
      journal = read_json(path)
      writers = writers_at(journal["lengths"])
      counts = *Place(*journal["place"]), journal["size"], *journal["dropped"].values()
      hashes = [writer.hashes() for writer in writers]
      if all(type(n) is int for n in counts) and len(writers) == 2 and (
        (journal["hashes"], journal["tokenizer"]) == (hashes, self.tokenizer.fingerprint)
      ):  # fmt: skip
        return journal, writers
      for writer in writers:
        writer.close()
      why = "what was written differs from its journal"
    except FileNotFoundError:
      why = ""
    except (UserError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
      why = f"its journal cannot be used: {error}"
    if why:
      print(f"The unfinished text {self.directory} is begun again ({why}).", file=sys.stderr)
    return {"place": Place(), "size": 0, "dropped": {}}, writers_at(({}, {}))

  def _workers(self, size: int) -> int:
    """Worker processes for so many bytes of text."""
    return processes.cores() if size >= LARGE else 1

  # The end.

  def _finish(self, journal: dict) -> None:
    vocab_size = self.tokenizer.vocab.size
    splits, files = {}, {}
    for split in SPLITS:
      if (self.directory / f"{split}.tokens").stat().st_size == 0:
        raise UserError(
          f"The text {self.name!r} is too short: the {split} split has no tokens; give more text."
        )
      store = TokenStore(self.directory, split, vocab_size)
      counts = np.zeros(vocab_size, np.int64)
      for start in range(0, len(store.tokens), 1 << 22):
        counts += np.bincount(store.tokens[start : start + (1 << 22)], minlength=vocab_size)
      counts.astype("<i8").tofile(self.directory / f"{split}.counts")
      splits[split] = {
        "documents": store.documents,
        "sentences": store.sentences,
        "tokens": len(store.tokens),
      }
    for split in SPLITS:
      for part in FILES:
        path = self.directory / f"{split}.{part}"
        files[path.name] = digests(path)
    for path in sorted((self.directory / TOKENIZER).glob("*")):
      files[TOKENIZER + path.name] = digests(path)
    manifest = {
      "format": FORMAT,
      "source": {"given": self.name, "fingerprint": self.key["text"], **self.source.record()},
      "characters": journal["size"],
      "tokenizer": {
        "given": repr(self.config),
        "fingerprint": self.tokenizer.fingerprint,
        "size": vocab_size,
        **({} if self.config.path else _sampled(self.source)),
      },
      "held_out": self.held_out,
      "splits": splits,
      "dropped": {why: count for why, count in sorted(journal["dropped"].items()) if count},
      "files": files,
    }
    _replace(self.directory / MANIFEST, manifest | {"sha256": hash_of(manifest)})
    (self.directory / "journal.json").unlink(missing_ok=True)
    shutil.rmtree(self.directory / SHARDS, ignore_errors=True)


def _replace(path: Path, content: dict) -> None:
  """Writes JSON atomically: a reader sees the old or the new content."""
  scratch = path.with_suffix(".part")
  with scratch.open("w") as file:
    json.dump(content, file, indent=2)
    file.flush()
    os.fsync(file.fileno())
  scratch.replace(path)


def _ahead(items: Iterator) -> Iterator:
  """The items, with the next one read in a thread while the last one is encoded."""
  with ThreadPoolExecutor(1) as reader:
    waiting = reader.submit(next, items, None)
    while (item := waiting.result()) is not None:
      waiting = reader.submit(next, items, None)
      yield item
