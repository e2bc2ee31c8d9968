"""Minimal pairs: how often a grammatical sentence scores higher than its ungrammatical twin.

Source: BLiMP (Warstadt et al. 2020). A sentence's score is its log-likelihood, for masked models
its pseudo-log-likelihood (Salazar et al. 2020); ties count half.
"""

import itertools
from pathlib import Path

import numpy as np

from plm_jax.errors import UserError
from plm_jax.evaluation.likelihood import masked_log_p, next_log_p
from plm_jax.evaluation.scores import Scores, fingerprint, is_causal
from plm_jax.files import open_file, parse_json
from plm_jax.runs import Run

FEW = 0.01  # share of pairs whose absence no mean shows


def blimp(run: Run, folder: Path, limit: int | None, scores: Scores) -> None:
  """Adds blimp/PARADIGM for every file (at most `limit` pairs), and their mean, to `scores`.

  The set is that of the texts, so models with different tokenizers are compared, even if a share
  of up to `FEW` of the pairs is too long for one of them.
  """
  read = {file.stem: read_minimal_pairs(file)[:limit] for file in pair_files(folder)}
  if not is_causal(run) and run.params.masked_lm() is None:
    scores.notes.append("it has no head that scores sentences, so BLiMP was left out")
    return
  length = run.experiment.data.length
  rows = framed(run, [s for pairs in read.values() for pair in pairs for s in pair])
  fits = np.all((rows["length"] <= length).reshape(-1, 2), axis=1)
  if not fits.all():
    scores.notes.append(f"{(~fits).sum()} BLiMP pairs are longer than its rows and were left out")
  kept = {name: values[np.repeat(fits, 2)] for name, values in rows.items()}
  for name in ("input_ids", "segment_ids"):
    kept[name] = kept[name][:, :length]
  score = log_likelihood if is_causal(run) else pseudo_log_likelihood
  likelihood = np.full((len(fits), 2), np.nan)
  likelihood[fits] = score(run, kept).reshape(-1, 2)
  first = 0
  for name, pairs in read.items():
    rows_of_file = slice(first, first + len(pairs))
    good, bad = likelihood[rows_of_file][fits[rows_of_file]].T
    first += len(pairs)
    if len(good):
      scores.metrics[f"blimp/{name}"] = float((good > bad).mean() + (good == bad).mean() / 2)
      scores.counts[f"blimp/{name}"] = len(good)
  paradigms = [value for name, value in scores.metrics.items() if name.startswith("blimp/")]
  if not paradigms:
    return
  scores.metrics["blimp"] = float(np.mean(paradigms))
  scores.counts["blimp"] = int(fits.sum())
  texts = list(itertools.chain(*read.values()))
  if fits.mean() < 1 - FEW:
    texts = list(itertools.compress(texts, fits))
  scores.sets["blimp"] = fingerprint([{"pairs": np.array(texts)}])
  scores.references["blimp"] = 0.5


def pair_files(folder: Path) -> list[Path]:
  """The .jsonl files of a folder, by name. Errors: `UserError` if there are none."""
  files = sorted(folder.glob("*.jsonl"))
  if not files:
    raise UserError(f"--blimp={folder} is not a folder with .jsonl files in it.")
  return files


def read_minimal_pairs(file: Path) -> list[tuple[str, str]]:
  """(grammatical, ungrammatical) of every line. Errors: `UserError` naming file and line."""
  try:
    with open_file(file) as opened:
      text = opened.read().decode()
  except (OSError, ValueError) as error:
    raise UserError(f"{file} cannot be read: {error}") from None
  pairs = []
  # Not splitlines(), which would cut a JSON string at U+2028.
  lines = text.removesuffix("\n").split("\n") if text else []
  for number, line in enumerate(lines, 1):
    try:
      pair = parse_json(line, file)
      sentences = pair["sentence_good"], pair["sentence_bad"]
    except (UserError, KeyError, TypeError):
      sentences = ()
    if not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
      raise UserError(
        f"{file}, line {number}: expected an object with sentence_good and sentence_bad"
      )
    pairs.append(sentences)
  if not pairs:
    raise UserError(f"{file} is empty; expected a pair of sentences per line")
  return pairs


def framed(run: Run, sentences: list[str]) -> dict[str, np.ndarray]:
  """ "[CLS] sentence [SEP]" for every sentence, padded to one length (a multiple of 8). For
  left-to-right models, special tokens that the vocabulary lacks are omitted."""
  vocab = run.tokenizer.vocab
  if not is_causal(run):
    vocab.frame(padding=False)
  first, last = vocab.begin, vocab.end
  ids = [np.array([*first, *i, *last]) for i in run.tokenizer.encode_batch(sentences)]
  width = -(-max(map(len, ids)) // 8) * 8
  input_ids = np.full((len(ids), width), vocab.filler, np.int32)
  for row, tokens in enumerate(ids):
    input_ids[row, : len(tokens)] = tokens
  length = np.array(list(map(len, ids)), np.int32)
  return {"input_ids": input_ids, "segment_ids": np.zeros_like(input_ids), "length": length}


def pseudo_log_likelihood(run: Run, rows: dict[str, np.ndarray]) -> np.ndarray:
  """Sum of log p(token | all others) of every sentence, float64 [N] (Salazar et al. 2020)."""
  column = np.arange(rows["input_ids"].shape[1])
  row, position = np.nonzero((column > 0) & (column < rows["length"][:, None] - 1))
  log_p = masked_log_p(run, rows, row, position)
  return np.bincount(row, log_p, minlength=len(rows["length"]))


def log_likelihood(run: Run, rows: dict[str, np.ndarray]) -> np.ndarray:
  """Sum of log p(token | those before it) of every sentence, without its end, float64 [N]."""
  log_p = next_log_p(run, rows)
  last = rows["length"][:, None] - 1 - len(run.tokenizer.vocab.end)
  return (log_p * (np.arange(log_p.shape[1]) < last)).sum(axis=1)
