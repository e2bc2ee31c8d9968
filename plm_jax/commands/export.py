"""Exports a run as files that need nothing of this project.

  python -m plm_jax.export onnx runs/classifier exported           a directory
  python -m plm_jax.export onnx runs/classifier classifier.onnx    only the model
  python -m plm_jax.export onnx runs/gpt exported --cache          and a graph for generation
  python -m plm_jax.export stablehlo runs/classifier exported

DIR is a run, or a directory of transformers or Sentence-BERT; OUT is new. The directory has
model.onnx (or model.stablehlo), the tokenizer and config.json as transformers reads them, and
README.md, its model card. The batch and the length of rows are dynamic. The file is run again and
compared with JAX on rows of many lengths; if an output differs by more than 1e-4, nothing is kept.
--int8 also writes model.int8.onnx, about a quarter as large; --calibrate=FILE, a file of texts like
those that the model will read, also model.static8.onnx, whose scales are measured on these texts.
docs/export.md has examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.commands.encode import read
from plm_jax.errors import UserError
from plm_jax.export.agreement import Arrays
from plm_jax.export.from_run import from_run
from plm_jax.export.hf import config_text
from plm_jax.export.model_card import checked_licence, write_card
from plm_jax.export.onnx_file import OnnxFile, write_cached, write_onnx
from plm_jax.export.onnx_graph import OPSET
from plm_jax.export.published_tokenizer import write_tokenizer
from plm_jax.export.stablehlo import PLATFORMS, write_stablehlo
from plm_jax.export.to_run import run_directory
from plm_jax.files import new_directory
from plm_jax.runs import Run, refuse_counted, row_limit
from plm_jax.tasks.rows import framed_rows

FLAGS = flags.FLAGS
Kind = Literal["onnx", "stablehlo"]
KINDS = get_args(Kind)
CALIBRATION = 128  # texts


def define_flags() -> None:
  flags.DEFINE_bool("int8", False, "Also write a file with int8 weights (onnx).")
  flags.DEFINE_string("calibrate", None, "Texts, lines or a table: also write a file with int8 "
                      "weights and fixed scales (onnx).")  # fmt: skip
  flags.DEFINE_string("column", None, "The column of the texts in a table (default: guessed).")
  flags.DEFINE_bool("cache", False, "Also write the graphs with a cache, for generation (onnx).")
  flags.DEFINE_string("license", None, "The licence in the model card, such as mit.")


def main(kind: str, source: str, target: str) -> None:
  check_words(kind, target)
  texts = []
  if FLAGS.column and not FLAGS.calibrate:
    raise UserError(f"--column={FLAGS.column} is that of --calibrate=FILE, which was not given.")
  if FLAGS.calibrate:
    lines = read(FLAGS.calibrate, FLAGS.column, file_flag="--calibrate")
    texts = [text for text in lines if text.strip()]
    if not texts:
      raise UserError(f"{FLAGS.calibrate} has no text; --calibrate needs some.")
  options = {"int8": FLAGS.int8, "calibrate": texts, "cache": FLAGS.cache}
  export(Run.load(run_directory(source)), target, kind, **options, license=FLAGS.license)


def export(
  run: Run,
  target: str | Path,
  kind: Kind = "onnx",
  *,
  int8: bool = False,
  calibrate: Sequence[str] = (),
  cache: bool = False,
  license: str | None = None,
) -> None:
  """Writes a run as a directory, or as one file if the name of `target` has the suffix of the kind,
  and prints facts. The arguments are the flags of the command; calibrate: texts."""
  target = check_words(kind, target)
  if kind != "onnx" and (int8 or calibrate or cache):
    raise UserError("--int8, --calibrate and --cache are for onnx; leave them out.")
  checked_licence(license)
  refuse_counted(run)
  rows = calibration_rows(run, calibrate)
  if target.suffix == f".{kind}":
    if cache:
      raise UserError(f"--cache writes several files; name a directory instead of {target}.")
    if not target.parent.is_dir():
      raise UserError(f"{target.parent} is not a directory; make it first.")
    write_model(kind, run, target, int8, rows)
    return
  with new_directory(target, "OUT"):
    write_model(kind, run, target / f"model.{kind}", int8, rows)
    for file in write_cached(run, target) if cache else ():
      show(file)
    write_beside(run, target, license)


def check_words(kind: str, target: str | Path) -> Path:
  """The path. Errors: `UserError` for another kind, or if there is something at the path."""
  if kind not in KINDS:
    raise UserError(f"the format {kind} was given; expected {' or '.join(KINDS)}.")
  if Path(target).exists():
    raise UserError(f"{target} already exists; choose a new name.")
  for other in KINDS:
    if other != kind and Path(target).suffix == f".{other}":
      raise UserError(f"{target} is the name of a file of {other}, and {kind} was given.")
  return Path(target)


def calibration_rows(run: Run, texts: Sequence[str]) -> list[Arrays]:
  """A row of inputs for each of up to `CALIBRATION` texts at equal distances."""
  chosen = np.linspace(0, len(texts) - 1, min(len(texts), CALIBRATION), dtype=int)
  ids = [(row,) for row in run.tokenizer.encode_batch([texts[n] for n in chosen])]
  made = []
  for row in ids:
    framed = framed_rows([row], run.config, run.tokenizer, row_limit(run))
    size = int(framed.values["length"][0])
    arrays = {name: array[:, :size].astype(np.int64) for name, array in framed.tokens.items()}
    arrays["token_type_ids"] = arrays.pop("segment_ids")
    made.append(arrays | {"attention_mask": np.ones_like(arrays["input_ids"])})
  return made


def write_model(kind: str, run: Run, path: Path, int8: bool, calibration: list[Arrays]) -> None:
  """Writes the file of a model, and prints facts about it."""
  if kind == "onnx":
    show(write_onnx(run, path, int8, calibration))
    return
  model, difference = write_stablehlo(run, path)
  shapes = [f"{name} [{', '.join(map(str, x.shape))}]" for name, x in model.inputs.items()]
  print(f"{path}: StableHLO for {', '.join(PLATFORMS)}, {_megabytes(path.stat().st_size)}")
  print(f"  inputs: {', '.join(shapes)}\n  largest difference from JAX: {difference:.1e}")


def write_beside(run: Run, directory: Path, license: str | None) -> None:
  """config.json, the tokenizer and the model card."""
  try:
    model = from_run(run)
    (directory / "config.json").write_text(config_text(model), encoding="utf-8")
  except UserError as error:  # transformers has no such model
    print(f"note: {error} The directory has no config.json and no model card.")
    run.tokenizer.save(directory / "tokenizer")
    return
  write_tokenizer(model, run.tokenizer, directory, "public" not in run.document)
  write_card(run, model, directory, license)


def show(file: OnnxFile) -> None:
  """Prints the facts about a file."""
  print(f"{file.path}: opset {OPSET}, {_megabytes(file.size)}")
  for side, shapes in (("inputs", file.inputs), ("outputs", file.outputs)):
    caches = [name for name in shapes if "key_values" in name or name.startswith("present")]
    shown = [
      f"{name} [{', '.join(map(str, x))}]" for name, x in shapes.items() if name not in caches
    ]
    print(f"  {side}: {', '.join(shown)}")
    if caches:
      print(f"    and {caches[0]} [{', '.join(map(str, shapes[caches[0]]))}] to {caches[-1]}")
  print(f"  largest difference from JAX: {file.difference:.1e} (relative error {file.error:.1e})")
  for small in file.smaller:
    print(f"{small.path}: int8, {_megabytes(small.size)}, relative error {small.error:.3f}")


def _megabytes(size: int) -> str:
  return f"{size / 1e6:.2f} MB"


if __name__ == "__main__":
  cli.run(main, words=("FORMAT", "DIR", "OUT"))
