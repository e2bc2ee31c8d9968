"""How time and memory grow: the exponent e of y ~ x^e by least squares, beside the expected one.

  step     a train step of a small BERT against rows, length, depth, width and vocabulary. Time is
           processor time, the least of some steps. Memory is that of the compiler: temporaries, and
           the state (parameters and moments). Expected: the exponent of the operations of its
           products over the same sizes, of the arrays that the forward pass keeps and the
           gradients, and of the parameters (`plm_jax.planning`).
  text     preparation against the size of the text: processor time, and the peak memory of this
           process and of a worker.
  run      the table of a pass, and what should not grow: a second start, going on in a late step,
           and the first batch of the next pass, whose table was made beside the first pass.

All sizes double from point to point, so an exponent of 1 is a line and 0 is constant. Processor
times are of all cores and do not depend on other programs, but for what these do to the caches.

  python benchmarks/growth.py --text=FOLDER
  python benchmarks/growth.py --parts=step --out=step.png
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
  if str(folder) not in sys.path:
    sys.path.insert(0, str(folder))  # so that it runs where plm_jax is not installed

import numpy as np  # noqa: E402
from absl import flags  # noqa: E402
from repeated_text import documents, paragraphs_of, write_text  # noqa: E402

from plm_jax import cli  # noqa: E402
from plm_jax.errors import UserError  # noqa: E402

FLAGS = flags.FLAGS
BASE = {
  "vocabulary": 4096,
  "global_batch": 8,
  "data.length": 128,
  "model.layers": 2,
  "model.width": 128,
  "compute.layers": "scan",  # compiled in seconds for any depth
}
DIALS = {
  "rows": ("global_batch", (4, 8, 16)),
  "length": ("data.length", (64, 128, 256)),
  "depth": ("model.layers", (2, 4, 8)),
  "width": ("model.width", (64, 128, 256)),
  "vocabulary": ("vocabulary", (4096, 8192, 16384)),
}
MEGABYTES = (16, 32, 64, 128)
SENTENCES = (1 << 18, 1 << 19, 1 << 20, 1 << 21)
STEPS = 4  # measured; the least counts


def define_flags() -> None:
  flags.DEFINE_list("parts", ["step", "text", "run"], "What is measured: step, text, run.")
  flags.DEFINE_string("text", None, "A file of text, or a folder of .txt files, for `text`.")
  flags.DEFINE_string("out", None, "The file of the figure (.png); none is drawn without.")


class Series(NamedTuple):
  """A measured quantity over the sizes of a dial. expected: by arithmetic, or an exponent."""

  panel: str
  name: str
  sizes: Sequence[float]
  values: Sequence[float]
  expected: Sequence[float] | float
  unit: str

  def row(self) -> str:
    wanted = self.expected
    if not isinstance(wanted, float):
      wanted = exponent(self.sizes, wanted)
    measured = exponent(self.sizes, self.values)
    values = ", ".join(f"{value:.3g}" for value in self.values)
    sizes = " to ".join(f"{self.sizes[i]:,}" for i in (0, -1))
    cells = (
      self.panel,
      sizes,
      self.name,
      f"{values} {self.unit}",
      *(f"{round(e, 2) + 0:.2f}" for e in (measured, wanted)),
    )
    return f"| {' | '.join(cells)} |"


HEAD = """| against | sizes | quantity | measured | exponent | expected |
|---|---|---|---|---:|---:|"""


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
  """The slope of the line through log(value) over log(size)."""
  return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


# A step.


def of_step() -> list[Series]:
  series = []
  for dial, (setting, sizes) in DIALS.items():
    cells = [_step(tuple((BASE | {setting: size}).items())) for size in sizes]
    for name, unit in (("time", "s"), ("temporaries", "MB"), ("state", "MB")):
      if name == "state" and dial in ("rows", "length"):
        continue
      measured, expected = zip(*(cell[name] for cell in cells))
      series.append(Series(dial, name, sizes, measured, expected, unit))
      print(series[-1].row(), flush=True)
  return series


@functools.cache
def _step(settings: tuple[tuple[str, int | str], ...]) -> dict[str, tuple[float, float]]:
  """(measured, expected) of a step with these settings."""
  import jax

  from plm_jax import overrides
  from plm_jax.planning.arithmetic import kept_bytes, model_operations
  from plm_jax.train.example_batch import example_batch
  from plm_jax.train.loop import compile_experiment

  chosen = dict(settings)
  vocabulary = chosen.pop("vocabulary")
  chosen["model.heads"] = chosen["model.width"] // 32
  experiment = cli.load_experiment("experiments/bert.py:base", budget="smoke")()
  experiment = overrides.apply(experiment, [f"{name}={value}" for name, value in chosen.items()])
  experiment = experiment.resolve(vocabulary)
  batch = example_batch(experiment)
  program = compile_experiment(experiment, batch)
  memory = program.step.func.memory_analysis()
  state, times = program.create(), []
  for _ in range(STEPS + 1):
    begun = time.process_time()
    state = jax.block_until_ready(program.step(state, batch))
    times.append(time.process_time() - begun)
  parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
  kept = kept_bytes(experiment, experiment.global_batch, set(), 1)
  return {
    "time": (min(times[1:]), model_operations(experiment)),
    "temporaries": (memory.temp_size_in_bytes / 1e6, kept + parameters),
    "state": (memory.output_size_in_bytes / 1e6, parameters),
  }


# A text.


def of_text(source: Path) -> list[Series]:
  cells = []
  with tempfile.TemporaryDirectory() as folder:
    from plm_jax.data.tokenizers import WordPiece

    made = documents(paragraphs_of(source, lines=False))
    sentences = [line for _ in range(1000) for line in next(made).split("\n")]
    WordPiece(vocab_size=8192).train(iter(sentences)).save(Path(folder) / "tokenizer")
    for megabytes in MEGABYTES:
      text = Path(folder) / "text.txt"
      write_text(source, text, megabytes)
      # A process of its own, whose peak is that of this text.
      command = [sys.executable, __file__, "--parts=one", f"--text={folder}"]
      done = subprocess.run(command, capture_output=True, text=True, check=True)
      cells.append([float(number) for number in done.stdout.split()])
  times, parent, worker = zip(*cells)
  named = (("time", times, 1.0, "s"), ("peak", parent, 0.0, "MB"))
  named = (*named, ("peak of a worker", worker, 0.0, "MB"))
  return [Series("MB of text", name, MEGABYTES, y, e, unit) for name, y, e, unit in named]


def prepare_one(folder: Path) -> None:
  """Prints what the preparation of one text costs: processor seconds, peaks in MB."""
  from plm_jax.data import preparation
  from plm_jax.data.tokenizers import WordPiece

  preparation.LARGE = 0  # worker processes for every size
  tokenizer = WordPiece(path=str(folder / "tokenizer"))
  corpus = SimpleNamespace(
    source=str(folder / "text.txt"), tokenizer=tokenizer, held_out=0.02, lines=False
  )
  with tempfile.TemporaryDirectory() as cache:
    preparation.prepare(corpus, cache, progress=False)
  workers, own = (resource.getrusage(w) for w in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF))
  seconds = time.process_time() + workers.ru_utime + workers.ru_stime
  print(seconds, own.ru_maxrss / 2**10, workers.ru_maxrss / 2**10)


# A run.


def of_run() -> list[Series]:
  from plm_jax.data import digests

  # As for files above 256 MB: a sample of blocks is checked. All sizes are 256 times smaller.
  digests.WHOLE, digests.BLOCK = digests.WHOLE >> 8, digests.BLOCK >> 8
  cells = [_of_store(sentences) for sentences in SENTENCES]
  expected = {"table of a pass": 1.0, "second start": 0.0, "late step": 0.0, "next pass": 0.0}
  return [
    Series("sentences", name, SENTENCES, [cell[name] for cell in cells], e, "ms")
    for name, e in expected.items()
  ]


def _of_store(sentences: int) -> dict[str, float]:
  """Milliseconds of processor time for a prepared text of so many sentences of 1 to 59 tokens."""
  from plm_jax.data.pipeline import Batches, Corpus
  from plm_jax.data.store import Documents, StoreWriter, TokenStore
  from plm_jax.data.vocab import Vocab
  from plm_jax.objectives.mlm import MLM

  draw = np.random.default_rng(0)
  lengths = draw.integers(1, 60, sentences)
  ends = np.unique(draw.integers(1, sentences, sentences // 20))
  counts = np.diff(np.concatenate([[0], ends, [sentences]]))
  ids = draw.integers(5, 1000, lengths.sum()).astype(np.uint16)
  special = np.arange(1000) < 5
  vocab = Vocab(size=1000, pad=0, unk=1, cls=2, sep=3, mask=4, bos=None, eos=None,
                special=special, word_start=~special)  # fmt: skip
  with tempfile.TemporaryDirectory() as folder:
    with StoreWriter(Path(folder), "train", {}, 1000) as writer:
      writer.add(Documents(ids, lengths, counts, b"\t\n" * len(counts), np.full(len(counts), 2)))
      writer.sync()

    def batches() -> Batches:
      store = TokenStore(folder, "train", 1000)
      return Batches(store, Corpus(passes=2), (MLM(),), vocab, 0, 256)

    first = batches()
    table = milliseconds(first.check)
    step = first.rows() // 256
    first(step // 2)  # begins the table of the next pass
    for making in list(first._tables._making.values()):
      making.join()  # a training takes longer than the table
    return {
      "table of a pass": table,
      "second start": milliseconds(lambda: batches()(0)),
      "late step": milliseconds(lambda: batches()(step - 1)),
      "next pass": milliseconds(lambda: first(step + 1)),
    }


def milliseconds(action: Callable) -> float:
  """Of processor time."""
  begun = time.process_time()
  action()
  return (time.process_time() - begun) * 1e3


# The figure.


def draw(series: list[Series], path: Path) -> None:
  """A panel for each dial: values relative to the first, with their exponents."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib.figure import Figure

  panels = list(dict.fromkeys(s.panel for s in series))
  columns = min(len(panels), 3)
  rows = -(-len(panels) // columns)
  figure = Figure(figsize=(3.7 * columns, 3.3 * rows), layout="constrained")
  axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
  for axis in axes[len(panels) :]:
    axis.remove()
  for panel, axis in zip(panels, axes):
    for number, s in enumerate(x for x in series if x.panel == panel):
      relative = np.asarray(s.values) / s.values[0]
      label = f"{s.name}, {exponent(s.sizes, s.values):.2f}"
      axis.plot(s.sizes, relative, "o-", color=f"C{number}", ms=4, label=label)
      if isinstance(s.expected, float):
        wanted = (np.asarray(s.sizes) / s.sizes[0]) ** s.expected
      else:
        wanted = np.asarray(s.expected) / s.expected[0]
      axis.plot(s.sizes, wanted, "--", color=f"C{number}", lw=1, alpha=0.6)
    axis.set(xscale="log", yscale="log", title=panel)
    sizes = next(s.sizes for s in series if s.panel == panel)
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
    axis.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"], fontsize=8)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
  figure.supylabel("times the first value (dashed: expected)", fontsize="small")
  figure.savefig(path, dpi=110)


def main() -> None:
  if FLAGS.parts == ["one"]:  # a process of `of_text`
    with contextlib.redirect_stderr(io.StringIO()):
      prepare_one(Path(FLAGS.text))
    return
  if unknown := set(FLAGS.parts) - {"step", "text", "run"}:
    raise UserError(f"--parts={','.join(FLAGS.parts)} has {min(unknown)}; give step, text or run.")
  if "text" in FLAGS.parts and not FLAGS.text:
    raise UserError("--text=FOLDER of .txt files is needed, or --parts=step,run without it.")
  print(HEAD, flush=True)
  series = of_step() if "step" in FLAGS.parts else []
  more = of_text(Path(FLAGS.text)) if "text" in FLAGS.parts else []
  more += of_run() if "run" in FLAGS.parts else []
  for line in more:
    print(line.row())
  if FLAGS.out:
    draw([*series, *more], Path(FLAGS.out))


if __name__ == "__main__":
  cli.run(main)
