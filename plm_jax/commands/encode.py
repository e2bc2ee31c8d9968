"""Turns texts into vectors with any model of this project.

  python -m plm_jax.encode --model=runs/minilm --file=texts.txt --out=vectors.npy
  python -m plm_jax.encode --model=runs/gpt_tiny --text="a fine film" --pooling=last --layer=-2
  python -m plm_jax.encode --model=runs/minilm --file=texts.csv --out=map.png --color=label

The result is a float32 array [texts, width] in the order of the input; without --out a line of JSON
for each text. A picture (.png) shows the texts on the two main axes of their vectors. A .csv, .tsv
or .jsonl file has a column of texts; every line of another file is a text, an empty one too. Texts
that are longer than the rows of pretraining are cut.

From Python: `from plm_jax.encode import encode; encode("runs/minilm", ["a fine film"])`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.commands.senses import two_axes
from plm_jax.data.corpora import default_cache
from plm_jax.errors import UserError
from plm_jax.evaluation.word_vectors import unit
from plm_jax.export.to_run import run_directory
from plm_jax.progress import progress_bar
from plm_jax.runs import Run
from plm_jax.tasks.table_files import SUFFIXES, columns, read_table
from plm_jax.tasks.vectors import POOLINGS, TextEncoder
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS
BLOCK = 1024  # texts that are sorted by length together
MOST_COLORS = 10


def define_flags() -> None:
  flags.DEFINE_string("model", None, "The directory of a run, or of an imported model.")
  flags.DEFINE_multi_string("text", [], "A text to encode. Repeatable.")
  flags.DEFINE_string("file", None, "A .csv, .tsv or .jsonl file, or any other file with lines.")
  flags.DEFINE_string("column", None, "The column of the texts in a table (default: guessed).")
  flags.DEFINE_enum("pooling", None, list(POOLINGS), "How the tokens' states become one vector "
                    "(default: as the model was trained, else mean).")  # fmt: skip
  flags.DEFINE_integer("layer", -1, "0 is the embeddings, -1 the last layer.")
  flags.DEFINE_string("out", None, "The .npy file, or the .png picture, to write (default: JSON on "
                      "standard output).")  # fmt: skip
  flags.DEFINE_string("color", None, "The column of a table whose values color the picture.")


def encode(
  model: str | Path | Run, texts: Sequence[str], pooling: str | None = None, layer: int = -1
) -> np.ndarray:
  """float32 [texts, width]; the arguments are the flags of the command."""
  return all_vectors(encoder_of(model, pooling, layer), texts)


def encoder_of(model: str | Path | Run, pooling: str | None = None, layer: int = -1) -> TextEncoder:
  """The encoder of a model. Making it takes as long as encoding a short text."""
  run = model if isinstance(model, Run) else Run.load(run_directory(model))
  return TextEncoder.of_run(run, pooling, layer)


def all_vectors(encoder: TextEncoder, texts: Sequence[str]) -> np.ndarray:
  """float32 [texts, width]."""
  return np.concatenate(list(encoded(encoder, texts)))


def encoded(encoder: TextEncoder, texts: Sequence[str]) -> Iterator[np.ndarray]:
  """The vectors, a block of texts at a time, with a progress bar for many texts."""
  if not texts:
    raise UserError("there is no text to encode; give at least one.")
  cut = 0
  with progress_bar(len(texts), "encoding", unit=" texts", disable=len(texts) < BLOCK) as bar:
    for first in range(0, len(texts), BLOCK):
      block = texts[first : first + BLOCK]
      array_ND, count = encoder(block)
      cut += count
      bar.update(len(block))
      yield array_ND
  if cut:
    print(
      f"note: {cut:,} of {len(texts):,} texts are longer than {encoder.longest} tokens and were "
      "cut",
      file=sys.stderr,
    )


def main() -> None:
  if not FLAGS.model:
    raise UserError("--model=DIR, the directory of a run, is needed.")
  if bool(FLAGS.text) == bool(FLAGS.file):
    raise UserError("give the texts by --text or by --file, one of them.")
  if FLAGS.out and Path(FLAGS.out).exists():
    raise UserError(f"{FLAGS.out} already exists; name another file with --out.")
  is_map = Path(FLAGS.out or "").suffix == ".png"
  if FLAGS.color and not (is_map and FLAGS.file):
    raise UserError("--color=COLUMN is for a picture of a table: give --file and --out=FILE.png.")
  texts = FLAGS.text or read(FLAGS.file, FLAGS.column)
  colors = read(FLAGS.file, FLAGS.color, "--color") if FLAGS.color else None
  keep_compilations(default_cache())
  blocks = encoded(encoder_of(FLAGS.model, FLAGS.pooling, FLAGS.layer), texts)
  if not FLAGS.out:
    for array_ND in blocks:
      for vector in array_ND:
        print(json.dumps([round(float(x), 6) for x in vector]))
    return
  if is_map:
    draw(Path(FLAGS.out), np.concatenate(list(blocks)), texts, colors)
  else:
    write(Path(FLAGS.out), blocks, len(texts))


def read(
  path: str, column: str | None = None, flag: str = "--column", file_flag: str = "--file"
) -> list[str]:
  """The texts of a file. flag, file_flag: those that name the column and the file."""
  if Path(path).suffix not in SUFFIXES:
    if column:
      raise UserError(f"{flag}={column} was given, and {path} has lines and no columns.")
    return cli.read_lines(path, file_flag)
  table = read_table(path)
  if column and column not in table.names:
    raise UserError(
      f"{flag}={column} was given, and {path} has the columns {', '.join(table.names)}."
    )
  chosen = column or columns(table, texts=1).texts[0]
  if not column and len(table.names) > 1:
    print(f"{path}: the texts are in {chosen!r} (--column=NAME changes it)", file=sys.stderr)
  return [table.cell(line, row, chosen) for line, row in table.rows]


def write(path: Path, blocks: Iterator[np.ndarray], count: int) -> None:
  """Writes an array [count, D] block by block, so that it need not fit into memory."""
  partial, done = path.with_name(path.name + ".partial"), 0
  stored: np.ndarray | None = None
  for array_ND in blocks:
    if stored is None:
      shape = (count, array_ND.shape[1])
      stored = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
    stored[done : done + len(array_ND)] = array_ND
    done += len(array_ND)
  assert stored is not None  # there is at least one text
  stored.flush()
  partial.replace(path)
  print(f"{path}: float32 {list(stored.shape)}")


def draw(path: Path, vectors_ND: np.ndarray, texts: list[str], colors: list[str] | None) -> None:
  """A picture of the texts on the two main axes of their vectors, which are made equally long. Few
  texts are written beside their points. colors: a value for each text."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib.figure import Figure

  plane_N2 = two_axes(unit(vectors_ND))
  figure = Figure(figsize=(10, 8), layout="constrained")
  axis = figure.subplots()
  values = np.array(colors or [""] * len(texts))
  kinds = [value for value, _ in Counter(colors or [""]).most_common(MOST_COLORS)]
  axis.plot(*plane_N2[~np.isin(values, kinds)].T, ".", color="lightgray")
  for kind in kinds:
    axis.plot(*plane_N2[values == kind].T, ".", ms=5, alpha=0.7, label=str(kind))
  if colors:
    rest = ", the others gray" if len(set(colors)) > MOST_COLORS else ""
    figure.legend(title=f"{len(set(colors))} values{rest}", loc="outside right upper")
  for text, place in zip(texts if len(texts) <= 40 else [], plane_N2):
    axis.annotate(text[:40], place, fontsize=7)
  axis.set_title(f"{len(texts):,} texts on the two main axes of their vectors")
  figure.savefig(path, dpi=120, format="png")
  print(f"{path} shows {len(texts):,} texts")


if __name__ == "__main__":
  cli.run(main)
