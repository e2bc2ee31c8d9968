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
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import IO, Literal, get_args

import numpy as np

from plm_jax.data.subwords import Subwords, buckets_of, mean_rows, ragged_ngrams
from plm_jax.errors import UserError
from plm_jax.files import open_file

Format = Literal["word2vec", "word2vec-binary", "glove", "fasttext"]
FORMATS: tuple[str, ...] = get_args(Format)

_MAGIC, _VERSION = 793712314, 12
_ARGS = struct.Struct(
  "<12id"
)  # dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, ...
_NEGATIVE, _SKIPGRAM, _SUPERVISED = 2, 2, 3
_LONGEST_WORD = 1 << 16  # bytes
_LONGEST_NGRAM = 100  # characters
_MOST_WORDS, _WIDEST = 1 << 36, 1 << 16
_AT_ONCE = 1 << 24  # bytes of one read: room is made only for bytes that the file has
_NUMBER = b"0123456789+-.eE nafityNAFITY"  # the letters of a number, "nan" and "inf"; not "1_0"


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
    with open_file(path) as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
      return _read(file, path)
  except (EOFError, OSError, zlib.error) as error:
    raise UserError(f"{path} cannot be read: {error}; fetch it again.") from None


def _read(file: BufferedReader, path: Path) -> WordTable:
  head = file.read(8)
  if not head.strip():
    raise UserError(f"{path} is empty; expected word vectors.")
  if len(head) == 8 and struct.unpack("<i", head[:4])[0] == _MAGIC:
    return _read_bin(file, path, struct.unpack("<i", head[4:])[0])
  file.seek(0)
  first = file.readline(1 << 20)
  sizes = first.split()
  if len(sizes) == 2 and all(size.isdigit() for size in sizes):
    words, width = (int(size[:20]) for size in sizes)
    if not 0 < words <= _MOST_WORDS or not 0 < width <= _WIDEST:
      raise UserError(
        f"{path} line 1 announces {words} words of {width} numbers; expected both to be positive, "
        f"and at most {_WIDEST:,} numbers."
      )
    start = file.tell()
    second = file.readline(1 << 20)
    file.seek(start)
    if _is_text(second, width) or _is_text(second, second.rstrip().count(b" ")):
      return _read_lines(file, path, width, words)
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
  return len(parts) == width + 1 > 1 and all(map(_is_number, parts[1:]))


def _is_number(column: bytes) -> bool:
  try:
    return bool(not column.translate(None, _NUMBER) and [float(column)])
  except ValueError:
    return False


def _read_lines(file: Iterable[bytes], path: Path, width: int, announced: int | None) -> WordTable:
  words, rows, first = [], [], 1 if announced is None else 2
  for number, line in enumerate(file, first):
    word, *numbers = line.rstrip(b" \r\n").rsplit(b" ", width)
    if not numbers and not word:
      continue
    try:
      # GloVe's words may have spaces, but a number in one is another line or a wider vector.
      if len(numbers) != width or any(map(_is_number, word.split(b" ")[1:])):
        raise ValueError
      if b"".join(numbers).translate(None, _NUMBER):
        raise ValueError
      with np.errstate(over="ignore"):  # infinity, refused by `_check_finite`
        rows.append(np.array(numbers, dtype=np.float32))
      words.append(word.decode())
    except ValueError:
      raise UserError(
        f"{path} line {number} is damaged: expected a word and {width} numbers."
      ) from None
  return _table(words, rows, path, announced)


def _read_binary(file: BufferedReader, path: Path, announced: int, width: int) -> WordTable:
  """word2vec.c writes a line break after every vector, gensim after none."""
  words, rows, line_break = [], [], b""
  for number in range(1, announced + 1):
    word = _until(file, b" ", path, number)
    row = _at_most(file, 4 * width)
    if len(row) < 4 * width:
      raise UserError(f"{path} ends in the vector of word {number} of {announced}.")
    if number == 1 and file.peek(1)[:1] == b"\n":
      line_break = b"\n"
    try:
      if not word or b"\n" in word or file.read(len(line_break)) != line_break:
        raise ValueError
      words.append(word.decode())
    except ValueError:
      raise UserError(
        f"{path} is damaged at word {number}: expected a word in UTF-8, {width} numbers, and a "
        "line break after every vector or after none."
      ) from None
    rows.append(np.frombuffer(row, "<f4"))
  _check_end(file, path)
  return _table(words, rows, path, announced)


def _at_most(file: IO[bytes], size: int) -> bytearray:
  """The next `size` bytes, or all that the file has."""
  data = bytearray()
  while part := file.read(min(size - len(data), _AT_ONCE)):
    data += part
  return data


def _check_end(file: IO[bytes], path: Path) -> None:
  if file.read(1):
    raise UserError(f"{path} has more bytes than it announces; fetch it again.")


def _check_finite(vectors: np.ndarray, path: Path) -> None:
  if not np.isfinite([vectors.min(initial=0), vectors.max(initial=0)]).all():
    raise UserError(f"{path} has a number that is not finite.")


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
  _check_finite(vectors, path)
  return WordTable(words, vectors)


def _read_bin(file: IO[bytes], path: Path, version: int) -> WordTable:
  if version not in (11, _VERSION):
    raise UserError(
      f"{path} is a fastText model of version {version}; this project reads 11 and 12."
    )

  def take(form: str) -> tuple:
    data = file.read(struct.calcsize("<" + form))
    if len(data) < struct.calcsize("<" + form):
      raise UserError(f"{path} is cut off; fetch it again.")
    return struct.unpack("<" + form, data)

  dim, *_, model, bucket, shortest, longest, _, _ = take("12id")
  if version == 11 and model == _SUPERVISED:
    shortest = longest = 0  # old classifiers have no n-grams, whatever the file says (fasttext.cc)
  size, number, labels, _, pruned = take("3i2q")
  if longest == bucket == 0:
    shortest = 0  # `fasttext -maxn 0` leaves it at 3
  if not 0 <= shortest <= longest <= _LONGEST_NGRAM or bucket < (longest > 0):
    raise UserError(
      f"{path} is damaged: n-grams of {shortest} to {longest} characters in {bucket} buckets."
    )
  if min(dim, number) < 1 or labels < 0 or number + labels != size:
    raise UserError(f"{path} is damaged: {number} words of {dim}, {labels} labels, {size} in all.")
  words, counts = _entries(file, take, path, size)
  if len(words) != number:
    raise UserError(f"{path} is damaged: {len(words)} words, and it announces {number}.")
  if pruned != -1 or take("b")[0]:
    raise UserError(f"{path} is a quantised fastText model (.ftz); give the .bin.")
  matrix = _matrix(file, take, path, number + bucket, dim)
  if take("b")[0]:
    raise UserError(f"{path} has a quantised output matrix (.ftz); give the .bin.")
  output = _matrix(file, take, path, labels if model == _SUPERVISED else number, dim)
  _check_end(file, path)
  rows, ngrams = matrix[:number], matrix[number:]
  if not longest:
    return WordTable(words, rows, np.array(counts), output=output)
  subwords = Subwords(shortest, longest, bucket)
  vectors = with_ngrams(words, rows, ngrams, subwords)
  return WordTable(words, vectors, np.array(counts), subwords, rows, ngrams, output)


def _entries(file: IO[bytes], take, path: Path, size: int) -> tuple[list[str], list[int]]:
  """The words of a .bin and their counts, without its labels."""
  words, counts = [], []
  for i in range(size):
    word = _until(file, b"\0", path, i + 1).decode(errors="replace")
    count, kind = take("qb")
    if count < 0 or kind not in (0, 1):
      raise UserError(f"{path} is damaged at word {i + 1}: count {count}, kind {kind}.")
    if kind == 0:
      words.append(word)
      counts.append(count)
  return words, counts


def _matrix(file: IO[bytes], take, path: Path, rows: int, columns: int) -> np.ndarray:
  shape = take("2q")
  if shape != (rows, columns):
    raise UserError(f"{path} is damaged: a matrix {shape}; expected {(rows, columns)}.")
  data = _at_most(file, 4 * rows * columns)
  if len(data) < 4 * rows * columns:
    raise UserError(f"{path} is cut off; fetch it again.")
  matrix = np.frombuffer(data, "<f4").reshape(rows, columns)
  _check_finite(matrix, path)
  return matrix


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
