"""Writing a text after a source: the loss, the rows and the prompts.

Sources: Vaswani et al. 2017 and Raffel et al. 2020 (encoder-decoders); Radford et al. 2018, section
3.3 (a decoder reads "source delimiter target"). The loss is the model's own, on the target and its
end token alone.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.decode.writer import Prompt
from plm_jax.errors import UserError
from plm_jax.models.model import Model
from plm_jax.objectives.baselines import Baseline, unigram
from plm_jax.objectives.objective import Terms, token_terms
from plm_jax.tasks.examples import Examples
from plm_jax.tasks.rows import EncodedRows, frame_of
from plm_jax.tasks.task_objective import TaskObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing(TaskObjective):
  """Mean of `-log p(y_t | y_<t, source)` over the tokens of all targets, the end token included.

  label_smoothing: as in `objectives.seq2seq.Seq2Seq`; the papers on translation and summaries have
  .1.
  """

  label_smoothing: float = 0.0
  name = "write"
  heads = {"lm": 0}  # noqa: RUF012  read only

  def __post_init__(self):
    if not 0 <= self.label_smoothing < 1:
      raise UserError(f"write.label_smoothing={self.label_smoothing} must be at least 0, below 1.")

  def loss(self, model, hidden, batch, noise) -> Terms:
    targets_BT = jnp.maximum(batch["targets"], 0)
    return token_terms(model, hidden, targets_BT, self.weights(batch), self.label_smoothing)

  def weights(self, batch) -> jax.Array:
    """float32 [B, T]: 0 at the source, at padding, and in rows that only fill up the batch."""
    return (batch["targets"] >= 0) * batch["row_weight"][:, None]

  def baseline(self, counts, batches, scores) -> Baseline:
    targets = np.concatenate([b["targets"].ravel() for b in batches])
    counts = np.bincount(targets[targets >= 0], minlength=len(counts))
    batches = [{"write_targets": np.maximum(b["targets"], 0), "write_weights": self.weights(b)}
               for b in batches]  # fmt: skip
    return unigram(counts, batches, self.name)


def check_writes(config: Model) -> None:
  """Errors: `UserError` for a model that does not generate text."""
  try:
    model = jax.eval_shape(lambda: config.init(jax.random.key(0), {"lm": 0}))
  except UserError:
    model = None
  if not hasattr(model, "generator"):
    raise UserError(
      f"a model of type {type(config).__name__} does not write text: --task=write needs a "
      "left-to-right model or an encoder-decoder."
    )


def specials(config: Model, tokenizer: Tokenizer) -> int:
  """The number of special tokens beside those of a source."""
  if hasattr(config, "source_ids"):
    return len(config.source_ids([], tokenizer.vocab))
  start, between, _ = frame_of(config, tokenizer)
  return len(start) + len(between)


def prompt_of(ids: np.ndarray, config: Model, tokenizer: Tokenizer, length: int) -> Prompt:
  """The input for one source, cut to `length` tokens with the special ones."""
  kept = ids[: length - specials(config, tokenizer)].tolist()
  if hasattr(config, "source_ids"):
    return Prompt(config.decoder_start(tokenizer.vocab), config.source_ids(kept, tokenizer.vocab))
  start, between, _ = frame_of(config, tokenizer)
  return Prompt([*start, *kept, *between])


def before(ids: list[int], end: list[int]) -> list[int]:
  """The ids before the first `end`."""
  for place in range(len(ids) - len(end) + 1):
    if ids[place : place + len(end)] == end:
      return ids[:place]
  return ids


def target_rows(
  examples: Examples, config: Model, tokenizer: Tokenizer, length: int, target_length: int
) -> EncodedRows:
  """A row for each target; `targets` int32 [N, T] is -1 where there is no loss. length: most tokens
  of a source with its special tokens. target_length: most of a target, the end included."""
  joined = _rows_of_pair if hasattr(config, "source_ids") else _rows_of_text
  end = end_of(config, tokenizer)
  numbers, sources, targets = [], [], []
  for number, (texts, rows) in enumerate(zip(examples.ids, examples.targets["target"])):
    for row in rows:
      numbers.append(number)
      sources.append(prompt_of(texts[0], config, tokenizer, length))
      targets.append([*row[row >= 0][: target_length - len(end)].tolist(), *end])
  tokens, values = joined(sources, targets, length, target_length, tokenizer.vocab.filler)
  none = np.full((len(numbers), 1), -1, np.int32)
  return EncodedRows(tokens, values, np.array(numbers, np.int32), none, none)


def end_of(config: Model, tokenizer: Tokenizer) -> list[int]:
  """The tokens after a target: the end token, or without one GPT-1's delimiter."""
  return tokenizer.vocab.end or frame_of(config, tokenizer)[1]


def _rows_of_pair(prompts: list[Prompt], targets, length: int, target_length: int, filler: int):
  """tokens and values of `EncodedRows` for an encoder-decoder. The tokens that its decoder starts
  with are no targets."""
  start = prompts[0].ids
  width = target_length + len(start) - 1
  inputs = [[*start, *target[:-1]] for target in targets]
  wanted = [[*[-1] * (len(start) - 1), *target] for target in targets]
  tokens = {
    "input_ids": _filled([prompt.source for prompt in prompts], length, filler),
    "decoder_input_ids": _filled(inputs, width, filler),
    "targets": _filled(wanted, width, -1),
  }
  values = {
    "length": np.array([len(prompt.source) for prompt in prompts], np.int32),
    "decoder_length": np.array([len(row) for row in inputs], np.int32),
  }
  return tokens, values


def _rows_of_text(prompts: list[Prompt], targets, length: int, target_length: int, filler: int):
  """tokens and values of `EncodedRows` for a decoder: "source delimiter target end". A position's
  target is the next token."""
  width = length + target_length
  rows = [[*prompt.ids, *target] for prompt, target in zip(prompts, targets)]
  wanted = [[*[-1] * (len(prompt.ids) - 1), *target] for prompt, target in zip(prompts, targets)]
  tokens = {"input_ids": _filled(rows, width, filler), "targets": _filled(wanted, width, -1)}
  return tokens, {"length": np.array([len(row) for row in rows], np.int32)}


def _filled(rows: list[list[int]], width: int, filler: int) -> np.ndarray:
  """int32 [rows, width]."""
  array = np.full((len(rows), width), filler, np.int32)
  for number, row in enumerate(rows):
    array[number, : len(row)] = row
  return array
