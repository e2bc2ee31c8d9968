"""Text of TFDS data sets, read through `as_data_source`: random access without TensorFlow.

`tfds:NAME[/CONFIG][:SPLIT]` names a data set that is already prepared as ArrayRecord in the folder
of `TFDS_DATA_DIR` (default `~/tensorflow_datasets`) or in the project's cache. The project's own
builder `installed_text` is prepared here if it is missing.
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plm_jax.data import installed_text
from plm_jax.data.documents import Document
from plm_jax.data.layout import text_sentences
from plm_jax.errors import UserError

OWN = "installed_text"
_BLOCK = 256  # records read at once
_DAY = 86_400  # seconds
_NAMES = ("name", "title", "id")  # features that name a document; the first one present is used


def open_tfds(source: str, cache: Path) -> "TfdsText":
  """The data set that `source` names (see above); prepares `installed_text` in `cache`."""
  name, _, split = source.removeprefix("tfds:").partition(":")
  name, _, config = name.strip("/").partition("/")
  if name == OWN:
    config = config or installed_text.version()
    folders = [cache]
    if not _find(cache, name, config):
      _prepare_own(cache)
  else:
    default = Path.home() / "tensorflow_datasets"
    folders = [Path(os.environ.get("TFDS_DATA_DIR") or default), cache]
  for folder in folders:
    if version := _find(folder, name, config):
      return TfdsText(name, version, split or "train")
  raise UserError(
    f"The TFDS data set {source!r} is not prepared: it is not in "
    f"{' or '.join(map(str, folders))}. Prepare it with `tfds build {name} "
    "--file_format=array_record` (this needs tensorflow), or name its folder in TFDS_DATA_DIR."
  )


def _find(folder: Path, name: str, config: str) -> Path | None:
  """The folder of the newest prepared version; without `config` there must be only one."""
  within = folder / name / config if config else folder / name
  files = list(within.glob("*/dataset_info.json"))
  if not files and not config:
    files = list(within.glob("*/*/dataset_info.json"))
    configs = sorted({path.parts[-3] for path in files})
    if len(configs) > 1:
      raise UserError(
        f"The TFDS data set {name!r} has several configurations: give one of "
        f"{', '.join(f'tfds:{name}/{config}' for config in configs)}."
      )

  def numbers(folder: Path) -> list[int]:
    return [int(part) for part in folder.name.split(".") if part.isdigit()]

  return max((path.parent for path in files), key=numbers, default=None)


def _prepare_own(cache: Path) -> None:
  """Builds `installed_text` in a temporary folder first, so that two processes cannot collide."""
  import tensorflow_datasets as tfds

  print("Reading the documentation of the installed packages (once).", file=sys.stderr)
  cache.mkdir(parents=True, exist_ok=True)
  _remove_left_over(cache)
  with _quiet(), tempfile.TemporaryDirectory(dir=cache, prefix=".preparing-") as scratch:
    try:
      builder = tfds.builder(OWN, data_dir=scratch)
    except tfds.core.DatasetNotFoundError:
      raise UserError(
        "The data set tfds:installed_text is built by the repository's folder data/installed_text: "
        "run from the repository, or `import data.installed_text` first."
      ) from None
    try:
      builder.download_and_prepare()
    except RuntimeError as error:  # ArrayRecord's error for a full disk
      if os.strerror(errno.ENOSPC) not in str(error):
        raise
      raise UserError(
        f"There is no space left for the text in {cache}: free some, or choose another --cache."
      ) from None
    made = Path(builder.data_dir)
    target = cache / made.relative_to(scratch)
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # another process was faster, with the same text
      shutil.move(made, target) if not target.exists() else None


def _remove_left_over(cache: Path) -> None:
  """Removes folders of killed preparations, a day old: younger ones may still be in use."""
  for folder in cache.glob(".preparing-*"):
    with contextlib.suppress(OSError):  # another process was faster
      if time.time() - folder.stat().st_mtime > _DAY:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _quiet():
  """Silences TFDS's progress bars, prints and info logs; warnings and errors stay."""
  import tensorflow_datasets as tfds

  log = logging.getLogger("absl")
  level = log.level
  log.setLevel(logging.WARNING)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    log.setLevel(level)
    tfds.enable_progress_bar()


class TfdsText(NamedTuple):
  """first: the number of the first record in the names of documents."""

  name: str
  folder: Path
  split: str
  first: int = 0

  @property
  def size(self) -> int:
    return int(self._stored().get("numBytes", 0))

  def shards(self) -> list[tuple["TfdsText", int]]:
    """The records of each stored file, and about its bytes; all of them as one where the split is a
    part of a stored one."""
    lengths = [int(length) for length in self._stored().get("shardLengths", ())]
    if len(lengths) < 2:
      return [(self, self.size)]
    texts, first, each = [], 0, self.size / max(1, sum(lengths))
    for length in lengths:
      part = f"{self.split}[{first}:{first + length}]"
      texts.append((self._replace(split=part, first=first), int(each * length)))
      first += length
    return texts

  def _stored(self) -> dict:
    """What is said of the split; empty for a part of one, such as train[:1000]."""
    info = json.loads((self.folder / "dataset_info.json").read_text())
    return next((split for split in info.get("splits", ()) if split["name"] == self.split), {})

  def documents(self) -> Iterator[Document]:
    features = self._builder().info.features
    text, title, label = _features(features, self.name)
    for index, record in enumerate(self.records(), self.first):
      yield Document(
        string_of(record[title]) if title else f"{self.name}:{index}",
        tuple(string_of(record[text]).split("\n"))
        if self.name == OWN
        else text_sentences(string_of(record[text])),
        _label(features[label], record[label]) if label else "",
      )

  def records(self) -> Iterator[dict]:
    """The examples of the split, name of a feature -> value."""
    with _quiet():
      data = self._open(self._builder())
    for start in range(0, len(data), _BLOCK):
      yield from data.__getitems__(list(range(start, min(start + _BLOCK, len(data)))))

  def _builder(self):
    import tensorflow_datasets as tfds

    with _quiet():
      return tfds.builder_from_directory(self.folder)

  def _open(self, builder):
    if self.split.partition("[")[0] not in builder.info.splits:
      raise UserError(
        f"The TFDS data set {self.name!r} has no split {self.split!r}: it has "
        f"{', '.join(builder.info.splits)}."
      )
    try:
      return builder.as_data_source(self.split)
    except ValueError as error:
      raise UserError(
        f"The split {self.split!r} of the TFDS data set {self.name!r} cannot be read "
        f"({str(error).splitlines()[0]}): write it as train, train[:1000] or train[10%:20%]."
      ) from None
    except NotImplementedError:
      raise UserError(
        f"The TFDS data set in {str(self.folder)!r} is not stored as ArrayRecord, which random "
        f"access needs: prepare it again with `tfds build {self.name} --file_format=array_record`."
      ) from None

  def fingerprint(self) -> str:
    """A hash of the stored files: names and sizes, and the content up to a gigabyte."""
    digest = hashlib.blake2b(f"{self.name}:{self.split}".encode(), digest_size=16)
    if self.name == OWN:  # its builder hashed the text; the records' bytes may vary
      digest.update(self.record()["sha256"].encode())
      return digest.hexdigest()
    files = sorted(file for file in self.folder.iterdir() if file.is_file())
    whole = sum(file.stat().st_size for file in files) <= 1 << 30
    for file in files:
      is_json = file.suffix == ".json"
      digest.update(f"\0{file.name}\0{0 if is_json else file.stat().st_size}".encode())
      if whole and not is_json:
        digest.update(file.read_bytes())
    return digest.hexdigest()

  def record(self) -> dict:
    path = self.folder / "metadata.json"
    metadata = json.loads(path.read_text()) if path.exists() else {}
    return {"data set": self.name, "version": self.folder.name, **metadata}


def _features(features, name: str) -> tuple[str, str | None, str | None]:
  """The features of a document's text, name and label."""
  import tensorflow_datasets as tfds

  texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
  if not texts:
    raise UserError(f"The TFDS data set {name!r} has no text: its features are {list(features)}.")
  text = "text" if "text" in texts else texts[0]
  title = next((key for key in _NAMES if key in texts and key != text), None)
  return text, title, "label" if "label" in features and text != "label" else None


def string_of(value) -> str:
  return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _label(feature, value) -> str:
  return feature.int2str(int(value)) if hasattr(feature, "int2str") else string_of(value)
