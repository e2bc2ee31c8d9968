"""Trains the three kinds of vocabulary, each a pure function of the sentences and the settings.

WordPiece: byte-pair merges over characters with "##" inside words, as in Hugging Face's trainer;
the original was never published. Byte pairs: Radford et al. 2019, section 2.2. Unigram: Kudo 2018,
with the settings of ALBERT's published command or T5's layout of ids.
"""

import io
import json
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from plm_jax.data.tokenizer_backends import NO_SPACE_FOR_BERT, Fast, Pieces, clean_like_albert
from plm_jax.errors import UserError

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # fairseq's order of ids

# A merge that occurs only once memorises a word.
MIN_PAIR_COUNT = 2
# Most characters, as a share of the vocabulary; rarer characters become [UNK].
MAX_ALPHABET_SHARE = 1 / 4
# Unigram training holds its sentences in memory and needs about 1 kB for each.
MAX_UNIGRAM_SENTENCES = 2_000_000

EMPTY = "The text to train a tokenizer on contains no words; give a corpus with text in it."


def word_piece_backend(
  vocab: dict[str, int],
  lowercase: bool,
  strip_accents: bool | None = None,
  chinese: bool = True,
  unk: str = "[UNK]",
) -> Fast:
  """BERT's rules around a vocabulary: clean, lower, strip accents, split Chinese characters.
  strip_accents: None follows lowercase, as in BERT's BasicTokenizer."""
  model = Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
  model.normalizer = normalizers.BertNormalizer(
    lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese
  )
  model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  model.decoder = decoders.WordPiece(prefix="##", cleanup=True)
  return Fast(model.to_str())


def byte_pairs_backend(vocab: dict, merges: list[tuple[str, str]], prefix_space: bool) -> Fast:
  """GPT-2's rules around a vocabulary: split by its regular expression, then work on bytes."""
  model = Tokenizer(models.BPE(vocab, merges))
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
  model.decoder = decoders.ByteLevel()
  return Fast(model.to_str())


def train_word_piece(sentences: Iterable[str], vocab_size: int, lowercase: bool) -> Fast:
  """Specials (ids 0-4), characters, "##" characters, then merges in the order of training.

  Hugging Face's trainer numbers the "##" characters in the order of a randomly seeded hash map and
  breaks ties between pairs by these numbers, so that two runs differ (seen with 0.23, also on one
  thread). Only special tokens keep their order, so the "##" characters are passed among them. This
  needs the alphabet beforehand, hence the count of words.
  """
  words = count_words(sentences, lowercase)
  letters = Counter()
  for word, n in words.items():
    for letter in word:
      letters[letter] += n
  ranked = sorted(letters, key=lambda c: (-letters[c], c))
  kept = set(ranked[: max(1, int(vocab_size * MAX_ALPHABET_SHARE))])
  # A word with a left-out character becomes [UNK]: it must not affect the merges.
  words = {word: n for word, n in words.items() if kept.issuperset(word)}
  # Common letters may be inside words that are not in the training text.
  inside = kept & set(string.ascii_letters + string.digits)
  continuing = sorted("##" + c for c in inside.union(*(word[1:] for word in words)))
  trainer = trainers.WordPieceTrainer(
    vocab_size=vocab_size,
    min_frequency=MIN_PAIR_COUNT,
    special_tokens=[*BERT_SPECIALS, *continuing],
    initial_alphabet=sorted(kept),
    limit_alphabet=len(kept),
    show_progress=False,
  )
  model = Tokenizer(models.WordPiece(unk_token="[UNK]"))
  model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  model.train_from_iterator(_repeated(words), trainer)
  learnt = model.get_vocab()
  first = [*BERT_SPECIALS, *sorted(kept), *continuing]
  rest = sorted(learnt.keys() - set(first), key=learnt.__getitem__)
  return word_piece_backend({t: i for i, t in enumerate((first + rest)[:vocab_size])}, lowercase)


def count_words(sentences: Iterable[str], lowercase: bool) -> Counter[str]:
  """Word frequencies after BERT's cleaning and splitting; memory grows with the distinct words."""
  normalize = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=None).normalize_str
  split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
  sentences, chunks = iter(sentences), Counter()
  while block := list(islice(sentences, 1000)):
    # The rules never act across white space: they are applied once to each distinct chunk.
    chunks.update(NO_SPACE_FOR_BERT.sub("", "\n".join(block)).split())
  words = Counter()
  for chunk, n in chunks.items():
    if chunk.isascii() and chunk.isalnum():
      words[chunk.lower() if lowercase else chunk] += n
      continue
    for word, _ in split(normalize(chunk)):
      words[word] += n
  if not words:
    raise UserError(EMPTY)
  return words


def _repeated(words: dict[str, int], at_once: int = 1000) -> Iterator[str]:
  """Every word as often as it occurs, since the trainer takes text, not counts."""
  for word in sorted(words):
    for start in range(0, words[word], at_once):
      yield " ".join([word] * min(at_once, words[word] - start))


def train_byte_pairs(
  sentences: Iterable[str], vocab_size: int, prefix_space: bool, lines: bool = False
) -> Fast:
  """RoBERTa's specials (ids 0-4), the 256 bytes, then merges in the order of training.

  The tokenizer reads every later text as it was trained: with white space as single spaces, or with
  `lines` line by line, so that a text has the ids of its lines.
  """
  model = Tokenizer(models.BPE())
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
  if lines:
    model.pre_tokenizer = pre_tokenizers.Sequence(
      [pre_tokenizers.Split("\n", "merged_with_previous"), model.pre_tokenizer]
    )
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    min_frequency=MIN_PAIR_COUNT,
    special_tokens=list(ROBERTA_SPECIALS),
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  model.train_from_iterator(_some_text(sentences), trainer)
  rules = json.loads(model.to_str())["model"]
  merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in rules["merges"]]
  backend = byte_pairs_backend(rules["vocab"], merges, prefix_space)
  if lines:
    backend.model.pre_tokenizer = model.pre_tokenizer
  else:
    backend.model.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
  return Fast(backend.model.to_str())


def train_unigram(texts: Iterable[str], vocab_size: int, lowercase: bool, layout: str) -> Pieces:
  """ALBERT's ids (pad 0, unk 1, [CLS] 2, [SEP] 3, [MASK] 4) or T5's (pad 0, eos 1, unk 2)."""
  ids: dict[str, Any] = {
    "albert": {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1},
    "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
  }[layout]
  if layout == "albert":
    ids["control_symbols"] = ["[CLS]", "[SEP]", "[MASK]"]
  clean = clean_like_albert if lowercase else str
  sample = thin_out(_some_text(map(clean, texts)), MAX_UNIGRAM_SENTENCES)

  def train(sample: list[str], hard_vocab_limit: bool) -> Pieces:
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sample),
      model_writer=proto,
      vocab_size=vocab_size,
      hard_vocab_limit=hard_vocab_limit,
      model_type="unigram",
      # Sums are added in the order of the threads, so their number affects the result.
      num_threads=16,
      max_sentence_length=1 << 16,
      minloglevel=2,
      **ids,
    )
    return Pieces(proto.getvalue(), lowercase)

  try:
    return train(sample, hard_vocab_limit=True)
  except RuntimeError as error:
    if "required_chars" not in str(error):  # "too high": take as many pieces as the text has
      return train(sample, hard_vocab_limit=False)
  # More characters than pieces: the rarer ones become <unk>, as in WordPiece here.
  letters = Counter(letter for sentence in sample for letter in sentence if not letter.isspace())
  ranked = sorted(letters, key=lambda c: (-letters[c], c))
  rare = dict.fromkeys(map(ord, ranked[int(vocab_size * MAX_ALPHABET_SHARE) :]), " ")
  try:
    return train([sentence.translate(rare) for sentence in sample], hard_vocab_limit=False)
  except RuntimeError:
    raise UserError(
      f"A unigram vocabulary of {vocab_size} pieces cannot be trained on a text with "
      f"{len(letters)} different characters; set a larger vocab_size."
    ) from None


def thin_out(sentences: Iterable[str], limit: int) -> list[str]:
  """At most `limit` sentences at equal distances, for a stream of unknown length."""
  sample, stride = [], 1
  for i, sentence in enumerate(sentences):
    if i % stride == 0:
      sample.append(sentence)
      if len(sample) > limit:
        sample, stride = sample[::2], stride * 2
  return sample


def _some_text(sentences: Iterable[str]) -> Iterator[str]:
  """Passes sentences through. Errors: `UserError` for a stream without text."""
  empty = True
  for sentence in sentences:
    empty = empty and not sentence.strip()
    yield sentence
  if empty:
    raise UserError(EMPTY)
