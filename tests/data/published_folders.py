"""Small published tokenizers of every family, and nasty texts, to compare with transformers.

`python -m tests.data.published_folders` records tests/data/golden/tokenizer_ids.json: the ids of
transformers for the families whose tokenizers follow their original.
"""

import io
import json
import random
import string
import tempfile
from pathlib import Path

from plm_jax.data.tokenizers import BytePairs, Unigram, WordPiece

GOLDEN = Path(__file__).parent / "golden" / "tokenizer_ids.json"
_WORDS = "Für über müsste café naïve Ångström İstanbul don't I'm 2,000 3.14 fault files kind of"
SENTENCES = [
  *(" ".join(random.Random(i).choices(_WORDS.split(), k=9)) + "." for i in range(80)),
  *("北京大学 日本語 한국 😀 ½ ² ﬁn ß", string.ascii_letters, " ".join(string.printable.split())),
]
_PIECES = """
the fault é e\u0301 İ ß ﬁ 北京 日本 한국 😀 👩\u200d👧 👍🏽
\u200b \ufeff \u00ad \u2060 don't I'LL '' `` -- ...
2,000 3.14 ½ ² ##ing Σς Å \u0301 $ € ~ _ @ http://a.b/c?d=e NEW xNEWy
"""
PLAIN = [*_PIECES.split(), " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "a" * 105]
# transformers' unigram tokenizers read these otherwise than SentencePiece, which trained them.
HARD = ["[MASK]", "<mask>", "<s>", "</s>", "<pad>", "[SEP]", "<unk>", "<extra_id_0>", "▁", "Ġ"]
HARD += ["<|endoftext|>", "\x00", "\x01", "\x0b", "\x0c", "\x1c", "\x1f", "\x7f", "\x85", "\u2028"]
HARD += ["\ufffd", "\ufffe", "\ue000"]


def nasty(count: int, seed: int = 1, hard: bool = True) -> list[str]:
  """Texts of pieces and random characters."""
  draw, pieces = random.Random(seed), PLAIN + HARD * hard
  blocks = [(0x20, 0x7E), (0xA1, 0x36F), (0x370, 0x1FFF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF)]
  texts = ["", " ", "\n", "\t"]
  while len(texts) < count:
    parts = [draw.choice(pieces) + " " * draw.choice((0, 0, 1)) for _ in range(draw.randint(1, 8))]
    parts.append(chr(draw.randint(*draw.choice(blocks))))
    draw.shuffle(parts)
    texts.append("".join(parts))
  return texts


def token(content: str, special: bool) -> dict:
  flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
  return {"content": content, "special": special, **flags}


def write(folder: Path, model_type: str, files: dict[str, str | bytes], config: dict) -> Path:
  folder.mkdir(parents=True)
  for name, content in files.items():
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  return folder


def encoders(root: Path) -> list[Path]:
  """BERT's tokenizer with every switch."""
  folders = []
  for lower in (True, False):
    pieces = WordPiece(vocab_size=400, lowercase=lower).train(SENTENCES).pieces
    files, size = {"vocab.txt": "\n".join(pieces) + "\n"}, len(pieces)
    cased = {} if lower else {"do_lower_case": False}
    added = {str(size): token("NEW", False), str(size + 1): token("<mask>", True)}
    kinds = {
      "bert": ("bert", cased),
      "electra": ("electra", cased),
      "distilbert": ("distilbert", {"tokenizer_class": "DistilBertTokenizer"} | cased),
      "accents": ("bert", cased | {"strip_accents": not lower}),
      "chinese": ("bert", cased | {"tokenize_chinese_chars": False}),
      "added": ("bert", cased | {"added_tokens_decoder": added}),
    }
    for name, (family, config) in kinds.items():
      place = root / f"{name}_{'lower' if lower else 'cased'}"
      folders.append(write(place, family, files, {"tokenizer_class": "BertTokenizer"} | config))
  return folders


def decoders(root: Path) -> list[Path]:
  """GPT-2's tokenizer with every switch, and those of LLaMA 3 and ModernBERT."""
  import tokenizers
  from tokenizers import pre_tokenizers

  trained = json.loads(BytePairs(vocab_size=500).train(SENTENCES).backend.model.to_str())["model"]
  merges = "\n".join(m if isinstance(m, str) else " ".join(m) for m in trained["merges"]) + "\n"
  vocab = json.dumps({**trained["vocab"], "<|endoftext|>": len(trained["vocab"])})
  files = {"vocab.json": vocab, "merges.txt": merges}
  folders = []
  for family, stem in (("gpt2", "GPT2"), ("roberta", "Roberta"), ("bart", "Bart")):
    for prefix in (False, True):
      config = {"tokenizer_class": f"{stem}Tokenizer", "add_prefix_space": prefix}
      folders.append(write(root / f"{family}_{prefix}", family, files, config))
  added = {str(len(trained["vocab"]) + 1): token("NEW", False)}
  config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": added}
  folders.append(write(root / "gpt2_added", "gpt2", files, config))
  model = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))
  split = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
  split = pre_tokenizers.Split(tokenizers.Regex(split), "isolated")
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  model.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400, initial_alphabet=alphabet, show_progress=False
  )
  model.train_from_iterator(SENTENCES, trainer)
  model.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
  ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
  ends["tokenizer_class"] = "PreTrainedTokenizerFast"
  folders.append(write(root / "llama3", "llama", {"tokenizer.json": model.to_str()}, ends))
  return [*folders, modernbert(root / "modernbert")]


def modernbert(folder: Path) -> Path:
  """Byte pairs of composed characters, with spaces and names of private data as tokens."""
  import tokenizers
  from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.normalizer = normalizers.NFC()
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400, initial_alphabet=alphabet, show_progress=False
  )
  model.train_from_iterator(SENTENCES, trainer)
  model.add_tokens([AddedToken(" " * count, normalized=True) for count in (3, 2)])
  model.add_tokens([AddedToken("|||EMAIL_ADDRESS|||", normalized=True)])
  names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
  mask = AddedToken("[MASK]", special=True, lstrip=True)
  model.add_special_tokens([*(AddedToken(name, special=True) for name in names), mask])
  model.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B [SEP]",
    special_tokens=[(name, model.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
  )
  config = {f"{name[1:-1].lower()}_token": name for name in [*names, "[MASK]"]}
  config["tokenizer_class"] = "PreTrainedTokenizerFast"
  return write(folder, "modernbert", {"tokenizer.json": model.to_str()}, config)


def unigrams(root: Path) -> list[Path]:
  """ALBERT's cleaning with every switch, T5, XLM-R, and LLaMA 2."""
  import sentencepiece

  def trained(**options) -> bytes:
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(SENTENCES), model_writer=proto, minloglevel=5, vocab_size=500,
      hard_vocab_limit=False, **options,
    )  # fmt: skip
    return proto.getvalue()

  albert = Unigram(vocab_size=300, lowercase=True).train(SENTENCES).backend.proto
  folders = []
  for lower in (True, False):
    for accents in (True, False):
      config = {"do_lower_case": lower, "keep_accents": accents}
      place = root / f"albert_{lower}_{accents}"
      folders.append(write(place, "albert", {"spiece.model": albert}, config))
  t5 = Unigram(vocab_size=300, layout="t5").train(SENTENCES).backend.proto
  folders.append(write(root / "t5", "t5", {"spiece.model": t5}, {"extra_ids": 100}))
  files = {"sentencepiece.bpe.model": trained()}
  config = {"tokenizer_class": "XLMRobertaTokenizer"}
  folders.append(write(root / "xlm_roberta", "xlm-roberta", files, config))
  llama = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
  llama |= {"remove_extra_whitespaces": False, "split_digits": True}
  files = {"tokenizer.model": trained(allow_whitespace_only_pieces=True, **llama)}
  for prefix in (True, False):
    config = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": prefix}
    folders.append(write(root / f"llama_{prefix}", "llama", files, config))
  return folders


if __name__ == "__main__":
  from transformers import AutoTokenizer

  with tempfile.TemporaryDirectory() as root:
    texts, recorded = nasty(40), {}
    for folder in [*encoders(Path(root)), *decoders(Path(root))]:
      theirs = AutoTokenizer.from_pretrained(folder)
      rows = [
        theirs(t, add_special_tokens=False, split_special_tokens=True)["input_ids"] for t in texts
      ]
      recorded[folder.name] = rows
  GOLDEN.write_text(json.dumps(recorded).replace("]], ", "]],\n") + "\n")
