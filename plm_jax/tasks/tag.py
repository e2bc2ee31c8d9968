"""The task `tag`: a tag for every word (named entities, parts of speech).

Source: Devlin et al. 2019, section 5.3: a linear map of the state of a word's first piece; its
other pieces have no tag. The decoder of an encoder-decoder reads the text after a start token, so a
word's tag is read one position later, where the decoder has read that piece.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.models.model import Model
from plm_jax.objectives.baselines import Baseline
from plm_jax.objectives.objective import Terms, cross_entropy
from plm_jax.tasks.conll import SUFFIXES, joined, read_conll, words_of
from plm_jax.tasks.entities import all_tags, entities, entity_counts, in_iobes, scheme_of
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits
from plm_jax.tasks.file_task import FileTask
from plm_jax.tasks.predicting import outputs
from plm_jax.tasks.rows import EncodedRows
from plm_jax.tasks.table_files import object_of
from plm_jax.tasks.task import Trained
from plm_jax.tasks.task_objective import TaskObjective
from plm_jax.tasks.windows import best_window, windowed_rows
from plm_jax.tasks.word_pieces import first_pieces, word_pieces

NO_TAG = -100  # of a position that is no first piece of a word


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenClassification(TaskObjective):
  """Mean of `-log p(tag | text)` over the words.

  tags: their number.
  """

  tags: int
  name = "tag"

  def __post_init__(self):
    if self.tags < 2:
      raise UserError(f"tagging needs at least 2 tags, and tag.tags={self.tags}")

  @property
  def heads(self) -> dict[str, int]:
    return {"token_classes": self.tags}

  def weights(self, batch) -> jax.Array:
    return (batch["tag"] != NO_TAG) * batch["row_weight"][:, None]

  def loss(self, model, hidden, batch, noise) -> Terms:
    logits_BTC = model.token_class_logits(hidden, batch, noise)
    return cross_entropy(logits_BTC, jnp.maximum(batch["tag"], 0), self.weights(batch))

  def baseline(self, counts, batches, scores) -> Baseline:
    tags = np.concatenate([self.values([b], "tag").reshape(-1) for b in batches])
    numbers = np.bincount(tags[tags >= 0])
    return Baseline("majority", {"accuracy": float(numbers.max() / numbers.sum())})


def token_class_logits(model, hidden, batch) -> jax.Array:
  """float32 [B, T, C]."""
  return model.token_class_logits(hidden, batch, None)


class Places(NamedTuple):
  """Of the words of an example: their rows, and their positions there, int [W] each."""

  row: np.ndarray
  position: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tag(FileTask):
  """A tag for every word.

  column: of the tags, from 1; None is the last, or UPOS in CoNLL-U. tags: their names, in the order
  of their numbers; read from the data. scheme: IO, IOB1, IOB2 or IOBES; "" if the tags mark no
  entities; read from the data.
  """

  name: ClassVar[str] = "tag"
  files: ClassVar[tuple[str, ...]] = SUFFIXES
  longer: ClassVar[str] = "are read in windows that overlap"
  baselines: ClassVar[dict[str, str]] = {
    "words": "majority tag per word",
    "majority": "majority tag",
  }

  column: int | None = None
  tags: tuple[str, ...] = ()
  scheme: str = ""

  @property
  def metrics(self) -> tuple[str, ...]:  # pyrefly: ignore[bad-override]  the data decide
    return ("f1", "precision", "recall", "accuracy") if self.scheme else ("accuracy",)

  @property
  def question(self) -> str:
    what = f"{len(self.tags)} tags, {self.scheme}" if self.scheme else f"{len(self.tags)} tags"
    return f"which {'entities' if self.scheme else 'tag has each word'} ({what})?"

  @property
  def classes(self) -> tuple[str, ...]:
    return self.tags

  # --- reading

  def read_noted(self, path: str) -> tuple[list[Example], list[str]]:
    items = self.read_file(path, labelled=True)
    words = sum(len(item.target) for item in items)
    scheme = scheme_of(item.target for item in items)
    kind = f"entities in {scheme}" if scheme else "tags that mark no entities"
    return items, [f"{Path(path).name}: {len(items):,} sentences, {words:,} words, {kind}"]

  def read_file(self, path: str | Path, labelled: bool) -> list[Example]:
    items = read_conll(path, self.column, labelled)
    if not all(item.target is not None for item in items):
      return items
    tags = in_iobes([item.target for item in items])
    return [item._replace(target=target) for item, target in zip(items, tags, strict=True)]

  @property
  def line(self) -> str:
    return 'a text, whose words are split at spaces, or JSON with "words"'

  def parse(self, line: str, name: str) -> Example:
    """A plain text, which is split into words here; or an object of JSON with "text" or "words"."""
    text: Any = line
    if (row := object_of(line)) is not None:
      words = row.get("words", row.get("tokens"))
      if isinstance(words, list) and words and all(isinstance(w, str) and w for w in words):
        text, spans = joined(words, [True] * len(words))
        return Example((text,), None, name, name, spans)
      text = row.get("text")
    if not isinstance(text, str) or not text.strip():
      raise UserError(f'{name} has no text: expected plain text, or JSON with "text" or "words".')
    return Example((text,), None, name, name, words_of(text))

  def fitted(self, items: list[Example]) -> Self:
    counts = Counter(tag for item in items for tag in item.target)
    if len(counts) < 2:
      raise UserError(
        f"{self.source!r} has 1 tag ({next(iter(counts))}); two are needed to learn. Another "
        "column of tags is chosen by --set=task.column=NUMBER."
      )
    if len(counts) > max(2000, sum(counts.values()) // 4):
      raise UserError(
        f"{self.source!r} has {len(counts):,} different tags such as {next(iter(counts))!r}; "
        "choose their column by --set=task.column=NUMBER."
      )
    scheme = scheme_of(item.target for item in items)
    return dataclasses.replace(self, tags=all_tags(counts, scheme), scheme=scheme)

  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    numbers = {tag: number for number, tag in enumerate(self.tags)}
    for item in items:
      for word, tag in enumerate(item.target or ()):
        if tag not in numbers:
          start, end = item.words[word]
          raise UserError(
            f"the sentence {item.name} has the tag {tag!r} ({item.texts[0][start:end]!r}), which "
            f"training never saw: it knows {', '.join(self.tags[:20])}; correct the tag or leave "
            "the sentence out."
          )
    targets: dict[str, Any] = {}
    if all(item.target is not None for item in items):
      targets["tags"] = [np.array([numbers[t] for t in item.target], np.int32) for item in items]
    pieces = word_pieces(items, tokenizer)
    return Examples(items, [(p[0],) for p in pieces], targets, [(p[1],) for p in pieces])

  # --- training and predicting

  def objective(self) -> TokenClassification:
    return TokenClassification(tags=len(self.tags))

  def rows(self, examples: Examples, config: Model, tokenizer: Tokenizer) -> EncodedRows:
    rows, places = self._rows(examples, config, tokenizer)
    if "tags" not in examples.targets:
      return rows
    tag = np.full_like(rows.text, NO_TAG)
    for numbers, place in zip(examples.targets["tags"], places, strict=True):
      tag[place.row, place.position] = numbers
    return dataclasses.replace(rows, tokens=rows.tokens | {"tag": tag})

  def _rows(
    self, examples: Examples, config: Model, tokenizer: Tokenizer
  ) -> tuple[EncodedRows, list[Places]]:
    """The rows, and where each word of each example is read."""
    stride = max(self.length // 2, 1)
    rows, windows = windowed_rows(examples.ids, config, tokenizer, self.length, stride)
    start = int((rows.text[0] < 0).argmin()) if len(rows) else 0  # after the first special tokens
    start += "decoder_input_ids" in rows.tokens
    places, row = [], 0
    for item, (offsets,), group in zip(examples.items, examples.offsets, windows, strict=True):
      piece = first_pieces(item.words, offsets)
      window = best_window(group, len(offsets))[piece]
      first = np.array([w.start for w in group])[window]
      places.append(Places(row + window, start + piece - first))
      row += len(group)
    return rows, places

  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """{"words", "tags", "scores"}: the probability of each word's tag; with a scheme also
    "entities": text, type, start, end (characters), score (the mean of its words')."""
    rows, places = self._rows(examples, trained.config, trained.tokenizer)
    logits_NTC = outputs(trained, rows, token_class_logits)
    predictions = []
    for item, place in zip(examples.items, places, strict=True):
      logits_WC = logits_NTC[place.row, place.position].astype(np.float64)
      best_W = logits_WC.argmax(axis=1)
      p_W = 1 / np.exp(logits_WC - logits_WC.max(axis=1, keepdims=True)).sum(axis=1)
      predictions.append(self._prediction(item, [self.tags[i] for i in best_W], p_W))
    return predictions

  def _prediction(self, item: Example, tags: list[str], p_W: np.ndarray) -> Prediction:
    text, spans = item.texts[0], item.words
    words = [text[start:end] for start, end in spans]
    made = {"words": words, "tags": tags, "scores": [round(float(p), 6) for p in p_W]}
    if self.scheme:
      made["entities"] = []
      for kind, first, last in entities(tags):
        start, end = spans[first][0], spans[last][1]
        score = round(float(p_W[first : last + 1].mean()), 6)
        entity = {"text": text[start:end], "type": kind, "start": start, "end": end}
        made["entities"].append(entity | {"score": score})
    return made

  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    """Of all entities together, as conlleval; accuracy is of words."""
    true = [item.target for item in examples.items]
    tags = [prediction["tags"] for prediction in predictions]
    equal = [a == b for x, y in zip(true, tags, strict=True) for a, b in zip(x, y, strict=True)]
    accuracy = {"accuracy": float(np.mean(equal))}
    return (entity_counts(true, tags)[""].scores() if self.scheme else {}) | accuracy

  def report(self, examples: Examples, predictions: list[Prediction]) -> str:
    """Precision, recall and F1 of every type of entity, or of every tag."""
    true = [item.target for item in examples.items]
    tags = [prediction["tags"] for prediction in predictions]
    if not self.scheme:  # each word is an entity of its own
      true, tags = ([[f"S-{tag}" for tag in x] for x in side] for side in (true, tags))
    counts = entity_counts(true, tags)
    width = max(6, *(len(kind) for kind in counts))
    head = f"{'type' if self.scheme else 'tag':{width}}"
    lines = [f"{head}  precision  recall     F1    true  predicted"]
    for kind, n in counts.items():
      s = n.scores()
      row = f"{s['precision']:11.3f}{s['recall']:8.3f}{s['f1']:7.3f}{n.true:8,}{n.predicted:11,}"
      lines.append(f"{kind or 'all':{width}}{row}")
    return "\n".join(lines)

  def mistake(self, example: Example, prediction: Prediction) -> float:
    wrong = zip(prediction["tags"], example.target, prediction["scores"], strict=True)
    return float(sum(score for tag, true, score in wrong if tag != true))

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    counts: dict[str, Counter] = {}
    total: Counter[str] = Counter()
    for item in splits.train.items:
      total.update(item.target)
      if name == "words":
        for word, tag in zip(_words(item), item.target, strict=True):
          counts.setdefault(word, Counter())[tag] += 1
    majority = total.most_common(1)[0][0]
    best = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    return [{"tags": [best.get(w, majority) for w in _words(item)]} for item in splits.test.items]


def _words(item: Example) -> list[str]:
  return [item.texts[0][start:end] for start, end in item.words]
