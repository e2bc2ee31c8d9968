"""Tokenizers: WordPiece, byte-level byte pairs, unigram and whole words, trained or published.

    tokenizer = WordPiece(vocab_size=4096).train(sentences)      # or WordPiece(path=...).load()
    tokenizer.encode_batch(["the cat sat"])                      # [int32 ids], no special tokens

Sources: WordPiece as in google-research/bert tokenization.py (Devlin et al. 2019, section 3.1);
byte-level BPE: Radford et al. 2019, section 2.2; unigram: Kudo 2018 as used by ALBERT and T5.
Hugging Face `tokenizers` and `sentencepiece` do the work; they are imported when first needed.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np

from plm_jax.data.offsets import trimmed
from plm_jax.data.subwords import Subwords
from plm_jax.data.vocab import SpecialTokens, Vocab
from plm_jax.data.words import Split, count_words
from plm_jax.errors import UserError
from plm_jax.files import write_file

FORMAT = 1
_FULL_STOPS = (".", "▁.", "Ġ.", ".</w>")


class Tokenizer:
  """A vocabulary with its rules; picklable; equal fingerprints give equal ids.

  `backend` is the vocabulary without added tokens (plm_jax/data/tokenizer_backends.py). `sentinels`
  special tokens and one for each of `languages` follow its ids, as in T5 and mBART. The sentinels
  count down: <extra_id_0> is the last. special: roles that published files name.
  """

  def __init__(
    self,
    backend,
    sentinels: int = 0,
    languages: tuple[str, ...] = (),
    special: SpecialTokens = SpecialTokens(),  # noqa: B008  a constant
  ):
    self.backend = backend
    self.sentinels, self.added_languages = sentinels, tuple(languages)
    self.special = special

  def __reduce__(self):
    return Tokenizer, (self.backend, self.sentinels, self.added_languages, self.special)

  @property
  def kind(self) -> str:
    """The `kind` of its class of `TokenizerConfig`."""
    return self.backend.kind

  @cached_property
  def pieces(self) -> list[str]:
    """The text of every id."""
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(self.sentinels))]
    return [*self.backend.pieces, *sentinels, *self.added_languages]

  @cached_property
  def vocab(self) -> Vocab:
    own, size = len(self.backend.pieces), len(self.pieces)
    special = np.arange(size) >= own
    special[self.backend.special_ids] = True
    roles = self.backend.roles | self.special.roles
    special[[i for i in (*roles.values(), *self.special.ends) if i is not None]] = True
    starts = self.backend.word_starts()
    if starts is not None:
      starts = np.append(starts, np.ones(size - own, bool)) | special
      starts.setflags(write=False)
    special.setflags(write=False)
    last = own + self.sentinels
    return Vocab(
      size=size,
      special=special,
      word_start=starts,
      sentinels=np.arange(last - 1, own - 1, -1, dtype=np.int32) if self.sentinels else None,
      languages=self.backend.languages | {n: last + i for i, n in enumerate(self.added_languages)},
      full_stop=np.isin(self.pieces, _FULL_STOPS),
      ends=self.special.ends,
      ngrams=getattr(self.backend, "ngrams", None),
      **roles,
    )

  @cached_property
  def fingerprint(self) -> str:
    """sha256 over the vocabulary and the rules, in hex."""
    added = repr((self.sentinels, self.added_languages)).encode() if self._added else b""
    added += repr(sorted(self.special.roles.items())).encode() if any(self.special) else b""
    added += repr(self.special.ends).encode() if self.special.ends else b""
    return hashlib.sha256(self.backend.description() + added).hexdigest()

  @property
  def _added(self) -> dict[str, object]:
    """The tokens added after the vocabulary; empty settings are left out."""
    added = {"sentinels": self.sentinels, "languages": self.added_languages}
    return {name: value for name, value in added.items() if value}

  def encode(self, text: str, special: bool = False) -> np.ndarray:
    """Ids int32 [T] of a text, without added special tokens.

    With `special`, names of special tokens in the text, such as "[MASK]", become their ids, and a
    mask includes the space before it; without, they are plain characters. The text after such a
    name gets no space before it that is not there, as in pretraining, where a token took the place
    of a word (transformers adds one: its T5 reads "<extra_id_0>." as "<extra_id_0> .").
    """
    if not special:
      return self.encode_batch([text])[0]
    ids = {self.token(i): i for i in np.flatnonzero(self.vocab.special)}
    first, *rest = self._special_names.split(text)  # names and texts alternate
    runs, lengths = self.encode_flat([first])[0], np.zeros(0, np.int64)
    joined = list(runs)
    if rest:
      with _only_unicode(rest):
        runs, lengths = self.backend.encode_flat(rest[1::2], continued=True)
    for name, end, length in zip(rest[::2], np.cumsum(lengths), lengths):
      joined += [ids[name.lstrip()], *runs[end - length : end]]
    return np.array(joined, np.int32)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids int32 [T] of each text, without special tokens; uses all cores."""
    ids, lengths = self.encode_flat(texts)
    ends = np.cumsum(lengths).tolist()
    return [ids[start:end] for start, end in zip([0, *ends], ends)]

  def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The concatenated ids int32 [N] of all texts, and the length int64 [S] of each."""
    with _only_unicode(texts):
      return self.backend.encode_flat(list(texts))

  def encode_offsets(self, texts: Sequence[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The ids of `encode_batch`, and the characters of its text that each token covers: int64
    [T, 2], start and end.

    White space around a token's characters is left out. A token that is a part of a character (a
    byte, half a ligature) covers all of it. A token without a character, such as the "▁" before a
    text, has an empty range. `plm_jax/data/offsets.py` goes from characters to tokens.
    """
    with _only_unicode(texts):
      pairs = self.backend.encode_offsets(list(texts))
    offsets = [trimmed(text, spans) for text, (_, spans) in zip(texts, pairs, strict=True)]
    return [np.array(ids, np.int32) for ids, _ in pairs], offsets

  def decode(self, ids: Iterable[int], special: bool = False) -> str:
    """The text of ids; special tokens are left out, or with `special` written by name."""
    runs, run = [], []
    for i in (int(i) for i in ids):
      if not self.vocab.special[i]:
        run.append(i)
      elif special:
        runs += [self.backend.decode(run), self.token(i)]
        run = []
    runs.append(self.backend.decode(run))
    text = self.backend.joint.join(r for r in runs if r)
    return text.removeprefix(" ") if self.backend.prefix_space else text

  def token(self, i: int) -> str:
    return self.pieces[i]

  def tokens(self, ids: Iterable[int]) -> list[str]:
    return [self.token(i) for i in ids]

  def save(self, folder: str | Path) -> None:
    """Writes the published format's files and the rules they lack, for `load_tokenizer`."""
    from plm_jax.data import tokenizer_files as files

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self.backend.write(folder)
    rules = {"format": FORMAT, "kind": self.kind, "lowercase": self.backend.lowercase}
    rules |= self._added | {n: v for n, v in self.special._asdict().items() if v}
    rules |= {"clean": self.backend.clean} if self.backend.clean is not None else {}
    rules |= {"vocab_size": self.vocab.size, "fingerprint": self.fingerprint}
    write_file(folder / files.RULES_FILE, json.dumps(rules, indent=2) + "\n")

  @cached_property
  def _special_names(self) -> re.Pattern:
    """One group around a special token's name; a mask or a sentinel, which takes the place of
    words, includes the white space before it."""
    gaps = {self.vocab.mask, *([] if self.vocab.sentinels is None else self.vocab.sentinels)}
    names = {self.token(i): i in gaps for i in np.flatnonzero(self.vocab.special)}
    longest_first = sorted(names, key=len, reverse=True)
    parts = [(r"\s*" if names[n] else "") + re.escape(n) for n in longest_first if n]
    return re.compile("(" + "|".join(parts or [r"(?!)"]) + ")")


@contextmanager
def _only_unicode(texts: Sequence[str]) -> Iterator[None]:
  """Errors: `UserError` for a text with half a character, such as a byte of a command line that is
  no UTF-8; both libraries end in an exception of their own."""
  try:
    yield
  except (TypeError, UnicodeEncodeError, RuntimeError) as error:
    for text in texts:
      try:
        text.encode()
      except UnicodeEncodeError as wrong:
        raise UserError(
          f"The text {text[:60]!a} has half a character, \\u{ord(text[wrong.start]):04x}, at "
          f"{wrong.start}: its bytes are not UTF-8; convert it."
        ) from None
    raise error


def load_tokenizer(path: str | Path) -> Tokenizer:
  """A tokenizer from a folder that `save` wrote or from published files (see tokenizer_files)."""
  from plm_jax.data import tokenizer_files as files

  rules = files.read_rules(path)
  if rules and rules.get("format") != FORMAT:
    raise UserError(
      f"The tokenizer in {path} has format {rules.get('format')!r}; this version reads {FORMAT}: "
      "use the version of plm_jax that wrote it."
    )
  if not rules:
    return read_published(path)
  special = SpecialTokens(rules.get("roles", {}), tuple(rules.get("ends", ())))
  backend = files.read_backend(path, lowercase=rules.get("lowercase"), clean=rules.get("clean"))
  tokenizer = Tokenizer(backend, rules.get("sentinels", 0), rules.get("languages", ()), special)
  if rules.get("fingerprint") != tokenizer.fingerprint:
    raise UserError(
      f"The tokenizer in {path} is not the one that was saved there: its files were changed or "
      "damaged since; restore them or train it again."
    )
  return tokenizer


def read_published(path: str | Path, model_type: str | None = None, **rules) -> Tokenizer:
  """The tokenizer of a published folder or file; arguments as of `published_vocab.read_parts`."""
  from plm_jax.data.published_vocab import read_parts

  backend, sentinels, special = read_parts(path, model_type, **rules)
  return Tokenizer(backend, sentinels, special=special)


@dataclass(frozen=True, kw_only=True)
class Added:
  """The shared part of tokenizer configurations.

  sentinels: number of special tokens `<extra_id_0>` and on, after the vocabulary's own; each
    replaces a span of text (T5 has 100).
  languages: language codes, after the sentinels (mBART: "en_XX").
  """

  kind: ClassVar[str]
  keeps_lines: ClassVar[bool] = False  # if it is trained here on lines
  least: ClassVar[int] = 16  # smallest vocab_size

  sentinels: int = 0
  languages: tuple[str, ...] = ()

  def __post_init__(self):
    name = type(self).__name__
    if self.sentinels < 0 or len(set(self.languages)) < len(self.languages):
      raise UserError(
        f"{name} has sentinels={self.sentinels} and languages={self.languages}; give at least 0 "
        "sentinels, and each language once."
      )
    if self.vocab_size < self.least:
      raise UserError(f"{name}.vocab_size is {self.vocab_size}; it must be at least {self.least}.")

  @property
  def added(self) -> int:
    """The number of special tokens that are added."""
    return self.sentinels + len(self.languages)

  def train(self, sentences: Iterable[str], lines: bool = False) -> Tokenizer:
    """Trains on sentences; equal sentences give equal ids in every process. lines: they have line
    breaks and indentation, which otherwise become single spaces, here and in every later text."""
    from plm_jax.data import tokenizer_training

    trained = self._trained(tokenizer_training, sentences, lines)
    return Tokenizer(trained, self.sentinels, self.languages)

  def load(self) -> Tokenizer:
    """The published or saved vocabulary at `path`."""
    from plm_jax.data import tokenizer_files as files

    path, name = self.path, type(self).__name__
    if path is None:
      raise UserError(f"{name} has no path to load from; set path or train it.")
    rules = {rule: getattr(self, rule, None) for rule in ("lowercase", "prefix_space")}
    rules = {rule: value for rule, value in rules.items() if value is not None}
    if files.read_rules(path):
      tokenizer = load_tokenizer(path)  # checks its fingerprint
    else:
      tokenizer = read_published(path, **rules)
      added = self.sentinels, self.languages
      tokenizer = Tokenizer(tokenizer.backend, *added, tokenizer.special)
    if tokenizer.kind != self.kind:
      raise UserError(
        f"{path} contains a tokenizer of another kind; use {KINDS[tokenizer.kind].__name__}"
        f"(path=...) instead of {name}."
      )
    actual = {rule: getattr(tokenizer.backend, rule) for rule in rules}
    actual |= {"sentinels": tokenizer.sentinels, "languages": tuple(tokenizer.vocab.languages)}
    rules |= {"sentinels": self.sentinels, "languages": self.languages}
    for rule, wanted in rules.items():
      if actual[rule] != wanted:
        raise UserError(
          f"{path} was made with {rule}={actual[rule]}, and {name} asks for {wanted}; "
          f"set {rule}={actual[rule]}."
        )
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class WordPiece(Added):
  """BERT's tokenizer.

  vocab_size: for training (a small text gives fewer); a vocabulary at `path` keeps its own size.
  path: vocab.txt, tokenizer.json or a folder."""

  kind: ClassVar[str] = "word_piece"

  vocab_size: int = 30522
  lowercase: bool = True
  path: str | None = None

  def _trained(self, training, sentences: Iterable[str], lines: bool):
    return training.train_word_piece(sentences, self.vocab_size, self.lowercase)


@dataclass(frozen=True, kw_only=True)
class BytePairs(Added):
  """GPT-2's and RoBERTa's tokenizer.

  prefix_space: read a text as if it began with a space, so that its first word has the same tokens
    as elsewhere. None: true if trained here, since sentences are encoded separately; at a `path` as
    its files give it, else false, as published."""

  kind: ClassVar[str] = "byte_pairs"
  keeps_lines: ClassVar[bool] = True
  least: ClassVar[int] = 261  # 5 special tokens and 256 bytes

  vocab_size: int = 50257
  prefix_space: bool | None = None
  path: str | None = None

  def _trained(self, training, sentences: Iterable[str], lines: bool):
    prefix_space = not lines if self.prefix_space is None else self.prefix_space
    return training.train_byte_pairs(sentences, self.vocab_size, prefix_space, lines)


@dataclass(frozen=True, kw_only=True)
class Unigram(Added):
  """ALBERT's and T5's tokenizer.

  lowercase: clean the text as ALBERT does (NFKD, no accents, lower case).
  layout: the special tokens of a trained model and their ids."""

  kind: ClassVar[str] = "unigram"

  vocab_size: int = 30000
  lowercase: bool = False
  layout: Literal["albert", "t5"] = "albert"
  path: str | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.layout not in ("albert", "t5"):
      raise UserError(f"Unigram.layout is {self.layout!r}; expected 'albert' or 't5'.")

  def _trained(self, training, sentences: Iterable[str], lines: bool):
    return training.train_unigram(sentences, self.vocab_size, self.lowercase, self.layout)


@dataclass(frozen=True, kw_only=True)
class Words(Added):
  """Whole words, for word vectors and word-level language models.

  vocab_size: the most words, special tokens included. min_count: the fewest occurrences of a word.
  drop_unknown: leave all other words out, as word2vec.c does; else each is <unk>.
  split: "words" are runs of letters and digits, and Chinese characters; other marks are left out,
    or tokens with "marks". "space" splits at white space alone, as word2vec.c does.
  phrases: join two words whose score is above this threshold (word2phrase.c has 100); 0 joins none.
  shortest, longest, buckets: hashed character n-grams of these lengths, for fastText (3, 6 and
    2,000,000 there); buckets=0 has none.
  path: a folder that `save` wrote."""

  kind: ClassVar[str] = "words"

  vocab_size: int = 30000
  min_count: int = 5
  drop_unknown: bool = False
  lowercase: bool = True
  split: Split = "words"
  phrases: float = 0.0
  shortest: int = 3
  longest: int = 6
  buckets: int = 0
  path: str | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.split not in get_args(Split):
      raise UserError(
        f"Words.split is {self.split!r}; expected one of {', '.join(get_args(Split))}."
      )
    if self.min_count < 1 or self.phrases < 0 or self.buckets < 0:
      raise UserError(
        "Words.min_count must be at least 1, and Words.phrases and Words.buckets at least 0."
      )
    if not 1 <= self.shortest <= self.longest:
      raise UserError(
        f"Words.shortest={self.shortest} and Words.longest={self.longest} are lengths of n-grams; "
        "give at least 1, and no longest below the shortest."
      )

  def _trained(self, training, sentences: Iterable[str], lines: bool):
    del training, lines  # it needs the libraries of the other kinds
    return count_words(
      sentences,
      vocab_size=self.vocab_size,
      min_count=self.min_count,
      lowercase=self.lowercase,
      split=self.split,
      threshold=self.phrases,
      subwords=Subwords(self.shortest, self.longest, self.buckets) if self.buckets else None,
      drop_unknown=self.drop_unknown,
    )


TokenizerConfig = WordPiece | BytePairs | Unigram | Words
"""To add a kind, write a class with a `kind` and add it here."""

KINDS: dict[str, type[TokenizerConfig]] = {c.kind: c for c in get_args(TokenizerConfig)}
