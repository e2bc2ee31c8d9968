"""Exports a run as a published model."""

import dataclasses
from pathlib import Path

from flax import nnx

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.export import hf, sentence
from plm_jax.export.heads import labelled
from plm_jax.export.pretrained import has_dense
from plm_jax.export.published_tokenizer import write_tokenizer
from plm_jax.models.electra import Electra
from plm_jax.models.model import Model
from plm_jax.runs import Run, check_merged, in_float32, row_limit


def from_run(run: Run, part: str = "discriminator") -> hf.Pretrained:
  """The model of a run, in float32; of a composite model its encoder, or the given `part` of an
  ELECTRA.
  Errors: `UserError` if an adapter in it cannot be merged."""
  check_merged(run)
  run = in_float32(run)
  config, public = run.experiment.model, run.document.get("public")
  if public is not None:
    return _imported(run, public)
  document = special_tokens(run.tokenizer, config)
  if names := run.document.get("classes"):  # of a run of run_finetune.py
    document |= labelled(names)
  for objective in run.experiment.objectives:  # the loss of transformers on these labels
    if problem := getattr(objective, "problem_type", None):
      document["problem_type"] = problem
  if isinstance(config, Electra):
    return hf.Pretrained(*electra_part(config, run.params, part), None, document)
  params = run.params.encoder()
  if params.pair_classes is not None:  # Sentence-BERT's classes are for training alone
    params = nnx.clone(params)
    params.pair_classes = None
  model = hf.Pretrained(config.encoder, params, None, document, _pooling(run))
  if model.pooling is None or model.pooling.length:
    return model
  pooling = model.pooling._replace(length=run.experiment.data.length)
  return dataclasses.replace(model, pooling=pooling)


def _pooling(run: Run) -> sentence.Pooling | None:
  """Of a run whose vectors were trained (the task `similar`)."""
  if run.pooling is None:
    return None
  (mode,) = run.pooling["modes"]
  if mode not in sentence.MODES.values():
    raise UserError(
      f"{run.path} pools by {mode!r}, which this export does not have; it has "
      f"{', '.join(sentence.MODES.values())}."
    )
  return sentence.Pooling((mode,), length=row_limit(run))


def _imported(run: Run, public: dict) -> hf.Pretrained:
  """The published model that a run was imported from, with the run's parameters."""
  options = public["pooling"] and {**public["pooling"], "modes": tuple(public["pooling"]["modes"])}
  pooling = sentence.Pooling(**options) if options else None
  config, architecture = run.experiment.model, public["architecture"]
  model = hf.Pretrained(config, run.params, architecture, public["config"], pooling)
  if architecture not in model.family.architectures:
    raise UserError(
      f"{run.path / 'config.json'} names the architecture {architecture!r}, which "
      f"{model.family.model_type} does not have; convert the published model again."
    )
  return model


def electra_part(config: Electra, params, part: str):
  if part == "generator":
    return config.generator, params.masked_lm()
  discriminator = params.discriminator
  discriminator.rtd = nnx.data(params.rtd)
  return config.encoder, discriminator


def special_tokens(tokenizer: Tokenizer, config: Model) -> dict[str, int]:
  """The entries of config.json for special tokens."""
  vocab = tokenizer.vocab
  ids = {role: getattr(vocab, role) for role in ("pad", "bos", "eos", "cls", "sep")}
  if hasattr(config, "source_ids"):  # the tokens around sources and targets
    starts = {"bos": vocab.begin, "eos": vocab.end, "decoder_start": config.decoder_start(vocab)}
    ids |= {role: next(iter(tokens), None) for role, tokens in starts.items()}
  return {f"{role}_token_id": i for role, i in ids.items() if i is not None}


def write_directory(
  model: hf.Pretrained, tokenizer: Tokenizer | None, target: Path, trained_here: bool = False
) -> None:
  """Writes the files of `hf.save`, and the tokenizer as transformers reads it; prints how another
  library than transformers reads the directory. trained_here: texts get this project's special
  tokens, not those of the published tokenizer."""
  hf.save(model, target)
  if tokenizer is not None:
    write_tokenizer(model, tokenizer, target, trained_here)
  if has_dense(model.config, model.heads):
    print(
      f'{target} is for sentence-transformers: SentenceTransformer("{target}").encode(texts) '
      f"gives the {model.heads['classes']} class scores (logits) of each text"
    )
