"""Converts between published checkpoints and runs of this project.

  python -m plm_jax.convert bert-base-uncased runs/bert        a published model becomes a run
  python -m plm_jax.convert runs/bert_tiny exported            a run becomes what transformers loads
  python -m plm_jax.convert stories260K.bin runs/stories --tokenizer=tok512.model

SRC is a directory of transformers or Sentence-BERT, a llama2.c file, or a run; DST is new. What
comes out as a run is what run_pretrain.py --from, run_finetune.py --from, plm_jax.generate and
plm_jax.fill_mask take. Nothing in SRC is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags
from flax import nnx

from plm_jax import cli, config_tree
from plm_jax.data.tokenizer_files import (
  MBART_50_LANGUAGES,
  MBART_LANGUAGES,
  in_fairseq_order,
  in_file_order,
  read_backend,
  read_rules,
)
from plm_jax.data.tokenizers import KINDS, Tokenizer, TokenizerConfig, Unigram, load_tokenizer
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError
from plm_jax.export import hf, llama2c, sentence
from plm_jax.export.heads import labelled
from plm_jax.export.tensors import read_json
from plm_jax.models.bart import MBart
from plm_jax.models.decoder import Decoder
from plm_jax.models.electra import Electra
from plm_jax.models.encoder_decoder import EncoderDecoder
from plm_jax.models.model import Model
from plm_jax.models.t5 import T5
from plm_jax.tasks.rows import text_frame
from plm_jax.train.checkpoint import Checkpoints, restore_parameters
from plm_jax.train.start import continued_from, versions, with_model, with_rows_of
from plm_jax.train.workdir import FORMAT, write_whole

FLAGS = flags.FLAGS
flags.DEFINE_enum("to", None, ("run", "hf"), "What DST becomes (default: what SRC is not).")
flags.DEFINE_string("tokenizer", None, "The tokenizer, where SRC has none or one to leave out.")
PARTS = ("discriminator", "generator")
flags.DEFINE_enum("part", None, PARTS, "What of an ELECTRA (default: the discriminator).")


def main(source: str, target: str) -> None:
  source, target = Path(source), Path(target)
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise UserError(f"{target} is there already; choose a directory that is new or empty.")
  is_run = source.is_dir() and "experiment" in _config(source)
  to = FLAGS.to or ("hf" if is_run else "run")
  if is_run and to == "run":
    raise UserError(f"{source} is a run already.")
  if FLAGS.part and not (is_run and isinstance(continued_from(source).experiment.model, Electra)):
    raise UserError(f"--part={FLAGS.part} is of an ELECTRA that was trained here; leave it out.")
  model = from_run(source, FLAGS.part or PARTS[0]) if is_run else _published(source)
  place = FLAGS.tokenizer or (source / "tokenizer" if is_run else source)
  tokenizer = None
  if to == "run":
    tokenizer = _with_sentinels(_tokenizer(Path(place), model.family.model_type), model.config)
    _refuse_mbart_50(tokenizer, model.config)
  elif is_run or FLAGS.tokenizer:
    tokenizer = _tokenizer(Path(place))
  with _new(target):
    if to == "run":
      write_run(model, tokenizer, target, source)
    else:
      trained_here = is_run and "public" not in _config(source)
      write_directory(model, tokenizer, target, trained_here)
  if tokenizer is None:
    print("note: no tokenizer was written; copy that of SRC, or give it by --tokenizer")
  print(f"{source} is now in {target}: {type(model.config).__name__}, {model.architecture}")


@contextlib.contextmanager
def _new(target: Path) -> Iterator[None]:
  """Makes a directory to be written within, of which nothing is left where that fails. Errors:
  `UserError` where it cannot be made or written."""
  was_there = target.exists()
  try:
    target.mkdir(parents=True, exist_ok=True)
    yield
  except BaseException as error:
    for path in target.iterdir() if target.is_dir() else ():
      shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if not was_there:
      with contextlib.suppress(OSError):
        target.rmdir()
    if isinstance(error, OSError):
      raise UserError(
        f"{target} cannot be written ({error.strerror or error}); choose another DST, or make room."
      ) from None
    raise


def _config(source: Path) -> dict:
  return read_json(source / "config.json") if (source / "config.json").is_file() else {}


def _published(source: Path) -> hf.Pretrained:
  if not source.exists():
    raise UserError(f"{source} does not exist.")
  return hf.load(source) if source.is_dir() else llama2c.load(source)


# --- into a run ----------------------------------------------------------------------------------


def write_run(model: hf.Pretrained, tokenizer: Tokenizer, target: Path, source: Path) -> None:
  """A run's directory, as if it had been trained here: its experiment is the family's own with this
  model. Errors: `UserError` where the model has fewer tokens than the tokenizer."""
  size = tokenizer.vocab.size
  if size > model.config.vocab_size:
    raise UserError(
      f"the tokenizer has {size} tokens and the model {model.config.vocab_size}: they do not "
      "belong together; give the model's by --tokenizer."
    )
  reference = model.family.experiment(model.heads)
  experiment = cli.load_experiment(reference, budget="small")()
  experiment = with_model(experiment, _with_languages(model, tokenizer))
  experiment = with_rows_of(experiment, tokenizer.vocab)
  config = _tokenizer_config(tokenizer, target / "tokenizer")
  experiment = dataclasses.replace(
    experiment, data=dataclasses.replace(experiment.data, tokenizer=config)
  )
  target.mkdir(parents=True, exist_ok=True)
  tokenizer.save(target / "tokenizer")
  with Checkpoints(target / "checkpoints") as checkpoints:
    checkpoints.save(0, {"params": model.params}, {"converted_from": str(source)})
  pooling = None if model.pooling is None else model.pooling._asdict()
  document = {
    "format": FORMAT,
    "experiment": config_tree.to_json(experiment),
    "name": target.name,
    "reference": reference,
    "budget": "small",
    "diff": [],
    "initial": None,
    "teacher": None,
    "public": {
      "config": dict(model.document),
      "architecture": model.architecture,
      "heads": model.heads,
      "pooling": pooling,
    },
    "command": sys.argv,
    "versions": versions(),
  }
  write_whole(target / "config.json", json.dumps(document, indent=2) + "\n")


def _tokenizer(place: Path, model_type: str | None = None) -> Tokenizer:
  """Of a published directory or file. Errors: `UserError` where there is none that is known."""
  if read_rules(place):
    return load_tokenizer(place)
  lowercase = None
  if place.is_dir():
    place = sentence.body_of(place)
    options = place / "tokenizer_config.json"
    lowercase = read_json(options).get("do_lower_case") if options.is_file() else None
    if not isinstance(lowercase, bool | None):
      raise UserError(f"{options} sets do_lower_case={lowercase!r}; expected true or false.")
    pieces = sorted(place.glob("*.model"))
    if len(pieces) == 1:  # tokenizer.json repeats it in a form that is not read here
      place = pieces[0]
  elif place.suffix == ".bin":
    raise UserError(
      "a tokenizer is not read from a .bin file; give the .model of it by --tokenizer=FILE.model."
    )
  backend = read_backend(place, lowercase)
  if model_type not in ("xlm-roberta", "mbart") or backend.kind != Unigram.kind:
    return Tokenizer(backend)
  return Tokenizer(in_fairseq_order(backend, MBART_LANGUAGES if model_type == "mbart" else ()))


def _refuse_mbart_50(tokenizer: Tokenizer, config) -> None:
  """Its 52 codes stand where mBART's 25 do, and begin its texts instead of ending them."""
  more = config.vocab_size - tokenizer.vocab.size
  if isinstance(config, MBart) and more == MBART_50_LANGUAGES - len(MBART_LANGUAGES):
    raise UserError(
      f"the model has {config.vocab_size} tokens, {more} more than mBART with its 25 languages: it "
      "is mBART-50, whose texts begin with a language instead of ending with it, which no run of "
      "this project does; plm_jax.export.hf loads and checks it."
    )


def _with_sentinels(tokenizer: Tokenizer, config) -> Tokenizer:
  """T5's 100 sentinels follow the pieces of its file, which does not have them."""
  pieces = tokenizer.vocab.size
  if not isinstance(config, T5) or tokenizer.vocab.sentinels is not None:
    return tokenizer
  return Tokenizer(tokenizer.backend, min(100, max(config.vocab_size - pieces, 0)))


def _with_languages(model: hf.Pretrained, tokenizer: Tokenizer):
  """The configuration, of an mBART that translates with the language that config.json begins the
  decoder with; from English, as transformers has it too unless it is told otherwise."""
  config, start = model.config, model.document.get("decoder_start_token_id")
  languages = {i: name for name, i in tokenizer.vocab.languages.items()}
  if not isinstance(config, MBart) or languages.get(start, config.language) == config.language:
    return config
  return dataclasses.replace(config, language=languages[start], source_language=config.language)


def _tokenizer_config(tokenizer: Tokenizer, path: Path) -> TokenizerConfig:
  kind = KINDS[tokenizer.kind]
  fields = {"vocab_size": max(tokenizer.vocab.size, 261), "path": str(path.absolute())}
  if tokenizer.vocab.sentinels is not None:
    fields["sentinels"] = len(tokenizer.vocab.sentinels)
  fields["languages"] = tuple(tokenizer.vocab.languages)
  if hasattr(kind, "lowercase"):
    fields["lowercase"] = tokenizer.lowercase
  return kind(**fields)


# --- out of a run --------------------------------------------------------------------------------


def from_run(path: Path, part: str = "discriminator") -> hf.Pretrained:
  """The newest checkpoint of a run; of composite models the part that is kept."""
  source = continued_from(path)
  config, public = source.experiment.model, source.document.get("public")
  if public is None:
    make = source.experiment.init_parameters
  else:
    make = lambda key: config.init(key, public["heads"])  # noqa: E731
  params = restore_parameters(path, jax.eval_shape(make, jax.random.key(0))).params
  if public is not None:
    given = public["pooling"] and {**public["pooling"], "modes": tuple(public["pooling"]["modes"])}
    pooling = sentence.Pooling(**given) if given else None
    model = hf.Pretrained(config, params, public["architecture"], public["config"], pooling)
    if model.architecture not in model.family.architectures:
      raise UserError(
        f"{path / 'config.json'} names the architecture {model.architecture!r}, which "
        f"{model.family.model_type} does not have; convert the published model again."
      )
    return model
  document = _special_tokens(source.tokenizer, config)
  if names := source.document.get("classes"):  # of a run of run_finetune.py
    document |= labelled(names)
  if isinstance(config, Electra):
    return hf.Pretrained(*_electra_part(config, params, part), None, document)
  return hf.Pretrained(config.encoder, params.encoder(), None, document)


def _electra_part(config: Electra, params, part: str):
  if part == "generator":
    return config.generator, params.masked_lm()
  discriminator = params.discriminator
  discriminator.rtd = nnx.data(params.rtd)
  return config.encoder, discriminator


def _special_tokens(tokenizer: Tokenizer, config: Model) -> dict[str, int]:
  vocab = tokenizer.vocab
  ids = {role: getattr(vocab, role) for role in ("pad", "bos", "eos", "cls", "sep")}
  if isinstance(config, EncoderDecoder):  # what its sources and targets have
    starts = {"bos": vocab.begin, "eos": vocab.end, "decoder_start": config.decoder_start(vocab)}
    ids |= {role: next(iter(tokens), None) for role, tokens in starts.items()}
  return {f"{role}_token_id": i for role, i in ids.items() if i is not None}


PUBLISHED_PIECES = {  # family -> the file and the class of transformers that reads it
  "albert": ("spiece.model", "AlbertTokenizer"),
  "t5": ("spiece.model", "T5Tokenizer"),
  "llama": ("tokenizer.model", "LlamaTokenizer"),
  "xlm-roberta": ("sentencepiece.bpe.model", "XLMRobertaTokenizer"),
  "mbart": ("sentencepiece.bpe.model", "MBartTokenizer"),
}


def write_directory(
  model: hf.Pretrained, tokenizer: Tokenizer | None, target: Path, trained_here: bool = False
) -> None:
  """What `hf.save` writes, with the tokenizer beside it in the form in which transformers reads it.
  Where it has none for this family, a note says so. trained_here: texts get the begin and the end
  that they have in this project, and not those of a published tokenizer."""
  hf.save(model, target)
  if tokenizer is None:
    return
  vocab, names = tokenizer.vocab, {}
  for role in ("pad", "unk", "cls", "sep", "mask", "bos", "eos"):
    if (i := getattr(vocab, role)) is not None:
      names[f"{role}_token"] = tokenizer.token(i)
  options = {**names, "model_max_length": model.family.longest(model.config)}
  if tokenizer.kind != Unigram.kind:
    tokenizer.save(target)
    own = trained_here and isinstance(model.config, Decoder | EncoderDecoder)  # others have theirs
    _with_added(target / "tokenizer.json", tokenizer, _frame(model, vocab) if own else None)
    options["tokenizer_class"] = "PreTrainedTokenizerFast"
  elif _has_class(model.family.model_type, tokenizer):
    file, options["tokenizer_class"] = PUBLISHED_PIECES[model.family.model_type]
    (target / file).write_bytes(in_file_order(tokenizer.backend).proto)
    if model.family.model_type == "albert":
      options |= {"do_lower_case": tokenizer.lowercase, "keep_accents": not tokenizer.lowercase}
    if model.family.model_type == "llama":
      options |= {"add_bos_token": True, "add_eos_token": trained_here and "classes" in model.heads}
      if tokenizer.backend.joins_spaces:
        print("note: transformers' LlamaTokenizer keeps spaces in a row, which this one joins")
    if model.family.model_type == "t5":
      options["extra_ids"] = 0 if vocab.sentinels is None else len(vocab.sentinels)
  else:
    tokenizer.save(target)
    print(f"note: transformers' {model.family.model_type} cannot read the tokenizer, spm.model")
    return
  (target / "tokenizer_config.json").write_text(json.dumps(options, indent=2) + "\n")


def _frame(model: hf.Pretrained, vocab: Vocab) -> tuple[list[int], list[int]]:
  """What stands before and after a text; a decoder that writes goes on from its prompt."""
  before, after = text_frame(vocab, model.config)
  writes = isinstance(model.config, Decoder) and "classes" not in model.heads
  return before, [] if writes else after


def _has_class(family: str, tokenizer: Tokenizer) -> bool:
  """Whether the family's class of transformers gives the ids of these pieces."""
  v, backend = tokenizer.vocab, tokenizer.backend
  fairseq = (v.bos, v.pad, v.eos, v.unk, v.mask) == (0, 1, 2, 3, len(backend.pieces) - 1)
  fits = {
    "albert": v.unk == 1,
    "t5": (v.pad, v.eos, v.unk) == (0, 1, 2),
    "llama": (v.unk, v.bos, v.eos) == (0, 1, 2) and backend.merges_pairs,
    "xlm-roberta": fairseq and not backend.languages,
    "mbart": fairseq and tuple(backend.languages) == MBART_LANGUAGES,
  }
  plain = not tokenizer.added_languages and (family == "t5" or v.sentinels is None)
  return plain and fits.get(family, False) and (family == "albert" or not tokenizer.lowercase)


def _with_added(
  file: Path, tokenizer: Tokenizer, frame: tuple[list[int], list[int]] | None = None
) -> None:
  """Gives a tokenizer.json the sentinels and languages that stand behind the vocabulary. frame:
  what it is to put before and after a text."""
  import tokenizers

  definition = tokenizers.Tokenizer.from_file(str(file))
  behind = tokenizer.pieces[len(tokenizer.backend.pieces) :]
  definition.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in behind])
  if frame is not None:
    before, after = ([tokenizer.token(i) for i in ids] for ids in frame)
    definition.post_processor = tokenizers.processors.TemplateProcessing(
      single=[*before, "$A", *after],
      pair=[*before, "$A", *after, "$B", *after],
      special_tokens=[(tokenizer.token(i), i) for i in {*frame[0], *frame[1]}],
    )
  file.write_text(definition.to_str(), encoding="utf-8")


if __name__ == "__main__":
  cli.run(main, words=("SRC", "DST"))
