"""Reads published tokenizer files, and the directories that `Tokenizer.save` writes.

vocab.txt                                          BERT            WordPiece
tokenizer.json                                     transformers    WordPiece or byte pairs
encoder.json + vocab.bpe, vocab.json + merges.txt  GPT-2, RoBERTa  byte pairs
encoder_bpe_40000.json + vocab_40000.bpe           GPT-1           byte pairs with word ends
*.model                                            SentencePiece   unigram (LLaMA's BPE too)
words.json                                         this project    whole words
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from plm_jax.data.published_folder import MOST_JSON, file_in, object_in, read_object
from plm_jax.data.tokenizer_backends import ADDED, Fast, Pieces
from plm_jax.data.tokenizer_definition import check_definition, check_ids
from plm_jax.data.tokenizer_options import CONFIG, WORD_PIECES, TokenizerOptions
from plm_jax.data.tokenizer_training import byte_pairs_backend, word_piece_backend
from plm_jax.data.words import FILE as WORDS_FILE
from plm_jax.data.words import read_words
from plm_jax.errors import UserError
from plm_jax.files import read_bytes

MOST_PIECES = 64 << 20  # bytes of a .model file
RULES_FILE = "tokenizer_rules.json"  # written last by Tokenizer.save: kind, options, fingerprint

PAIR_FILES = {  # vocabulary -> merges
  "vocab.json": "merges.txt",
  "encoder.json": "vocab.bpe",
  "encoder_bpe_40000.json": "vocab_40000.bpe",
}
KNOWN = (
  "vocab.txt, tokenizer.json, vocab.json + merges.txt, encoder.json + vocab.bpe, "
  "encoder_bpe_40000.json + vocab_40000.bpe or one *.model"
)


MBART_LANGUAGES = (  # mbart-large-cc25
  *("ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN"),
  *("it_IT", "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO"),
  *("ru_RU", "si_LK", "tr_TR", "vi_VN", "zh_CN"),
)
MBART_50_LANGUAGES = 52  # mbart-large-50: these and 27 more


def read_backend(
  path: str | Path,
  options: TokenizerOptions = TokenizerOptions(),  # noqa: B008  a constant
  *,
  clean: str | None = None,
  lowercase: bool | None = None,
  prefix_space: bool | None = None,
):
  """The tokenizer in a file or directory, without tokens beside its vocabulary.

  options: of the directory. The others replace them. lowercase: for the formats that do not contain
    it, vocab.txt and *.model; None is the family's default, and without tokenizer_config.json it is
    guessed from vocab.txt (lower case if it has no capital). clean: of `Pieces`. prefix_space: for
    vocabulary + merges, which do not contain it either.
  """
  file = _find(Path(path).expanduser())
  if file.name == WORDS_FILE:
    return _build(file, read_words, read_object(file))
  if lowercase is not None:
    options = options._replace(switches={**options.switches, "do_lower_case": lowercase})
  if prefix_space is None:
    prefix_space = options.switch("add_prefix_space", False)
  if file.name == "tokenizer.json":
    return _build(file, _definition, file, options)
  if file.suffix == ".model":
    return _build(file, _read_pieces, file, options, clean)
  if file.name in PAIR_FILES:
    return _read_byte_pairs(file, file.with_name(PAIR_FILES[file.name]), prefix_space)
  return _read_word_piece(file, options)


def _read_pieces(file: Path, options: TokenizerOptions, clean: str | None) -> Pieces:
  """ALBERT's text is in lower case and without accents, unless its files say otherwise."""
  proto = read_bytes(file, MOST_PIECES)
  if not proto:
    raise UserError(f"The tokenizer file {file} is empty; fetch it again.")
  albert = options.family == "Albert"
  lowercase = options.switch("do_lower_case", albert)
  if clean is None and albert:
    clean = "keep_accents" if options.switch("keep_accents", False) else "albert"
  pieces = Pieces(proto, lowercase and (albert or not options.family), clean)
  if options.family == "Llama" and not options.switch("add_prefix_space", True):
    model = type(pieces.model_proto).FromString(proto)
    model.normalizer_spec.add_dummy_prefix = False
    pieces = Pieces(model.SerializeToString(), pieces.lowercase, clean)
  return pieces


def in_fairseq_order(pieces: Pieces, languages: tuple[str, ...] = ()) -> Pieces:
  """Reorders the ids of a file for XLM-R and mBART: <s>, <pad>, </s>, <unk>, then the file's pieces
  from the fourth on, a code for each of `languages`, and <mask> (transformers,
  tokenization_xlm_roberta.py and tokenization_mbart.py). Errors: `UserError` if the file does not
  begin with <unk>, <s> and </s>."""
  unk, bos, eos, *words = pieces.model_proto.pieces
  if [unk.piece, bos.piece, eos.piece] != ["<unk>", "<s>", "</s>"]:
    raise UserError(
      "the .model file is not one of XLM-R or mBART: its first pieces are not <unk>, <s> and </s>; "
      "give the model's own file by --tokenizer."
    )
  control = {"score": 0.0, "type": bos.type}
  pad, *added = (type(bos)(piece=name, **control) for name in ("<pad>", *languages, "<mask>"))
  ids = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3}
  return _reordered(pieces, [bos, pad, eos, unk, *words, *added], ids)


def in_file_order(pieces: Pieces) -> Pieces:
  """Undoes `in_fairseq_order`; returns other tokenizers unchanged."""
  fairseq = pieces.pieces[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
  if not fairseq or pieces.roles["mask"] != len(pieces.pieces) - 1:
    return pieces
  bos, _, eos, unk, *words = pieces.model_proto.pieces
  words = words[: -1 - len(pieces.languages)]
  ids = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
  return _reordered(pieces, [unk, bos, eos, *words], ids)


def _reordered(pieces: Pieces, ordered: list, ids: dict[str, int]) -> Pieces:
  """The model with these pieces, and these ids of the special ones."""
  model = type(pieces.model_proto)()
  model.CopyFrom(pieces.model_proto)
  del model.pieces[:]
  model.pieces.extend(ordered)
  for name, i in {**ids, "vocab_size": len(ordered)}.items():
    setattr(model.trainer_spec, name, i)
  return Pieces(model.SerializeToString(), pieces.lowercase, pieces.clean)


def read_rules(path: str | Path) -> dict:
  """The rules that `Tokenizer.save` wrote beside the published files; {} for other folders."""
  folder = Path(path).expanduser()
  return object_in(folder, RULES_FILE) if folder.is_dir() else {}


def _find(path: Path) -> Path:
  if path.is_file():
    for vocab, merges in PAIR_FILES.items():
      if path.name == merges:
        return _present(path.with_name(vocab), path)
    if path.name in (*PAIR_FILES, WORDS_FILE, "tokenizer.json") or path.suffix in (
      ".model",
      ".txt",
    ):
      return path
    raise UserError(f"{path} is not a tokenizer file that this project reads; expected {KNOWN}.")
  if not path.is_dir():
    raise UserError(f"There is no tokenizer at {path}; expected {KNOWN}, or a folder with them.")
  models = sorted(path.glob("*.model"))
  for name in (WORDS_FILE, "tokenizer.json", "vocab.txt", *PAIR_FILES):
    if (file := file_in(path, name)) and not (models and _repeats_pieces(file)):
      return file
  if len(models) == 1:
    return file_in(path, models[0].name)
  content = f"{len(models)} .model files; give one of them" if models else f"none of {KNOWN}"
  raise UserError(f"The folder {path} contains {content}.")


def _repeats_pieces(file: Path) -> bool:
  """Whether a tokenizer.json has the pieces of the .model file beside it."""
  if file.name != "tokenizer.json":
    return False
  model = read_object(file).get("model")
  return isinstance(model, dict) and (
    model.get("type") == "Unigram" or bool(model.get("byte_fallback"))
  )


def _present(file: Path, partner: Path) -> Path:
  if file_in(file.parent, file.name) is None:
    raise UserError(f"{partner.name} needs {file.name} beside it, and {file} does not exist.")
  return file


def _text(file: Path) -> str:
  try:
    return read_bytes(file, MOST_JSON).decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise UserError(
      f"The tokenizer file {file} is damaged: byte {e.start} is not UTF-8; fetch it again."
    ) from None


def _vocab_json(file: Path) -> dict[str, int]:
  vocab = read_object(file)
  check_ids(vocab, file)
  return vocab


def _build(file: Path, make, *args):
  try:
    return make(*args)
  except (UserError, KeyboardInterrupt, SystemExit):
    raise
  except BaseException as e:  # Exception, RuntimeError, and panics of Rust
    reason = str(e).strip().splitlines()[:1]
    raise UserError(
      f"The tokenizer file {file} cannot be read ({''.join(reason)}); it is damaged or of a kind "
      "this project does not know."
    ) from None


def _read_word_piece(file: Path, options: TokenizerOptions) -> Fast:
  # BERT's code strips lines; a blank inside a token could never match.
  lines = [line.strip(" \t\r") or line.rstrip("\r") for line in _text(file).split("\n")]
  while lines and not lines[-1]:
    lines.pop()
  vocab = {}
  for i, token in enumerate(lines):
    if token in vocab:
      raise UserError(
        f"{file} line {i + 1} repeats the token {token!r} of line {vocab[token] + 1}; "
        "a vocab.txt contains each token once, one to a line."
      )
    vocab[token] = i
  unk = options.roles.get("unk") or "[UNK]"
  if unk not in vocab:
    raise UserError(f"{file} is not a BERT vocabulary: it has no line {unk}; expected a vocab.txt.")
  default = True
  if not (options.configured and options.family in WORD_PIECES):
    default = not any(t != t.lower() for t in vocab if t[0:1] not in ("[", "<"))
  return _build(
    file,
    word_piece_backend,
    vocab,
    options.switch("do_lower_case", default),
    options.switch("strip_accents"),
    options.switch("tokenize_chinese_chars", True),
    unk,
  )


def _merges(file: Path) -> list[tuple[str, str]]:
  merges = []
  for i, line in enumerate(_text(file).split("\n")):
    if not line.strip() or (i == 0 and line.startswith("#version")):
      continue
    pair = line.rstrip("\r").split(" ")
    if len(pair) != 2:
      raise UserError(f"{file} line {i + 1} is damaged: expected two tokens, found {line!r}.")
    merges.append((pair[0], pair[1]))
  return merges


def _read_byte_pairs(vocab_file: Path, merges_file: Path, prefix_space: bool) -> Fast:
  merges = _merges(_present(merges_file, vocab_file))
  vocab = _vocab_json(vocab_file)
  _check_merges(merges_file, vocab, merges)
  if any(right.endswith("</w>") for _, right in merges[:1000]):
    return _build(vocab_file, _gpt1_backend, vocab, merges)
  return _build(vocab_file, byte_pairs_backend, vocab, merges, prefix_space)


def _check_merges(file: Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
  """Raises `UserError` for merges on which the library would panic with a backtrace."""
  for left, right in merges:
    for token in (left, right, left + right):
      if token not in vocab:
        raise UserError(
          f"{file} merges {left!r} and {right!r}, but the vocabulary lacks {token!r}; "
          "the two files do not belong together or one is damaged."
        )


def _gpt1_backend(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Fast:
  """GPT-1: merges over characters, "</w>" at the end of a word; text as in transformers.

  The original uses ftfy and spaCy; BERT's rules replace both and split "don't" differently.
  """
  model = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", end_of_word_suffix="</w>"))
  model.normalizer = normalizers.BertNormalizer(lowercase=True)
  model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  model.decoder = decoders.BPEDecoder(suffix="</w>")
  return Fast(model.to_str())


def _definition(file: Path, options: TokenizerOptions) -> Fast:
  rules = read_object(file)
  check_definition(rules, file)
  model = rules["model"]
  if model["type"] == "BPE" and not model.get("continuing_subword_prefix"):
    merges = [m.split(" ") if isinstance(m, str) else m for m in model.get("merges", [])]
    _check_merges(file, model["vocab"], merges)
  _apply(options, rules, file)
  backend = Fast(_without_added(rules))
  ids = backend.model.get_vocab(with_added_tokens=True)
  for token in json.loads(backend.model.to_str())["added_tokens"]:
    ids[token["content"]] = token["id"]
  for token in rules["added_tokens"]:  # the library gives an impossible id another value
    if ids.get(token["content"], token["id"]) != token["id"]:
      raise UserError(
        f"{file} adds {token['content']!r} with the id {token['id']}, where its place is "
        f"{ids[token['content']]}."
      )
  return backend


def _apply(options: TokenizerOptions, rules: dict, file: Path) -> None:
  """Changes the rules of a tokenizer.json as transformers' class for the family does. What a file
  says of itself holds where tokenizer_config.json says nothing, unlike in transformers 5.24."""
  normalizer, split = rules.get("normalizer") or {}, rules.get("pre_tokenizer") or {}
  if normalizer.get("type") == "BertNormalizer" and options.family in WORD_PIECES:
    switches = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    for switch, name in zip(switches, ("lowercase", "strip_accents", "handle_chinese_chars")):
      if switch in options.switches:
        normalizer[name] = options.switches[switch]
  prefix = options.switch("add_prefix_space")
  if prefix is None or not options.family or options.family in WORD_PIECES:
    return
  if split.get("type") == "ByteLevel":
    split["add_prefix_space"] = prefix
  elif not prefix and "Prepend" in json.dumps([normalizer, split]):
    raise UserError(f"{file.with_name(CONFIG)} sets add_prefix_space=False, and {file} adds one.")


def _without_added(rules: dict) -> str:
  """A tokenizer.json without sentinels and languages, which `Tokenizer` itself adds."""
  added, size = rules["added_tokens"], len(rules["model"]["vocab"])
  kept = [t for t in added if t["id"] < size or not ADDED.fullmatch(t["content"])]
  return json.dumps(rules | {"added_tokens": kept}, ensure_ascii=False)
