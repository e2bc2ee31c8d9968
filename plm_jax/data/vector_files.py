"""Files of word vectors: word2vec's text and binary format, GloVe's text, fastText's .vec and .bin.

    word2vec text, .vec   "V D", then a word and D numbers in every line
    GloVe text            the same without the first line
    word2vec binary       "V D\\n", then a word, a space, D float32 and a line break
    fastText .bin         a magic number and a version (12), settings, words with their counts, the
                          input matrix (words, then buckets of n-grams) and the output matrix

`read_vectors` recognises the format by the content; any of them may end in .gz. Sources:
tmikolov/word2vec 20c129a, distance.c and word2vec.c; stanfordnlp/GloVe 52f7dbc, glove.c;
facebookresearch/fastText 1142dc4, fasttext.cc, args.cc, dictionary.cc and densematrix.cc.
"""

import gzip
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Literal, get_args

import numpy as np

from plm_jax.data.subwords import Subwords, buckets_of, mean_rows, ragged_ngrams
from plm_jax.errors import UserError

Format = Literal["word2vec", "word2vec-binary", "glove", "fasttext"]
FORMATS: tuple[str, ...] = get_args(Format)

_MAGIC, _VERSION = 793712314, 12
_ARGS = struct.Struct(
  "<12id"
)  # dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, ...
_NEGATIVE, _SKIPGRAM = 2, 2
_LONGEST_WORD = 1 << 16  # bytes


@dataclass(frozen=True, eq=False)
class WordTable:
  """Words and their vectors float32 [V, D], most frequent first.

  counts: of the words in their text, int [V]; None if the file has none. subwords, ngrams: the
  hashed n-grams and their rows [buckets, D]; then `rows` are the words' own rows [V, D], before the
  n-grams are added. output: the output matrix [V, D] of a .bin. compose: the vector of an unknown
  word by other means.
  """

  words: list[str]
  vectors: np.ndarray
  counts: np.ndarray | None = None
  subwords: Subwords | None = None
  rows: np.ndarray | None = None
  ngrams: np.ndarray | None = None
  output: np.ndarray | None = None
  compose: Callable[[str], np.ndarray | None] | None = None

  @cached_property
  def index(self) -> dict[str, int]:
    """The place of every word."""
    return {word: i for i, word in reversed(list(enumerate(self.words)))}

  def vector(self, word: str) -> np.ndarray | None:
    """float32 [D]: of a word, or the mean of the n-grams of an unknown one; else None."""
    if (at := self.index.get(word)) is not None:
      return self.vectors[at]
    if self.compose is not None:
      return self.compose(word)
    if self.subwords is None or self.ngrams is None:
      return None
    buckets = buckets_of(word, self.subwords)
    return self.ngrams[buckets].mean(axis=0) if len(buckets) else None


def with_ngrams(
  words: list[str], rows: np.ndarray, ngrams: np.ndarray, subwords: Subwords
) -> np.ndarray:
  """float32 [V, D]: the vectors of words with n-grams. "</s>" has none."""
  return mean_rows(
    rows, ngrams, *ragged_ngrams(["" if word == "</s>" else word for word in words], subwords)
  )


# --- reading -------------------------------------------------------------------------------------


def read_vectors(path: str | Path) -> WordTable:
  """The vectors of a file. Errors: `UserError` naming the line or the place of the damage."""
  path = Path(path)
  if not path.is_file():
    raise UserError(f"{path} is no file of word vectors.")
  try:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
      return _read(file, path)
  except (EOFError, gzip.BadGzipFile) as error:
    raise UserError(f"{path} is damaged: {error}; fetch it again.") from None


def _read(file: IO[bytes], path: Path) -> WordTable:
  head = file.read(8)
  if not head.strip():
    raise UserError(f"{path} is empty; expected word vectors.")
  if len(head) == 8 and struct.unpack("<i", head[:4])[0] == _MAGIC:
    return _read_bin(file, path, struct.unpack("<i", head[4:])[0])
  file.seek(0)
  first = file.readline(1 << 20)
  sizes = first.split()
  if len(sizes) == 2 and all(size.isdigit() for size in sizes):
    words, width = map(int, sizes)
    if not words or not width:
      raise UserError(f"{path} line 1 announces {words} words of {width} numbers; expected both.")
    start = file.tell()
    if _is_text(file.readline(1 << 20), width):
      file.seek(start)
      return _read_lines(file, path, width, words)
    file.seek(start)
    return _read_binary(file, path, words, width)
  width = len(first.rstrip().split(b" ")) - 1
  if width < 2 or not _is_text(first, width):
    raise UserError(
      f"{path} line 1 is neither a word with its numbers, nor the numbers of words and dimensions; "
      "expected word2vec's text or binary format, GloVe's text, or a fastText .bin."
    )
  file.seek(0)
  return _read_lines(file, path, width, None)


def _is_text(line: bytes, width: int) -> bool:
  parts = line.rstrip().rsplit(b" ", width)
  try:
    return len(parts) == width + 1 and len([float(part) for part in parts[1:]]) == width
  except ValueError:
    return False


def _read_lines(file: Iterable[bytes], path: Path, width: int, announced: int | None) -> WordTable:
  words, rows, first = [], [], 1 if announced is None else 2
  for number, line in enumerate(file, first):
    word, *numbers = line.rstrip(b" \r\n").rsplit(b" ", width)
    if not numbers and not word:
      continue
    try:
      if len(numbers) != width:
        raise ValueError
      rows.append(np.array(numbers, dtype=np.float32))
      words.append(word.decode())
    except ValueError:
      raise UserError(
        f"{path} line {number} is damaged: expected a word and {width} numbers."
      ) from None
  return _table(words, rows, path, announced)


def _read_binary(file: IO[bytes], path: Path, announced: int, width: int) -> WordTable:
  words, rows = [], []
  for number in range(announced):
    word = _until(file, b" ", path, number + 1).lstrip(b"\n")
    row = file.read(4 * width)
    if len(row) < 4 * width:
      raise UserError(f"{path} ends in the vector of word {number + 1} of {announced}.")
    rows.append(np.frombuffer(row, "<f4"))
    words.append(word.decode(errors="replace"))
  return _table(words, rows, path, announced)


def _until(file: IO[bytes], end: bytes, path: Path, number: int) -> bytes:
  letters = bytearray()
  while (letter := file.read(1)) != end:
    letters += letter
    if not letter or len(letters) > _LONGEST_WORD:
      raise UserError(f"{path} is damaged at word {number}: a word has no end.")
  return bytes(letters)


def _table(words: list[str], rows: list, path: Path, announced: int | None) -> WordTable:
  if announced not in (None, len(words)):
    raise UserError(f"{path} line 1 announces {announced} words, and the file has {len(words)}.")
  vectors = np.stack(rows)
  if not np.isfinite(vectors).all():
    raise UserError(f"{path} has a number that is not finite.")
  return WordTable(words, vectors)


def _read_bin(file: IO[bytes], path: Path, version: int) -> WordTable:
  if version not in (11, _VERSION):
    raise UserError(
      f"{path} is a fastText model of version {version}; this project reads 11 and 12."
    )

  def take(form: str) -> tuple:
    size = struct.calcsize("<" + form)
    data = file.read(size)
    if len(data) < size:
      raise UserError(f"{path} is cut off; fetch it again.")
    return struct.unpack("<" + form, data)

  dim, *_, model, bucket, shortest, longest, _, _ = take("12id")
  if version == 11 and model == 3:
    longest = 0  # old classifiers have no n-grams, whatever the file says (fasttext.cc)
  size, number, labels, _, pruned = take("3i2q")
  words, counts = [], []
  for i in range(size):
    word = _until(file, b"\0", path, i + 1).decode(errors="replace")
    count, kind = take("qb")
    if kind == 0:
      words.append(word)
      counts.append(count)
  if pruned > 0 or take("b")[0]:
    raise UserError(f"{path} is a quantised fastText model (.ftz); give the .bin.")
  matrix = _matrix(file, take, path)
  if matrix.shape[1] != dim or len(matrix) < number or len(words) != size - labels:
    raise UserError(f"{path} is damaged: {matrix.shape} numbers for {number} words of {dim}.")
  output = None if take("b")[0] else _matrix(file, take, path)
  rows, ngrams = matrix[:number], matrix[number:]
  if not longest or not len(ngrams):
    return WordTable(words, rows, np.array(counts), output=output)
  subwords = Subwords(shortest, longest, bucket)
  vectors = with_ngrams(words, rows, ngrams, subwords)
  return WordTable(words, vectors, np.array(counts), subwords, rows, ngrams, output)


def _matrix(file: IO[bytes], take, path: Path) -> np.ndarray:
  rows, columns = take("2q")
  if rows < 0 or columns < 0 or rows * columns > 1 << 36:
    raise UserError(f"{path} is damaged: a matrix of {rows} x {columns} numbers.")
  data = file.read(4 * rows * columns)
  if len(data) < 4 * rows * columns:
    raise UserError(f"{path} is cut off; fetch it again.")
  return np.frombuffer(data, "<f4").reshape(rows, columns)


# --- writing -------------------------------------------------------------------------------------


def write_vectors(path: str | Path, table: WordTable, form: str) -> None:
  """Writes a file of one of `FORMATS`. Text has 6 significant digits, as the published tools'.
  Errors: `UserError` for words that the format cannot hold."""
  gap = next((word for word in table.words if not word or set(word) & set(" \n\r\t\0")), None)
  if gap is not None:
    raise UserError(f"the word {gap!r} has white space, which files of word vectors cannot hold.")
  size = f"{len(table.words)} {table.vectors.shape[1]}\n"
  with Path(path).open("wb") as file:
    if form == "fasttext":
      _write_bin(file, table)
      return
    if form != "glove":
      file.write(size.encode())
    for word, row in zip(table.words, np.asarray(table.vectors, "<f4"), strict=True):
      if form == "word2vec-binary":
        file.write(word.encode() + b" " + row.tobytes() + b"\n")
      else:
        file.write((word + " " + " ".join(f"{x:.6g}" for x in row.tolist()) + "\n").encode())


def _write_bin(file: IO[bytes], table: WordTable) -> None:
  rows = table.vectors if table.rows is None else table.rows
  size, dim = rows.shape
  counts = np.ones(size, np.int64) if table.counts is None else table.counts
  n = table.subwords or Subwords(0, 0, 0)
  file.write(struct.pack("<2i", _MAGIC, _VERSION))
  sizes = (dim, 5, 5, 5, 5, 1, _NEGATIVE, _SKIPGRAM, n.buckets, n.shortest, n.longest, 100)
  file.write(_ARGS.pack(*sizes, 1e-4))
  file.write(struct.pack("<3i2q", size, size, 0, int(counts.sum()), -1))
  for word, count in zip(table.words, counts.tolist(), strict=True):
    file.write(word.encode() + b"\0" + struct.pack("<qb", count, 0))
  empty = np.zeros((0, dim), np.float32)
  matrix = np.concatenate([rows, empty if table.ngrams is None else table.ngrams])
  output = np.zeros((size, dim)) if table.output is None else table.output
  for part in (matrix, output):
    file.write(b"\0" + struct.pack("<2q", *part.shape))
    file.write(np.ascontiguousarray(part, "<f4").tobytes())
