"""Does a model tell the senses of a word apart, layer by layer?

  python -m plm_jax.senses --model=runs/bert_tiny
  python -m plm_jax.senses --model=runs/bert_tiny --words=bank,python --out=senses.png
  python -m plm_jax.senses --model=runs/bert_tiny --file=uses.tsv

A use of a word counts as right if the nearest other use has the same sense (cosine of the word's
states, one left out). The floor is a vector that is the same in all sentences. The project's own
examples have 11 words of two senses, 8 sentences each; a --file has "word<TAB>sense<TAB>sentence
with the [word]" in every line.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.data.corpora import default_cache
from plm_jax.errors import UserError
from plm_jax.export.to_run import run_directory
from plm_jax.runs import Run
from plm_jax.tasks.senses import Senses, nearest, read_uses, senses
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("model", None, "The directory of a run, or of a downloaded model.")
  flags.DEFINE_string("file", None, "Uses of words (default: those of the project).")
  flags.DEFINE_list("words", [], "Only these words.")
  flags.DEFINE_integer("show", 1, "Uses of each word that are printed with the nearest.")
  flags.DEFINE_string("out", None, "The picture to write.")


def main() -> None:
  if not FLAGS.model:
    raise UserError("--model=DIR, the directory of a run or of a downloaded model, is needed.")
  if FLAGS.out and Path(FLAGS.out).exists():
    raise UserError(f"{FLAGS.out} already exists; name another file with --out.")
  if Path(FLAGS.model).is_file():
    raise UserError(
      f"--model={FLAGS.model} is a file; senses reads runs. The vectors of a file are the same in "
      "all sentences and cannot tell senses apart."
    )
  uses = read_uses(FLAGS.file)
  known = dict.fromkeys(use.word for use in uses)
  for word in FLAGS.words:
    if word not in known:
      raise UserError(f"--words={word} was given; the examples have {', '.join(known)}.")
  uses = [use for use in uses if not FLAGS.words or use.word in FLAGS.words]
  keep_compilations(default_cache())
  result = senses(Run.load(run_directory(FLAGS.model)), uses)
  print(described(result, FLAGS.show))
  if FLAGS.out and result.is_static:
    print(f"{FLAGS.out} was not written: there is nothing to draw")
  elif FLAGS.out:
    draw(result, Path(FLAGS.out))
    print(f"{FLAGS.out} shows the uses at layer {result.best}, and the accuracy of every layer")


def described(result: Senses, show: int) -> str:
  """The accuracy of every layer and word, and some uses with the nearest ones."""
  words = list(dict.fromkeys(use.word for use in result.uses))
  lines = [f"{len(result.uses)} uses of {len(words)} words"
           + f", {result.left_out} left out" * bool(result.left_out)]  # fmt: skip
  lines += ["accuracy of the nearest use", f"  {'same vector everywhere':28} {result.floor:.3f}"]
  lines.append(f"  {'mean of the other words':28} {result.context:.3f}")
  if result.is_static:
    lines.append(
      "the model's vectors are static: they have one layer, are the same in every sentence, and "
      "cannot tell senses apart; their accuracy is chance"
    )
    return "\n".join(lines)
  lines += [f"  {f'layer {n}':28} {x:.3f}" for n, x in enumerate(result.accuracy)]
  near = list(nearest(result.vectors[:, result.best], result.uses))
  lines.append(f"at layer {result.best}")
  for word in words:
    mine = [i for i, use in enumerate(result.uses) if use.word == word]
    lines.append(f"  {word:28} {np.mean([near[i][0] for i in mine]):.3f}")
    for i in mine[:show]:
      if near[i][1] >= 0:
        other = result.uses[near[i][1]]
        lines.append(f"    {result.uses[i].text}  [{result.uses[i].sense}]")
        lines.append(f"      nearest: {other.text}  [{other.sense}]")
  return "\n".join(lines)


def draw(result: Senses, path: Path) -> None:
  """A panel for every word, its uses on their two main axes, and one of the layers' accuracy."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib.figure import Figure

  words = list(dict.fromkeys(use.word for use in result.uses))
  columns = min(4, len(words) + 1)
  rows = -(-(len(words) + 1) // columns)
  figure = Figure(figsize=(3 * columns, 2.8 * rows), layout="constrained")
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  axes[0].plot(result.accuracy, "o-", ms=4, label="layers")
  for name, value, style in (("floor", result.floor, "--"), ("context", result.context, ":")):
    axes[0].axhline(value, color="gray", ls=style, lw=1, label=name)
  axes[0].set(title="accuracy by layer", xlabel="layer", ylim=(0, 1.02))
  axes[0].legend(frameon=False, fontsize=7)
  for axis, word in zip(axes[1:], words):
    mine = [i for i, use in enumerate(result.uses) if use.word == word]
    plane = two_axes(result.vectors[mine, result.best])
    names = list(dict.fromkeys(result.uses[i].sense for i in mine))
    for number, sense in enumerate(names):
      at = [k for k, i in enumerate(mine) if result.uses[i].sense == sense]
      label = sense if sense.isascii() else f"sense {number + 1}"  # fonts may lack Chinese
      axis.plot(*plane[at].T, "os^v"[number % 4], ms=5, label=label)
    axis.set_title(word if word.isascii() else f"word {words.index(word) + 1}")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.legend(frameon=False, fontsize=7)
  for axis in axes[len(words) + 1 :]:
    axis.set_visible(False)
  figure.savefig(path, dpi=120, format="png")


def two_axes(vectors_ND: np.ndarray) -> np.ndarray:
  """float [N, 2]: the vectors on their two main axes."""
  centred = vectors_ND - vectors_ND.mean(axis=0)
  u, s, _ = np.linalg.svd(centred, full_matrices=False)
  plane = np.zeros((len(vectors_ND), 2))
  plane[:, : len(s[:2])] = u[:, :2] * s[:2]
  return plane


if __name__ == "__main__":
  cli.run(main)
