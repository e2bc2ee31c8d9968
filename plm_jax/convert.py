"""Converts between published checkpoints and runs of this project.

  python -m plm_jax.convert bert-base-uncased runs/bert        a published model becomes a run
  python -m plm_jax.convert runs/bert_tiny exported            a run becomes what transformers loads
  python -m plm_jax.convert stories260K.bin runs/stories --tokenizer=tok512.model

SRC is a directory of transformers or Sentence-BERT, a llama2.c file, or a run; DST is new. What
comes out as a run is what run_pretrain.py --from, run_finetune.py --from, plm_jax.generate and
plm_jax.fill_mask take. Nothing in SRC is executed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import jax
from absl import flags
from flax import nnx

from plm_jax import cli, config_tree
from plm_jax.data.tokenizer_files import MBART_LANGUAGES, in_fairseq_order, read_backend, read_rules
from plm_jax.data.tokenizers import BytePairs, Tokenizer, Unigram, WordPiece, load_tokenizer
from plm_jax.errors import UserError
from plm_jax.export import hf, llama2c, sentence
from plm_jax.export.tensors import read_json
from plm_jax.models.electra import Electra
from plm_jax.models.encoder_decoder import EncoderDecoder, edges
from plm_jax.models.model import Model
from plm_jax.models.t5 import T5
from plm_jax.train.checkpoint import Checkpoints, restore_parameters
from plm_jax.train.start import continued_from, versions, with_model
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
  if to == "run":
    tokenizer = _with_sentinels(_tokenizer(Path(place), model.family.model_type), model.config)
    write_run(model, tokenizer, target, source)
  else:
    tokenizer = _tokenizer(Path(place)) if is_run or FLAGS.tokenizer else None
    write_directory(model, tokenizer, target)
    if tokenizer is None:
      print("note: no tokenizer was written; copy that of SRC, or give it by --tokenizer")
  print(f"{source} is now in {target}: {type(model.config).__name__}, {model.architecture}")


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
  experiment = with_model(experiment, model.config)
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
    pieces = sorted(place.glob("*.model"))
    if len(pieces) == 1:  # tokenizer.json repeats it in a form that is not read here
      place = pieces[0]
  elif place.suffix == ".bin":
    raise UserError(
      "a llama2.c file has its tokenizer elsewhere; give it by --tokenizer=FILE.model."
    )
  backend = read_backend(place, lowercase)
  if model_type not in ("xlm-roberta", "mbart") or backend.kind != "unigram":
    return Tokenizer(backend)
  # Behind mBART's 25 languages there is a mask, which a tokenizer of ours cannot have there.
  languages = MBART_LANGUAGES if model_type == "mbart" else ()
  return Tokenizer(in_fairseq_order(backend, mask=not languages), languages=languages)


def _with_sentinels(tokenizer: Tokenizer, config) -> Tokenizer:
  """T5's 100 sentinels follow the pieces of its file, which does not have them."""
  pieces = tokenizer.vocab.size
  if not isinstance(config, T5) or tokenizer.vocab.sentinels is not None:
    return tokenizer
  return Tokenizer(tokenizer._backend, min(100, max(config.vocab_size - pieces, 0)))


def _tokenizer_config(tokenizer: Tokenizer, path: Path) -> WordPiece | BytePairs | Unigram:
  kinds = {"word_piece": WordPiece, "byte_pairs": BytePairs, "unigram": Unigram}
  fields = {"vocab_size": max(tokenizer.vocab.size, 261), "path": str(path.absolute())}
  if tokenizer.vocab.sentinels is not None:
    fields["sentinels"] = len(tokenizer.vocab.sentinels)
  fields["languages"] = tuple(tokenizer.vocab.languages)
  if tokenizer.kind != "byte_pairs":
    fields["lowercase"] = tokenizer.lowercase
  return kinds[tokenizer.kind](**fields)


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
    pooling = public["pooling"] and sentence.Pooling(
      **public["pooling"] | {"modes": tuple(public["pooling"]["modes"])}
    )
    return hf.Pretrained(config, params, public["architecture"], public["config"], pooling)
  document = _special_tokens(source.tokenizer, config) | _labels(source.document)
  if isinstance(config, Electra):
    return hf.Pretrained(*_electra_part(config, params, part), None, document)
  return hf.Pretrained(config.encoder, params.encoder(), None, document)


def _electra_part(config: Electra, params, part: str):
  if part == "generator":
    return config.generator, params.masked_lm()
  discriminator = params.discriminator
  discriminator.rtd = nnx.data(params.rtd)
  return config.encoder, discriminator


def _labels(document: dict) -> dict[str, dict]:
  """The classes of a run of run_finetune.py, by their numbers and the other way round."""
  names = document.get("classes")
  if not names:
    return {}
  return {
    "id2label": {str(number): name for number, name in enumerate(names)},
    "label2id": {name: number for number, name in enumerate(names)},
  }


def _special_tokens(tokenizer: Tokenizer, config: Model) -> dict[str, int]:
  vocab = tokenizer.vocab
  ids = {role: getattr(vocab, role) for role in ("pad", "bos", "eos", "cls", "sep")}
  if isinstance(config, EncoderDecoder):  # what its sources and targets have
    ids["bos"], ids["eos"] = edges(vocab)
    ids["decoder_start"] = config.decoder_start(vocab)[0]
  return {f"{role}_token_id": i for role, i in ids.items() if i is not None}


def write_directory(model: hf.Pretrained, tokenizer: Tokenizer | None, target: Path) -> None:
  """What `hf.save` writes, with the tokenizer beside it."""
  hf.save(model, target)
  if tokenizer is None:
    return
  tokenizer.save(target)
  if (target / "tokenizer.json").is_file():
    vocab = tokenizer.vocab
    roles = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
    ids = {f"{role}_token": getattr(vocab, role) for role in roles}
    names = {role: tokenizer.token(i) for role, i in ids.items() if i is not None}
    options = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    options["model_max_length"] = model.family.longest(model.config)
    (target / "tokenizer_config.json").write_text(json.dumps(options, indent=2) + "\n")


if __name__ == "__main__":
  cli.run(main, words=("SRC", "DST"))
