"""One small interface to the two libraries of a `Tokenizer`.

`Fast` is Hugging Face `tokenizers` (WordPiece, byte pairs), `Pieces` is `sentencepiece` (unigram).
Both pickle by value, for worker processes. Both read a special token's name in a text as plain
characters: a corpus that mentions "[MASK]" must not contain the mask token.
"""

import json
import re
import tempfile
import threading
import unicodedata
from collections.abc import Callable
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import AddedToken, processors

from plm_jax.data.offsets import Spans, in_characters, span_in_original
from plm_jax.data.words import flat
from plm_jax.files import write_file

# The names of each role, first match wins. GPT-2 has one token for both ends of a text.
ROLE_NAMES = {
  "pad": ("[PAD]", "<pad>"),
  "unk": ("[UNK]", "<unk>"),
  "cls": ("[CLS]", "<cls>", "<s>"),
  "sep": ("[SEP]", "<sep>", "</s>"),
  "mask": ("[MASK]", "<mask>"),
  "bos": ("<s>", "<|endoftext|>"),
  "eos": ("</s>", "<|endoftext|>"),
}

# Python splits words at these characters; BERT's cleaning drops them and joins the words.
NO_SPACE_FOR_BERT = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
LANGUAGE = re.compile("[a-z]{2,3}_[A-Z]{2}")  # "en_XX"
ADDED = re.compile(rf"<extra_id_\d+>|{LANGUAGE.pattern}")  # tokens added after vocabularies
# Limits (about 100 MB) at which the cache of words is emptied; frequent words soon come back.
MAX_CACHED_WORDS, MAX_CACHED_CHARACTERS = 500_000, 8_000_000


def _steps(rule: dict | None) -> list[dict]:
  """The pre-tokenizers of a sequence, or the only one."""
  if rule is None:
    return []
  return rule.get("pretokenizers") or [rule]


class _Words:
  """A cache of the ids of words; numpy gathers a text's ids from it, word by word."""

  def __init__(self, encode: Callable[[list[str]], list[list[int]]]):
    self._encode = encode
    self._lock = threading.Lock()
    self._clear()

  def _clear(self) -> None:
    self._number: dict[str, int] = {}
    self._characters = 0
    self._ids, self._ends = np.zeros(0, np.int32), np.zeros(1, np.int64)

  def encode(self, words: list[str], counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N] of texts that have `counts` of the words each, and the length [S] of each text."""
    with self._lock:
      if len(self._number) > MAX_CACHED_WORDS or self._characters > MAX_CACHED_CHARACTERS:
        self._clear()
      self._add([word for word in set(words) if word not in self._number])
      numbers = np.fromiter(map(self._number.__getitem__, words), np.int64, len(words))
      ids, ends = self._ids, self._ends
    first = ends[numbers]
    lengths = ends[numbers + 1] - first
    until = np.concatenate([[0], np.cumsum(lengths)])
    # The ids of word w are at first[w], first[w] + 1, ...
    places = np.arange(until[-1]) + np.repeat(first - until[:-1], lengths)
    texts = until[np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])]
    return ids[places], np.diff(texts)

  def _add(self, words: list[str]) -> None:
    if not words:
      return
    ids, lengths = flat(self._encode(words))
    self._ends = np.concatenate([self._ends, self._ends[-1] + np.cumsum(lengths)])
    self._ids = np.concatenate([self._ids, ids])
    self._number.update(zip(words, range(len(self._number), len(self._number) + len(words))))
    self._characters += sum(map(len, words))


class Fast:
  """A WordPiece or byte-pair tokenizer, defined by the JSON of Hugging Face `tokenizers`."""

  languages: ClassVar[dict[str, int]] = {}  # these formats have none
  clean = None  # the definition has all rules

  def __init__(self, definition: str):
    self.model = tokenizers.Tokenizer.from_str(definition)
    # A published tokenizer.json may pad and truncate to 128; data/segments builds our rows.
    self.model.no_padding()
    self.model.no_truncation()
    self.model.encode_special_tokens = True  # "[MASK]" in a text is plain characters
    rules = json.loads(definition)
    self._added = [token["id"] for token in rules["added_tokens"] if token["special"]]
    self.is_word_piece = rules["model"]["type"] == "WordPiece"
    self.kind = "word_piece" if self.is_word_piece else "byte_pairs"
    self.prefix = rules["model"].get("continuing_subword_prefix") or ""
    self.word_end = rules["model"].get("end_of_word_suffix") or ""
    self.lowercase = bool((rules["normalizer"] or {}).get("lowercase", False))
    rules_of_space = json.dumps([rules["normalizer"], rules["pre_tokenizer"]], ensure_ascii=False)
    self.is_metaspace = "▁" in rules_of_space  # SentencePiece's pieces as byte pairs
    self.prefix_space = any(
      step.get("add_prefix_space", False) for step in _steps(rules["pre_tokenizer"])
    )
    # BERT's rules never act across white space: a word has the same ids everywhere.
    self.word_by_word = (
      (rules["normalizer"] or {}).get("type") == "BertNormalizer"
      and rules["normalizer"]["clean_text"]
      and (rules["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
      and all(token["special"] for token in rules["added_tokens"])
    )
    self._words = _Words(self._encode_texts)
    self.joint = " " if self.is_word_piece or self.word_end else ""

  def __reduce__(self):
    return Fast, (self.model.to_str(),)

  @cached_property
  def pieces(self) -> list[str]:
    ids = self.model.get_vocab(with_added_tokens=True)
    pieces = [""] * (max(ids.values()) + 1)  # a published vocabulary may have holes
    for piece, i in ids.items():
      pieces[i] = piece
    return pieces

  @cached_property
  def roles(self) -> dict[str, int | None]:
    ids = self.model.get_vocab(with_added_tokens=True)
    if self.is_word_piece:
      allowed = {role: names[:1] for role, names in ROLE_NAMES.items() if names[0].startswith("[")}
    else:
      allowed = ROLE_NAMES
    matches = {role: [ids[n] for n in names if n in ids] for role, names in allowed.items()}
    return {role: (matches.get(role) or [None])[0] for role in ROLE_NAMES}

  @cached_property
  def special_ids(self) -> list[int]:
    return sorted({*self._added, *(i for i in self.roles.values() if i is not None)})

  def word_starts(self) -> np.ndarray | None:
    if self.word_end:
      return None  # GPT-1 marks ends of words; only a token's neighbour tells if it begins one
    if self.is_word_piece:
      return np.array([not piece.startswith(self.prefix) for piece in self.pieces])
    mark = "▁" if self.is_metaspace else "Ġ"
    return np.array([piece.startswith(mark) for piece in self.pieces])

  def encode_flat(self, texts: list[str], continued: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Ids and lengths. continued: the texts follow another token, without a prefix space."""
    if continued and self.prefix_space:
      return flat(self._without_prefix._encode_texts(texts))
    if not self.word_by_word:
      return flat(self._encode_texts(texts))
    # A text that Python splits and BERT joins counts as one word.
    rows = [[t] if NO_SPACE_FOR_BERT.search(t) else t.split() for t in texts]
    return self._words.encode(list(chain.from_iterable(rows)), [len(row) for row in rows])

  @cached_property
  def _without_prefix(self) -> "Fast":
    rules = json.loads(self.model.to_str())
    for step in _steps(rules["pre_tokenizer"]):
      step |= {"add_prefix_space": False} if "add_prefix_space" in step else {}
    return Fast(json.dumps(rules, ensure_ascii=False))

  def _encode_texts(self, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in self.model.encode_batch_fast(texts, add_special_tokens=False)]

  def encode_offsets(self, texts: list[str]) -> list[tuple[list[int], Spans]]:
    encodings = self.model.encode_batch(texts, add_special_tokens=False)
    return [(e.ids, e.offsets) for e in encodings]

  def decode(self, ids: list[int]) -> str:
    return self.model.decode(ids, skip_special_tokens=False)

  def description(self) -> bytes:
    rules = json.loads(self.model.to_str())
    merges = [" ".join(m) if isinstance(m, list) else m for m in rules["model"].get("merges", [])]
    parts = (self.kind, self.pieces, merges, rules["normalizer"], rules["pre_tokenizer"])
    return json.dumps([*parts, self.prefix, self.word_end], sort_keys=True).encode()

  def write(self, folder: Path) -> None:
    """Writes vocab.txt or vocab.json + merges.txt, and a tokenizer.json for transformers."""
    published = tokenizers.Tokenizer.from_str(self.model.to_str())
    mask = self.roles["mask"] if self.joint == "" else None
    # "a <mask>": the mask includes the space before it (transformers' RoBERTa)
    published.add_special_tokens(
      [AddedToken(self.pieces[i], special=True, lstrip=i == mask) for i in self.special_ids]
    )
    cls, sep = self.roles["cls"], self.roles["sep"]
    if cls is not None and sep is not None and published.post_processor is None:
      c, s = self.pieces[cls], self.pieces[sep]
      published.post_processor = processors.TemplateProcessing(
        single=f"{c} $A {s}",
        pair=f"{c} $A {s} $B:1 {s}:1" if self.is_word_piece else f"{c} $A {s} {s} $B {s}",
        special_tokens=[(c, cls), (s, sep)],
      )
    if self.is_word_piece:
      write_file(folder / "vocab.txt", "\n".join(self.pieces) + "\n")
    else:
      with tempfile.TemporaryDirectory() as scratch:  # the library would follow links in `folder`
        for file in map(Path, published.model.save(scratch)):
          write_file(folder / file.name, file.read_bytes())
    write_file(folder / "tokenizer.json", published.to_str())


class Pieces:
  """A unigram tokenizer, defined by a SentencePiece model.

  clean: "albert" is `clean_like_albert` before the model, "keep_accents" the same with accents; ""
  is neither, and None is "albert" with `lowercase`. lowercase: the last step of cleaning.
  """

  kind = "unigram"
  joint = " "
  prefix_space = False  # the model adds "▁" before the first word, and decoding drops it

  def __init__(self, proto: bytes, lowercase: bool = False, clean: str | None = None):
    self.proto, self.lowercase = proto, lowercase
    # The usual combinations are None: tokenizers of older versions keep their fingerprints.
    self.clean = None if clean == ("albert" if lowercase else "") else clean
    self.model = sentencepiece.SentencePieceProcessor(model_proto=proto)

  def __reduce__(self):
    return Pieces, (self.proto, self.lowercase, self.clean)

  @property
  def cleaning(self) -> dict[str, bool] | None:
    """The arguments of `clean_like_albert`; None leaves a text as it is."""
    if not self.lowercase and not self.clean:
      return None
    return {"lowercase": self.lowercase, "accents": self.clean == "keep_accents"}

  @cached_property
  def pieces(self) -> list[str]:
    return self.model.id_to_piece(list(range(self.model.get_piece_size())))

  @cached_property
  def roles(self) -> dict[str, int | None]:
    model, ids = self.model, {piece: i for i, piece in enumerate(self.pieces)}
    model_ids = {"pad": model.pad_id(), "unk": model.unk_id(), "bos": model.bos_id()}
    model_ids["eos"] = model.eos_id()
    roles = {role: i if i >= 0 else None for role, i in model_ids.items()}
    for role in ("cls", "sep", "mask"):
      # <s> and </s> are bos and eos in this format; T5 and LLaMA have no cls and no sep.
      named = [ids[n] for n in ROLE_NAMES[role] if n in ids and n not in ("<s>", "</s>")]
      roles[role] = named[0] if named else None
    return roles

  @cached_property
  def model_proto(self):
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(self.proto)

  @cached_property
  def special_ids(self) -> list[int]:
    control = (i for i in range(len(self.pieces)) if self.model.is_control(i))
    return sorted({*control, *(i for i in self.roles.values() if i is not None)})

  @cached_property
  def languages(self) -> dict[str, int]:
    """The ids of language codes among the pieces (mBART)."""
    return {self.pieces[i]: i for i in self.special_ids if LANGUAGE.fullmatch(self.pieces[i])}

  def word_starts(self) -> np.ndarray:
    return np.array([piece.startswith("▁") for piece in self.pieces])

  def encode_flat(self, texts: list[str], continued: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Ids and lengths. continued: the texts follow another token; only a space begins a word."""
    if continued:
      return flat([self._continued(text) for text in texts])
    if (cleaning := self.cleaning) is not None:
      texts = [clean_like_albert(text, **cleaning) for text in texts]
    return flat(self.model.encode(texts))

  def _continued(self, text: str) -> list[int]:
    joins = self.model_proto.normalizer_spec.remove_extra_whitespaces
    if not text or (text[0].isspace() and joins):
      return self.encode_flat([text])[0].tolist()
    return self._without_prefix.encode_flat([text])[0].tolist()

  @cached_property
  def _without_prefix(self) -> "Pieces":
    model = type(self.model_proto).FromString(self.proto)
    model.normalizer_spec.add_dummy_prefix = False
    return Pieces(model.SerializeToString(), self.lowercase, self.clean)

  def encode_offsets(self, texts: list[str]) -> list[tuple[list[int], Spans]]:
    return [self._with_offsets(text) for text in texts]

  def _with_offsets(self, text: str) -> tuple[list[int], Spans]:
    from sentencepiece import sentencepiece_pb2

    cleaned, places = text, None
    if (cleaning := self.cleaning) is not None:
      cleaned, places = aligned_like_albert(text, **cleaning)
    encoded = self.model.encode(cleaned, out_type="serialized_proto")
    pieces = sentencepiece_pb2.SentencePieceText.FromString(encoded).pieces
    spans = in_characters(cleaned, [(piece.begin, piece.end) for piece in pieces])
    for i, (piece, (start, end)) in enumerate(zip(pieces, spans, strict=True)):
      if start == end < len(cleaned) and piece.piece.strip("▁"):
        spans[i] = start, end + 1  # the first of the pieces of one character has no bytes
    if places is not None:
      spans = [span_in_original(places, span) for span in spans]
    return [piece.id for piece in pieces], spans

  def decode(self, ids: list[int]) -> str:
    return self.model.decode(ids)

  def description(self) -> bytes:
    return bytes([self.lowercase]) + self.proto + (self.clean or "").encode()

  def write(self, folder: Path) -> None:
    write_file(folder / "spm.model", self.proto)


def clean_like_albert(text: str, lowercase: bool = True, accents: bool = False) -> str:
  """ALBERT's `preprocess_text` with its defaults (google-research/albert, tokenization.py).
  accents: they are kept, without the normal form that separates them."""
  text = " ".join(text.split()).replace("``", '"').replace("''", '"')
  if not text.isascii() and not accents:
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c))
  return text.lower() if lowercase else text


def aligned_like_albert(
  text: str, lowercase: bool = True, accents: bool = False
) -> tuple[str, Spans]:
  """`clean_like_albert`, and the characters of `text` that each of its characters is from."""
  parts, places = [], []
  for unit in re.finditer(r"\s+|``|''|.", text.strip(), re.DOTALL):
    part = unit.group()
    if part.isspace():
      part = " "
    elif len(part) > 1:
      part = '"'
    elif not accents:
      # Only combining characters are reordered across units, and they are left out.
      part = "".join(c for c in unicodedata.normalize("NFKD", part) if not unicodedata.combining(c))
    if lowercase and (lower := part.lower()) != part and len(lower) != len(part):
      part = lower  # "İ" alone
    parts.append(part)
    places += [unit.span()] * len(part)
  before = len(text) - len(text.lstrip())
  cleaned = "".join(parts)
  return cleaned.lower() if lowercase else cleaned, [(s + before, e + before) for s, e in places]
