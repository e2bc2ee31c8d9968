"""Shows what a model has learned: words with similar vectors, and attention in a sentence.

  python -m plm_jax.inspect --model=runs/bert_tiny --tokens=must,file
  python -m plm_jax.inspect --model=runs/bert_tiny --text="returns the name of the file" \
--out=attention.png

--tokens prints the nearest tokens in the token table (cosine of centred rows). --text draws the
attention weights of every layer and head: row i shows from which tokens token i reads. Of an
encoder-decoder it shows the encoder.

From Python: `model.neighbours(["must", "file"])` and `model.attention("a text")`, of `plm.load`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.data.corpora import default_cache
from plm_jax.decode.neighbours import Neighbour, bare, token_table
from plm_jax.decode.neighbours import neighbours as nearest
from plm_jax.errors import UserError
from plm_jax.evaluation import word_vectors
from plm_jax.export.to_run import run_directory
from plm_jax.runs import Run, row_limit
from plm_jax.tasks.predicting import trained
from plm_jax.tasks.vectors import attentions
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS
MOST = 64  # tokens of a picture


def define_flags() -> None:
  flags.DEFINE_string("model", None, "The directory of a run, or of a downloaded model.")
  flags.DEFINE_list("tokens", [], "Words whose nearest neighbours are printed.")
  flags.DEFINE_integer("best", 8, "Neighbours of each word.", lower_bound=1)
  flags.DEFINE_string("text", None, "A sentence whose attention is drawn.")
  flags.DEFINE_string("out", "attention.png", "The picture to write, with --text.")


class Attention(NamedTuple):
  """Attention of one text. pieces: its tokens. weights: float32 [layers, heads, T, T]; row i sums
  to 1 over the tokens from which token i reads."""

  pieces: list[str]
  weights: np.ndarray

  def __repr__(self) -> str:
    layers, heads, size, _ = self.weights.shape
    return f"Attention of {layers} layers and {heads} heads for {size} tokens"

  def png(self) -> bytes:
    """A panel for every layer and head."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    layers, heads, size, _ = self.weights.shape
    side = max(1.6, 0.13 * size)
    figure = Figure(figsize=(heads * side + 1, layers * side + 0.6), layout="constrained")
    axes = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)
    for layer, row in enumerate(axes):
      for head, axis in enumerate(row):
        axis.imshow(self.weights[layer, head], vmin=0, vmax=1, cmap="Blues")
        axis.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=7)
        axis.set_xticks(range(size), self.pieces, rotation=90, fontsize=6)
        axis.set_yticks(range(size), self.pieces, fontsize=6)
    target = io.BytesIO()
    figure.savefig(target, dpi=120, format="png")
    return target.getvalue()

  def _repr_html_(self) -> str:
    """The picture, for notebooks."""
    return f"<img src='data:image/png;base64,{base64.b64encode(self.png()).decode()}'>"


def neighbours(run: Run, words: Sequence[str], best: int = 8) -> dict[str, list[Neighbour]]:
  """For every word, the `best` nearest tokens. Errors: `UserError` for a word that is no token."""
  if best < 1:
    raise UserError(f"best={best} was given; at least one neighbour is needed.")
  if hasattr(run.params, "word_rows"):  # static vectors: unknown words may have one too
    table = word_vectors.words_of_run(run)
    return {word: word_vectors.neighbours(table, word, best) for word in words}
  ids = []
  if words and token_table(run.params) is None:
    raise UserError(
      f"the model {type(run.config).__name__} has no vectors of tokens; give another model."
    )
  for word in words:
    pieces = run.tokenizer.encode(word)
    if len(pieces) != 1:
      shown = " ".join(run.tokenizer.tokens(pieces))
      raise UserError(f"{word!r} is {len(pieces)} tokens ({shown}); give words that are one token.")
    ids.append(int(pieces[0]))
  return dict(zip(words, nearest(run.params, run.tokenizer, ids, best), strict=True))


def attention(run: Run, text: str) -> Attention:
  """The attention weights of a text with the model's special tokens. Errors: `UserError` for a text
  of more than `MOST` tokens, and for a model without attention."""
  ids, weights = attentions(trained(run), text, min(MOST, row_limit(run)))
  return Attention([bare(piece) for piece in run.tokenizer.tokens(ids)], weights)


def main() -> None:
  if not FLAGS.model:
    raise UserError("--model=DIR, the directory of a run or of a downloaded model, is needed.")
  if not (FLAGS.tokens or FLAGS.text):
    raise UserError("give --tokens=WORD,WORD for their neighbours, or --text=... for attention.")
  out = Path(FLAGS.out)
  if FLAGS["out"].present and not FLAGS.text:
    raise UserError(f"--out={out} is the picture of --text=...; give a text, or leave --out out.")
  if FLAGS.text and not out.parent.is_dir():
    raise UserError(f"--out={out} was given, and there is no folder {out.parent}; make it first.")
  if FLAGS.text and out.exists():
    raise UserError(f"{out} already exists; name another file with --out.")
  keep_compilations(default_cache())
  run = Run.load(run_directory(FLAGS.model))
  for word, near in neighbours(run, FLAGS.tokens, FLAGS.best).items():
    print(f"{word:12} " + ", ".join(f"{n.token} {n.cosine:.2f}" for n in near))
  if FLAGS.text:
    out.write_bytes(attention(run, FLAGS.text).png())
    print(f"{out} shows the attention of every layer and head")


if __name__ == "__main__":
  cli.run(main)
