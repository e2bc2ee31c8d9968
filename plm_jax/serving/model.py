"""A model in memory, ready to answer: what it can do, its compiled programs and its thread."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.decode.continuous import ContinuousBatch, Text
from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import Prompt, ShownText, encode_prompts
from plm_jax.errors import UserError
from plm_jax.export.to_run import run_directory
from plm_jax.runs import Run, check_predicts_tokens
from plm_jax.serving.kinds import Attend, Encode, FillMask, Predict
from plm_jax.serving.limits import Limits, Refused
from plm_jax.serving.metrics import Metrics
from plm_jax.serving.worker import GrowingText, Worker

_SHORT = 4000  # characters that are prepared in the event loop
_KINDS = (Predict, Encode, FillMask, Attend)
_DOES = {
  "predict": "predict labels of texts",
  "encode": "turn texts into vectors",
  "fill_mask": "fill blanks",
  "generate": "write text",
  "attention": "show its attention",
}


class ServedModel:
  """A run and its uses: `abilities`, by the names of their routes."""

  def __init__(self, name: str, run: Run, limits: Limits, metrics: Metrics):
    self.name, self.run, self.limits = name, run, limits
    self.loaded = int(time.time())
    self.kinds: dict[str, Any] = {}
    for kind in _KINDS:
      if _can(run, kind.name):
        try:
          self.kinds[kind.name] = kind(run, limits)
        except UserError:
          if kind is Predict:  # the directory is damaged
            raise
    batch = self.batch = _texts_of(run, limits)
    self.abilities = [*self.kinds, *(["generate"] if batch else [])]
    self._worker = Worker(name, limits, metrics, batch)

  @classmethod
  def load(cls, name: str, path: str | Path, limits: Limits, metrics: Metrics) -> ServedModel:
    """Of a run, a fine-tuned run or a published model. Errors: `UserError` for another directory,
    and for a model that can do nothing of this."""
    model = cls(name, Run.load(run_directory(path)), limits, metrics)
    if not model.abilities:
      raise UserError(f"{path} holds a model that neither predicts, encodes nor writes.")
    return model

  @property
  def task(self) -> Any:
    """The task of a fine-tuned model; None of another."""
    return self.kinds["predict"].task if "predict" in self.kinds else None

  # --- programs

  def programs(self) -> list[tuple[str, Callable[[], Any]]]:
    """Calls that compile all that requests need, with the names of their abilities."""
    made = [(name, call) for name, kind in self.kinds.items() for call in kind.programs()]
    return made + [("generate", call) for call in (self.batch.programs() if self.batch else ())]

  def warm_up(self, done: Callable[[], Any]) -> None:
    """Compiles. What fails is no ability: a model without attention has none to show. done: called
    for each program."""
    for name, program in self.programs():
      if name in self.abilities:
        try:
          program()
        except UserError:
          del self.kinds[name]
          self.abilities.remove(name)
      done()

  def start(self) -> None:
    self._worker.start()

  @property
  def is_running(self) -> bool:
    """Whether the thread runs."""
    return self._worker.is_alive()

  def close(self, seconds: float = 10.0) -> None:
    """Ends the thread after what is waiting."""
    self._worker.close(seconds)

  # --- requests

  def check_can(self, ability: str) -> None:
    """Errors: `Refused`, with what the model can do."""
    if ability not in self.abilities:
      can = [_DOES[name] for name in self.abilities]
      listed = " and ".join(filter(None, [", ".join(can[:-1]), can[-1]]))
      routes = ", ".join(f"/{name}" for name in self.abilities)
      raise Refused(
        422, f"the model {self.name} cannot {_DOES[ability]}; it can {listed}: use {routes}"
      )

  async def compute(self, ability: str, inputs: Sequence[Any]) -> list[Any]:
    """The results of the inputs, in order. Errors: `Refused`."""
    self.check_can(ability)
    self.limits.check_texts(len(inputs))
    kind = self.kinds[ability]
    items = await _in_sentences(lambda: list(_prepared(kind, inputs)), inputs)
    futures = self._worker.submit(kind, items)
    try:
      return list(await asyncio.gather(*futures))
    finally:  # also if its client has left
      for future in futures:
        future.cancel()

  async def write(
    self, texts: Sequence[str], rules: Rules, *, samples: int = 1, seed: int = 0, every: bool
  ) -> Writing:
    """The texts that follow each text, as they grow. every: tell after every token; else at the
    end. Errors: `Refused`."""
    self.check_can("generate")
    self.limits.check_texts(len(texts) * samples)
    if rules.beams > 1:
      raise Refused(422, "the server has no beam search; use python -m plm_jax.generate --beams")
    if rules.max_length > self.limits.tokens:
      raise Refused(
        422,
        f"max_length={rules.max_length} was given, and this server writes {self.limits.tokens} new "
        "tokens at most",
      )
    for text in texts:
      self.limits.check_text(text)
    prompts = await _in_sentences(lambda: self._prompts(texts), texts)
    jobs = [
      Text(prompt, rules, seed, (number, sample))
      for number, prompt in enumerate(prompts)
      for sample in range(samples)
    ]
    writing = Writing(self.run.tokenizer, jobs, every)
    self._worker.write(writing.growing)
    return writing

  def _prompts(self, texts: Sequence[str]) -> list[Prompt]:
    run = self.run
    prompts = encode_prompts(run.params, run.config, run.tokenizer, list(texts))
    for text, prompt in zip(texts, prompts, strict=True):
      self.limits.check_tokens(len(prompt.source or prompt.ids))
      if prompt.source is not None and not text:
        raise UserError("an encoder-decoder needs a text to read: give a prompt.")
    return prompts


class Part(NamedTuple):
  """More of a text. number: of the text. text: what is new. ended: why, at the end."""

  number: int
  text: str
  tokens: int
  ended: Literal["stop", "length"] | None


class Writing:
  """Texts of one request that grow. Leaving the context stops those that have not ended."""

  def __init__(self, tokenizer: Tokenizer, texts: list[Text], every: bool):
    self._loop, self._parts = asyncio.get_running_loop(), asyncio.Queue()
    self._every = every
    self._shown = [ShownText(tokenizer, text.prompt) for text in texts]
    self.growing = [GrowingText(text, partial(self._grown, n)) for n, text in enumerate(texts)]

  def _grown(self, number: int, error: BaseException | None) -> None:
    """In the thread of the model."""
    text = self.growing[number].text
    if self._every or text.done or error is not None:
      entry = number, list(text.ids), text.done, error
      with contextlib.suppress(RuntimeError):  # the event loop has ended, and its clients
        self._loop.call_soon_threadsafe(self._parts.put_nowait, entry)

  async def parts(self) -> AsyncGenerator[Part, None]:
    """Errors: `Refused` if the model failed."""
    try:
      unfinished = set(range(len(self.growing)))
      while unfinished:
        number, ids, done, error = await self._parts.get()
        if error is not None:
          raise error
        if done:
          unfinished.discard(number)
        if ids is None:  # it was stopped here
          continue
        ended = None
        if done:
          full = len(ids) >= self.growing[number].text.rules.max_length
          ended = "length" if full else "stop"
        yield Part(number, self._shown[number].further(ids, done), len(ids), ended)
    finally:
      self.stop()

  def stop(self, number: int | None = None) -> None:
    """Ends a text, or all; no more of it comes."""
    for growing in self.growing if number is None else [self.growing[number]]:
      growing.is_wanted = False
    if number is not None:
      self._parts.put_nowait((number, None, True, None))

  @property
  def tokens(self) -> tuple[int, int]:
    """The number of tokens that were read and written."""
    texts = [growing.text for growing in self.growing]
    return (
      sum(len(text.prompt.source or text.prompt.ids) for text in texts),
      sum(len(text.ids) for text in texts),
    )


def _can(run: Run, ability: str) -> bool:
  """Whether a run's parameters are for a use at all."""
  if ability == "predict":
    return hasattr(run.experiment.data, "predict")
  if ability == "fill_mask":
    has_mask = run.tokenizer.vocab.mask is not None
    return has_mask and run.params.masked_lm() is not None and _predicts_tokens(run)
  return True


def _predicts_tokens(run: Run) -> bool:
  try:
    check_predicts_tokens(run)
  except UserError:
    return False
  return True


def _texts_of(run: Run, limits: Limits) -> ContinuousBatch | None:
  """The texts that a model writes; None for a model that writes none."""
  if not hasattr(run.params.encoder(), "generator") or not _predicts_tokens(run):
    return None
  longest = 2 * limits.tokens  # a prompt and its new tokens
  arguments = run.params, run.config, run.tokenizer, run.compute
  return ContinuousBatch(*arguments, slots=limits.slots, longest=longest)


def _prepared(kind: Any, inputs: Sequence[Any]) -> Iterator[Any]:
  """Errors: `Refused`, with the number of the input if there are several."""
  for number, each in enumerate(inputs, 1):
    try:
      yield kind.prepare(each)
    except (UserError, Refused) as error:
      if len(inputs) == 1:
        raise
      status = error.status if isinstance(error, Refused) else 422
      raise Refused(status, f"input {number}: {error}") from None


async def _in_sentences(prepare: Callable[[], Any], texts: Sequence[Any]) -> Any:
  """The result of `prepare`, in a thread if there is much text. Errors: `Refused` for a `UserError`
  and for text that is not Unicode."""
  try:
    if sum(len(str(text)) for text in texts) < _SHORT:
      return prepare()
    return await asyncio.to_thread(prepare)
  except UserError as error:
    raise Refused(422, str(error)) from None
