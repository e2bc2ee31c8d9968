"""Converts between published checkpoints and runs of this project.

  python -m plm_jax.convert bert-base-uncased runs/bert        a published model becomes a run
  python -m plm_jax.convert runs/bert_tiny exported            a run becomes a published model
  python -m plm_jax.convert runs/ngram_kn5 kn5.arpa             an n-gram model becomes a file
  python -m plm_jax.convert stories260K.bin runs/stories --tokenizer=tok512.model

SRC is a directory of transformers or Sentence-BERT, a llama2.c file, or a run; DST is new. Every
command that takes a run reads the new one. A classifier that reads the mean of the states is
written for sentence-transformers. A run with --peft is merged into its base; --to=peft writes the
adapter alone, for peft. An exported run gets a model card, README.md. Nothing in SRC is executed.
"""

from pathlib import Path

from absl import flags

from plm_jax import cli
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.from_run import from_run, write_directory
from plm_jax.export.model_card import checked_licence, write_card
from plm_jax.export.peft_run import write_adapter
from plm_jax.export.published_tokenizer import read_tokenizer as _tokenizer
from plm_jax.export.to_run import is_run, published, tokenizer_of, write_run
from plm_jax.files import new_directory
from plm_jax.runs import Run

FLAGS = flags.FLAGS
PARTS = ("discriminator", "generator")


def define_flags() -> None:
  flags.DEFINE_enum("to", None, ("run", "hf", "peft"), "The form of DST (default: not SRC's).")
  flags.DEFINE_string("tokenizer", None, "The tokenizer to use instead of SRC's.")
  flags.DEFINE_string("license", None, "The licence in the model card, such as mit.")
  flags.DEFINE_enum("part", None, PARTS, "Which part of an ELECTRA (default: the discriminator).")


def main(source: str | Path, target: str | Path) -> None:
  source, target = Path(source), Path(target)
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise UserError(f"{target} already exists; choose a new or empty directory.")
  if FLAGS.to == "peft":
    with new_directory(target):
      print(f"{source} is now in {target}: {write_adapter(source, target)}")
    return
  run = Run.load(source) if is_run(source) else None
  if run and target.suffix == ".arpa":
    write_arpa(run, target)
    return
  to = FLAGS.to or ("hf" if run else "run")
  if run and to == "run":
    raise UserError(f"{source} is already a run.")
  if FLAGS.part and not (run and hasattr(run.experiment.model, "generator")):
    raise UserError(f"--part={FLAGS.part} needs an ELECTRA that was trained here; leave it out.")
  if FLAGS.license and not (run and to == "hf"):
    raise UserError(f"--license={FLAGS.license} is for the model card of a run; leave it out.")
  checked_licence(FLAGS.license)
  model = from_run(run, FLAGS.part or PARTS[0]) if run else published(source)
  tokenizer = chosen_tokenizer(source, run, model, to)
  with new_directory(target):
    if to == "run":
      write_run(model, tokenizer, target, source)
    else:
      trained_here = run is not None and "public" not in run.document
      write_directory(model, tokenizer, target, trained_here)
      if run:
        write_card(run, model, target, FLAGS.license)
  if tokenizer is None:
    print("note: no tokenizer was written; copy SRC's, or name one with --tokenizer")
  print(f"{source} is now in {target}: {type(model.config).__name__}, {model.architecture}")


def write_arpa(run: Run, target: Path) -> None:
  if not hasattr(run.params, "write_arpa"):
    raise UserError(
      f"{target} would be a file of n-grams, and {run.path} holds a {type(run.config).__name__}"
    )
  run.params.write_arpa(target, run.tokenizer)
  print(f"{run.path} is now in {target}")


def chosen_tokenizer(
  source: Path, run: Run | None, model: hf.Pretrained, to: str
) -> Tokenizer | None:
  """The tokenizer of --tokenizer, else of SRC; None if SRC and DST are both published."""
  place = Path(FLAGS.tokenizer or source)
  if to == "run":
    return tokenizer_of(place, model)
  if FLAGS.tokenizer:
    return _tokenizer(place, model.family.model_type)
  return run.tokenizer if run else None


if __name__ == "__main__":
  cli.run(main, words=("SRC", "DST"))
