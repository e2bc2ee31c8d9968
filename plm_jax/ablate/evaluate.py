"""Measures a trained run on sets that are the same for every arm of a table.

  python -m plm_jax.ablate.evaluate --from=sweeps/bert_table_6_small/l12_h768_a12/0
  python -m plm_jax.ablate.evaluate --from=RUN --blimp=FOLDER --finetune=500,all

The sets are functions of the held-out text, the tokenizer and the row length alone; the arm's own
objective, format and masking have no part in them. `scores.json` in the run's directory holds every
number, and a hash of each set, so that a report compares only what was measured on the same.

    mlm_*     rows "[CLS] A [SEP] B [SEP]", B following A; BERT's rule, 15%, 80/10/10, one draw of
              masks (what the paper's own perplexities are of)
    pseudo_perplexity     exp of the mean of -log p(token | all others), one token masked at a time,
              in the same rows (Salazar et al. 2020)
    clm_*     the same rows for left-to-right models, which have no mlm_*
    seq2seq_* for encoder-decoders, the run's own sources and targets without label smoothing: arms
              with other objectives were measured on other sets
    nsp_*     pairs of BERT's code, as many random as consecutive ones; chunks of one sentence,
              which are always random, among them
    sop_*     consecutive pairs, every other one swapped
    blimp     BLiMP (Warstadt et al. 2020): share of pairs whose grammatical sentence has the higher
              pseudo-log-likelihood, or log-likelihood for left-to-right models; ties are half
    finetune_LABELS_*     which package a sentence comes from: run_finetune.py from this run, with
              the run's seed and --set=data.task=label
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.ablate.plan import SCORES, Evaluation
from plm_jax.data.corpora import cache_folder
from plm_jax.data.pipeline import Batches
from plm_jax.data.preparation import Prepared, prepare
from plm_jax.data.segments import SegmentPair, pass_table
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.objectives import baselines
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.objective import cross_entropy, token_log_p
from plm_jax.objectives.seq2seq import Seq2Seq
from plm_jax.tasks.finetuning import model_cell, plan
from plm_jax.train.allocator import keep_freed_memory
from plm_jax.train.checkpoint import restore_parameters
from plm_jax.train.start import Source, continued_from, keep_compilations, versions
from plm_jax.train.workdir import write_whole

FORMAT = 1
ROWS = 4096  # of held-out text at most, and pairs of each kind
POSITIONS = 4  # of a row, on average, are masked one at a time
TOKENS = 8192  # per batch: what the scores of a batch take is in proportion to it

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Not on import: several commands have flags of the same name."""
  flags.DEFINE_string("from", None, "The pretraining run to measure.")
  flags.DEFINE_string("blimp", None, "A folder of BLiMP's .jsonl files.")
  flags.DEFINE_integer("blimp_pairs", None, "At most so many pairs of each file (default: all).")
  flags.DEFINE_string("finetune", None, "Fine-tune on so many labels, such as 500,all.")
  flags.DEFINE_string("cache", None, "Where prepared text is kept (default: ~/.cache/plm_jax).")


def main() -> None:
  keep_freed_memory()
  if not FLAGS["from"].value:
    raise UserError("--from=DIR, the directory of a pretraining run, is needed.")
  asked = Evaluation(FLAGS.blimp, FLAGS.blimp_pairs, FLAGS.finetune)
  cache = cache_folder(FLAGS.cache)
  keep_compilations(cache)
  cli.load_module("data.installed_text")  # makes tfds:installed_text known
  source = continued_from(FLAGS["from"].value)
  start = time.perf_counter()
  trained = load(source, cache)
  found = Scores.of(trained)
  if trained.step < source.experiment.steps and "public" not in source.document:
    found.notes.append(f"measured after {trained.step:,} of {source.experiment.steps:,} steps")
  held_out(trained, found)
  pairs(trained, found)
  if asked.blimp:
    blimp(trained, Path(asked.blimp), asked.blimp_pairs, found)
  if asked.finetune:
    finetune(trained, asked.labels, cache, found)
  record = {
    "format": FORMAT,
    "asked": dataclasses.asdict(asked),
    **found._asdict(),
    "step": trained.step,
    "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(trained.params)),
    "seconds": time.perf_counter() - start,
    "versions": versions(),
  }
  write_whole(source.path / SCORES, json.dumps(record, indent=2) + "\n")
  for name, value in found.metrics.items():
    print(f"{name:32} {value:.4f}")


class Trained(NamedTuple):
  """A run with its parameters and the text it held out."""

  source: Source
  params: Any
  step: int
  prepared: Prepared

  @property
  def compute(self) -> Compute:
    return self.source.experiment.compute

  @property
  def vocab(self) -> Vocab:
    return self.source.tokenizer.vocab

  @property
  def length(self) -> int:
    return self.source.experiment.data.length

  @property
  def causal(self) -> bool:
    """Whether its token scores are of the next token."""
    return any(isinstance(o, CLM) for o in self.source.experiment.objectives)

  @property
  def most(self) -> int:
    """Rows of held-out text at most: twice what its training looked at, so that a run of seconds is
    measured in seconds."""
    return min(ROWS, 2 * self.source.experiment.schedule.evaluation_rows)

  @property
  def rows(self) -> int:
    """Rows per batch."""
    return max(8, TOKENS // self.length)


class Scores(NamedTuple):
  """metrics: name -> value. counts: how many predictions a metric is of. sets: the beginning of a
  metric's name -> hash of what it was measured on. references: what looking at nothing scores."""

  metrics: dict[str, float]
  counts: dict[str, int]
  sets: dict[str, str]
  references: dict[str, float]
  notes: list[str]

  @classmethod
  def of(cls, trained: Trained) -> Scores:
    found = cls({}, {}, {}, {}, [])
    if trained.causal:
      found.notes.append("left-to-right: its loss predicts from the left alone, no mlm_ metric")
    return found

  def add(self, kind: str, values: dict[str, float], count: int, measured_on: list[dict]) -> None:
    """The metrics `kind_name` of one set."""
    self.sets[kind] = fingerprint(measured_on)
    for name, value in values.items():
      self.metrics[f"{kind}_{name}"] = float(value)
      self.counts[f"{kind}_{name}"] = count


def load(source: Source, cache: Path) -> Trained:
  """The run's newest good checkpoint, on one device."""
  experiment = source.experiment
  with jax.default_device(jax.local_devices()[0]):
    fresh = jax.jit(experiment.init_parameters)(jax.random.key(0))
  restored = restore_parameters(source.path, fresh)
  return Trained(
    source, restored.params, int(restored.folder.name), prepare(experiment.data, cache)
  )


def fingerprint(batches: list[dict]) -> str:
  """A hash of everything that a set consists of."""
  digest = hashlib.sha256()
  for batch in batches:
    for name in sorted(batch):
      digest.update(f"{name} {batch[name].shape} {batch[name].dtype}".encode())
      digest.update(np.ascontiguousarray(batch[name]).tobytes())
  return digest.hexdigest()[:16]


# --- held-out text --------------------------------------------------------------------------------


def held_out(trained: Trained, found: Scores) -> None:
  """mlm_* and pseudo_perplexity, or clm_*, or seq2seq_*."""
  for objective in trained.source.experiment.objectives:
    if isinstance(objective, Seq2Seq):
      return sequences(trained, objective, found)
  if trained.causal:
    batches = rows(trained, (CLM(),))
    terms = mean_terms(trained.params.encoder(), batches, CLM(), trained.compute)
    loss, count = terms["loss"]
    scores = {"loss": loss, "perplexity": math.exp(loss), "accuracy": terms["accuracy"][0]}
    found.add("clm", scores, int(count), batches)
    return
  model = trained.params.masked_lm()
  if model is None:
    found.notes.append("it has no head that predicts masked tokens")
    return
  batches = rows(trained, (MLM(),))
  terms = mean_terms(model, batches, MLM(), trained.compute)
  loss, count = terms["loss"]
  scores = {"loss": loss, "perplexity": math.exp(loss), "accuracy": terms["accuracy"][0]}
  found.add("mlm", scores, int(count), batches)
  unigram = baselines.unigram(trained.prepared.train.counts, batches, "mlm").scores
  found.references.update({f"mlm_{name}": float(value) for name, value in unigram.items()})
  plain = rows(trained, ())
  log_p = one_at_a_time(model, plain, trained)
  found.add("pseudo", {"perplexity": math.exp(-log_p.mean())}, len(log_p), plain)


def sequences(trained: Trained, objective: Seq2Seq, found: Scores) -> None:
  """seq2seq_* of the run's own sources and targets."""
  objective = dataclasses.replace(objective, label_smoothing=0.0, z_loss=0.0)
  corpus = dataclasses.replace(trained.source.experiment.data, workers=0)
  batches = Batches(
    trained.prepared.valid, corpus, (objective,), trained.vocab, seed=0, global_batch=trained.rows
  ).evaluation(trained.most)
  terms = mean_terms(trained.params, batches, objective, trained.compute)
  loss, count = terms["loss"]
  scores = {"loss": loss, "perplexity": math.exp(loss), "accuracy": terms["accuracy"][0]}
  found.add("seq2seq", scores, int(count), batches)


def rows(trained: Trained, objectives: tuple) -> list[dict[str, np.ndarray]]:
  """Held-out rows in batches of one shape, with one draw of masks."""
  corpus = dataclasses.replace(
    trained.source.experiment.data, segments=SegmentPair(next="none", short=0.0), workers=0
  )
  batches = Batches(
    trained.prepared.valid, corpus, objectives, trained.vocab, seed=0, global_batch=trained.rows
  )
  return batches.evaluation(trained.most)


def mean_terms(model, batches: list[dict], objective, compute: Compute) -> dict[str, Any]:
  """metric -> (mean, count) of an objective's loss over batches."""
  sums = [_terms(model, batch, objective, compute) for batch in batches]
  totals = jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64)), *jax.device_get(sums))
  return {name: (total / count, count) for name, (total, count) in totals.items()}


@functools.partial(jax.jit, static_argnames=("objective", "compute"))
def _terms(model, batch, objective, compute):
  return objective.loss(model, model(batch, compute), batch, None)


def one_at_a_time(model, batches: list[dict], trained: Trained) -> np.ndarray:
  """log p of real tokens, each masked alone, float64 [N]: rows at equal distances, so many of them
  that there are about `POSITIONS` tokens for every row that there may be."""
  joined = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
  real = np.flatnonzero(joined["row_weight"] > 0)
  tokens = joined["length"][real].mean()
  chosen = real[
    np.linspace(
      0, len(real) - 1, min(len(real), math.ceil(POSITIONS * trained.most / tokens)), dtype=int
    )
  ]
  part = {name: joined[name][chosen] for name in ("input_ids", "segment_ids", "length")}
  text = ~np.isin(part["input_ids"], trained.vocab.frame_ids)
  text &= np.arange(part["input_ids"].shape[1]) < part["length"][:, None]
  row, position = np.nonzero(text)
  return masked_log_p(model, part, row, position, trained)


def masked_log_p(
  model, part: dict, row: np.ndarray, position: np.ndarray, trained: Trained
) -> np.ndarray:
  """log p(token at `position` of `row` | the row with [MASK] there), float64 [N]."""
  size = max(8, TOKENS // part["input_ids"].shape[1])
  found = []
  for first in range(0, len(row), size):
    at = np.minimum(np.arange(first, first + size), len(row) - 1)  # the last batch is filled up
    batch = {name: values[row[at]] for name, values in part.items()}
    target = batch["input_ids"][np.arange(size), position[at]]
    batch["input_ids"][np.arange(size), position[at]] = trained.vocab.mask
    found.append(_log_p_at(model, batch, position[at], target, trained.compute))
  return np.concatenate(jax.device_get(found))[: len(row)].astype(np.float64)


@functools.partial(jax.jit, static_argnames="compute")
def _log_p_at(model, batch, position_B, target_B, compute):
  hidden_BTD = model(batch, compute)
  state_BD = jnp.take_along_axis(hidden_BTD, position_B[:, None, None], axis=1)[:, 0]
  log_p_BV = jax.nn.log_softmax(model.token_logits(state_BD))
  return jnp.take_along_axis(log_p_BV, target_B[:, None], axis=1)[:, 0]


# --- pairs ----------------------------------------------------------------------------------------


def pairs(trained: Trained, found: Scores) -> None:
  """nsp_accuracy and sop_accuracy, each by the head that was trained for it, else by the other:
  both say whether B follows A (label 0) or not (label 1)."""
  model = trained.params.encoder()
  if not _has(model, "nsp") and not _has(model, "sop"):
    return
  for kind, spans in (("nsp", random_pairs(trained)), ("sop", swapped_pairs(trained))):
    if spans is None:
      found.notes.append(f"too little held-out text for {kind} pairs")
      continue
    head = kind if _has(model, kind) else ("sop" if kind == "nsp" else "nsp")
    batches = read_pairs(trained, spans)
    sums = [_pair_terms(model, batch, head, trained.compute) for batch in batches]
    correct = float(np.sum(np.asarray(jax.device_get(sums), np.float64)))
    labels = np.concatenate([b["pair_label"][b["row_weight"] > 0] for b in batches])
    share = float(max(labels.mean(), 1 - labels.mean()))
    scores = {"accuracy": correct / len(labels), "majority": share}
    found.add(kind, scores, len(labels), batches)
    found.references[f"{kind}_accuracy"] = share


def _has(model, head: str) -> bool:
  return getattr(model, head, None) is not None


@functools.partial(jax.jit, static_argnames=("head", "compute"))
def _pair_terms(model, batch, head, compute):
  hidden_BTD = model(batch, compute)
  read = model.next_sentence_logits if head == "nsp" else model.sentence_order_logits
  logits_B2 = read(hidden_BTD, batch)
  return cross_entropy(logits_B2, batch["pair_label"], batch["row_weight"])["accuracy"][0]


def random_pairs(trained: Trained) -> np.ndarray | None:
  """SPANS [N]: as many random as consecutive pairs, spread over the held-out text."""
  spans = _spans(trained, SegmentPair(next="random", short=0.0))
  kinds = [np.flatnonzero(spans["label"] == label) for label in (0, 1)]
  count = min(trained.most // 2, *map(len, kinds))
  if not count:
    return None
  chosen = [kind[np.linspace(0, len(kind) - 1, count, dtype=int)] for kind in kinds]
  return spans[np.sort(np.concatenate(chosen))]


def swapped_pairs(trained: Trained) -> np.ndarray | None:
  """SPANS [N]: consecutive pairs, every other one swapped."""
  spans = _spans(trained, SegmentPair(next="none", short=0.0))
  count = min(trained.most, len(spans)) // 2 * 2
  if not count:
    return None
  spans = spans[np.linspace(0, len(spans) - 1, count, dtype=int)].copy()
  swap = spans[1::2].copy()
  for part in ("start", "length"):
    spans[f"a_{part}"][1::2], spans[f"b_{part}"][1::2] = swap[f"b_{part}"], swap[f"a_{part}"]
  spans["label"] = np.arange(count) % 2
  return spans


def _spans(trained: Trained, segments: SegmentPair) -> np.ndarray:
  table = pass_table(trained.prepared.valid, segments, trained.length, seed=0, pass_=0)
  return np.array(table[table["b_length"] > 0])


def read_pairs(trained: Trained, spans: np.ndarray) -> list[dict[str, np.ndarray]]:
  """Batches of one shape; what fills the last one up has row_weight 0."""
  batches = []
  for first in range(0, len(spans), trained.rows):
    slot = np.arange(first, first + trained.rows)
    batch = SegmentPair().read(
      trained.prepared.valid,
      spans[np.minimum(slot, len(spans) - 1)],
      trained.length,
      trained.vocab,
    )
    batches.append(batch | {"row_weight": (slot < len(spans)).astype(np.float32)})
  return batches


# --- BLiMP ----------------------------------------------------------------------------------------


def blimp(trained: Trained, folder: Path, most: int | None, found: Scores) -> None:
  """blimp/PARADIGM for every file, and their mean. Errors: `UserError` for files of other kinds."""
  files = sorted(folder.glob("*.jsonl"))
  if not files:
    raise UserError(f"--blimp={folder} is no folder with .jsonl files in it.")
  model = trained.params.encoder() if trained.causal else trained.params.masked_lm()
  if model is None:
    found.notes.append("it has no head that scores sentences, so BLiMP was left out")
    return
  read = {file.stem: read_minimal_pairs(file)[:most] for file in files}
  sentences = [s for pairs in read.values() for pair in pairs for s in pair]
  part = framed(trained, sentences)
  fits = (part["length"] <= trained.length).reshape(-1, 2).all(axis=1)
  if not fits.all():
    found.notes.append(f"{(~fits).sum()} BLiMP pairs are longer than its rows and were left out")
  kept = {name: values[np.repeat(fits, 2)] for name, values in part.items()}
  kept["input_ids"], kept["segment_ids"] = (
    kept[name][:, : trained.length] for name in ("input_ids", "segment_ids")
  )
  score = left_to_right if trained.causal else pseudo_log_likelihood
  likelihood = np.full((len(fits), 2), np.nan)
  likelihood[fits] = score(model, kept, trained).reshape(-1, 2)
  first = 0
  for name, pairs in read.items():
    of = slice(first, first + len(pairs))
    good, bad = likelihood[of][fits[of]].T
    first += len(pairs)
    if len(good):
      found.metrics[f"blimp/{name}"] = float((good > bad).mean() + (good == bad).mean() / 2)
      found.counts[f"blimp/{name}"] = len(good)
  paradigms = [value for name, value in found.metrics.items() if name.startswith("blimp/")]
  if not paradigms:
    return
  found.metrics["blimp"] = float(np.mean(paradigms))
  found.counts["blimp"] = int(fits.sum())
  found.sets["blimp"] = fingerprint([kept])
  found.references["blimp"] = 0.5


def read_minimal_pairs(file: Path) -> list[tuple[str, str]]:
  """(grammatical, ungrammatical) of every line. Errors: `UserError` naming file and line."""
  try:
    lines = file.read_text(encoding="utf-8").splitlines()
  except (OSError, ValueError) as error:
    raise UserError(f"{file} cannot be read: {error}") from None
  found = []
  for number, line in enumerate(lines, 1):
    try:
      pair = json.loads(line)
      sentences = pair["sentence_good"], pair["sentence_bad"]
    except (ValueError, KeyError, TypeError):
      sentences = ()
    if not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
      raise UserError(
        f"{file}, line {number}: expected an object with sentence_good and sentence_bad"
      )
    found.append(sentences)
  if not found:
    raise UserError(f"{file} is empty; expected a pair of sentences per line")
  return found


def framed(trained: Trained, sentences: list[str]) -> dict[str, np.ndarray]:
  """ "[CLS] sentence [SEP]" of every sentence, padded to one length (a multiple of 8); for
  left-to-right models without what their vocabulary lacks of these."""
  vocab = trained.vocab
  if not trained.causal:
    vocab.frame(padding=False)
  first, last = vocab.begin, vocab.end
  ids = [np.array([*first, *i, *last]) for i in trained.source.tokenizer.encode_batch(sentences)]
  width = -(-max(map(len, ids)) // 8) * 8
  input_ids = np.full((len(ids), width), vocab.filler, np.int32)
  for row, tokens in enumerate(ids):
    input_ids[row, : len(tokens)] = tokens
  length = np.array(list(map(len, ids)), np.int32)
  return {"input_ids": input_ids, "segment_ids": np.zeros_like(input_ids), "length": length}


def pseudo_log_likelihood(model, part: dict, trained: Trained) -> np.ndarray:
  """Sum of log p(token | all others) of every sentence, float64 [N] (Salazar et al. 2020)."""
  column = np.arange(part["input_ids"].shape[1])
  row, position = np.nonzero((column > 0) & (column < part["length"][:, None] - 1))
  log_p = masked_log_p(model, part, row, position, trained)
  return np.bincount(row, log_p, minlength=len(part["length"]))


def left_to_right(model, part: dict, trained: Trained) -> np.ndarray:
  """Sum of log p(token | those before it) of every sentence, the end not counted, float64 [N]."""
  log_p = next_log_p(model, part, trained)
  counts = np.arange(log_p.shape[1]) < part["length"][:, None] - 1 - len(trained.vocab.end)
  return (log_p * counts).sum(axis=1)


def next_log_p(model, part: dict, trained: Trained) -> np.ndarray:
  """log p(token at t + 1 | those up to t) of every row, float64 [N, T - 1]; of padding too."""
  count, width = part["input_ids"].shape
  size = max(8, TOKENS // width)
  found = []
  for first in range(0, count, size):
    at = np.minimum(np.arange(first, first + size), count - 1)
    batch = {name: values[at] for name, values in part.items()}
    found.append(_next_log_p(model, batch, trained.compute))
  return np.concatenate(jax.device_get(found))[:count].astype(np.float64)


@functools.partial(jax.jit, static_argnames="compute")
def _next_log_p(model, batch, compute):
  next_BT = batch["input_ids"][:, 1:]
  return token_log_p(model, model(batch, compute)[:, :-1], next_BT)


# --- fine-tuning ----------------------------------------------------------------------------------


def finetune(
  trained: Trained,
  labels: list[int | None],
  cache: Path,
  found: Scores,
  settings: tuple[str, ...] = (),
) -> None:
  """finetune_LABELS_accuracy and _macro_f1: run_finetune.py with --set=data.task=label, `settings`
  being what else it is set to."""
  recipe = cli.load_module("experiments.finetune").recipe
  source = trained.source
  chosen = plan(source, recipe, ["data.task=label", *settings], cache, source.path / "finetune")
  for size in labels:
    name, seed = str(size or "all"), source.experiment.seed
    cell = model_cell(chosen, "pretrained", size, seed, f"fine-tuning on {name}")
    test = chosen.task.record()["splits"]["test"]["sha256"]
    found.add(
      f"finetune_{name}", cell.test, len(chosen.task.test.texts), [{"test": np.array(test)}]
    )


if __name__ == "__main__":
  define_flags()
  cli.run(main)
