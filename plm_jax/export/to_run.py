"""Imports a published model as a run, as if it had been trained here."""

import dataclasses
from pathlib import Path

from plm_jax import cli
from plm_jax.data.tokenizers import KINDS, Tokenizer, TokenizerConfig
from plm_jax.errors import UserError
from plm_jax.experiment_flags import with_model, with_rows_of
from plm_jax.export import hf
from plm_jax.models.bart import MBart
from plm_jax.models.model import Model
from plm_jax.runs import Run


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
  config = _tokenizer_config(tokenizer, target / "tokenizer")
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


def _tokenizer_config(tokenizer: Tokenizer, path: Path) -> TokenizerConfig:
  kind = KINDS[tokenizer.kind]
  fields = {"vocab_size": max(tokenizer.vocab.size, 261), "path": str(path.absolute())}
  if tokenizer.vocab.sentinels is not None:
    fields["sentinels"] = len(tokenizer.vocab.sentinels)
  fields["languages"] = tuple(tokenizer.vocab.languages)
  if hasattr(kind, "lowercase"):
    fields["lowercase"] = tokenizer.backend.lowercase
  return kind(**fields)
