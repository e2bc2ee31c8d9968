"""The two libraries under a `Tokenizer`, behind one small interface.

`Fast` is Hugging Face `tokenizers` (WordPiece, byte pairs), `Pieces` is `sentencepiece` (unigram).
Both pickle by value, so they travel to worker processes, and both read a special token's name in a
text as plain characters: a corpus that mentions "[MASK]" must not teach the model a mask.
"""

import json
import re
import unicodedata
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import AddedToken, processors

# Which names play which role, first match wins. GPT-2 has one token for both ends of a text.
ROLE_NAMES = {
  "pad": ("[PAD]", "<pad>"),
  "unk": ("[UNK]", "<unk>"),
  "cls": ("[CLS]", "<cls>", "<s>"),
  "sep": ("[SEP]", "<sep>", "</s>"),
  "mask": ("[MASK]", "<mask>"),
  "bos": ("<s>", "<|endoftext|>"),
  "eos": ("</s>", "<|endoftext|>"),
}

# Python splits words here, BERT's cleaning drops the character and joins them.
NO_SPACE_FOR_BERT = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
# Enough for the frequent part of any corpus, about 200 MB; long chunks hardly come back.
MAX_REMEMBERED, MAX_REMEMBERED_CHARACTERS = 500_000, 24


class Fast:
  """A WordPiece or byte-pair tokenizer as the json of Hugging Face `tokenizers`."""

  def __init__(self, definition: str):
    self.model = tokenizers.Tokenizer.from_str(definition)
    # A published tokenizer.json may pad to 128 and cut: our rows are packed by data/segments.
    self.model.no_padding()
    self.model.no_truncation()
    self.model.encode_special_tokens = True  # "[MASK]" in a text is seven characters
    rules = json.loads(definition)
    self._added = [token["id"] for token in rules["added_tokens"] if token["special"]]
    self.kind = "word_piece" if rules["model"]["type"] == "WordPiece" else "byte_pairs"
    self.prefix = rules["model"].get("continuing_subword_prefix") or ""
    self.word_end = rules["model"].get("end_of_word_suffix") or ""
    self.lowercase = bool((rules["normalizer"] or {}).get("lowercase", False))
    self.prefix_space = bool((rules["pre_tokenizer"] or {}).get("add_prefix_space", False))
    # BERT's rules act on characters and never across white space: a word has the same ids anywhere.
    self.word_by_word = (
      (rules["normalizer"] or {}).get("type") == "BertNormalizer"
      and rules["normalizer"]["clean_text"]
      and (rules["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
      and all(token["special"] for token in rules["added_tokens"])
    )
    self._remembered: dict[str, list[int]] = {}
    self.joint = " " if self.kind == "word_piece" or self.word_end else ""

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
    if self.kind == "word_piece":
      wanted = {role: names[:1] for role, names in ROLE_NAMES.items() if names[0].startswith("[")}
    else:
      wanted = ROLE_NAMES
    found = {role: [ids[n] for n in names if n in ids] for role, names in wanted.items()}
    return {role: (found.get(role) or [None])[0] for role in ROLE_NAMES}

  @cached_property
  def special_ids(self) -> list[int]:
    return sorted({*self._added, *(i for i in self.roles.values() if i is not None)})

  def word_starts(self) -> np.ndarray | None:
    if self.word_end:
      return (
        None  # GPT-1 marks where words end; whether a token begins one depends on its neighbour
      )
    if self.kind == "word_piece":
      return np.array([not piece.startswith(self.prefix) for piece in self.pieces])
    return np.array([piece.startswith("Ġ") for piece in self.pieces])

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    if not self.word_by_word:
      return self._encode_texts(texts)
    known = self._remembered
    rows = [[t] if NO_SPACE_FOR_BERT.search(t) else t.split() for t in texts]
    new = list({chunk for row in rows for chunk in row if chunk not in known})
    fresh = dict(zip(new, self._encode_texts(new)))
    encoded = [
      list(chain.from_iterable(known[c] if c in known else fresh[c] for c in row)) for row in rows
    ]
    for chunk in new:  # nothing is ever forgotten, so that threads may share this
      if len(known) < MAX_REMEMBERED and len(chunk) <= MAX_REMEMBERED_CHARACTERS:
        known[chunk] = fresh[chunk]
    return encoded

  def _encode_texts(self, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in self.model.encode_batch_fast(texts, add_special_tokens=False)]

  def decode(self, ids: list[int]) -> str:
    return self.model.decode(ids, skip_special_tokens=False)

  def description(self) -> bytes:
    rules = json.loads(self.model.to_str())
    merges = [" ".join(m) if isinstance(m, list) else m for m in rules["model"].get("merges", [])]
    parts = (self.kind, self.pieces, merges, rules["normalizer"], rules["pre_tokenizer"])
    return json.dumps([*parts, self.prefix, self.word_end], sort_keys=True).encode()

  def write(self, folder: Path) -> None:
    """vocab.txt or vocab.json + merges.txt, and a tokenizer.json that transformers can load."""
    published = tokenizers.Tokenizer.from_str(self.model.to_str())
    names = [self.pieces[i] for i in self.special_ids]
    mask = self.roles["mask"]
    published.add_special_tokens(
      # "a <mask>": the blank takes the space before it (transformers' RoBERTa)
      [
        AddedToken(n, special=True, lstrip=self.joint == "" and n == self._name(mask))
        for n in names
      ]
    )
    cls, sep = self.roles["cls"], self.roles["sep"]
    if cls is not None and sep is not None and published.post_processor is None:
      published.post_processor = self._sentence_frame(cls, sep)
    if self.kind == "word_piece":
      (folder / "vocab.txt").write_text("\n".join(self.pieces) + "\n", encoding="utf-8")
    else:
      published.model.save(str(folder))
    (folder / "tokenizer.json").write_text(published.to_str(), encoding="utf-8")

  def _name(self, i: int | None) -> str | None:
    return None if i is None else self.pieces[i]

  def _sentence_frame(self, cls: int, sep: int) -> processors.TemplateProcessing:
    c, s = self.pieces[cls], self.pieces[sep]
    bert = self.kind == "word_piece"
    return processors.TemplateProcessing(
      single=f"{c} $A {s}",
      pair=f"{c} $A {s} $B:1 {s}:1" if bert else f"{c} $A {s} {s} $B {s}",
      special_tokens=[(c, cls), (s, sep)],
    )


class Pieces:
  """A unigram tokenizer as a SentencePiece model.

  With `lowercase` a text first goes through ALBERT's `preprocess_text`: quotes made plain, NFKD,
  accents dropped, lower case (google-research/albert, tokenization.py).
  """

  kind = "unigram"
  joint = " "

  def __init__(self, proto: bytes, lowercase: bool = False):
    self.proto, self.lowercase = proto, lowercase
    self.model = sentencepiece.SentencePieceProcessor(model_proto=proto)

  def __reduce__(self):
    return Pieces, (self.proto, self.lowercase)

  @cached_property
  def pieces(self) -> list[str]:
    return self.model.id_to_piece(list(range(self.model.get_piece_size())))

  @cached_property
  def roles(self) -> dict[str, int | None]:
    model, ids = self.model, {piece: i for i, piece in enumerate(self.pieces)}
    own = {"pad": model.pad_id(), "unk": model.unk_id(), "bos": model.bos_id()}
    own["eos"] = model.eos_id()
    roles = {role: i if i >= 0 else None for role, i in own.items()}
    for role in ("cls", "sep", "mask"):
      # <s> and </s> are this format's bos and eos; T5 and LLaMA have no cls and no sep.
      named = [ids[n] for n in ROLE_NAMES[role] if n in ids and n not in ("<s>", "</s>")]
      roles[role] = named[0] if named else None
    return roles

  @cached_property
  def special_ids(self) -> list[int]:
    held = (i for i in range(len(self.pieces)) if self.model.is_control(i))
    return sorted({*held, *(i for i in self.roles.values() if i is not None)})

  def word_starts(self) -> np.ndarray:
    return np.array([piece.startswith("▁") for piece in self.pieces])

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    return self.model.encode([clean_like_albert(t) for t in texts] if self.lowercase else texts)

  def decode(self, ids: list[int]) -> str:
    return self.model.decode(ids)

  def description(self) -> bytes:
    return bytes([self.lowercase]) + self.proto

  def write(self, folder: Path) -> None:
    (folder / "spm.model").write_bytes(self.proto)


def clean_like_albert(text: str) -> str:
  """ALBERT's `preprocess_text` with its defaults (google-research/albert, tokenization.py)."""
  text = " ".join(text.split()).replace("``", '"').replace("''", '"')
  if not text.isascii():
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c))
  return text.lower()
