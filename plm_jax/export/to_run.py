"""Imports a published model as a run, as if it had been trained here."""

import dataclasses
import fcntl
import hashlib
import shutil
from pathlib import Path

from plm_jax import cli
from plm_jax.data.corpora import default_cache
from plm_jax.data.published_folder import read_object
from plm_jax.data.tokenizer_options import read_options
from plm_jax.data.tokenizers import KINDS, Tokenizer, TokenizerConfig
from plm_jax.errors import UserError
from plm_jax.experiment_flags import with_model, with_rows_of
from plm_jax.export import hf, llama2c, sentence
from plm_jax.export.published_tokenizer import check_not_mbart_50, read_tokenizer, with_sentinels
from plm_jax.models.bart import MBart
from plm_jax.models.model import Model
from plm_jax.runs import Run


def is_run(source: Path) -> bool:
  config = source / "config.json"
  return config.is_file() and "experiment" in read_object(config)


def published(source: Path) -> hf.Pretrained:
  """The model of a directory of transformers or Sentence-BERT, or of a llama2.c file."""
  if not source.exists():
    raise UserError(f"{source} does not exist.")
  return hf.load(source) if source.is_dir() else llama2c.load(source)


def run_directory(path: str | Path, cache: Path | None = None) -> Path:
  """The directory of a run: `path`, or the conversion of a published model, which is kept in the
  cache and made again if a file of the model changes."""
  path = Path(path)
  if not (path / "config.json").is_file() or is_run(path):
    return path  # a run, or nothing that can be loaded
  target = (cache or default_cache()) / "published" / _identity(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  with open(f"{target}.lock", "w") as waits:
    fcntl.flock(waits, fcntl.LOCK_EX)
    if not is_run(target):
      shutil.rmtree(target, ignore_errors=True)  # of a conversion that was interrupted
      model = published(path)
      write_run(model, tokenizer_of(path, model), target, path)
      print(f"{path} is a published {model.architecture}; its conversion is kept in {target}")
  return target


def tokenizer_of(place: Path, model: hf.Pretrained) -> Tokenizer:
  """The tokenizer in `place`, as the model needs it."""
  tokenizer = read_tokenizer(place, model.family.model_type)
  said = read_options(sentence.body_of(place)).sentinels if place.is_dir() else None
  tokenizer = with_sentinels(tokenizer, model.config, said)
  check_not_mbart_50(tokenizer, model.config)
  return tokenizer


CONVERSION = 2  # raised when a conversion gives another run
_READ = {".json", ".txt", ".model", ".safetensors", ".bin"}  # suffixes of a model's files


def _identity(path: Path) -> str:
  """A name for a model as it is now: its directory's, and a hash of its files' sizes and times."""
  files = sorted(p for p in [*path.glob("*"), *path.glob("[0-9]_*/*")] if p.suffix in _READ)
  states = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
  digest = hashlib.sha256(repr((CONVERSION, states)).encode()).hexdigest()
  return f"{path.resolve().name}-{digest[:16]}"


def write_run(model: hf.Pretrained, tokenizer: Tokenizer, target: Path, source: Path) -> None:
  """Writes a run with the family's experiment. Errors: `UserError` for a larger tokenizer."""
  size = tokenizer.vocab.size
  if size > model.config.vocab_size:
    raise UserError(
      f"the tokenizer has {size} tokens and the model {model.config.vocab_size}: they do not "
      "belong together; give the model's tokenizer by --tokenizer."
    )
  reference = model.family.experiment(model.heads)
  experiment = cli.load_experiment(reference, budget="small")()
  experiment = with_model(experiment, with_languages(model, tokenizer))
  experiment = with_rows_of(experiment, tokenizer.vocab)
  config = tokenizer_config(tokenizer, target / "tokenizer")
  experiment = dataclasses.replace(
    experiment, data=dataclasses.replace(experiment.data, tokenizer=config)
  )
  public = {
    "config": dict(model.document),
    "architecture": model.architecture,
    "heads": model.heads,
    "pooling": None if model.pooling is None else model.pooling._asdict(),
  }
  document = {
    "reference": reference,
    "budget": "small",
    "public": public,
    "converted_from": str(source),
  }
  run = Run(experiment=experiment, params=model.params, tokenizer=tokenizer, document=document)
  run.save(target)


def with_languages(model: hf.Pretrained, tokenizer: Tokenizer) -> Model:
  """The configuration. An mBART that translates gets the language with which config.json begins the
  decoder, and English as its source, as in transformers."""
  config, start = model.config, model.document.get("decoder_start_token_id")
  languages = {i: name for name, i in tokenizer.vocab.languages.items()}
  if not isinstance(config, MBart) or languages.get(start, config.language) == config.language:
    return config
  language = languages.get(start)
  return dataclasses.replace(config, language=language, source_language=config.language)


def tokenizer_config(tokenizer: Tokenizer, path: Path) -> TokenizerConfig:
  kind = KINDS[tokenizer.kind]
  fields = {"vocab_size": max(tokenizer.vocab.size, 261), "path": str(path.absolute())}
  if tokenizer.vocab.sentinels is not None:
    fields["sentinels"] = len(tokenizer.vocab.sentinels)
  fields["languages"] = tuple(tokenizer.vocab.languages)
  if hasattr(kind, "lowercase"):
    fields["lowercase"] = tokenizer.backend.lowercase
  return kind(**fields)
