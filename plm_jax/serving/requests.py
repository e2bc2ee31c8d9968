"""A request on its way: its model, its wait, and a text that is sent while it grows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from plm_jax.decode.rules import Rules
from plm_jax.errors import UserError
from plm_jax.serving.guard import error_body
from plm_jax.serving.limits import Limits, Refused
from plm_jax.serving.model import Part, ServedModel, Writing

T = TypeVar("T")


class Models:
  """The models of a server by their names, and how a request waits for one."""

  def __init__(self, models: Sequence[ServedModel], limits: Limits):
    self.by_name = {model.name: model for model in models}
    self.limits = limits
    self._waiting: set[asyncio.Future] = set()

  def check_running(self) -> None:
    """Errors: `Refused` if a model answers no more."""
    for model in self.by_name.values():
      if not model.is_running:
        raise Refused(503, f"the thread of {model.name} has ended; start the server again")

  def end(self) -> None:
    """Refuses the requests that still wait: the server ends."""
    for leaving in self._waiting:
      leaving.cancel()

  def chosen(self, name: str | None, ability: str) -> ServedModel:
    """The model of that name, or the only one that can do it. Errors: `Refused`."""
    if name is not None:
      if name not in self.by_name:
        known = ", ".join(self.by_name)
        raise Refused(404, f"there is no model {name!r}; the models are {known}")
      model = self.by_name[name]
    else:
      able = [model for model in self.by_name.values() if ability in model.abilities]
      if len(able) > 1:
        names = ", ".join(model.name for model in able)
        raise Refused(422, f"several models can do this ({names}); choose one with the field model")
      model = (able or list(self.by_name.values()))[0]
    model.check_can(ability)
    return model

  async def answer(self, request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client leaves or the time is over."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())
    self._waiting.add(leaving)
    try:
      await asyncio.wait(
        {task, leaving}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED
      )
      if task.done():
        return task.result()
      if leaving.cancelled():
        raise Refused(503, "the server ends; send the request to another one")
      if leaving.done():
        raise Refused(499, "the client has left")
      raise Refused(
        503, f"no answer within {self.limits.timeout:g} seconds; try again when fewer requests wait"
      )
    finally:
      self._waiting.discard(leaving)
      for pending in (task, leaving):
        pending.cancel()
      await asyncio.gather(task, leaving, return_exceptions=True)


def listed(value: Any) -> list[Any]:
  return value if isinstance(value, list) else [value]


async def whole(writing: Writing) -> list[Part]:
  """All texts of a request, at their end."""
  made: dict[int, Part] = {}
  async with aclosing(writing.parts()) as parts:
    async for part in parts:
      made[part.number] = part
  return [made[number] for number in sorted(made)]


def checked_rules(**fields: Any) -> Rules:
  """Errors: `Refused` for rules that contradict each other."""
  try:
    return Rules(**fields)
  except UserError as error:
    raise Refused(422, str(error)) from None


def events(messages: AsyncIterator[dict[str, Any]], end: str | None = None) -> StreamingResponse:
  """Server-sent events, one for each message. end: the last event, as it is."""

  async def lines() -> AsyncIterator[str]:
    try:
      async for message in messages:
        yield f"data: {json.dumps(message, ensure_ascii=False)}\n\n"
    except Refused as refused:
      yield f"data: {json.dumps(error_body(refused))}\n\n"
    if end is not None:
      yield f"data: {end}\n\n"

  headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
  return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)
