"""Tokenizers of published directories: read into ours, and written as transformers reads them."""

import json
from pathlib import Path

from plm_jax.data import tokenizer_files as files
from plm_jax.data.tokenizer_files import MBART_LANGUAGES
from plm_jax.data.tokenizers import Tokenizer, Unigram, load_tokenizer, read_published
from plm_jax.errors import UserError
from plm_jax.export import hf, sentence
from plm_jax.models.bart import MBart
from plm_jax.models.model import Model
from plm_jax.models.t5 import T5

PUBLISHED_PIECES = {  # family -> the file, and transformers' class that reads it
  "albert": ("spiece.model", "AlbertTokenizer"),
  "t5": ("spiece.model", "T5Tokenizer"),
  "llama": ("tokenizer.model", "LlamaTokenizer"),
  "xlm-roberta": ("sentencepiece.bpe.model", "XLMRobertaTokenizer"),
  "mbart": ("sentencepiece.bpe.model", "MBartTokenizer"),
}


def read_tokenizer(place: Path, model_type: str | None = None) -> Tokenizer:
  """The tokenizer of a directory or file, ours or published. Errors: `UserError` if unknown."""
  if files.read_rules(place):
    return load_tokenizer(place)
  if place.is_dir():
    place = sentence.body_of(place)
  elif place.suffix == ".bin":
    raise UserError(
      "a .bin file of a tokenizer is not supported; give its .model by --tokenizer=FILE.model."
    )
  return read_published(place, model_type)


def check_not_mbart_50(tokenizer: Tokenizer, config: Model) -> None:
  """A `UserError` for mBART-50: 52 language codes instead of 25, which begin its texts."""
  more = config.vocab_size - tokenizer.vocab.size
  if isinstance(config, MBart) and more == files.MBART_50_LANGUAGES - len(MBART_LANGUAGES):
    raise UserError(
      f"the model has {config.vocab_size} tokens, {more} more than mBART with its 25 languages: it "
      "is mBART-50, whose texts begin with a language instead of ending with it, which no run of "
      "this project does; plm_jax.export.hf loads and checks it."
    )


def with_sentinels(tokenizer: Tokenizer, config: Model, most: int | None = None) -> Tokenizer:
  """T5's 100 sentinels follow the pieces of its file, which does not have them. most: their number
  by the tokenizer's files, if these say it."""
  pieces = tokenizer.vocab.size
  if not isinstance(config, T5) or tokenizer.vocab.sentinels is not None:
    return tokenizer
  count = min(100, max(config.vocab_size - pieces, 0)) if most is None else most
  return Tokenizer(tokenizer.backend, count, special=tokenizer.special)


def write_tokenizer(
  model: hf.Pretrained, tokenizer: Tokenizer, target: Path, trained_here: bool
) -> None:
  """Writes a tokenizer as transformers reads it for the model's family; prints a note if it cannot.
  trained_here: texts get this project's special tokens."""
  vocab, names = tokenizer.vocab, {}
  for role in ("pad", "unk", "cls", "sep", "mask", "bos", "eos"):
    if (i := getattr(vocab, role)) is not None:
      names[f"{role}_token"] = tokenizer.token(i)
  options = {**names, "model_max_length": model.family.longest(model.config)}
  if tokenizer.kind != Unigram.kind:
    tokenizer.save(target)
    _add_to_file(target / "tokenizer.json", tokenizer, _frame(model, vocab, trained_here))
    options["tokenizer_class"] = "PreTrainedTokenizerFast"
    if getattr(model.config, "segments", 0) > 1:  # transformers 5 leaves the second out by default
      options["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
  elif has_class(model.family.model_type, tokenizer):
    file, options["tokenizer_class"] = PUBLISHED_PIECES[model.family.model_type]
    (target / file).write_bytes(files.in_file_order(tokenizer.backend).proto)
    if model.family.model_type == "albert":
      cleaning = tokenizer.backend.cleaning or {"lowercase": False, "accents": True}
      options |= {"do_lower_case": cleaning["lowercase"], "keep_accents": cleaning["accents"]}
    if model.family.model_type == "llama":
      options |= {"add_bos_token": True, "add_eos_token": trained_here and reads_texts(model)}
      if tokenizer.backend.model_proto.normalizer_spec.remove_extra_whitespaces:
        print("note: transformers' LlamaTokenizer keeps repeated spaces, which this one joins")
    if model.family.model_type == "t5":
      options["extra_ids"] = 0 if vocab.sentinels is None else len(vocab.sentinels)
  else:
    tokenizer.save(target)
    print(f"note: transformers' {model.family.model_type} cannot read the tokenizer, spm.model")
    return
  (target / "tokenizer_config.json").write_text(json.dumps(options, indent=2) + "\n")


def _frame(model: hf.Pretrained, vocab, trained_here: bool) -> tuple[list[int], list[int]] | None:
  """The special tokens before and after a text; None keeps those of an encoder's tokenizer. A
  decoder that generates has none after its prompt."""
  reads_source = hasattr(model.config, "source_ids")
  writes = not reads_source and hasattr(model.params, "generator")
  if not trained_here or not (reads_source or writes):
    return None
  before, after = model.config.text_frame(vocab)
  return before, [] if writes and not reads_texts(model) else after


def reads_texts(model: hf.Pretrained) -> bool:
  """Whether a model reads whole texts, for classes or a vector, rather than beginnings to go on
  from."""
  return "classes" in model.heads or model.pooling is not None


def has_class(family: str, tokenizer: Tokenizer) -> bool:
  """Whether transformers' class for the family gives the same ids to these pieces."""
  v, backend = tokenizer.vocab, tokenizer.backend
  spec = backend.model_proto.trainer_spec
  fairseq = (v.bos, v.pad, v.eos, v.unk, v.mask) == (0, 1, 2, 3, len(backend.pieces) - 1)
  fits = {
    "albert": v.unk == 1,
    "t5": (v.pad, v.eos, v.unk) == (0, 1, 2),
    "llama": (v.unk, v.bos, v.eos) == (0, 1, 2) and spec.model_type == spec.BPE,
    "xlm-roberta": fairseq and not backend.languages,
    "mbart": fairseq and tuple(backend.languages) == MBART_LANGUAGES,
  }
  plain = not tokenizer.added_languages and (family == "t5" or v.sentinels is None)
  return (
    plain and fits.get(family, False) and (family == "albert" or not tokenizer.backend.lowercase)
  )


def _add_to_file(
  file: Path, tokenizer: Tokenizer, frame: tuple[list[int], list[int]] | None
) -> None:
  """Gives a tokenizer.json the tokens after the vocabulary, and those of `frame` around a text."""
  import tokenizers

  definition = tokenizers.Tokenizer.from_file(str(file))
  added = tokenizer.pieces[len(tokenizer.backend.pieces) :]
  definition.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in added])
  if frame is not None:
    before, after = ([tokenizer.token(i) for i in ids] for ids in frame)
    definition.post_processor = tokenizers.processors.TemplateProcessing(
      single=[*before, "$A", *after],
      pair=[*before, "$A", *after, "$B", *after],
      special_tokens=[(tokenizer.token(i), i) for i in {*frame[0], *frame[1]}],
    )
  file.write_text(definition.to_str(), encoding="utf-8")
