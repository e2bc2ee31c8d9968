"""The task `write`: a text from a text (translation, summary, data to text, labels as words)."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import write
from plm_jax.errors import UserError
from plm_jax.models.model import Model
from plm_jax.runs import row_limit
from plm_jax.tasks import metrics as label_metrics
from plm_jax.tasks import parallel
from plm_jax.tasks.classification import NONE
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits
from plm_jax.tasks.file_task import STEMS, FileTask
from plm_jax.tasks.parallel import references
from plm_jax.tasks.rows import EncodedRows
from plm_jax.tasks.table_files import SUFFIXES, no_column, object_of, table_of
from plm_jax.tasks.task import Context, Trained
from plm_jax.tasks.text_metrics import check_installed, exact, scores_of_texts, tokens_of
from plm_jax.tasks.writing import (
  Writing,
  before,
  check_writes,
  end_of,
  prompt_of,
  specials,
  target_rows,
)

_MOST_LABELS = 100
_SHARE_THAT_FITS = 99  # percent of the training targets that are not cut
_LONGEST = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Write(FileTask):
  """A text from a text.

  source: a table, a list of files that belong together line by line (train.de,train.en), or a
    folder of either.
  text, target: the columns of a table, or the suffixes of parallel files in a folder; None finds
    them.
  header: whether a table has a line of names; None finds out.
  prefix: written before every source, such as "translate German to English: ".
  length, target_length: tokens of a source and of a target with their special tokens; None fits 99%
    of the training examples. Longer ones are cut.
  label_smoothing: of the loss.
  beams, length_penalty, min_length, max_length: of generation, which is greedy with one beam;
    max_length None is target_length.
  lowercase: whether scores ignore case; None does if the tokenizer does. bleu_tokens: sacreBLEU's
    tokenisation; None follows from the script of the targets.
  labels: the words of a classification; None finds out, empty is for free texts.
  """

  name: ClassVar[str] = "write"
  one_answer: ClassVar[bool] = True

  text: str | None = None
  target: str | None = None
  header: bool | None = None
  prefix: str = ""
  target_length: int | None = None
  label_smoothing: float = 0.0
  beams: int = 1
  length_penalty: float = 1.0
  min_length: int = 0
  max_length: int | None = None
  lowercase: bool | None = None
  bleu_tokens: str | None = None
  labels: tuple[str, ...] | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.target_length is not None and self.target_length < 2:
      raise UserError(f"task.target_length is {self.target_length}; a target needs 2 tokens.")
    try:
      self.rules()
      self.objective()
    except UserError as error:
      raise UserError(f"task.{error}") from None

  def rules(self) -> Rules:
    """The rules of generation."""
    most = self.max_length or self.target_length or _LONGEST
    return Rules(
      beams=self.beams,
      length_penalty=self.length_penalty,
      min_length=self.min_length,
      max_length=most,
    )

  # --- for the user

  @property
  def is_free(self) -> bool:
    """Whether targets are texts, which may have several references, and not labels."""
    return not self.labels

  @property
  def metrics(self) -> tuple[str, ...]:
    """BLEU, which chooses, chrF, ROUGE-L and exact match; for labels accuracy and macro-F1."""
    return ("accuracy", "macro_f1") if self.labels else ("bleu", "chrf", "rouge_l", "exact")

  @property
  def baselines(self) -> dict[str, str]:
    return {"copy": "copy of the source", "majority": "most frequent target"}

  @property
  def question(self) -> str:
    return f"which of {len(self.labels)} labels?" if self.labels else "which text follows a text?"

  @property
  def place(self) -> str:
    return Path(os.path.expanduser(self.source.split(",")[0])).resolve().name

  # --- reading

  def read(self, context: Context) -> tuple[Self, Splits]:
    check_writes(context.source.config)
    task, splits = super().read(context)
    if task.is_free:
      dev, test = map(parallel.merged_examples, (splits.dev, splits.test))
      splits = splits._replace(dev=dev, test=test)
    task = dataclasses.replace(task, length=self.length)
    task, notes = task._with_lengths(splits, context)
    if task.is_free:
      check_installed()
      if task.lowercase is None:
        lowers = lowercases([item.target for item in splits.train.items], context.tokenizer)
        task = dataclasses.replace(task, lowercase=lowers)
      notes += ["scores ignore case"] * task.lowercase
    kept = tuple(note for note in splits.notes if not note.startswith("rows of "))
    return task, splits._replace(notes=(*kept, *notes))

  def fitted(self, items: list[Example]) -> Self:
    targets = [item.target for item in items]
    task = self
    if self.bleu_tokens is None:
      task = dataclasses.replace(task, bleu_tokens=tokens_of(targets))
    if self.labels is None:
      counts = Counter(targets)
      few = len(counts) <= min(_MOST_LABELS, len(targets) // 5) and min(counts.values()) > 1
      task = dataclasses.replace(task, labels=tuple(sorted(counts)) if few else ())
    return task

  def _in_folder(self) -> tuple[Self, list[str]]:
    folder = Path(os.path.expanduser(self.source))
    if not folder.is_dir() or any(p.suffix in SUFFIXES for p in folder.glob("train*")):
      return super()._in_folder()
    files = parallel.files_in_folder(folder, STEMS, [s for s in (self.text, self.target) if s])
    if "train" not in files:
      raise UserError(
        f"The folder {str(folder)!r} has no train.jsonl, .csv or .tsv, and no parallel files such "
        "as train.de and train.en; --set=task.text=de and task.target=en name the suffixes."
      )
    task = dataclasses.replace(
      self, source=files["train"], dev=self.dev or files.get("dev"),
      test=self.test or files.get("test"),
    )  # fmt: skip
    names = ", ".join(Path(part).name for part in files["train"].split(","))
    return task, [f"parallel files, the source first: {names} (--set=task.text=SUFFIX changes it)"]

  def read_noted(self, path: str) -> tuple[list[Example], list[str]]:
    """An example for each target."""
    if parallel.is_lines(path):
      return parallel.read_lines(path), []
    table = parallel.read_columns(path, self.header)
    chosen = parallel.columns_of(table, self.text, self.target)
    return parallel.examples_in(table, chosen, labelled=True), [chosen.note(table)]

  def read_file(self, path: str | Path, labelled: bool) -> list[Example]:
    """An example for each source, with all its targets; without `labelled` one for each line."""
    if labelled:
      return parallel.merged(self.read_noted(str(path))[0])
    table = parallel.read_columns(path, self.header)
    chosen = parallel.columns_of(table, self.text, self.target)
    return parallel.examples_in(table, chosen, labelled=False)

  def with_columns(self) -> Self:
    if parallel.is_lines(self.source):
      return self
    table = parallel.read_columns(self.source, self.header)
    if self.target and self.target not in table.names:
      raise no_column(table, self.target, "target")
    source, target = parallel.columns_of(table, self.text, self.target)
    header = self.header if table.path.suffix == ".jsonl" else table.header
    return dataclasses.replace(self, text=source, target=self.target or target, header=header)

  def has_targets(self, path: Path) -> bool:
    return self.target in parallel.read_columns(path, self.header).names

  @property
  def line(self) -> str:
    return "a source text"

  def parse(self, line: str, name: str) -> Example:
    """A text, or an object of JSON."""
    if (row := object_of(line)) is not None:
      table = table_of(row, name)
      chosen = parallel.columns_of(table, self.text, self.target)
      return parallel.examples_in(table, chosen, labelled=False)[0]._replace(name=name)
    return Example((line,), None, name, name)

  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    """With the targets, int32 [references, tokens] of each example."""
    ids = tokenizer.encode_batch([self.prefix + item.texts[0] for item in items])
    targets: dict[str, Any] = {}
    if all(item.target is not None for item in items):
      texts = [references(item) for item in items]
      encoded = iter(tokenizer.encode_batch([text for refs in texts for text in refs]))
      targets["target"] = [parallel.padded([next(encoded) for _ in refs]) for refs in texts]
    return Examples(items, [(tokens,) for tokens in ids], targets)

  def _with_lengths(self, splits: Splits, context: Context) -> tuple[Self, list[str]]:
    """The task with the lengths of sources and targets, and lines about those that are cut."""
    config, tokenizer = context.source.config, context.tokenizer
    limit, special = row_limit(context.source), specials(config, tokenizer)
    check_known(splits.train, tokenizer)
    targets = np.array([(row >= 0).sum() + 1 for t in splits.train.targets["target"] for row in t])
    sources = np.array([len(ids) + special for (ids,) in splits.train.ids])
    joint = not hasattr(config, "source_ids")  # a decoder reads both in one row
    most = limit // 2 if joint else limit
    target_length = self.target_length or _fit(targets, most)
    room = limit - target_length if joint else limit
    if room < 4:
      raise UserError(
        f"task.target_length={target_length} leaves no room for a source in the model's {limit} "
        "positions; lower it."
      )
    length = self.length or _fit(sources, room)
    length = min(length, room)
    notes = [
      f"{name} of {width} tokens; {int((sizes > width).sum()):,} of {len(sizes):,} in training are "
      f"longer and are cut"
      for name, width, sizes in (("sources", length, sources), ("targets", target_length, targets))
    ]
    return dataclasses.replace(self, length=length, target_length=target_length), notes

  # --- training

  def objective(self) -> Writing:
    return Writing(label_smoothing=self.label_smoothing)

  def rows(self, examples: Examples, config: Model, tokenizer: Tokenizer) -> EncodedRows:
    return target_rows(examples, config, tokenizer, self.length, self.target_length)

  # --- predicting

  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """{"output", "score"}: the text and its log p, or the score of its beam; for a classification
    also {"label"}."""
    config, tokenizer = trained.config, trained.tokenizer
    prompts = [prompt_of(ids, config, tokenizer, self.length) for (ids,) in examples.ids]
    written = write(trained.params, config, tokenizer, trained.compute, prompts, self.rules())
    end = end_of(config, tokenizer)
    predictions: list[Prediction] = []
    for best, *_ in written:
      ids = before(best.ids, end)
      predictions.append({"output": tokenizer.decode(ids), "score": round(best.score, 6)})
    if self.labels:
      known = {tokenizer.decode(tokenizer.encode(label)): label for label in self.labels}
      for prediction in predictions:
        prediction["label"] = known.get(prediction["output"], NONE)
    return predictions

  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    """Also ROUGE-1 and ROUGE-2 of free texts."""
    if self.labels:
      targets = [references(item)[0] for item in examples.items]
      labels = [prediction["label"] for prediction in predictions]
      return label_metrics.classification(targets, labels, self.labels)
    refs = [references(item) for item in examples.items]
    outputs = [prediction["output"] for prediction in predictions]
    same = [exact(text, r, bool(self.lowercase)) for text, r in zip(outputs, refs, strict=True)]
    scores = scores_of_texts(outputs, refs, self.bleu_tokens or "13a", bool(self.lowercase))
    return scores.values | {"exact": 100 * float(np.mean(same))}

  def report(self, examples: Examples, predictions: list[Prediction]) -> str:
    """The settings of the metrics and some outputs."""
    if self.labels:
      targets = [references(item)[0] for item in examples.items]
      return label_metrics.confusion(targets, [p["label"] for p in predictions], self.labels)
    refs = [references(item) for item in examples.items]
    outputs = [prediction["output"] for prediction in predictions]
    scores = scores_of_texts(outputs, refs, self.bleu_tokens or "13a", bool(self.lowercase))
    lines = [f"{name}: {signature}" for name, signature in scores.signatures.items()]
    for item, output in list(zip(examples.items, outputs))[:3]:
      lines += ["", f"source:    {item.texts[0]}", f"output:    {output}"]
      lines += [f"reference: {references(item)[0]}"]
    return "\n".join(lines)

  def mistake(self, example: Example, prediction: Prediction) -> float:
    """Of a label 0 or 1; of a text 1 minus the share of characters in common with the nearest
    reference."""
    if self.labels:
      return float(prediction["label"] != references(example)[0])
    output, refs = prediction["output"], references(example)
    if exact(output, refs, bool(self.lowercase)):
      return 0.0
    return 1 - max(difflib.SequenceMatcher(None, output, r, False).ratio() for r in refs)

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    known = Counter(target for item in splits.train.items for target in references(item))
    outputs = [known.most_common(1)[0][0]] * len(splits.test)
    if name == "copy":
      outputs = [item.texts[0] for item in splits.test.items]
    labels = self.labels or ()
    return [{"output": text, "label": text if text in labels else NONE} for text in outputs]


def check_known(examples: Examples, tokenizer: Tokenizer) -> None:
  """Errors: `UserError` if most tokens of the targets are unknown, which a model cannot write."""
  ids = np.concatenate([rows[rows >= 0] for rows in examples.targets["target"]])
  share = float(np.mean(ids == tokenizer.vocab.unk)) if tokenizer.vocab.unk is not None else 0.0
  if share > 0.5:
    raise UserError(
      f"{share:.0%} of the targets' tokens are unknown to the tokenizer, which was trained on "
      "other text; take a model of this language or script."
    )


def _fit(sizes: np.ndarray, most: int) -> int:
  """The smallest multiple of 8 that fits almost all."""
  fits = int(np.percentile(sizes, _SHARE_THAT_FITS, method="higher"))
  return min(max(-(-fits // 8) * 8, 8), _LONGEST, most)


def lowercases(texts: list[str], tokenizer: Tokenizer) -> bool:
  """Whether a tokenizer loses the capitals of these texts."""
  text = " ".join(texts[:100])
  return any(map(str.isupper, text)) and not any(
    map(str.isupper, tokenizer.decode(tokenizer.encode(text)))
  )
