"""Texts from prompts, in batches of similar length, padded on the left to few compiled shapes."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from plm_jax.data.segments import beginning
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.data.vocab import Vocab
from plm_jax.decode import beam, sampling
from plm_jax.decode.generator import Cache, Generator
from plm_jax.decode.rules import Rules
from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.model import Model, Parameters

ROWS = 32  # most rows of a batch
_TOKENS = 8  # between two updates of a growing text in a terminal
_BEAMS = 1024  # most beams: each has a cache
_COLUMNS = 256  # of a new cache, which is then doubled


class Generation(NamedTuple):
  """New tokens without the end, and the sum of their log p or the score of `beam.BestTexts`."""

  ids: list[int]
  score: float


class Prompt(NamedTuple):
  """ids: the beginning of the text, or of the target of encoder-decoders, which read `source`."""

  ids: list[int]
  source: list[int] | None = None


def encode_prompts(
  params: Parameters, config: Model, tokenizer: Tokenizer, texts: list[str]
) -> list[Prompt]:
  """A prompt for every text, with the model's special tokens around it.

  Errors: `UserError` for a model that does not generate, a text that is too long, unknown ids.
  """
  if not hasattr(params.encoder(), "generator"):
    fills = params.masked_lm() is not None
    raise UserError(
      f"a model of type {type(config).__name__} does not generate text"
      + ("; it fills blanks: use python -m plm_jax.fill_mask" if fills else "")
      + ". Give a left-to-right model or an encoder-decoder"
    )
  prompts = []
  for number, text in enumerate(texts, 1):
    if hasattr(config, "source_ids"):
      ids = source_of(text, tokenizer).tolist()
      source = config.source_ids(ids, tokenizer.vocab)
      prompt = Prompt(config.decoder_start(tokenizer.vocab), source)
    else:
      prompt = Prompt([*beginning(tokenizer.vocab), *tokenizer.encode(text).tolist()])
    if not prompt.ids:
      raise UserError(
        f"prompt {number} has no tokens, and the vocabulary has none that begins a text; give a "
        "--prompt with words in it"
      )
    check_ids(prompt.source or prompt.ids, config, number)
    prompts.append(prompt)
  return prompts


def source_of(text: str, tokenizer: Tokenizer) -> np.ndarray:
  """int32 `[T]`: the ids of a text in which "[MASK]" and "<extra_id_0>" are special tokens."""
  if tokenizer.vocab.mask is not None:
    text = text.replace("[MASK]", tokenizer.token(tokenizer.vocab.mask))
  return tokenizer.encode(text, special=True)


def check_ids(ids: list[int], config, number: int = 1) -> None:
  """Errors: `UserError` if the model cannot read the ids and generate another token."""
  if len(ids) >= config.positions:
    raise UserError(
      f"prompt {number} has {len(ids)} tokens, its beginning included, and the model reads and "
      f"writes {config.positions} at most; shorten it"
    )
  wrong = [i for i in ids if not 0 <= i < config.vocab_size]
  if wrong:
    raise UserError(
      f"prompt {number} has the token id {wrong[0]}, and the model's ids end at "
      f"{config.vocab_size - 1}; use the tokenizer that it was trained with"
    )


def ends(vocab: Vocab, causal: bool) -> np.ndarray:
  """int `[E]`: the tokens that end a text; for causal models also those that begin the next one."""
  tokens = (vocab.sep, vocab.eos, *vocab.ends, *((vocab.cls, vocab.bos) if causal else ()))
  return np.array(sorted({t for t in tokens if t is not None}), np.int32)


def write(
  params: Parameters,
  config: Model,
  tokenizer: Tokenizer,
  compute: Compute,
  prompts: list[Prompt],
  rules: Rules,
  *,
  samples: int = 1,
  seed: int = 0,
  watch: Callable[[list[int]], None] | None = None,
) -> list[list[Generation]]:
  """`samples` texts for every prompt: drawn texts, or the best of a beam search, best first.

  config: of `params.encoder()`, which generates. A drawn text depends only on the seed, the number
  of its prompt and its own number. watch: called with the tokens so far while a single text grows.
  """
  if samples < 1:
    raise UserError(f"samples={samples} was given; at least one text is needed.")
  if samples > 1 and not rules.temperature and samples > rules.beams:
    raise UserError(
      f"samples={samples} texts were asked for, and {rules.beams} beam(s) find {rules.beams}; give "
      "a temperature above 0, or as many beams"
    )
  if rules.beams > _BEAMS:
    raise UserError(f"beams={rules.beams} is more than {_BEAMS}; give fewer")
  # No text goes beyond the positions, so the cache needs no room for more.
  most = max(1, min(rules.max_length, config.positions))
  rules = dataclasses.replace(rules, max_length=most, min_length=min(rules.min_length, most))
  each = samples if rules.temperature else 1
  jobs = [(n, s) for n in range(len(prompts)) for s in range(each)]
  written: dict[int, list[Generation]] = {n: [] for n in range(len(prompts))}
  rows = min(2, len(jobs) * rules.beams)  # 2 means several
  generator = ready(params.encoder(), compute, tokenizer.vocab.size, rows)
  if rules.beams > 1 and hasattr(config, "counted"):
    raise UserError(
      f"beams={rules.beams} were asked for, and a model made from counts has no beam search; leave "
      "--beams out"
    )
  for batch in batches(jobs, [(len(p.ids), len(p.source or ())) for p in prompts]):
    ends_E = ends(tokenizer.vocab, causal=prompts[batch[0][0]].source is None)
    texts_per_job = _write(generator, config.positions, ends_E, prompts, batch, rules, seed, watch)
    for (number, _), texts in zip(batch, texts_per_job):
      written[number] += texts[:samples]
  return list(written.values())


def batches(jobs: list, lengths: list[tuple[int, int]]) -> Iterator[list]:
  """Batches of at most `ROWS` jobs of similar length; the samples of a prompt keep their order."""
  groups: dict = {}
  for job in jobs:
    groups.setdefault(tuple(map(bucket, lengths[job[0]])), []).append(job)
  for group in groups.values():
    for first in range(0, len(group), ROWS):
      yield group[first : first + ROWS]


def bucket(length: int, least: int = 8) -> int:
  """The smallest power of two that is at least `length` and `least`; 0 for 0."""
  return max(least, 1 << (length - 1).bit_length()) if length else 0


def _write(
  generator, positions: int, ends_E, prompts, jobs, rules: Rules, seed: int, watch
) -> list[list[Generation]]:
  """The texts of each job of a batch."""
  rows = bucket(len(jobs), 1)
  filled = [*jobs, *[jobs[-1]] * (rows - len(jobs))]
  causal = prompts[jobs[0][0]].source is None
  least = 8 if causal else 1  # all targets begin with the same one or two tokens
  prompt_BT, pad_B = padded([prompts[n].ids for n, _ in filled], left=True, least=least)
  batch = {"pad": pad_B}
  if not causal:
    ids_BS, pad = padded([prompts[n].source for n, _ in filled], left=False)
    batch |= {"input_ids": ids_BS, "length": (ids_BS.shape[1] - pad).astype(np.int32)}
  limit_B = positions - (prompt_BT.shape[1] - pad_B)
  if rules.beams > 1:
    best = jax.device_get(_search(generator, batch, prompt_BT, limit_B, rules, ends_E))
    return [
      [Generation(ids[:n].tolist(), float(score)) for ids, n, score in zip(*texts)]
      for texts in list(zip(*best))[: len(jobs)]
    ]
  draws = np.uint32(seed), np.array(filled, np.uint32)
  state = grow(generator, batch, prompt_BT, limit_B, *draws, ends_E, rules, watch)
  ids, lengths, scores = jax.device_get((state.ids_BL, state.length_B, state.log_p_B))
  return [[Generation(ids[r, : lengths[r]].tolist(), float(scores[r]))] for r in range(len(jobs))]


def grow(
  generator, batch, prompt_BT, limit_B, seed, numbers_B2, ends_E, rules: Rules, watch=None
) -> sampling.SamplingState:
  """Whole texts; the seed and two numbers key each draw. Other arguments as in `sampling.begin`.

  A step reads the whole cache, so a cache begins with few columns and is doubled when it is full.
  """
  width, most = prompt_BT.shape[1], prompt_BT.shape[1] + rules.max_length - 1
  first = columns = min(most, bucket(width, _COLUMNS))
  state = _begin(generator, batch, prompt_BT, limit_B, seed, numbers_B2, ends_E, rules, columns)
  stops = set(range(_TOKENS, rules.max_length, _TOKENS)) if watch else set()
  while columns < most:
    stops.add(columns - width + 1)
    columns = min(most, 2 * columns)
  columns = first
  for stop in sorted(stops | {rules.max_length}):
    needed = min(most, bucket(width + stop - 1, _COLUMNS))
    if needed > columns:
      state, columns = _widened(state, needed), needed
    state = _advance(generator, state, rules, ends_E, stop)
    if watch and stop % _TOKENS == 0 and stop < rules.max_length:
      watch(state.ids_BL[0, : int(state.length_B[0])].tolist())
    if stop < rules.max_length and state.done_B.all():
      break
  return state


def padded(rows: list[list[int]], left: bool, least: int = 8) -> tuple[np.ndarray, np.ndarray]:
  """int32 `[B, T]`, T the bucket of the longest, and the number of padding columns of each row."""
  width = bucket(max(map(len, rows)), least)
  ids = np.zeros((len(rows), width), np.int32)
  for row, tokens in enumerate(rows):
    columns = slice(width - len(tokens), None) if left else slice(len(tokens))
    ids[row, columns] = tokens
  return ids, np.array([width - len(tokens) for tokens in rows], np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TruncatedVocab:
  """A generator that only writes its tokenizer's ids: a model's vocabulary may be larger, padded to
  a round number or to the largest size of a tokenizer."""

  generator: Generator
  size: int = dataclasses.field(metadata={"static": True})

  def start(self, batch: dict, capacity: int) -> Cache:
    return self.generator.start(batch, capacity)

  def extend(self, ids_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    logits_BV, cache = self.generator.extend(ids_BT, cache)
    return logits_BV[:, : self.size], cache


@functools.partial(jax.jit, static_argnames=("compute", "size", "rows"))
def ready(model, compute: Compute, size: int, rows: int = 1) -> TruncatedVocab:
  """The model's generator for `rows` rows and the first `size` tokens of its vocabulary."""
  return TruncatedVocab(model.generator(compute, rows), size)


@functools.partial(jax.jit, static_argnames=("rules", "columns"))
def _begin(
  generator, batch, prompt, limit, seed, numbers_B2, ends_E, rules: Rules, columns: int
) -> sampling.SamplingState:
  key = jax.random.key(seed)
  fold = jax.random.fold_in
  keys_B = jax.vmap(lambda number: fold(fold(key, number[0]), number[1]))(numbers_B2)
  return sampling.begin(generator, batch, prompt, limit, keys_B, rules, ends_E, columns)


_advance = jax.jit(sampling.advance, static_argnames="rules", donate_argnames="state")
_search = jax.jit(beam.search, static_argnames="rules")


@functools.partial(jax.jit, static_argnames="columns")
def _widened(state, columns: int) -> sampling.SamplingState:
  return dataclasses.replace(state, cache=state.cache.take(capacity=columns))


def opening(text: str, prompt: Prompt) -> str:
  """The text to show before a continuation; none for an encoder-decoder."""
  return "" if prompt.source is not None else text


def continuation(tokenizer: Tokenizer, prompt: Prompt, ids: list[int]) -> str:
  """The text of new tokens after their prompt, including the space between them."""
  if prompt.source is not None:
    return readable(tokenizer, ids)
  before = tokenizer.decode(prompt.ids)
  whole = tokenizer.decode([*prompt.ids, *ids])
  return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids)


def readable(tokenizer: Tokenizer, ids) -> str:
  """A source or a target as text, with names of sentinels and masks, without begin and end."""
  frame = tokenizer.vocab.frame_ids
  return tokenizer.decode([i for i in ids if i not in frame], special=True)


class ShownText:
  """The part of a growing text that can be shown already. A letter of several bytes may not be
  complete, and a word may still grow another piece."""

  def __init__(self, tokenizer: Tokenizer, prompt: Prompt):
    self._tokenizer, self._prompt = tokenizer, prompt
    self.text = ""

  def further(self, ids: list[int], ended: bool = False) -> str:
    """What can be shown after the parts before. ids: all new tokens so far."""
    text = continuation(self._tokenizer, self._prompt, ids)
    if not text.startswith(self.text) or (text.endswith("\ufffd") and not ended):
      return ""
    part, self.text = text[len(self.text) :], text
    return part
